"""docs/performance.md: what the bench measured, as a page that a command writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surefoot.bench.scaling import MEANING
from surefoot.bench.scaling import table as curve_table

PHASES = ("total", "generation", "scoring", "update", "cpu")
LABEL = {"total": "step", "cpu": "processor time of a step"}
OPENING = """# Performance

Made by `surefoot bench page` from what `surefoot bench trl --json` and `surefoot bench scaling --json` print, and from
the notes in `performance.notes.md`, which come last.
A ratio is of medians measured in one run, the two sides taking turns (A B A B), each in its own process, with the same
threads. Times are of the machine named below and gate no test.
"""


def versus_section(found: Mapping[str, Any]) -> str:
    """One case beside TRL: phases, memory, limits, and the settings of both sides."""
    case, ours, theirs = found["case"], found["medians"]["surefoot"], found["medians"]["trl"]
    lines = [
        f"### {case['name']}: {case['prompts']} prompts x {case['group']} completions, "
        f"{'exactly' if case['fixed'] else 'at most'} {case['limit']} tokens, beta = {case['beta']}",
        "",
        f"{found['steps']} steps of each side after {found['warmup']} that do not count, {threads_of(found)} thread(s) "
        f"each, {found['device']}; {ours['tokens']:.0f} and {theirs['tokens']:.0f} tokens a step (medians).",
        "",
        "| seconds | Surefoot | TRL | ratio |",
        "|---|---|---|---|",
    ]
    for phase in [p for p in PHASES if p in ours]:
        lines.append(
            f"| {LABEL.get(phase, phase)} | {ours[phase]:.3f} | {theirs[phase]:.3f} | {found['speedup'][phase]:.2f} |"
        )
    memory, low_high = found["peak_memory_mb"], found["speedup_quartiles"]
    lines += [
        f"| peak memory (MB) | {memory['surefoot']:.0f} | {memory['trl']:.0f} | {found['memory_ratio']:.2f} of TRL's |",
        "",
        f"Quartiles of the paired ratio: {low_high[0]:.2f} to {low_high[1]:.2f}.",
        "",
        "| against the limits | |",
        "|---|---|",
        *(f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in found["limits"].items()),
        "",
        "Settings, equal on both sides: "
        + ", ".join(f"{name} {_short(value)}" for name, value in found["settings"]["equal"].items())
        + ". Different: "
        + (", ".join(f"{name} {values}" for name, values in found["settings"]["different"].items()) or "none")
        + ".",
    ]
    return "\n".join(lines)


def threads_of(found: Mapping[str, Any]) -> Any:
    """Threads of each side."""
    return found["settings"]["equal"].get("threads", "?")


def _short(value: Any) -> str:
    return " + ".join(str(v) for v in value if v != "") if isinstance(value, list) else str(value)


def scaling_section(curves: Sequence[Mapping[str, Any]], picture: str = "") -> str:
    """Curves of step time, with slopes."""
    lines = ["## As the work grows", "", "Seconds of a step of Surefoot, and the slope of log seconds over log size."]
    if picture:
        lines += ["", f"![Step time as the work grows]({picture})"]
    for found in curves:
        lines += ["", f"### {found['axis']}: {MEANING[found['axis']]}", "", curve_table(found)]
    return "\n".join(lines)


def page(machine: str, against: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, Any]], notes: str) -> str:
    """The whole page."""
    sections = [OPENING, f"Machine: {machine}.", "## Beside TRL's GRPOTrainer", *map(versus_section, against)]
    if curves:
        sections.append(scaling_section(curves, "performance.png"))
    return "\n\n".join([*(s.strip() for s in sections), notes.strip()]).strip() + "\n"


def picture(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Log-log curves of all axes, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(3 * len(curves), 2.8), sharey=True, squeeze=False)
    for axis, found in zip(axes[0], curves, strict=True):
        for phase, label in (("total", "step"), ("rollout", "generation"), ("score", "scoring"), ("update", "update")):
            slope = found["slopes"][phase]
            axis.loglog(found["values"], found["seconds"][phase], marker="o", label=f"{label} ({slope:.2f})")
        axis.set_xlabel(found["axis"])
        axis.set_xticks(found["values"], [f"{v:g}" for v in found["values"]])
        axis.minorticks_off()
        axis.legend(fontsize=6)
    axes[0][0].set_ylabel("seconds of a step")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def machine() -> str:
    """The processor and the versions, in a line."""
    import platform

    import torch
    import transformers

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        cores = sum(line.startswith("processor") for line in lines)
    except (OSError, StopIteration):
        cores = 0
    return f"{name}, {cores or '?'} cores; torch {torch.__version__}, transformers {transformers.__version__}"
