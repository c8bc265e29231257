"""SQIRL: how far a problem makes one look says how many random episodes it takes (arXiv 2312.08369).

A. Combination locks, plain and deceptive: the fewest episodes a step for each k, beside the effective horizon.
B. Random problems, and locks and grids with sticky actions: the same where next states are random (`full` only).
C. FrozenLake 4x4, 40 steps, with as many episodes (`full` only): tables against Q-learning, networks against DQN, PPO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._deep_control import dqn, ppo
from surefoot.claims._rates import log_log_slope
from surefoot.exact.generators import gridworld, lock, open_grid
from surefoot.exact.mdp import MDP, FiniteHorizon, backward_induction, evaluate_finite, finite_horizon
from surefoot.methods.theory.sqirl import Heads, Horizon, Tables, analyse, dense, sqirl, sticky

Draws = Sequence[tuple[int, int]]
OFTEN = 0.8  # share of runs that must be optimal
EXACT, CLOSE = 0.999, 0.98  # share of the optimal value that counts as optimal, in A and in B
FROZEN_LAKE = ["S...", ".X.X", "...X", "X..G"]


@dataclass(frozen=True)
class Case:
    """A problem, what the model says about it, and the fewest episodes a step for each k; infinite where none did."""

    name: str
    actions: int
    steps: int
    pairs: int
    horizon: Horizon
    needed: dict[int, float]

    @property
    def fewest(self) -> float:
        """At the best k that solves it."""
        return min(m for k, m in self.needed.items() if k in self.horizon.solving)

    @property
    def early(self) -> list[int]:
        """The k below min_k with which the runs were optimal all the same."""
        return [k for k, m in self.needed.items() if k < self.horizon.min_k and np.isfinite(m)]


PREDICTORS: dict[str, Callable[[Case], float]] = {
    "horizon": lambda c: c.horizon.effective,
    "horizon log A": lambda c: c.horizon.effective * float(np.log(c.actions)),
    "steps": lambda c: c.steps,
    "pairs": lambda c: c.pairs,
}


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """A; `full` has longer locks, twice the runs and more episodes, and B and C."""
    quick = size == "quick"
    draws = [(s, j) for s in seeds for j in range(2 if quick else 4)]
    locks = list(lock_cases(draws, (6, 5) if quick else (7, 6), 10 if quick else 12))
    others = {} if quick else {"B random": list(random_cases(seeds[:5])), "B sticky": list(sticky_cases(draws[::4]))}
    measured = [*_case_rows("A", locks), *_correlation_rows("A locks", locks)]
    for name, cases in others.items():
        measured += [*_case_rows("B", cases), *_correlation_rows(name, cases)]
    measured += [] if quick else frozen_lake(seeds[:5])
    return Outcome(
        verdict(locks), measured, [_draw(report, locks, others)] if report else [], notes(locks, full=not quick)
    )


def verdict(locks: Sequence[Case]) -> Verdict:
    """By the locks: refuted by a success below min_k, or by episodes that do not rise with the horizon."""
    if any(c.early for c in locks) or correlation(locks, "horizon")[0] <= 0:
        return "refuted"
    solved = all(np.isfinite(c.fewest) for c in locks)
    return "reproduced" if solved and correlation(locks, "horizon")[1] < 0.05 else "not reproduced"


def needed(problem: FiniteHorizon, k: int, draws: Draws, top: int, share: float) -> float:
    """The least power of 2, up to `2^top`, of episodes a step with which most runs are optimal, and as many again are.

    The second look keeps a coin-flip over a tie from passing for skill.
    """
    best = float(problem.mu @ backward_induction(problem)[0][0])

    def often(m: int, look: int) -> bool:
        values = (
            value(problem, sqirl(problem, Tables(k), m, np.random.default_rng((*draw, m, k, look)))) for draw in draws
        )
        return bool(np.mean([v >= share * best for v in values]) >= OFTEN)

    return next((float(2**j) for j in range(top + 1) if often(2**j, 0) and often(2**j, 1)), np.inf)


def value(problem: FiniteHorizon, policy: np.ndarray) -> float:
    return float(problem.mu @ evaluate_finite(problem, policy)[0][0])


def case(name: str, problem: FiniteHorizon, ks: Iterable[int], draws: Draws, top: int, share: float) -> Case:
    actions = problem.stages[0].actions
    pairs = int(problem.unroll().reachable()[:-1].sum()) * actions
    found = {k: needed(problem, k, draws, top, share) for k in ks}
    return Case(name, actions, problem.horizon, pairs, analyse(problem), found)


def lock_cases(draws: Draws, longest: tuple[int, int], top: int) -> Iterable[Case]:
    """Plain locks, and deceptive ones that also pay .5 for a wrong first action, every k."""
    for actions, last in zip((2, 3), longest, strict=True):
        for consolation, kind in ((0.0, "plain"), (0.5, "deceptive")):
            for L in range(2, last + 1):
                problem = on_arrays(lock(L, actions, consolation), L)
                yield case(f"{kind} lock, A={actions}, L={L}", problem, range(1, L + 1), draws, top, EXACT)


def random_cases(seeds: Sequence[int]) -> Iterable[Case]:
    """24 problems of 6 states, 3 actions and 6 steps; with chance .25 any action is played; 1 to 4 pairs pay."""
    for i in range(24):
        rng = np.random.default_rng((i, 24))
        P, R = np.eye(6)[rng.integers(6, size=(6, 3))], np.zeros((6, 3))
        R.flat[rng.choice(18, rng.integers(1, 5), replace=False)] = 1.0
        P, R = (0.75 * x + 0.25 * x.mean(1, keepdims=True) for x in (P, R))
        problem = finite_horizon(MDP(P, R, 1.0, np.eye(6)[0]), 6)
        if backward_induction(problem)[0][0, 0] > 0:
            ks = sorted(analyse(problem).solving)
            yield case(f"random {i}", problem, ks, [(s, 0) for s in seeds], 13, CLOSE)


def sticky_cases(draws: Draws) -> Iterable[Case]:
    """Deceptive locks, plain locks and small grids in which the last action may repeat itself."""
    problems = {
        f"sticky {kind} lock, A={A}, L={L}": finite_horizon(sticky(lock(L, A, c)), L)
        for A in (2, 3)
        for c, kind in ((0.0, "plain"), (0.2, "deceptive"))
        for L in range(2, 6)
    }
    problems |= {f"sticky grid {n}x{n}": finite_horizon(sticky(open_grid(n, n, 0.0, 1.0)), 2 * n) for n in (2, 3, 4)}
    for name, problem in problems.items():
        yield case(name, problem, sorted(analyse(problem).solving), draws, 12, CLOSE)


def on_arrays(mdp: MDP, horizon: int) -> FiniteHorizon:
    return finite_horizon(replace(mdp, P=dense(mdp)), horizon)


def correlation(cases: Sequence[Case], predictor: str) -> tuple[float, float]:
    """Spearman's correlation of a predictor with the fewest episodes, and its p-value."""
    x = [PREDICTORS[predictor](c) for c in cases]
    found: Any = spearmanr(x, [c.fewest for c in cases])
    return float(found.statistic), float(found.pvalue)


