"""Robust dynamic programming: nature picks the worst next-state distribution of each (state, action).

Each class here is a next-state operator, `V [S] -> [S, A]`, to hand to `value_iteration(mdp, next_state=...)`:

    Kernels      the worst of finitely many MDPs
    Ball         the worst p with `D(p | P) <= radius`, any f-divergence
    TVBall       total variation, with mass that may move anywhere
    Penalised    `min_p E_p[V] + price D(p | P)`, any f-divergence
    PenalisedTV  total variation, with mass that may move anywhere

All are rectangular: nature chooses anew for each (state, action). `kernel(V)` is nature's choice, sparse [S * A, S];
the policy that is greedy at the fixed point is optimal in the MDP it makes.
Sources: Iyengar (2005), Nilim and El Ghaoui (2005) for the sets; arXiv 2411.18612 for the penalties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from surefoot.errors import InputError
from surefoot.exact.divergence import KL, TV, Divergence
from surefoot.exact.mdp import MDP, Solution, value_iteration
from surefoot.exact.operators import GREEDY, Choice, States, Table
from surefoot.exact.roots import bracketed_root

Rows = Float[np.ndarray, "sa k"]


class Nature(Protocol):
    """A worst case over next states."""

    def __call__(self, V: States) -> Table: ...

    def kernel(self, V: States) -> sparse.csr_matrix: ...


def robust_value_iteration(mdp: MDP, nature: Nature, tol: float = 1e-10, choose: Choice = GREEDY) -> Solution:
    """The value and policy of `max_policy min_nature`. With a penalty, nature's bill is part of the value."""
    return value_iteration(mdp, tol, choose, nature)


@dataclass(frozen=True, eq=False)
class Successors:
    """The next states of each (state, action) side by side, short rows filled with chance 0.

    Attributes:
        index, p: [S * A, K], K the most next states of any row.
        shape: (S, A).
    """

    index: Int[np.ndarray, "sa k"]
    p: Rows
    shape: tuple[int, int]

    @classmethod
    def of(cls, mdp: MDP) -> Successors:
        rows = sparse.csr_matrix(mdp.rows, copy=True)
        rows.sum_duplicates()
        rows.eliminate_zeros()
        count = np.diff(rows.indptr)
        used = np.arange(count.max()) < count[:, None]
        # Fillers point where the row points already, so that they change no extreme value.
        index = np.repeat(rows.indices[rows.indptr[:-1]][:, None], count.max(), 1)
        p = np.zeros(index.shape)
        index[used], p[used] = rows.indices, rows.data
        return cls(index, p, mdp.R.shape)

    def kernel(self, p: Rows) -> sparse.csr_matrix:
        """Rows of chances as `P` [S * A, S]."""
        n, k = p.shape
        return sparse.csr_matrix((p.ravel(), self.index.ravel(), np.arange(n + 1) * k), (n, self.shape[0]))


class Kernels:
    """The worst of several MDPs' dynamics, chosen anew at each (state, action)."""

    def __init__(self, mdps: Sequence[MDP]):
        if not mdps:
            raise InputError("Kernels: no MDP; expected at least one")
        self.mdps = tuple(mdps)

    def __call__(self, V: States) -> Table:
        return np.min([m.expect(V) for m in self.mdps], 0)

    def kernel(self, V: States) -> sparse.csr_matrix:
        worst = np.argmin([m.expect(V).ravel() for m in self.mdps], 0)
        picked = [sparse.csr_matrix(m.rows).multiply((worst == i)[:, None]) for i, m in enumerate(self.mdps)]
        return sparse.csr_matrix(sum(picked[1:], picked[0]))


class Penalised:
    """`min_p E_p[V] + price D(p | P)`: nature may do anything, and pays for it.

    It is a policy's regularised optimum with the sign of the values turned: for KL, `-price log E[exp(-V / price)]`.

    Worked (arXiv 2411.18612's card): `V = (0, .2, 1)`, `P = (.1, .3, .6)`, price .1: KL .1961638, chi-squared .2925.
    """

    def __init__(self, mdp: MDP, price: float, divergence: Divergence = KL):
        if not price > 0:
            raise InputError(f"Penalised: price {price}; expected a number above 0")
        self.next, self.price, self.divergence = Successors.of(mdp), price, divergence

    def __call__(self, V: States) -> Table:
        return -self.divergence.best_value(self.next.p, -V[self.next.index], self.price).reshape(self.next.shape)

    def kernel(self, V: States) -> sparse.csr_matrix:
        return self.next.kernel(self.divergence.optimum(self.next.p, -V[self.next.index], self.price))


