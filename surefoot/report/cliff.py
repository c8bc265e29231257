"""Pictures and page of a cliff analysis: the jump, the slope that regularisation makes of it, and its price."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from surefoot.exact import cliff
from surefoot.exact.cliff import Cliff, Stabiliser
from surefoot.files import write_aside
from surefoot.report.data import evenly
from surefoot.report.figures import COLOURS, QUIET, canvas, save
from surefoot.stability.from_samples import Estimate
from surefoot.stability.tables import Problem

HERE = Path(__file__).parent
EXTRA = """
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid); }
th { color: var(--soft); font-weight: 500; font-size: 14px; }
figure { margin: 0; background: #fff; border-radius: 6px; } figure svg { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; } header.wide { max-width: none; } .lead { font-size: 18px; margin: 10px 0 20px; }
"""
Rows = Sequence[Sequence[str]]


def draw_jump(
    problem: Problem,
    found: Cliff,
    eps: float,
    strengths: Sequence[float],
    symbol: str,
    stem: Path,
    reference: np.ndarray | None = None,
) -> list[Path]:
    """The policy at the edge as the reward moves along the worst direction: a jump, and a slope for each strength."""
    edge = found.edge
    assert edge is not None, "there is nothing to draw where no state has two actions"
    half = max(2 * edge.distance, 4 * eps)
    # Three points close to the edge make the greedy curve vertical.
    moves = np.sort(
        np.r_[
            np.linspace(edge.distance - half, edge.distance + half, 61),
            edge.distance + half * 1e-4 * np.array([-1.0, 1.0]),
        ]
    )
    with canvas(7.4, 3.9) as figure:
        axes = figure.subplots()
        for colour, strength in zip(COLOURS, (0.0, *[s for s in strengths if s > 0]), strict=False):
            chance = []
            for t in moves:
                q = cliff.solve(replace(problem.mdp, R=problem.mdp.R + t * edge.direction), strength, reference)
                chance.append(cliff.soft_policy(q, strength, reference)[edge.state, edge.rival])
            axes.plot(
                moves,
                chance,
                color=colour,
                linewidth=2.2 if strength == 0 else 1.6,
                label="greedy" if strength == 0 else f"{symbol} = {strength:g}",
            )
        axes.axvline(0, color=QUIET, linewidth=1)
        axes.annotate(
            "your reward", (0, 1.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8, color=QUIET
        )
        axes.set(
            ylim=(-0.03, 1.03),
            xlabel="change of the reward along the worst direction (sup norm)",
            ylabel=f"probability of {problem.actions[edge.rival]!r} in {problem.states[edge.state]!r}",
        )
        axes.legend(loc="upper left", fontsize=8)
        return save(figure, stem)


def draw_price(
    problem: Problem,
    found: Cliff,
    eps: float,
    tv: float,
    asked: Stabiliser,
    symbol: str,
    stem: Path,
    reference: np.ndarray | None = None,
) -> list[Path]:
    """Stability and its price against the strength of regularisation."""
    assert found.edge is not None, "there is nothing to draw where no state has two actions"
    top = max(asked.alpha, asked.at_edge, eps)
    low = max(min(asked.at_edge, asked.alpha) / 30, top * 1e-4)
    grid = np.geomspace(low, max(asked.alpha * 3, low * 10), 31)
    rows = cliff.stability(problem.mdp, found.edge, eps, [float(a) for a in grid], reference)
    with canvas(9.2, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        left.plot(grid, [r.tv for r in rows], color=COLOURS[0], linewidth=2, label="worst line through your reward")
        left.plot(grid, [r.certified for r in rows], ":", color=COLOURS[1], linewidth=2, label="bound for any reward")
        left.axhline(tv, color=QUIET, linewidth=1)
        left.plot([asked.alpha], [tv], "o", color=COLOURS[1], markersize=6)
        if asked.at_edge > 0:
            left.plot([asked.at_edge], [tv], "o", color=COLOURS[0], markersize=6)
        left.annotate(
            f"asked: {tv:g}", (0.01, tv), xycoords=("axes fraction", "data"), va="bottom", fontsize=8, color=QUIET
        )
        left.set(
            xscale="log",
            yscale="log",
            xlabel=f"{symbol}",
            ylabel=f"total variation for a change of {eps:g}",
            title="Stability",
        )
        left.legend(loc="lower left", fontsize=8)
        right.plot(grid, [max(r.price, 0.0) for r in rows], color=COLOURS[2], linewidth=2)
        for at, colour in ((asked.at_edge, COLOURS[0]), (asked.alpha, COLOURS[1])):
            if at > 0:
                right.axvline(at, color=colour, linewidth=1, linestyle="--")
        right.set(xscale="log", xlabel=f"{symbol}", ylabel="reward given up", title="Its price")
        return save(figure, stem)


def draw_estimates(
    prompts: Sequence[Estimate], exact: Mapping[tuple[int | None, str], float], stem: Path, most: int = 24
) -> list[Path]:
    """A panel for each estimator, a row for each prompt: estimates with their intervals, and exact values beside them.

    Args:
        exact: by (prompt, name of the estimate), where it is known.
        most: prompts that are drawn, spread evenly over all.
    """
    shown = evenly(sorted({e.prompt for e in prompts if e.prompt is not None}), most)
    known = [e for e in prompts if e.value is not None and np.isfinite(e.value) and e.prompt in shown]
    panels = sorted(dict.fromkeys((e.item, e.name) for e in known))
    rows = -(-len(panels) // 4)
    with canvas(11.0, rows * (1.1 + 0.13 * len(shown))) as figure:
        grid = figure.subplots(rows, 4, squeeze=False, sharey=True).ravel()
        for axes, (item, name) in zip(grid, panels, strict=False):
            for e in (e for e in known if e.name == name):
                row = shown.index(e.prompt)
                if e.interval is not None:
                    axes.plot(e.interval, [row, row], color=COLOURS[0], linewidth=5, alpha=0.25, solid_capstyle="butt")
                axes.plot(e.value, row, "o", markersize=5, markeredgecolor=COLOURS[0], markerfacecolor="white")
                if (e.prompt, name) in exact:
                    axes.plot(exact[e.prompt, name], row, "o", markersize=3, color=COLOURS[1], zorder=3)
            axes.set_title(f"{item}. {name}", fontsize=8)
            axes.set(yticks=range(len(shown)), yticklabels=shown, ylim=(len(shown) - 0.4, -0.6))
            axes.tick_params(labelsize=6)
            axes.grid(axis="y", visible=False)
        for axes in grid[len(panels) :]:
            axes.axis("off")
        return save(figure, stem)


def page(path: Path, title: str, lead: str, sections: Sequence[tuple[str, str]]) -> Path:
    """Write a self-contained page: a title, a sentence, and sections of (heading, html)."""
    cards = "\n".join(f'<section class="card"><h2>{html.escape(h)}</h2>{body}</section>' for h, body in sections)
    style = (HERE / "style.css").read_text(encoding="utf-8")
    text = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{style}{EXTRA}</style>
<body><main class="wide"><p class="brand">Surefoot: the policy cliff</p><h1>{html.escape(title)}</h1>
<p class="lead">{html.escape(lead)}</p>
{cards}
</main></body></html>
"""
    write_aside(path, text.encode("utf-8"))
    return path


def figure(paths: Sequence[Path]) -> str:
    """A drawn picture as inline SVG."""
    drawing = next(p for p in paths if p.suffix == ".svg").read_text(encoding="utf-8")
    return f"<figure>{drawing[drawing.index('<svg') :]}</figure>"


def table(header: Sequence[str], rows: Rows) -> str:
    """An HTML table of text."""
    head = "".join(f"<th>{html.escape(c)}</th>" for c in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def paragraph(text: str) -> str:
    """A quiet paragraph."""
    return f'<p class="soft">{html.escape(text)}</p>'
