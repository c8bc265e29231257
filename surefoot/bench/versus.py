"""Surefoot beside TRL in one run: a step of one, a step of the other, and so on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from surefoot.bench.cases import Case
from surefoot.bench.worker import Worker

PHASES = ("total", "generation", "scoring", "update", "cpu")


def versus(
    case: Case, steps: int, warmup: int, threads: int, device: str, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Run both sides alternately; the result is JSON: settings, medians, ratios (TRL over Surefoot), limits."""
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(Worker(side, case, threads, device)) for side in ("surefoot", "trl"))
        records: dict[str, list[dict[str, Any]]] = {"surefoot": [], "trl": []}
        limits = []
        for step in range(warmup + steps):
            for worker in (ours, theirs):
                record = worker.ask("step")
                if step >= warmup:
                    records[worker.side].append(record)
            if step >= warmup:
                limits.append(ours.ask("limits"))
            progress(f"{case.name}: step {step + 1} of {warmup + steps}")
        memory = {worker.side: worker.ask("memory")["peak"] for worker in (ours, theirs)}
        settings = {worker.side: worker.settings for worker in (ours, theirs)}
    return {
        "case": asdict(case),
        "steps": steps,
        "warmup": warmup,
        "device": device,
        "settings": compared(settings),
        **summary(records, memory, settings),
        "limits": against_limits(records["surefoot"], limits),
        "records": records,
    }


def compared(settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The settings that are equal on both sides, and those that are not (an empty table if all is well)."""
    own = {"loaded_mb"}
    ours, theirs = settings["surefoot"], settings["trl"]
    names = [n for n in ours if n not in own]
    return {
        "equal": {n: ours[n] for n in names if ours[n] == theirs.get(n)},
        "different": {n: [ours[n], theirs.get(n)] for n in names if ours[n] != theirs.get(n)},
    }


def summary(
    records: dict[str, list[dict[str, Any]]], memory: dict[str, float], settings: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Medians by side and phase, spreads (quartiles of the step), ratios of medians, peak memory in MB."""
    medians = {
        side: {
            name: statistics.median(r[name] for r in rows) for name in (*PHASES, "tokens", "longest", "prompt_tokens")
        }
        for side, rows in records.items()
    }
    spread = {side: quartiles([r["total"] for r in rows]) for side, rows in records.items()}
    ratios = {name: medians["trl"][name] / medians["surefoot"][name] for name in PHASES}
    per_token = {side: m["total"] / m["tokens"] for side, m in medians.items()}
    paired = [b["total"] / a["total"] for a, b in zip(records["surefoot"], records["trl"], strict=True)]
    return {
        "medians": medians,
        "quartiles": spread,
        "speedup": ratios,
        "speedup_quartiles": quartiles(paired),
        "speedup_per_token": per_token["trl"] / per_token["surefoot"],
        "peak_memory_mb": memory,
        "loaded_memory_mb": {side: s["loaded_mb"] for side, s in settings.items()},
        "memory_ratio": memory["surefoot"] / memory["trl"],
    }


def quartiles(values: Sequence[float]) -> list[float]:
    """First and third quartile."""
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def against_limits(records: list[dict[str, Any]], limits: list[dict[str, Any]]) -> dict[str, float]:
    """A step over its arithmetic limit, the share of its limit that decoding reaches, the share of overhead."""
    return {
        "matmul_gflops_per_s": statistics.median(x["matmul_flops_per_s"]["best"] for x in limits) / 1e9,
        "torch_matmul_gflops_per_s": statistics.median(x["matmul_flops_per_s"]["torch"] for x in limits) / 1e9,
        "step_gflops": statistics.median(x["flops"]["step"] for x in limits) / 1e9,
        "step_limit_s": statistics.median(x["step_limit"] for x in limits),
        "step_over_limit": statistics.median(
            r["total"] / x["step_limit"] for r, x in zip(records, limits, strict=True)
        ),
        "cpu_over_limit": statistics.median(r["cpu"] / x["step_limit"] for r, x in zip(records, limits, strict=True)),
        "step_over_torch_limit": statistics.median(
            r["total"] / x["step_limit_torch"] for r, x in zip(records, limits, strict=True)
        ),
        "decode_share_of_limit": statistics.median(
            x["decode_limit"] / r["generation"] for r, x in zip(records, limits, strict=True)
        ),
        "decode_share_of_bandwidth": statistics.median(
            x["decode_memory_limit"] / r["generation"] for r, x in zip(records, limits, strict=True)
        ),
        "decode_tokens_per_s": statistics.median(r["tokens"] / r["generation"] for r in records),
        "update_share_of_matmul_rate": statistics.median(
            x["flops"]["update"] / r["update"] / x["matmul_flops_per_s"]["best"]
            for r, x in zip(records, limits, strict=True)
        ),
        "overhead_share": statistics.median(1 - r["arithmetic"] / r["total"] for r in records),
    }


def table(found: dict[str, Any]) -> str:
    """The result for a terminal."""
    medians, lines = found["medians"], [f"{found['case']['name']}: {found['steps']} steps of each side, alternating"]
    lines.append(f"  {'seconds':<14}{'surefoot':>10}{'trl':>10}{'ratio':>8}")
    for name in PHASES:
        ours, theirs = medians["surefoot"][name], medians["trl"][name]
        lines.append(f"  {name:<14}{ours:>10.4f}{theirs:>10.4f}{found['speedup'][name]:>8.2f}")
    low, high = found["speedup_quartiles"]
    lines.append(f"  quartiles of the paired ratio {low:.2f} to {high:.2f}")
    for name in ("tokens", "longest", "prompt_tokens"):
        lines.append(f"  {name:<14}{medians['surefoot'][name]:>10.0f}{medians['trl'][name]:>10.0f}")
    memory = found["peak_memory_mb"]
    lines.append(
        f"  {'peak MB':<14}{memory['surefoot']:>10.0f}{memory['trl']:>10.0f}{found['memory_ratio']:>8.2f}"
        " (ours / TRL's)"
    )
    for name, value in found["limits"].items():
        lines.append(f"  {name:<24}{value:>10.3f}")
    different = found["settings"]["different"]
    lines.append(f"  settings: {len(found['settings']['equal'])} equal, different: {different or 'none'}")
    return "\n".join(lines)
