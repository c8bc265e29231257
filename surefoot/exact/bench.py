"""How long the solvers take, on random sparse MDPs and on grids."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.exact.generators import garnet, open_grid
from surefoot.exact.mdp import policy_iteration, value_iteration


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


def solver_times(
    sizes: Sequence[int] = (1_000, 10_000, 100_000), gamma: float = 0.95, tol: float = 1e-8
) -> list[SolverTime]:
    """Value iteration to `tol` and policy iteration to rounding, on garnets (5 next states) and grids, 4 actions."""
    worlds = {
        "garnet": lambda n: garnet(n, 4, 5, seed=0, gamma=gamma),
        "grid": lambda n: open_grid(round(n**0.5), round(n**0.5), gamma=gamma),
    }
    solvers = {"value iteration": lambda m: value_iteration(m, tol), "policy iteration": policy_iteration}
    records = []
    for world, build in worlds.items():
        for size in sizes:
            mdp = build(size)
            for solver, solve in solvers.items():
                start = time.perf_counter()
                found = solve(mdp)
                seconds = time.perf_counter() - start
                records.append(
                    SolverTime(world, solver, mdp.states, mdp.actions, seconds, found.iterations, found.error)
                )
    return records