def frozen_lake(seeds: Sequence[int]) -> Iterable[dict[str, Any]]:
    """Part C: share of the optimal value that SQIRL and its rivals reach with as many episodes."""
    problem = on_arrays(gridworld(FROZEN_LAKE, {"G": 1.0, "X": 0.0}, slip=2 / 3, gamma=1.0), 40)
    horizon = analyse(problem)
    yield {"name": "C FrozenLake: min_k", "value": horizon.min_k}
    yield {"name": "C FrozenLake: effective horizon", "value": horizon.effective}
    arms: dict[str, Learner] = {
        **{
            f"SQIRL k={k}": lambda m, s, k=k: sqirl(
                problem, Tables(k, shared=True), m, np.random.default_rng((s, m, k))
            )
            for k in (1, 2, 3)
        },
        "Q-learning": lambda m, s: q_learning(problem, 40 * m, np.random.default_rng((s, m))),
    }
    yield from _shares(problem, arms, (16, 64, 256), seeds)
    yield from _shares(problem, networks(problem), (16, 64), seeds)


Learner = Callable[[int, int], np.ndarray]


def networks(problem: FiniteHorizon) -> dict[str, Learner]:
    """From m and a seed to a policy after 40 m episodes: the authors' network, DQN and PPO, of one size and rate."""
    stage = problem.stages[0]
    x, ends = np.eye(stage.states), stage.ends()

    def shallow(m: int, seed: int, k: int) -> np.ndarray:
        heads = Heads(x, stage.actions, k, ends, seed, rate=1e-3)
        return sqirl(problem, heads, m, np.random.default_rng((seed, m, k)))

    arms: dict[str, Learner] = {f"SQIRL network k={k}": lambda m, seed, k=k: shallow(m, seed, k) for k in (1, 2, 3)}
    return arms | {"DQN": lambda m, s: dqn(problem, 40 * m, s), "PPO": lambda m, s: ppo(problem, 40 * m, s)}


