"""`docs/leaderboard.md` and its pictures, from what `leaderboard` found."""

from __future__ import annotations

import datetime
import math
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from surefoot.comparison.leaderboard import Entry, Leaderboard, Stressed
from surefoot.comparison.output import in_markdown, points, share
from surefoot.comparison.results import Pair
from surefoot.files import write_aside
from surefoot.report.figures import COLOURS, QUIET, canvas, save

BASE = "grpo"  # what every method is said to beat, or not


def write_page(found: Leaderboard, path: Path, command: str) -> list[Path]:
    """Write the page and, beside it, `<stem>-accuracy` and `<stem>-stress` as PNG and SVG.

    What somebody wrote in `<stem>.notes.md` comes last on the page.
    """
    stem, notes = path.with_suffix(""), path.with_suffix(".notes.md")
    accuracy, stress = stem.with_name(f"{stem.name}-accuracy"), stem.with_name(f"{stem.name}-stress")
    drawn = [*accuracy_figure(found, accuracy), *stress_figure(found, stress)]
    more = f"\n{notes.read_text(encoding='utf-8').strip()}\n" if notes.is_file() else ""
    write_aside(path, (page(found, command, accuracy.name, stress.name) + more).encode())
    return [path, *drawn]


def page(found: Leaderboard, command: str, accuracy: str, stress: str) -> str:
    """The page in Markdown."""
    plan = found.plan
    parts = [
        "# Leaderboard",
        f"{len(plan.methods)} methods, {len(plan.tasks)} tasks, {plan.seeds} seeds, {plan.steps} steps; "
        f"policy {plan.policy}. {datetime.date.today()}, {machine()}. Made by",
        f"```\n{command}\n```",
        "Every method has its paper's defaults and the same tuning: "
        f"{len(plan.factors)} learning rates ({', '.join(f'{f:g}' for f in plan.factors)} times the policy's own), one "
        "seed that the comparison does not use, chosen by accuracy on the training problems of the first task. "
        f"Held-out: {plan.problems} problems, {plan.samples} samples each. Intervals (95 %) take seeds and problems as "
        "samples of more.",
        power(found),
        f"![pass@1 after training]({accuracy}.png)",
    ]
    for task in plan.tasks:
        parts += [f"## {task}", in_markdown(_table(found, task)), verdict(found, task)]
    parts += [
        "## Larger learning rates",
        f"On {plan.tasks[0]}, at multiples of the policy's own learning rate. A run collapses if it stops on a number "
        "that is not finite, or ends with a lower pass@1 than it began with "
        f"({plan.stress_samples} samples a problem); the interval is Clopper-Pearson's.",
        in_markdown(_stress_table(found)),
        f"![Collapse]({stress}.png)",
        "## Tuning",
        "Training accuracy over the last third of the steps, at each learning rate; the best is used above. "
        + edges(found),
        in_markdown(_tuning_table(found)),
    ]
    return "\n\n".join(parts) + "\n"


def machine() -> str:
    """Cores and architecture."""
    return f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"


def power(found: Leaderboard) -> str:
    """How large a difference has to be to be seen here."""
    widths = np.array([(p.high - p.low) / 2 for c in found.comparisons.values() for p in c.pairs])
    if not np.isfinite(widths).any():
        return "One method, or one seed and one problem: nothing is compared."
    median = float(np.median(widths[np.isfinite(widths)]))
    return (
        f"**What this can see.** The median half-width of an interval of a difference between two methods is "
        f"{100 * median:.1f} points: smaller differences are mostly luck at this size. `--seeds` and `--steps` make it "
        "larger; steps are few, so this compares how fast methods learn and not where they end."
    )


def verdict(found: Leaderboard, task: str) -> str:
    """Who helped, who did not, and who is really different from GRPO."""
    entries = _of(found.entries, task)
    still = [e.method for e in entries if e.low <= e.before]
    said = [f"Not shown to help at all: {', '.join(still)}." if still else "Every method helped."]
    against = [p for p in found.comparisons[task].pairs if BASE in (p.a, p.b)]
    better = [p.a for p in against if p.b == BASE and p.real]
    worse = [p.b for p in against if p.a == BASE and p.real]
    if against:
        said.append(f"Really better than {BASE} (p < 0.05, Holm over all pairs): {_list(better)}.")
        said.append(f"Really worse: {_list(worse)}.")
        level = [e.method for e in entries if e.method not in (*better, *worse, BASE)]
        said.append(f"No difference shown: {_list(level)}.")
    narrower = [e.method for e in entries if e.passk < e.passk_before]
    if narrower:
        said.append(f"pass@{found.plan.samples} fell for {', '.join(narrower)}.")
    return " ".join(said)


def edges(found: Leaderboard) -> str:
    """Which methods' best rates are at the end of those tried, beyond which a better one may lie."""
    ends = [m for m, row in found.tuning.items() if max(row, key=lambda lr: row[lr]) in (min(row), max(row))]
    if not ends:
        return "No best rate is the lowest or the highest that was tried."
    who = "every method" if len(ends) == len(found.tuning) else _list(ends)
    return f"For {who} the best is the lowest or the highest that was tried: a better one may lie beyond."