class Ball:
    """`min E_p[V]` over `D(p | P) <= radius`, p on the support of P; for total variation see `TVBall`.

    By duality `max_price>=0 penalised(price) - price radius`. The best price is where the penalised optimum is as far
    from P as it may be, found for all rows at once: that distance falls as the price rises, and no price above
    `(E[V] - min V) / radius` can be best. Where even the worst support is within the radius, the price goes to 0.
    """

    def __init__(self, mdp: MDP, radius: float, divergence: Divergence = KL):
        if not radius > 0:
            raise InputError(f"Ball: radius {radius}; expected a number above 0 (0 is the MDP itself)")
        if divergence is TV:
            raise InputError("Ball: total variation is not strictly convex; expected TVBall for it")
        self.next, self.radius, self.divergence = Successors.of(mdp), radius, divergence

    def __call__(self, V: States) -> Table:
        price = self._price(V)
        best = self.divergence.best_value(self.next.p, -V[self.next.index], price)
        return (-best - price[:, 0] * self.radius).reshape(self.next.shape)

    def kernel(self, V: States) -> sparse.csr_matrix:
        return self.next.kernel(self.divergence.optimum(self.next.p, -V[self.next.index], self._price(V)))

    def _price(self, V: States) -> Float[np.ndarray, "sa 1"]:
        p, values = self.next.p, V[self.next.index]
        width = ((p * values).sum(1, keepdims=True) - values.min(1, keepdims=True)) / self.radius
        # Rows without spread are worth the same at any price; tiny spreads are rounding.
        high = np.where(width > 1e-14 * max(1.0, np.abs(V).max()), width, 1.0)

        def room(price: Float[np.ndarray, "sa 1"]) -> Float[np.ndarray, "sa 1"]:
            return self.radius - self.divergence(self.divergence.optimum(p, -values, price), p)[:, None]

        return bracketed_root(room, 1e-12 * high, high)


class PenalisedTV:
    """`min_p E_p[V] + price TV(p, P) = E_P[min(V, floor + price)]`.

    Args:
        anywhere: whether mass may move to any state, as the equations have it; else to the row's own next states.
            With it, `floor = min V` over all states.
    """

    def __init__(self, mdp: MDP, price: float, anywhere: bool = True):
        if not price > 0:
            raise InputError(f"PenalisedTV: price {price}; expected a number above 0")
        self.next, self.price, self.anywhere = Successors.of(mdp), price, anywhere

    def __call__(self, V: States) -> Table:
        values = V[self.next.index]
        cap = V[_floor(self, V)][:, None] + self.price
        return (self.next.p * np.minimum(values, cap)).sum(1).reshape(self.next.shape)

    def kernel(self, V: States) -> sparse.csr_matrix:
        floor = _floor(self, V)
        kept = np.where(V[self.next.index] <= V[floor][:, None] + self.price, self.next.p, 0.0)
        return _with_floor(self.next, kept, floor)


class TVBall:
    """`min E_p[V]` over `TV(p, P) <= radius`: mass `radius` leaves the best next states for the worst one.

    Args:
        anywhere: whether it may go to any state; else to the row's own next states.
    """

    def __init__(self, mdp: MDP, radius: float, anywhere: bool = True):
        if not radius >= 0:
            raise InputError(f"TVBall: radius {radius}; expected 0 or more")
        self.next, self.radius, self.anywhere = Successors.of(mdp), radius, anywhere

    def __call__(self, V: States) -> Table:
        kept = self._kept(V)
        value = (kept * V[self.next.index]).sum(1) + (1 - kept.sum(1)) * V[_floor(self, V)]
        return value.reshape(self.next.shape)

    def kernel(self, V: States) -> sparse.csr_matrix:
        return _with_floor(self.next, self._kept(V), _floor(self, V))

    def _kept(self, V: States) -> Rows:
        """What is left of P when mass `radius` is taken from the top."""
        order = np.argsort(-V[self.next.index], 1, kind="stable")
        p = np.take_along_axis(self.next.p, order, 1)
        before = p.cumsum(1) - p
        kept = np.empty_like(p)
        np.put_along_axis(kept, order, p - np.clip(self.radius - before, 0.0, p), 1)
        return kept


def _floor(nature: PenalisedTV | TVBall, V: States) -> Int[np.ndarray, "sa"]:
    """The worst state that mass of each row may move to."""
    index = nature.next.index
    if nature.anywhere:
        return np.full(len(index), V.argmin())
    return index[np.arange(len(index)), V[index].argmin(1)]


def _with_floor(successors: Successors, kept: Rows, floor: Int[np.ndarray, "sa"]) -> sparse.csr_matrix:
    n = len(floor)
    moved = sparse.csr_matrix((1 - kept.sum(1), (np.arange(n), floor)), (n, successors.shape[0]))
    return (successors.kernel(kept) + moved).tocsr()