def _shares(
    problem: FiniteHorizon, arms: dict[str, Learner], sizes: Sequence[int], seeds: Sequence[int]
) -> Iterable[dict[str, Any]]:
    best = float(problem.mu @ backward_induction(problem)[0][0])
    for m in sizes:
        for name, learner in arms.items():
            shares = [value(problem, learner(m, s)) / best for s in seeds]
            row = {"name": f"C FrozenLake, {40 * m} episodes, {name}: share of the optimal value"}
            yield row | {"value": np.mean(shares), "spread": np.std(shares, ddof=1), "seeds": len(seeds)}


def q_learning(problem: FiniteHorizon, n: int, rng: np.random.Generator) -> np.ndarray:
    """Tabular Q-learning (Watkins 1989), one table for all steps: rate .1, discount .99, epsilon from 1 to .05."""
    stage = problem.stages[0]
    cumulative, S, A = dense(stage).cumsum(-1), stage.states, stage.actions
    Q, ends = np.zeros((S, A)), stage.ends()
    for episode in range(n):
        s, epsilon = int(rng.choice(S, p=problem.mu)), max(0.05, 1 - 2 * episode / n)
        for _ in range(problem.horizon):
            tied = np.flatnonzero(Q[s] == Q[s].max())
            a = int(rng.integers(A) if rng.random() < epsilon else rng.choice(tied))
            after = int((rng.random() >= cumulative[s, a]).sum())
            Q[s, a] += 0.1 * (stage.R[s, a] + 0.99 * (not ends[after]) * Q[after].max() - Q[s, a])
            s = after
            if ends[s]:
                break
    return np.broadcast_to(np.eye(A)[Q.argmax(-1)], (problem.horizon, S, A))


def notes(locks: Sequence[Case], full: bool) -> str:
    """What a reader must know to judge the numbers."""
    said = [
        "A k is said to reach the optimum where 80 % of the runs and 80 % of as many fresh runs do.",
        "A^H is an upper bound: on plain locks k = 1 needs as few episodes as k = L, though H_1 is twice H_L.",
        "Within one A the horizon ranks the locks; across A the bound is A^H, whose logarithm is 'horizon log A'. The "
        "rivals, T ('steps') and how many pairs can be met ('pairs'), rank locks as well: a lock's L sets all of them.",
        "On random problems A^H is far above the episodes needed, and does not rank them." if full else "",
        "FrozenLake's min_k is 13: k of 1 to 3 cannot be optimal there. MiniGrid and BRIDGE are not run."
        if full
        else "",
    ]
    said += [f"{c.name}: k = {c.early} below min_k = {c.horizon.min_k} reached the optimum." for c in locks if c.early]
    return " ".join(filter(None, said))


