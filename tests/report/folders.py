"""Synthetic run folders in the documented format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tomli_w

from surefoot.evaluation.metrics import summarise


def make_run(
    folder: Path,
    seed: int = 0,
    steps: int = 40,
    final: float = 0.75,
    method: str = "grpo",
    problems: int = 64,
    k: int = 4,
    rollouts: bool = True,
    evaluation: bool = True,
    unit: str = "tokens",
) -> Path:
    """A run whose accuracy climbs from 0.4 to `final`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    config = {
        "surefoot": "0.1.0",
        "policy": "pebble",
        "task": "rg:chain_sum",
        "reward": "",
        "train": {"steps": steps, "seed": seed, "lr": 1e-3},
        "method": {"name": method, "advantage": {"part": "GroupNormalized", "eps": 1e-6}},
    }
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    level = 0.4 + (final - 0.4) * np.linspace(0, 1, steps) ** 0.7
    metrics, timings = [], []
    for i in range(steps):
        reward = float(np.clip(level[i] + rng.normal(0, 0.04), 0, 1))
        line = {
            "step": i + 1,
            "loss": rng.normal(0, 0.01),
            "reward": reward,
            "reward_std": 0.45,
            "correct": reward,
            "entropy": 0.6 - 0.3 * i / steps + rng.normal(0, 0.01),
            "kl": 0.05 * i / steps,
            "clipped": 0.02,
            "grad_norm": 0.5 + 0.1 * rng.random(),
            "length": 24 + rng.normal(),
            "truncated": 0.01,
            "zero_groups": 0.2,
            "tokens": 3000,
            "lr": 1e-3,
            "rewards": {"accuracy": reward},
        }
        if (i + 1) % 10 == 0:
            line["heldout"] = {"pass@1": float(level[i]), "n": 128}
        metrics.append(line)
        timings.append({"step": i + 1, "rollout": 0.6, "update": 0.3, "total": 1.0, "tokens_per_s": 3000.0})
    lines(folder / "metrics.jsonl", metrics)
    lines(folder / "timings.jsonl", timings)
    lines(
        folder / "events.jsonl",
        [
            {
                "step": 0,
                "kind": "start",
                "message": "surefoot 0.1.0",
                "time": "2026-11-24T12:00:00",
                "policy": {"unit": unit},
            },
            {"step": 20, "kind": "alarm", "message": "entropy fell by half", "time": "2026-11-24T12:01:00"},
            {"step": steps, "kind": "end", "message": "trained for 40.0 s", "time": "2026-11-24T12:02:00"},
        ],
    )
    if rollouts:
        write_rollouts(folder / "rollouts", level, rng)
    if evaluation:
        records = {w: evaluate(rng, problems, k, p) for w, p in (("before", 0.4), ("after", final))}
        (folder / "evaluation.json").write_text(json.dumps({"task": "rg:chain_sum", "k": k, **records}))
    return folder


def lines(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def write_rollouts(folder: Path, level: np.ndarray, rng: np.random.Generator) -> None:
    """Eight groups of eight a step; the last group always fails, the first always succeeds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rows = []
    for i, share in enumerate(level):
        for group in range(8):
            chance = {0: 1.0, 7: 0.0}.get(group, share)
            for right in rng.random(8) < chance:
                a, b = group + 10, group + 3
                rows.append(
                    {
                        "step": i + 1,
                        "prompt": group,
                        "group": group,
                        "question": f"{a} + {b} =",
                        "answer": str(a + b),
                        "completion": f"{a}+{b}={a + b if right else a - b}",
                        "reward": float(right),
                        "reward.accuracy": float(right),
                        "correct": bool(right),
                        "truncated": False,
                        "length": 8,
                        "logp": -2.0,
                        "ref_logp": None,
                        "advantage": 0.0,
                        "seed": 1,
                    }
                )
    for start in range(0, len(level), 10):
        block = [row for row in rows if start < row["step"] <= start + 10]
        pq.write_table(pa.Table.from_pylist(block), folder / f"step-{block[-1]['step']:06d}.parquet")


def evaluate(rng: np.random.Generator, problems: int, k: int, level: float) -> dict:
    """An evaluation at about `level`; the same problems are hard in every run."""
    ease = np.random.default_rng(99).normal(0, 1.5, problems)
    shift = np.log(level / (1 - level))
    correct = rng.random((problems, k)) < (1 / (1 + np.exp(-(ease + shift))))[:, None]
    logp = -6 + 2 * correct + rng.normal(0, 2, correct.shape)
    record = summarise(
        correct,
        np.minimum(logp, 0),
        np.full(correct.shape, 8),
        [[f"{i}" if c else f"x{j}" for j, c in enumerate(row)] for i, row in enumerate(correct)],
        k,
    )
    record["samples"] = [
        {
            "question": f"{i} + {i + 5} =",
            "answer": str(2 * i + 5),
            "correct": bool(c),
            "completion": f"{i}+{i + 5}={2 * i + 5 if c else 2 * i - 1}\n<b>so</b>",
        }
        for i, c in enumerate(correct[:24, 0])
    ]
    return record
