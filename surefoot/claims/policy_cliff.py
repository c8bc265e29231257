"""The policy cliff: a tie lets an arbitrarily small reward change move the policy by a fixed amount; regularisation
bounds the move in proportion to the change (arXiv 2507.20150, Prop. 2.4, 2.5 and 4.5).

A. Three arms r = (1, 1, 0), raised by .01 on the first or on the second; exact gradient with entropy bonus alpha.
B. Token tree with 256 leaves of which three earn 1; leaf 5 raised by eps; exact gradient with beta KL(. || uniform).
C. The same tree learnt from 16 samples a step: what the reward change does beside what the seed does. A control.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.evaluation.intervals import clopper_pearson
from surefoot.stability.harness import Control, Objective, Tree, control, total_variation, train_exact, train_sampled

ARMS, TREE = Tree(3, 1), Tree(4, 4)
EPS, RAISED, GOOD = 0.01, 5, (5, 100, 201)
UNIFORM = np.full(TREE.leaves, -np.log(TREE.leaves))
FLAT_TOLERANCE = 0.05  # of A and B at no regularisation: the height may not fall by more than this share as eps shrinks
LEAST_SEED_NOISE = 0.3


@dataclass(frozen=True)
class Cell:
    """Two policies trained by exact gradient on rewards that differ by `eps`, and the two optima."""

    strength: float
    eps: float
    trained: float
    optimum: float
    bound: float
    reward: float


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """A, B and C; `full` adds betas, reward changes and runs."""
    bandit = bandits((0.0, 0.02, 0.1))
    tree = trees((0.0, 0.1) if size == "quick" else (0.0, 0.02, 0.1, 0.5), (0.001, 0.01, 0.1))
    betas, changes = ((0.0, 0.5), (EPS,)) if size == "quick" else ((0.0, 0.1, 0.5), (EPS, 0.1, 0.3))
    runs = {b: sampled(b, (0.0, *changes), 24 if size == "quick" else 96, seeds) for b in betas}
    controls = {
        (b, e): control(runs[b][0.0], runs[b][e], _tree_objective([b], [0.0]).optimum()[0])
        for b in betas
        for e in changes
    }
    measured = [
        *_exact_rows("A arms, alpha", bandit),
        *_exact_rows("B tree, beta", tree),
        *_control_rows(controls, len(seeds)),
        *_collapse_rows(runs),
    ]
    pictures = [_draw(report, tree, controls)] if report else []
    return Outcome(verdict(bandit, tree, controls[0.0, EPS]), measured, pictures, notes(tree, controls))


def verdict(bandit: Sequence[Cell], tree: Sequence[Cell], noise: Control) -> Verdict:
    """Refuted by a cliff that shrinks with eps or by an optimum above its bound; C can only fail as a control."""
    heights = [c.trained for c in sorted(tree, key=lambda c: c.eps) if c.strength == 0]
    shrinks = heights[0] < (1 - FLAT_TOLERANCE) * heights[-1]
    above = any(c.optimum > c.bound + 1e-9 for c in (*bandit, *tree))
    if shrinks or above:
        return "refuted"
    falls = next(c for c in bandit if c.strength == 0).trained < 1 - FLAT_TOLERANCE
    return "not reproduced" if falls or noise.same < LEAST_SEED_NOISE else "reproduced"


def bandits(alphas: Sequence[float]) -> list[Cell]:
    """Part A: rewards (1 + eps, 1, 0) against (1, 1 + eps, 0)."""
    rewards = np.array([[1 + EPS, 1, 0], [1, 1 + EPS, 0]])
    objective = Objective(np.tile(rewards, (len(alphas), 1)), np.repeat(alphas, 2).astype(float), np.zeros(3))
    trained = train_exact(ARMS, objective, step=1.0, steps=20_000)
    return list(_cells(objective, trained, [(2 * i, 2 * i + 1, EPS, 2 * EPS) for i in range(len(alphas))]))


def trees(betas: Sequence[float], changes: Sequence[float], steps: int = 6000) -> list[Cell]:
    """Part B: the reward against itself with leaf 5 raised."""
    eps = [0.0, *changes]
    objective = _tree_objective(np.repeat(betas, len(eps)), np.tile(eps, len(betas)))
    trained = train_exact(TREE, objective, step=2.0, steps=steps)
    rows = [(i * len(eps), i * len(eps) + j, eps[j], eps[j]) for i in range(len(betas)) for j in range(1, len(eps))]
    return list(_cells(objective, trained, rows))


def sampled(beta: float, changes: Sequence[float], runs: int, seeds: Sequence[int]) -> dict[float, np.ndarray]:
    """Part C: leaf probabilities of independent runs for each reward change, the runs shared out over the seeds."""
    share = [runs // len(seeds) + (i < runs % len(seeds)) for i in range(len(seeds))]
    return {
        eps: np.concatenate(
            [
                train_sampled(
                    TREE, _tree_objective([beta] * n, [eps] * n), 2.0, 600, 16, np.random.default_rng([seed, place])
                )
                for seed, n in zip(seeds, share, strict=True)
                if n
            ]
        )
        for place, eps in enumerate(changes)
    }


def notes(tree: Sequence[Cell], controls: dict[tuple[float, float], Control]) -> str:
    """What a reader must know to judge the numbers."""
    said = ["The bounds are about optima; a trained policy can be elsewhere."]
    said += [
        f"At beta={c.strength:g}, eps={c.eps:g} the trained policies are {c.trained:.3f} apart, above the "
        f"bound {c.bound:.3f}: gradient ascent has not reached the optimum."
        for c in tree
        if c.trained > c.bound + 1e-3
    ]
    none = controls[0.0, EPS]
    said.append(
        f"Sampled runs at beta=0 differ by {none.same:.2f} with no change of the reward, so C shows the need "
        "of a same-reward control and is no evidence for the theorem."
    )
    return " ".join(said)


def _tree_objective(betas: Iterable[float], eps: Iterable[float]) -> Objective:
    eps = np.asarray(list(eps), float)
    reward = np.zeros((len(eps), TREE.leaves))
    reward[:, GOOD] = 1.0
    reward[:, RAISED] += eps
    return Objective(reward, np.asarray(list(betas), float), UNIFORM)


def _cells(objective: Objective, trained: np.ndarray, rows: Iterable[tuple[int, int, float, float]]) -> Iterable[Cell]:
    """One cell for each (row, row of the changed reward, eps, span of the change); bound `tanh(span / (4 beta))`."""
    optimum = objective.optimum()
    for i, j, eps, span in rows:
        beta = float(objective.beta[i])
        yield Cell(
            beta,
            eps,
            float(total_variation(trained[i], trained[j])),
            float(total_variation(optimum[i], optimum[j])),
            float(np.tanh(span / (4 * beta))) if beta else 1.0,
            float(trained[i] @ objective.reward[i]),
        )


def _exact_rows(part: str, cells: Iterable[Cell]) -> Iterable[dict[str, Any]]:
    for c in cells:
        where = f"{part}={c.strength:g}, eps={c.eps:g}"
        yield {"name": f"{where}: TV of trained policies", "value": c.trained, "expected": c.optimum}
        yield {"name": f"{where}: TV of optima", "value": c.optimum, "bound": c.bound}
        yield {"name": f"{where}: reward of the trained policy", "value": c.reward}


def _control_rows(controls: dict[tuple[float, float], Control], seeds: int) -> Iterable[dict[str, Any]]:
    for (beta, eps), c in controls.items():
        where = f"C sampled, beta={beta:g}, eps={eps:g}"
        yield {"name": f"{where}: TV between seeds, same reward", "value": c.same, "seeds": seeds}
        yield {"name": f"{where}: TV across the change, other seeds", "value": c.changed, "seeds": seeds}
        yield {"name": f"{where}: TV of run-averaged policies", "value": c.averaged, "seeds": seeds}
        yield {"name": f"{where}: TV from the optimum", "value": c.to_optimum, "seeds": seeds}


def _collapse_rows(runs: dict[float, dict[float, np.ndarray]]) -> Iterable[dict[str, Any]]:
    """How often a run puts more than half on leaf 5, with its interval."""
    for beta, by_eps in runs.items():
        for eps, p in by_eps.items():
            hits = int((p[:, RAISED] > 0.5).sum())
            yield {
                "name": f"C sampled, beta={beta:g}, eps={eps:g}: share of runs on leaf {RAISED}",
                "value": hits / len(p),
                "spread": clopper_pearson(hits, len(p)),
                "runs": len(p),
            }


def _draw(folder: Path, tree: Sequence[Cell], controls: dict[tuple[float, float], Control]) -> Path:
    """Left: the height against the change of the reward. Right: the control."""
    from surefoot.report.figures import COLOURS, canvas, save

    with canvas(9.2, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        for colour, beta in zip(COLOURS, dict.fromkeys(c.strength for c in tree), strict=False):
            cells = [c for c in tree if c.strength == beta]
            eps = [c.eps for c in cells]
            left.plot(eps, [c.trained for c in cells], "o", color=colour, label=f"trained, β = {beta:g}")
            left.plot(eps, [c.optimum for c in cells], "-", color=colour, linewidth=1.2)
            if beta:
                left.plot(eps, [c.bound for c in cells], ":", color=colour, linewidth=1.2)
        left.set(
            xscale="log",
            yscale="log",
            xlabel="change of the reward ε",
            ylabel="total variation",
            title="Exact gradient (lines: optima, dots: bound)",
        )
        left.legend(loc="lower right", fontsize=8)
        at = [(beta, c) for (beta, eps), c in controls.items() if eps == EPS]
        x = np.arange(len(at))
        for shift, label, colour, height in (
            (-0.18, "same reward, other seed", COLOURS[7], [c.same for _, c in at]),
            (0.18, f"leaf {RAISED} + {EPS:g}, other seed", COLOURS[1], [c.changed for _, c in at]),
        ):
            bars = right.bar(x + shift, height, 0.34, color=colour, label=label)
            right.bar_label(bars, fmt="%.3f", fontsize=8)
        right.set_xticks(x, [f"β = {beta:g}" for beta, _ in at])
        right.set(ylim=(0, 1), ylabel="mean total variation", title="Sampled runs: the seed does it too")
        right.legend(loc="upper right", fontsize=8)
        return save(figure, folder / "policy-cliff")[0]


CLAIM = Claim(
    slug="policy-cliff",
    statement="Where optimal actions tie, policies trained on rewards that differ by any eps > 0 differ by the height "
    "of the tie, however small eps is; with entropy or KL regularisation the optima differ by at most "
    "tanh(span / (4 alpha)).",
    refuted_if="with exact gradients the distance at no regularisation shrinks with eps, or any regularised optimum "
    "exceeds its bound",
    run=run,
)