def _case_rows(part: str, cases: Sequence[Case]) -> Iterable[dict[str, Any]]:
    for c in cases:
        row = {"name": f"{part} {c.name}: fewest episodes a step", "value": c.fewest}
        yield row | {"min_k": c.horizon.min_k, "effective_horizon": c.horizon.effective, "at_k": c.needed}


def _correlation_rows(part: str, cases: Sequence[Case]) -> Iterable[dict[str, Any]]:
    for predictor, of in PREDICTORS.items():
        if len({of(c) for c in cases}) > 1:
            rho, p = correlation(cases, predictor)
            name = f"{part}: Spearman of {predictor} and episodes"
            yield {"name": name, "value": rho, "p": p, "problems": len(cases)}
    for actions in sorted({c.actions for c in cases}):
        same = [c for c in cases if c.actions == actions and np.isfinite(c.fewest)]
        if len(same) > 2:
            slope = log_log_slope([actions**c.horizon.effective for c in same], [c.fewest for c in same])
            yield {"name": f"{part}, A={actions}: slope of log episodes in H log A", "value": slope, "bound": 1.0}


def _draw(folder: Path, locks: Sequence[Case], others: dict[str, list[Case]]) -> Path:
    """Left: fewest episodes against the effective horizon. Right: the fewest for each k of the longest locks."""
    from surefoot.report.figures import COLOURS, QUIET, canvas, save

    with canvas(9.6, 3.8) as figure:
        left, right = figure.subplots(1, 2)
        kinds = {
            f"{kind}, A={A}": [c for c in locks if c.name.startswith(kind) and c.actions == A]
            for A in (2, 3)
            for kind in ("plain", "deceptive")
        } | others
        for colour, (label, cases) in zip(COLOURS, kinds.items(), strict=False):
            x = [c.actions**c.horizon.effective for c in cases]
            left.loglog(x, [c.fewest for c in cases], "o", color=colour, markersize=4, label=label)
        span = np.array([min(c.actions**c.horizon.effective for c in locks), 1e5])
        left.loglog(span, span, ":", color=QUIET, label="slope 1 (bound)")
        left.set(xlabel="A^H, H the effective horizon", ylabel="episodes a step", title="Fewest that do")
        left.legend(fontsize=7)
        longest = [kinds[f"{kind}, A={A}"][-1] for A in (2, 3) for kind in ("plain", "deceptive")]
        highest = 2 * max(m for c in longest for m in c.needed.values() if np.isfinite(m))
        for i, (colour, c) in enumerate(zip(COLOURS, longest, strict=False)):
            k = np.array(list(c.needed))
            m = np.array(list(c.needed.values()))
            solved = np.isfinite(m)
            right.semilogy(k[solved], m[solved], "o-", color=colour, markersize=4, label=c.name)
            right.semilogy(k[~solved], np.full((~solved).sum(), highest * 1.3**i), "x", color=colour)
        right.set(xlabel="k", ylabel="episodes a step", title="By k (crosses at the top: never)")
        right.legend(fontsize=7)
        return save(figure, folder / "sqirl")[0]


CLAIM = Claim(
    slug="sqirl",
    statement="Shallow Q-iteration from random episodes fails for every k below the analyser's min_k and succeeds from "
    "there on, and the episodes it needs rise with the effective horizon min_k' k' + log_A(1 / gap^2).",
    refuted_if="on a deceptive lock some k < min_k is optimal in 80 % of the runs with any number of episodes, or "
    "Spearman's correlation of the effective horizon and the episodes is not above 0 over the locks",
    run=run,
    seeds=tuple(range(10)),
)
