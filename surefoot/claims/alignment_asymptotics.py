"""Best of N against the tilt of the same KL, exactly: the reward per symbol comes together (arXiv 2404.01730).

A. Fair coins, budget .1 nats a symbol, N = e^(.1 n): the gap to the tilt for n up to 2560, and the points' places.
B. Four symbols, n = 40: sampled best of N, and a factorised policy that learns E[r] - KL / alpha from samples.
C. Outside the assumptions: symbols that depend on the one before, and a reward that is no sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._rates import Rate, log_log_slope
from surefoot.claims._tabular import over_seeds
from surefoot.exact.operators import softmax
from surefoot.methods.theory.alignment_asymptotics import Levels, best_of_bound, choose_best
from surefoot.methods.theory.kl_bayes import reverse_kl

COINS = np.array([0.5, 0.5]), np.array([0, 1])
FOUR = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0, 1, 2, 3])
BUDGET = 0.1  # nats a symbol
LENGTHS = (10, 40, 160, 640, 2560)
CARD: dict[int, float] = dict(zip(LENGTHS, (0.0979, 0.0412, 0.0141, 0.0046, 0.00143), strict=True))
STICKY = np.array([[0.8, 0.2], [0.2, 0.8]])


@dataclass(frozen=True)
class Point:
    """Best of N at one length; rewards and the distance are a symbol.

    Attributes:
        samples: N.
        kl: KL(pi_N | p), in all.
        reward, tilt: of the best of N, and of the tilt of budget n Delta.
        distance: KL(pi_N | tilt).
        frontier: the most reward at this very KL.
    """

    n: int
    samples: float
    kl: float
    reward: float
    tilt: float
    distance: float
    frontier: float

    @property
    def gap(self) -> float:
        return self.tilt - self.reward


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """A, B and C; `full` takes more draws and steps, and longer texts in C."""
    quick = size == "quick"
    coins = [point(Levels.additive(*COINS, n), n) for n in LENGTHS]
    more = [point(Levels.additive(*FOUR, n), n, b) for n in (10, 40, 160) for b in (0.05, 0.1)]
    small = [point(m, 1, budget) for m in random_models(50) for budget in (0.3, 0.7, 1.5)]
    draws, steps = (20_000, 600) if quick else (100_000, 3000)
    sampled = {b: [best_of_draws(b, draws, s) for s in seeds] for b in (0.05, 0.1)}
    learnt = {b: [factorised(b, steps, s) for s in seeds] for b in (0.05, 0.1)}
    beyond = {k: [point(make(n), n) for n in LENGTHS[: 4 if quick else 5]] for k, make in BEYOND.items()}
    gap = rate("A gap to the tilt's reward, a symbol", coins, "gap")
    measured = [
        *_point_rows("A", coins, CARD),
        gap.row(),
        rate("A KL to the tilt, a symbol", coins, "distance", theory=False).row(),
        {
            "name": "largest reward above the frontier, all exact points",
            "value": worst([*coins, *more, *small]),
            "bound": 0.0,
        },
        *_sampled_rows(sampled, learnt),
        *(rate(f"C {k}: gap", points, "gap", theory=False).row() for k, points in beyond.items()),
    ]
    pictures = [_draw(report, gap, beyond, sampled, learnt)] if report else []
    return Outcome(verdict(coins, [*more, *small]), measured, pictures, NOTES)


NOTES = (
    "The paper shows that the gap vanishes and gives no rate; beside the measured slope stands that of (log n) / n. "
    "That no exact point lies above the frontier follows from the tilt's optimality: it tests this code. At n = 10 "
    "best of N still has 14 % less reward than the tilt. C is outside the theorem, with the tilt of each length as the "
    "rival: the gap falls there too. In B the learner stops moving at the tilt, where what it pays for is constant."
)


def verdict(coins: Sequence[Point], others: Sequence[Point]) -> Verdict:
    """Refuted by a gap that does not fall with n, or by an exact point above the frontier."""
    gaps, distances = [c.gap for c in coins], [c.distance for c in coins]
    if any(b >= a for a, b in zip(gaps, gaps[1:], strict=False)) or worst([*coins, *others]) > 1e-9:
        return "refuted"
    return "reproduced" if all(b < a for a, b in zip(distances, distances[1:], strict=False)) else "not reproduced"


def point(model: Levels, n: int, budget: float = BUDGET) -> Point:
    """Best of `e^(n budget)` of one model."""
    samples, alpha = float(np.exp(n * budget)), model.alpha(n * budget)
    best = model.best_of(samples)
    kl = model.kl(best)
    distance = np.inf if np.isinf(alpha) else model.kl(best, model.tilt(alpha))
    return Point(
        n, samples, kl, model.mean(best) / n, model.frontier(n * budget) / n, distance / n, model.frontier(kl) / n
    )


def worst(points: Sequence[Point]) -> float:
    """The most by which a point is above the frontier; below 0 where none is."""
    return max(p.reward - p.frontier for p in points)


def random_models(many: int) -> Iterable[Levels]:
    for seed in range(many):
        rng = np.random.default_rng(seed)
        yield Levels.of(rng.dirichlet(np.ones(8)), rng.integers(0, 6, 8) / 2)


def rate(name: str, points: Sequence[Point], what: str, theory: bool = True) -> Rate:
    sizes = [p.n for p in points]
    slope = log_log_slope(sizes, [np.log(n) / n for n in sizes]) if theory else None
    return Rate(name, sizes, np.array([[getattr(p, what)] for p in points]), slope)


def best_of_draws(budget: float, draws: int, seed: int, n: int = 40) -> float:
    """Reward a symbol of sampled best of N, symbols drawn one by one."""
    rng, many = np.random.default_rng((seed, round(100 * budget))), int(np.ceil(np.exp(n * budget)))
    p, r = FOUR
    total = 0.0
    for part in np.array_split(np.arange(draws), max(1, draws * many // 200_000)):
        rewards = rng.multinomial(n, p, (len(part), many)) @ r
        total += rewards[np.arange(len(part)), choose_best(rewards, rng)].sum()
    return total / draws / n


def factorised(budget: float, steps: int, seed: int, n: int = 40, batch: int = 64, step: float = 0.1):
    """Reward and KL a symbol of independent symbols that learn E[r] - KL / alpha by REINFORCE, from p on."""
    rng = np.random.default_rng((seed, round(100 * budget), 1))
    p, r = FOUR
    beta, logits = 1 / Levels.of(*FOUR).alpha(budget), np.tile(np.log(p), (n, 1))
    for _ in range(steps):
        pi = softmax(logits)
        y = (rng.random((batch, n, 1)) > pi.cumsum(1)[None, :, :-1]).sum(2)
        ratio = np.log(pi)[np.arange(n), y] - np.log(p)[y]
        weights = reverse_kl((r[y] - beta * ratio).sum(1))
        logits = logits + step * ((np.eye(4)[y] - pi) * weights[:, None, None]).sum(0)
    pi = softmax(logits)
    return float((pi @ r).mean()), float((pi * np.log(pi / p)).sum(1).mean())


BEYOND: dict[str, Callable[[int], Levels]] = {
    "sticky coins": lambda n: Levels.markov(COINS[0], STICKY, COINS[1], n),
    "square of the sum": lambda n: _squared(Levels.additive(*COINS, n), n),
}


def _squared(model: Levels, n: int) -> Levels:
    """`r = (sum)^2 / n`: not additive, still rising in the sum."""
    return Levels(model.reward**2 / n, model.log_p)


def _point_rows(part: str, points: Sequence[Point], card: dict[int, float]) -> Iterable[dict[str, Any]]:
    for p in points:
        row = {"name": f"{part} n={p.n}: gap to the tilt", "value": p.gap, "card": card[p.n], "reward": p.reward}
        yield row | {"kl": p.kl, "kl_bound": best_of_bound(p.samples), "distance": p.distance, "frontier": p.frontier}


def _sampled_rows(sampled: dict, learnt: dict) -> Iterable[dict[str, Any]]:
    one = Levels.of(*FOUR)
    model = Levels.additive(*FOUR, 40)
    for budget, rewards in sampled.items():
        many = int(np.ceil(np.exp(40 * budget)))
        exact = model.mean(model.best_of(many)) / 40
        yield over_seeds(f"B best of {many}, sampled: reward a symbol", rewards, expected=exact)
        name = f"B learnt policy, budget {budget:g}"
        yield over_seeds(f"{name}: reward a symbol", [r for r, _ in learnt[budget]], expected=one.frontier(budget))
        yield over_seeds(f"{name}: KL a symbol", [kl for _, kl in learnt[budget]], expected=budget)
        off = [one.inefficiency(kl, r) for r, kl in learnt[budget]]
        yield over_seeds(f"{name}: KL to the tilt of the same KL, a symbol", off)


def _draw(folder: Path, gap: Rate, beyond: dict[str, list[Point]], sampled: dict, learnt: dict) -> Path:
    """Left: the gap against n, with its slope. Right: the frontier of four symbols, with what was sampled."""
    from surefoot.report.figures import COLOURS, QUIET, canvas, save

    with canvas(9.6, 3.8) as figure:
        left, right = figure.subplots(1, 2)
        gap.draw(left, COLOURS[0], "fair coins")
        for colour, (name, points) in zip(COLOURS[1:], beyond.items(), strict=False):
            rate(name, points, "gap", theory=False).draw(left, colour, name)
        left.set(
            xlabel="symbols n", ylabel="gap to the tilt's reward, a symbol", title="Dotted: the slope of (log n)/n"
        )
        left.legend(fontsize=8)
        one, model = Levels.of(*FOUR), Levels.additive(*FOUR, 40)
        budgets = np.linspace(0, 0.15, 40)
        right.plot(budgets, [one.frontier(b) for b in budgets], color=QUIET, label="frontier: the tilts")
        for label, mark, colour, at in (
            ("best of N, n = 40", "o", COLOURS[0], [(_kl(model, b) / 40, r) for b, rs in sampled.items() for r in rs]),
            ("learnt from samples", "x", COLOURS[1], [(kl, r) for rs in learnt.values() for r, kl in rs]),
        ):
            right.plot([x for x, _ in at], [y for _, y in at], mark, color=colour, markersize=5, label=label)
        right.set(xlabel="KL from the model, a symbol", ylabel="reward a symbol", title="Reward that a budget buys")
        right.legend(fontsize=8)
        return save(figure, folder / "alignment_asymptotics")[0]


def _kl(model: Levels, budget: float) -> float:
    return model.kl(model.best_of(np.ceil(np.exp(40 * budget))))


CLAIM = Claim(
    slug="alignment-asymptotics",
    statement="For independent symbols and an additive reward, the best of N = e^(n Delta) samples has the reward per "
    "symbol of the KL-constrained optimum with budget n Delta, and vanishing KL per symbol to it, as n grows.",
    refuted_if="the exact gap in reward does not fall with n, or an exact point (KL(pi_N | p), E[r]) of best of N lies "
    "above the frontier of the tilts",
    run=run,
)