def accuracy_figure(found: Leaderboard, stem: Path) -> list[Path]:
    """pass@1 of every method with its interval, a panel a task."""
    tasks = found.plan.tasks
    with canvas(3.6 * len(tasks) + 1, 1.2 + 0.32 * len(found.plan.methods)) as figure:
        panels = figure.subplots(1, len(tasks), squeeze=False)[0]
        for panel, task in zip(panels, tasks, strict=True):
            entries = _of(found.entries, task)
            for row, e in enumerate(entries):
                colour = COLOURS[1] if e.method == BASE else COLOURS[0]
                panel.plot([100 * e.low, 100 * e.high], [row, row], color=colour, linewidth=7, alpha=0.28)
                panel.plot(100 * e.pass1, row, "o", color=colour, markersize=6)
            panel.axvline(100 * float(np.mean([e.before for e in entries])), color=QUIET, linestyle=":")
            panel.set(
                yticks=range(len(entries)),
                yticklabels=[e.method for e in entries],
                ylim=(len(entries) - 0.4, -0.6),
                xlabel="pass@1, % (dotted: before)",
                title=task.split(":")[1] if ":" in task else task,
            )
            panel.grid(axis="y", visible=False)
        return save(figure, stem)


def stress_figure(found: Leaderboard, stem: Path) -> list[Path]:
    """Collapse rate of every method at each multiple of the learning rate, worst first."""
    order = sorted(found.plan.methods, key=lambda m: -sum(s.collapsed for s in found.stressed if s.method == m))
    with canvas(7.2, 1.2 + 0.34 * len(order)) as figure:
        axes = figure.subplots()
        height = 0.8 / max(1, len(found.plan.stress))
        for i, factor in enumerate(found.plan.stress):
            for row, method in enumerate(order):
                s = _stress(found.stressed, method, factor)
                y = row + (i - (len(found.plan.stress) - 1) / 2) * height
                colour = COLOURS[i]
                axes.plot([100 * x for x in s.interval], [y, y], color=colour, linewidth=4, alpha=0.25)
                label = f"{factor:g} times" if row == 0 else None
                axes.plot(100 * s.collapsed / s.runs, y, "o", color=colour, markersize=5, label=label)
        axes.set(
            yticks=range(len(order)),
            yticklabels=order,
            ylim=(len(order) - 0.4, -0.6),
            xlabel="runs that collapsed, % (band: 95 %)",
            title="At multiples of the learning rate",
        )
        axes.legend(loc="upper left")
        axes.grid(axis="y", visible=False)
        return save(figure, stem)


def _of(entries: Iterable[Entry], task: str) -> list[Entry]:
    return sorted((e for e in entries if e.task == task), key=lambda e: -e.pass1)


def _stress(stressed: Iterable[Stressed], method: str, factor: float) -> Stressed:
    return next(s for s in stressed if s.method == method and s.factor == factor)


def _table(found: Leaderboard, task: str) -> list[list[str]]:
    k = found.plan.samples
    against: dict[str, Pair] = {}
    for p in found.comparisons[task].pairs:
        if BASE in (p.a, p.b):
            against[p.b if p.a == BASE else p.a] = p
    measured = ["entropy", "KL", "ECE", "spikes", "s", "lr"]
    rows = [["method", "pass@1", "95 % interval", f"minus {BASE}", f"pass@{k}", *measured]]
    for e in _of(found.entries, task):
        p = against.get(e.method)
        sign = 1 if p and p.a == e.method else -1
        rows.append(
            [
                e.method,
                share(e.pass1),
                f"{share(e.low)} to {share(e.high)}",
                "" if p is None else points(sign * p.mean) + (" *" if p.real else ""),
                share(e.passk),
                f"{e.entropy:.3f}",
                f"{e.kl:.3f}",
                f"{e.ece:.3f}",
                f"{e.spikes:.1f}",
                f"{e.seconds:.0f}",
                f"{e.lr:.1e}",
            ]
        )
    first = _of(found.entries, task)[0]
    rows.append(["(before)", share(first.before), "", "", share(first.passk_before), *[""] * 6])
    return rows


def _stress_table(found: Leaderboard) -> list[list[str]]:
    factors = found.plan.stress
    rows = [["method", *(f"{f:g}x: collapsed" for f in factors), *(f"{f:g}x: pass@1" for f in factors)]]
    for method in found.plan.methods:
        cells = [_stress(found.stressed, method, f) for f in factors]
        rates = [f"{s.collapsed} of {s.runs} [{100 * s.interval[0]:.0f}, {100 * s.interval[1]:.0f}] %" for s in cells]
        rows.append([method, *rates, *(share(s.pass1) for s in cells)])
    return rows


def _tuning_table(found: Leaderboard) -> list[list[str]]:
    rates = sorted({lr for row in found.tuning.values() for lr in row})
    rows = [["method", *(f"{lr:.1e}" for lr in rates)]]
    for method, row in found.tuning.items():
        best = max(row, key=lambda lr: row[lr])
        rows.append(
            [
                method,
                *(
                    "stopped" if row[lr] == -math.inf else f"**{share(row[lr])}**" if lr == best else share(row[lr])
                    for lr in rates
                ),
            ]
        )
    return rows


def _list(names: list[str]) -> str:
    return ", ".join(names) if names else "none"
