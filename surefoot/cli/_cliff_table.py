"""`surefoot cliff` of a reward table or an MDP: exact."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from surefoot.exact import cliff
from surefoot.exact.cliff import Cliff, Stabiliser, Stability
from surefoot.files import write_aside
from surefoot.stability import tables
from surefoot.stability.from_samples import flip_margin
from surefoot.stability.tables import Problem

SHOWN = 12
GRID = (0.0, 0.02, 0.1)


@dataclass(frozen=True)
class Found:
    """Everything that is printed, drawn and written about a table."""

    problem: Problem
    cliff: Cliff
    eps: float
    tv: float
    symbol: str
    reference: np.ndarray | None
    rows: list[Stability]
    asked: Stabiliser


def show_table(args: argparse.Namespace) -> int:
    found = study(args)
    name = Path(found.problem.name).stem
    out = Path(args.out) if args.out else None if args.json else Path(f"cliff-{name}")
    if not args.json:
        show(found, Console())
    path = write(found, out) if out else None
    if args.json:
        print(json.dumps(as_json(found), indent=1, allow_nan=False))
    else:
        print(f"report: {path}")
    return 0


def study(args: argparse.Namespace) -> Found:
    """Read what was named and analyse it.

    Raises:
        InputError: bad input, both --alpha and --beta, a stability or an eps that makes no sense.
    """
    from surefoot.errors import InputError

    if args.alpha and args.beta:
        raise InputError("cliff: --alpha and --beta; expected one of them (entropy, or KL to a reference)")
    if not 0 < args.eps < math.inf:
        raise InputError(f"cliff: --eps {args.eps:g}; expected a number above 0")
    weights = tables.parse_weights(args.weights)
    problem = tables.example(args.example) if args.example else tables.read(args.target, weights)
    reference = None
    if args.beta:
        shape = problem.mdp.R.shape
        reference = np.full(shape, 1 / shape[1]) if problem.reference is None else problem.reference
    found = cliff.analyse(problem.mdp, args.tie_tol)
    asked = cliff.stabilise(problem.mdp, found.edge, args.stability, args.eps, reference)
    grid = args.beta or args.alpha or GRID
    rows = cliff.stability(problem.mdp, found.edge, args.eps, grid, reference) if found.edge else []
    return Found(problem, found, args.eps, args.stability, "beta" if args.beta else "alpha", reference, rows, asked)


def verdict(f: Found) -> str:
    """Where the reward stands, in a sentence."""
    edge = f.cliff.edge
    if edge is None:
        return "No state has two actions: there is no cliff."
    pair = f"{f.problem.actions[edge.action]!r} and {f.problem.actions[edge.rival]!r}"
    state = repr(f.problem.states[edge.state])
    if edge.distance == 0:
        return f"On the cliff: {pair} are equally good in {state}. Any change of the reward, however small, decides."
    if edge.distance <= f.eps:
        return f"Near the cliff: a change of {edge.distance:.4g} makes {pair} equally good in {state}."
    return (
        f"Off the cliff: no change below {edge.distance:.4g} changes an optimal action; there, {pair} become "
        f"equally good in {state}."
    )


def advice(f: Found) -> list[str]:
    """The least regularisation for what was asked, and its price."""
    if f.cliff.edge is None:
        return []
    kind = "entropy bonus" if f.symbol == "alpha" else "KL to the reference"
    said = [
        f"To keep policies within {f.tv:g} (total variation) when the reward changes by {f.eps:g}: "
        f"{f.symbol} = {f.asked.alpha:.4g} ({kind}) does it for any reward, at a price of {f.asked.price:.3g}."
    ]
    if f.asked.at_edge < 0.99 * f.asked.alpha:
        said.append(
            f"Along the worst line through your reward {f.symbol} = {f.asked.at_edge:.4g} is enough, at a "
            f"price of {max(f.asked.price_at_edge, 0.0):.3g}; other changes of that size may need more."
        )
    if f.asked.greedy:
        said.append(f"This reward needs none of it: its optimal policy survives every change of {f.eps:g}.")
    return said


def facts(f: Found) -> list[tuple[str, str, str]]:
    """(what, number, how it is known)."""
    c = f.cliff
    tied = int((c.ties[c.decisions] > 1).sum())
    known = [
        ("states that count", f"{int(c.decisions.sum())} of {len(c.ties)}", "reachable, with a decision"),
        ("of them with a tie", str(tied), f"highest cliff {c.height[c.decisions].max(initial=0):.4f}"),
    ]
    if c.edge is None:
        return known
    return [
        *known,
        ("safe below", f"{c.certified:.6g}", "certificate: (1 - gamma) gap / 2"),
        ("cliff at", f"{c.edge.distance:.6g}", "exact"),
        ("crossed at", f"{c.witness:.6g}", "by a reward that was built"),
        ("no new action below", f"{c.contained:.6g}", "ties can break, nothing else enters"),
    ]


def show(f: Found, console: Console) -> None:
    """The analysis as tables."""
    mdp = f.problem.mdp
    console.print(
        f"[bold]{f.problem.name}[/]  {len(f.problem.states)} states, {len(f.problem.actions)} actions, "
        f"gamma {mdp.gamma:g}",
        highlight=False,
    )
    console.print(f"\n[bold]{verdict(f)}[/]\n", highlight=False)
    known = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for what, number, how in facts(f):
        known.add_row(what, f"[bold]{number}[/]", f"[dim]{how}[/]")
    console.print(known)
    console.print(
        _filled(Table("state", "best", "ties", "gap", "height", box=None, padding=(0, 2, 0, 0)), state_rows(f)[:SHOWN])
    )
    if len(state_rows(f)) > SHOWN:
        console.print(f"[dim]... {len(state_rows(f)) - SHOWN} more states in the report[/]")
    if f.rows:
        console.print(
            f"\nYour reward moves by {f.eps:g} along the worst direction. How far does the best policy move?",
            highlight=False,
        )
        console.print(_filled(Table(*strength_header(f), box=None, padding=(0, 2, 0, 0)), strength_rows(f)))
    console.print()
    for line in [*advice(f), *margins(f)]:
        console.print(line, highlight=False)


def _filled(table: Table, rows: list[list[str]]) -> Table:
    for row in rows:
        table.add_row(*row)
    return table


def state_rows(f: Found) -> list[list[str]]:
    """One row a state that counts, the nearest to a tie first."""
    c = f.cliff
    order = [s for s in np.lexsort((c.gap, -c.ties)) if c.decisions[s]]
    names = f.problem.actions
    return [
        [
            f.problem.states[s],
            ", ".join(names[a] for a in np.flatnonzero(c.optimal[s])),
            str(c.ties[s]),
            "-" if np.isinf(c.gap[s]) else f"{c.gap[s]:.4g}",
            f"{c.height[s]:.4f}",
        ]
        for s in order
    ]


def strength_header(f: Found) -> list[str]:
    return [f.symbol, "moves (TV)", "its bound", "any move", "Prop. 4.5", "reward", "price"]


def strength_rows(f: Found) -> list[list[str]]:
    return [
        [
            "greedy" if r.alpha == 0 else f"{r.alpha:g}",
            f"{r.tv:.4f}",
            f"{r.sharp:.4f}",
            "none" if r.alpha == 0 else f"{r.certified:.4f}",
            "none" if math.isinf(r.linear) else f"{r.linear:.4f}",
            f"{r.reward:.4f}",
            f"{max(r.price, 0.0):.3g}",
        ]
        for r in f.rows
    ]


def margins(f: Found) -> list[str]:
    """With several rewards: which of them decides, at the narrowest state."""
    p = f.problem
    if not p.rewards or f.cliff.edge is None:
        return []
    at, best, rival = f.cliff.edge.state, f.cliff.edge.action, f.cliff.edge.rival
    first, second = ({k: float(v[at, a]) for k, v in p.rewards.items()} for a in (best, rival))
    m = flip_margin(first, second, p.weights)
    move = (
        "no move of the weights does"
        if math.isinf(m.weights)
        else f"the weights may move by {m.weights:.4g} (L1{'' if m.exact else ', at least'})"
    )
    return [
        f"{p.actions[best]!r} against {p.actions[rival]!r} in {p.states[at]!r}: the order flips when all rewards "
        f"err by {m.all_err:.4g}, or {m.decisive!r} alone by {m.alone[m.decisive]:.4g}; {move}."
    ]


def as_json(f: Found) -> dict[str, Any]:
    """The analysis as plain data; infinite numbers are null."""
    c, p = f.cliff, f.problem
    edge = (
        None
        if c.edge is None
        else {
            "distance": c.edge.distance,
            "state": p.states[c.edge.state],
            "action": p.actions[c.edge.action],
            "rival": p.actions[c.edge.rival],
            "direction": c.edge.direction.tolist(),
        }
    )
    return {
        "name": p.name,
        "verdict": verdict(f),
        "eps": f.eps,
        "stability": f.tv,
        "regularisation": f.symbol,
        "certified": _finite(c.certified),
        "distance": edge and edge["distance"],
        "witness": _finite(c.witness),
        "contained": _finite(c.contained),
        "edge": edge,
        "states": [
            {
                "state": p.states[s],
                "optimal": [p.actions[a] for a in np.flatnonzero(c.optimal[s])],
                "gap": _finite(c.gap[s]),
                "height": float(c.height[s]),
                "counts": bool(c.decisions[s]),
            }
            for s in range(len(c.ties))
        ],
        "strengths": [{k: _finite(v) for k, v in asdict(r).items()} for r in f.rows],
        "asked": asdict(f.asked),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def write(f: Found, out: Path) -> Path:
    """The report folder: report.html, analysis.json and the pictures."""
    from surefoot.report import cliff as drawn

    write_aside(out / "analysis.json", json.dumps(as_json(f), indent=1, allow_nan=False).encode())
    sections = [
        (
            "Where it stands",
            drawn.table(("", "", ""), facts(f))
            + drawn.table(("state", "best", "ties", "gap", "height"), state_rows(f)),
        )
    ]
    if f.cliff.edge:
        symbol = {"alpha": "α", "beta": "β"}[f.symbol]
        strengths = [r.alpha for r in f.rows]
        jump = drawn.draw_jump(f.problem, f.cliff, f.eps, strengths, symbol, out / "jump", f.reference)
        price = drawn.draw_price(f.problem, f.cliff, f.eps, f.tv, f.asked, symbol, out / "price", f.reference)
        sections += [
            (
                "The jump, and the slope",
                drawn.paragraph(
                    "Values move smoothly with the reward; the greedy policy jumps. Regularisation turns the jump "
                    "into a slope."
                )
                + drawn.figure(jump)
                + drawn.table(strength_header(f), strength_rows(f)),
            ),
            ("What stability costs", "".join(map(drawn.paragraph, [*advice(f), *margins(f)])) + drawn.figure(price)),
        ]
    return drawn.page(out / "report.html", f.problem.name, verdict(f), sections)
