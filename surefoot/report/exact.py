"""docs/exact.md: solver times, worked examples of the cliff, verdicts and rates of the theory, samples beside truth.

Verdicts and rates are read from the recorded claims, times and the bridge from files beside the page; the examples are
computed. `python -m surefoot.report.exact` writes the page and its pictures anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.exact import cliff
from surefoot.papers import result
from surefoot.report.figures import COLOURS, canvas, save
from surefoot.stability import tables

DOCS = Path(__file__).parent.parent.parent / "docs"
NUMBERS: dict[str, Sequence[tuple[str, str]]] = {
    "policy-cliff": (
        ("B tree, beta=0, eps=0.001: TV of trained policies", "jump of exact-gradient policies for a change of .001"),
        ("B tree, beta=0.1, eps=0.001: TV of optima", "with beta = .1"),
        ("B tree, beta=0.5, eps=0.001: TV of optima", "with beta = .5"),
    ),
    "kl-bayes": (
        ("A reward alone: entropy", "entropy that reward alone leaves, nats"),
        ("A reverse KL, beta=0.5: KL to the posterior", "KL to the posterior, reverse engine"),
        ("A forward KL, beta=0.5: KL to the posterior", "forward engine"),
    ),
    "alignment-asymptotics": (
        ("A n=10: gap to the tilt", "gap of best of N to the tilt at 10 symbols"),
        ("A n=2560: gap to the tilt", "at 2560"),
    ),
    "sqirl": (
        ("A locks: Spearman of horizon log A and episodes", "rank correlation of the predicted and needed episodes"),
        ("B random: Spearman of horizon log A and episodes", "on random problems"),
    ),
    "r2pvi": (
        ("A TV .1: more than PEVI at q=1, paired", "return above PEVI in the worst test, TV at price .1"),
        ("A KL .1: more than PEVI at q=1, paired", "KL"),
    ),
    "demo-regularized-rl": (
        ("A plain, N=2, n=400: mean value", "value with 2 demonstrations and 400 episodes, plain"),
        ("A DemoReg, N=2, n=400: mean value", "demonstration-regularised"),
    ),
}


def markdown() -> str:
    """The page."""
    return "\n".join(
        ["# Truth and the cliff", "", *_lead(), *_times(), *_examples(), *_verdicts(), *_rates(), *_bridge()]
    )


LEAD = """\
`surefoot/exact` solves small problems in float64, so that every sampled estimate has something to be held against;
`surefoot cliff` says how far a reward, or a run, is from a point where its best policy jumps. This page is made by
`python -m surefoot.report.exact` from recorded results; every claim is in [claims.md](claims.md).
"""
PLACES = {
    "tabular MDPs, discounted and of finite horizon: hard, soft, reference-KL solvers, occupancies": "`exact/mdp.py`",
    "exact and natural policy gradients, Fisher matrices": "`exact/gradient.py`",
    "f-divergences and their regularised optima": "`exact/divergence.py`",
    "robust value iteration: uncertainty sets and penalties": "`exact/robust.py`",
    "matrix, Markov and general-preference games: Nash, quantal response, exploitability": "`exact/games.py`",
    "token trees, contextual bandits": "`exact/tree.py`, `exact/bandit.py`",
    "chain, lock, gridworld, cliff walk, river swim, Garnet, trees with several answers": "`exact/generators.py`",
    "optimal-action sets, gaps, distance to the cliff, witnesses, what stability costs": "`exact/cliff.py`",
    "nine estimators from a run's samples, and the same over all answers": "`stability/`",
}


def _lead() -> list[str]:
    return [LEAD, *_table(["what", "where"], PLACES.items())]


def _times() -> list[str]:
    data = _read("exact-times.json")
    times = data["times"]
    sizes = sorted({_nominal(t) for t in times})
    rows = []
    for key in dict.fromkeys((t["world"], t["solver"]) for t in times):
        own = sorted((t for t in times if (t["world"], t["solver"]) == key), key=lambda t: t["states"])
        rows.append([*key, *(f"{t['seconds']:.3g} s" for t in own), str(own[-1]["iterations"])])
    return [
        "",
        "## Solver times",
        "",
        "4 actions, discount .95. Value iterations stop at an error of 1e-8 in V, which they bound; policy iteration",
        f"goes on to rounding. `surefoot bench solvers` on {data['machine']}, alone on the machine.",
        "",
        *_table(["world", "solver", *(f"{n:,} states" for n in sizes), "iterations"], rows),
        "",
        "![Seconds against states](exact-times.png)",
    ]


def _nominal(t: dict[str, Any]) -> int:
    """The size that was asked for: a grid has the next square number of cells."""
    return 10 ** round(np.log10(t["states"]))


def _examples() -> list[str]:
    lines = ["", "## Two rewards on the edge", ""]
    for name, told in (
        ("three-arm", "Three arms, r = (1, 1, 0): a tie. Whatever the size of a change, it decides."),
        ("gridworld", "The 4 by 3 grid of Russell and Norvig, discount .99."),
    ):
        problem = tables.example(name)
        found = cliff.analyse(problem.mdp)
        assert found.edge is not None
        rows = cliff.stability(problem.mdp, found.edge, 0.01, (0.0, 0.02, 0.1))
        asked = cliff.stabilise(problem.mdp, found.edge, 0.05, 0.01)
        lines += [
            f"`surefoot cliff --example {name}`. {told} Distance to the cliff: {found.edge.distance:.4g} "
            f"(certified from below {found.certified:.3g}, witness from above {found.witness:.3g}).",
            "",
            *_table(
                ["entropy bonus", "policies move, for a change of .01", "sharp bound", "Prop. 4.5", "reward", "price"],
                [
                    [
                        f"{r.alpha:g}" if r.alpha else "none",
                        f"{r.tv:.4f}",
                        f"{r.sharp:.4f}",
                        f"{r.linear:.4f}" if np.isfinite(r.linear) else "none",
                        f"{r.reward:.4f}",
                        f"{max(r.price, 0.0):.2g}",
                    ]
                    for r in rows
                ],
            ),
            "",
            f"A bonus of {asked.alpha:.4g} keeps every pair of rewards .01 apart within .05, at a price of "
            f"{asked.price:.3g}; along the worst line through this reward {asked.at_edge:.4g} is enough, at "
            f"{max(asked.price_at_edge, 0.0):.3g}.",
            "",
        ]
    return lines[:-1]


def _verdicts() -> list[str]:
    rows = []
    for slug, chosen in NUMBERS.items():
        record = result(slug)
        by_name = {m["name"]: m["value"] for m in record["measured"]}
        told = "; ".join(f"{label} {by_name[name]:.3g}" for name, label in chosen)
        rows.append([f"[{slug}](claims.md#{slug})", record["verdict"], str(len(record["seeds"])), told])
    return ["", "## Six theories", "", *_table(["system", "verdict", "seeds", "main numbers"], rows)]


def rates() -> list[dict[str, Any]]:
    """Every slope that was measured at several sizes and that a theory has a number for."""
    return [
        m | {"slug": slug}
        for slug in NUMBERS
        for m in result(slug)["measured"]
        if m["name"].endswith(": slope") and "at" in m and "expected" in m
    ]


def _named(m: dict[str, Any]) -> str:
    """What a slope is of, without the letter of its part."""
    return m["name"].removesuffix(": slope").split(" ", 1)[1]


def _rates() -> list[str]:
    rows = []
    for m in rates():
        slope = "no slope" if not isinstance(m["value"], float) else f"{m['value']:.2f}"
        noise = f"± {m['spread']:.2f}" if isinstance(m["spread"], float) else ""
        rows.append([m["slug"], _named(m), f"{slope} {noise}".strip(), f"{m['expected']:.2f}"])
    return [
        "",
        "## Rates",
        "",
        "Slopes on log-log axes beside the theory's; ± is the standard deviation over bootstrap draws of the runs.",
        "For `alignment-asymptotics` the paper has a limit and no rate; the slope beside it is that of (log n) / n.",
        "",
        *_table(["system", "what", "measured", "theory"], rows),
        "",
        "![Measured rates, dotted: the theory's slopes](exact-rates.png)",
    ]


def _bridge() -> list[str]:
    data = _read("exact-bridge.json")
    rows = [
        [
            f"{s['item']}. {s['name']}",
            _number(s["sampled"]),
            _number(s["exact"]),
            _number(s["error"]),
            f"{s['holds']} of {s['asked']}" if s["asked"] else "",
        ]
        for s in data["run"]
    ]
    return [
        "",
        "## Samples beside the truth",
        "",
        f"`{data['command']}`: {data['of']}. {data['about']}. A class is a whole text here, so that ways to the same",
        "answer are told apart. What samples cannot know shows in the first rows: 128 responses see one or two of the",
        "texts that tie at the best reward, and the cliff is higher and nearer than they say.",
        "",
        *_table(["", "sampled", "exact", "mean error", "true intervals and bounds"], rows),
        "",
    ]


def _number(x: float) -> str:
    return f"{0.0 if abs(x) < 1e-12 else x:.3g}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(r)} |" for r in (header, ["---"] * len(header), *rows)]


def _read(name: str) -> Any:
    return json.loads((DOCS / name).read_text(encoding="utf-8"))


def draw() -> None:
    """The two pictures of the page, as PNG."""
    times = _read("exact-times.json")["times"]
    with canvas(9.6, 3.6) as figure:
        for axes, world in zip(figure.subplots(1, 2, sharey=True), ("garnet", "grid"), strict=True):
            for colour, solver in zip(COLOURS, dict.fromkeys(t["solver"] for t in times), strict=False):
                own = [t for t in times if (t["world"], t["solver"]) == (world, solver)]
                x, y = [t["states"] for t in own], [t["seconds"] for t in own]
                axes.loglog(x, y, "o-", color=colour, markersize=4, label=solver)
            axes.set(xlabel="states", ylabel="seconds" if world == "garnet" else "", title=world)
        figure.axes[0].legend(fontsize=8)
        save(figure, DOCS / "exact-times")
    found = [m for m in rates() if isinstance(m["value"], float)]
    with canvas(9.6, 2.5 * -(-len(found) // 4)) as figure:
        grid = figure.subplots(-(-len(found) // 4), 4).ravel()
        for axes, colour, m in zip(grid, COLOURS * 2, found, strict=False):
            x, y = np.array([float(k) for k in m["at"]]), np.array(list(m["at"].values()))
            axes.loglog(x, y, "o-", color=colour, markersize=4)
            axes.loglog(x, y[0] * (x / x[0]) ** m["expected"], ":", color=colour)
            axes.set_title(f"{m['slug']}\n{m['value']:.2f}, theory {m['expected']:.2f}", fontsize=8)
            axes.set_xlabel(_named(m)[:44], fontsize=6)
            axes.tick_params(which="both", labelsize=6)
        for axes in grid[len(found) :]:
            axes.axis("off")
        save(figure, DOCS / "exact-rates")
    for drawing in ("exact-times.svg", "exact-rates.svg"):
        (DOCS / drawing).unlink()


if __name__ == "__main__":
    draw()
    (DOCS / "exact.md").write_text(markdown(), encoding="utf-8")
