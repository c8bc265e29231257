"""How long the solvers take as the problem grows: random sparse MDPs and grids, 4 actions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from surefoot.exact.generators import garnet, open_grid
from surefoot.exact.mdp import MDP, Solution, policy_iteration, soft_value_iteration, value_iteration
from surefoot.exact.robust import Penalised, robust_value_iteration

SIZES = (1_000, 10_000, 100_000)
GAMMA, TOL = 0.95, 1e-8

WORLDS: dict[str, Callable[[int], MDP]] = {
    "garnet": lambda n: garnet(n, 4, 5, seed=0, gamma=GAMMA),
    "grid": lambda n: open_grid(round(n**0.5), round(n**0.5), gamma=GAMMA),
}
SOLVERS: dict[str, Callable[[MDP], Solution]] = {
    "value iteration": lambda m: value_iteration(m, TOL),
    "policy iteration": policy_iteration,
    "soft value iteration": lambda m: soft_value_iteration(m, 0.1, tol=TOL),
    "robust value iteration, KL": lambda m: robust_value_iteration(m, Penalised(m, 0.5), TOL),
}


@dataclass(frozen=True)
class SolverTime:
    """One solve.

    Attributes:
        world, solver: which.
        states, actions: of the MDP; a grid has the next square number of cells.
        seconds: of the solve, on the wall; building the MDP is not counted.
        iterations: backups of value iteration, policies evaluated by policy iteration.
        error: the solver's own bound on the error of V.
    """

    world: str
    solver: str
    states: int
    actions: int
    seconds: float
    iterations: int
    error: float


def solver_times(sizes: Sequence[int] = SIZES) -> Iterator[SolverTime]:
    """Value iterations to an error of 1e-8 and policy iteration to rounding, gamma .95; a garnet has 5 next states."""
    for size in sizes:
        for world, build in WORLDS.items():
            mdp = build(size)
            for solver, solve in SOLVERS.items():
                start = time.perf_counter()
                found = solve(mdp)
                seconds = time.perf_counter() - start
                yield SolverTime(world, solver, mdp.states, mdp.actions, seconds, found.iterations, found.error)
