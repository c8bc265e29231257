"""Figures of runs as PNG and SVG: one run's course, and several methods side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from surefoot.errors import InputError
from surefoot.report.data import Series, read_run

COLOURS = ("#0b62c4", "#c4570b", "#00805f", "#b0408c", "#7a6a00", "#1f8fb0", "#6d4cc0", "#6b6f73")
QUIET = "#8b939b"
STYLE: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c9ccc8",
    "axes.labelcolor": "#5d6670",
    "xtick.color": "#5d6670",
    "ytick.color": "#5d6670",
    "axes.grid": True,
    "grid.color": "#e9eae7",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "svg.hashsalt": "surefoot",
    "legend.frameon": False,
}


@contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """A figure in the house style, in inches."""
    with rc_context(STYLE):
        yield Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.07))


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem.png` and `stem.svg`; the same figure gives the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, drawing = stem.with_suffix(".png"), stem.with_suffix(".svg")
    figure.savefig(png, dpi=160, metadata={"Software": None})
    figure.savefig(drawing, metadata={"Date": None})
    return [png, drawing]


def run_figure(folder: str | Path, stem: str | Path) -> list[Path]:
    """Reward and held-out accuracy as training goes, beside accuracy before and after with 95 % intervals.

    Returns the paths of the PNG and the SVG.

    Raises:
        InputError: no run folder, or a run without steps.
    """
    run = read_run(Path(folder))
    if "reward" not in run["curves"]:
        raise InputError(f"{folder}: no steps to draw")
    evaluated = {w: run["evaluation"][w] for w in ("before", "after") if w in run["evaluation"]}
    with canvas(9.2 if evaluated else 5.6, 3.4) as figure:
        axes = figure.subplots(1, 2 if evaluated else 1, squeeze=False, width_ratios=[5, 4] if evaluated else None)[0]
        course(axes[0], run["curves"])
        if evaluated:
            before_and_after(axes[1], evaluated)
        return save(figure, Path(stem))


def course(axes: Axes, curves: Series) -> None:
    """Reward of every step, and held-out accuracy where it was measured."""
    steps, reward = np.array([p for p in curves["reward"] if p[1] is not None], dtype=float).T
    axes.plot(steps, reward, color=COLOURS[0], alpha=0.25, linewidth=1)
    axes.plot(steps, smoothed(reward), color=COLOURS[0], linewidth=2, label="training reward")
    if "heldout.pass@1" in curves:
        steps, accuracy = np.array(curves["heldout.pass@1"], dtype=float).T
        axes.plot(steps, accuracy, "o-", color=COLOURS[1], linewidth=1.5, markersize=4, label="held-out accuracy")
    axes.set(xlabel="step", title="As training goes")
    axes.legend(loc="lower right")


def before_and_after(axes: Axes, evaluated: dict[str, Any]) -> None:
    """A row each for pass@1, pass@k and maj@k: hollow before, filled after, bands for the 95 % intervals."""
    keys = [k for k in next(iter(evaluated.values())) if re.fullmatch(r"(pass|maj)@\d+", k)]
    for row, key in enumerate(keys):
        for when, record in evaluated.items():
            colour = QUIET if when == "before" else COLOURS[0]
            if f"{key}_interval" in record:
                low, high = (100 * x for x in record[f"{key}_interval"])
                axes.plot([low, high], [row, row], color=colour, linewidth=9, alpha=0.3, solid_capstyle="butt")
            axes.plot(
                100 * record[key],
                row,
                "o",
                markersize=8,
                markeredgewidth=1.8,
                markeredgecolor=colour,
                markerfacecolor="white" if when == "before" else colour,
                zorder=3,
            )
            others = [r[key] for w, r in evaluated.items() if w != when and key in r]
            close = others and abs(others[0] - record[key]) < 0.12  # labels lean away from each other
            side = "center" if not close else "left" if record[key] >= others[0] else "right"
            axes.annotate(
                f"{100 * record[key]:.1f}%",
                (100 * record[key], row),
                xytext=(0, 9),
                fontsize=9,
                textcoords="offset points",
                ha=side,
                color="#5d6670" if when == "before" else "#1d2126",
                weight="normal" if when == "before" else "bold",
            )
    n = next(iter(evaluated.values()))["n"]
    axes.set(
        xlim=(0, 104),
        ylim=(len(keys) - 0.5, -0.65),
        yticks=range(len(keys)),
        yticklabels=keys,
        xlabel="% right (hollow: before, filled: after)",
        title=f"On {n} held-out problems",
    )
    axes.grid(axis="y", visible=False)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Mean under a Gaussian window over a fortieth of the curve, as in the report."""
    sigma = max(1.5, len(values) / 40)
    at = np.arange(len(values))
    weights = np.exp(-(((at[:, None] - at[None, :]) / sigma) ** 2) / 2)
    return weights @ values / weights.sum(1)


def methods_figure(rows: Sequence[dict[str, Any]], courses: dict[str, list[Series]], before: float, path: Path) -> Path:
    """Held-out accuracy of several methods: by step (mean and range over seeds), and at the end with intervals.

    Args:
        rows: name, mean, low, high and per_seed of each method, shares in [0, 1].
        courses: method -> curves of each of its seeds.
        before: accuracy before training.
    """
    with canvas(10, max(3.2, 1.4 + 0.45 * len(rows))) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[5, 5])
        for i, row in enumerate(rows):
            colour = COLOURS[i % len(COLOURS)]
            by_seed = [dict(c["heldout.pass@1"]) for c in courses[row["name"]] if "heldout.pass@1" in c]
            steps = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
            if steps:
                table = 100 * np.array([[c[s] for s in steps] for c in by_seed])
                left.fill_between(steps, table.min(0), table.max(0), color=colour, alpha=0.12, linewidth=0)
                left.plot(steps, table.mean(0), color=colour, linewidth=2, label=row["name"])
            right.plot(
                [100 * row["low"], 100 * row["high"]],
                [i, i],
                color=colour,
                linewidth=9,
                alpha=0.28,
                solid_capstyle="butt",
            )
            right.plot(100 * np.array(row["per_seed"]), [i] * len(row["per_seed"]), "|", color=colour, markersize=11)
            right.plot(100 * row["mean"], i, "o", color=colour, markersize=7)
        right.axvline(100 * before, color=QUIET, linestyle=":", linewidth=1.2)
        right.annotate(
            "before",
            (100 * before, 1.0),
            (3, -10),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=QUIET,
            fontsize=9,
        )
        left.set(xlabel="step", ylabel="held-out accuracy, %", title="As training goes (range over seeds)")
        right.set(
            yticks=range(len(rows)),
            yticklabels=[r["name"] for r in rows],
            ylim=(len(rows) - 0.4, -0.8),
            xlabel="pass@1, % (dot: mean; ticks: seeds; band: 95 %)",
            title="At the end",
        )
        right.grid(axis="y", visible=False)
        figure.savefig(path, dpi=160, metadata={"Software": None})
        return path
