"""What stands between action values and state values: the best action, a soft maximum, or a given policy.

A Bellman backup is `Q = R + gamma * next(V)` with `V = choose.value(Q)`. Which action is taken (`choose`, here) and
which next state is met (`next`: the mean of `MDP.expect`, or a worst case of `robust`) are the only two things that
hard, soft, regularised and robust dynamic programming change. Every operator here is monotone and passes constants
through, `value(Q + c) = value(Q) + c`, which is all that the solvers' error bounds need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from surefoot.errors import InputError

Table = Float[np.ndarray, "s a"]
States = Float[np.ndarray, "s"]


def log_mean_exp(
    x: np.ndarray, temperature: float | np.ndarray, log_weights: np.ndarray | float = 0.0, axis: int = -1
) -> np.ndarray:
    """`t log sum_i w_i exp(x_i / t)` along an axis: one function for soft maxima (t > 0) and soft minima (t < 0).

    With weights that sum to 1 it is the KL-regularised best case `max_p E_p[x] - t KL(p | w)`, and at `t = -lambda` the
    worst case `min_p E_p[x] + lambda KL(p | w)` (Donsker and Varadhan); with weights 1, the best with t times the
    entropy.

    Args:
        temperature: not 0; an infinite number gives the weighted mean. An array keeps the reduced axis, as x does.
        log_weights: broadcasts against x; -inf where a weight is 0.

    >>> round(float(log_mean_exp(np.array([0, .2, 1]), -.1, np.log([.1, .3, .6]))), 7)
    0.1961638
    """
    if np.ndim(temperature) == 0 and np.isinf(temperature):
        return np.where(np.isneginf(log_weights), 0.0, np.exp(log_weights) * x).sum(axis)
    z = x / temperature + log_weights
    top = z.max(axis, keepdims=True)
    return (temperature * (np.log(np.exp(z - top).sum(axis, keepdims=True)) + top)).squeeze(axis)


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """`exp(x) / sum exp(x)`."""
    z = np.exp(x - x.max(axis, keepdims=True))
    return z / z.sum(axis, keepdims=True)


def log_or_minus_inf(p: np.ndarray) -> np.ndarray:
    """`log p`, -inf at 0, without a warning."""
    with np.errstate(divide="ignore"):
        return np.log(p)


class Choice(Protocol):
    """How an action is chosen: the value of a state, the policy that attains it, and what a policy earns by itself.

    For every policy `value(Q) >= sum_a policy (Q + bonus(policy))`, with equality at `policy(Q)`.
    """

    def value(self, Q: Table) -> States: ...

    def policy(self, Q: Table) -> Table: ...

    def bonus(self, policy: Table) -> Table: ...


@dataclass(frozen=True)
class Greedy:
    """The best action; the first of them in a tie."""

    def value(self, Q: Table) -> States:
        return Q.max(-1)

    def policy(self, Q: Table) -> Table:
        return np.eye(Q.shape[-1])[Q.argmax(-1)]

    def bonus(self, policy: Table) -> Table:
        return np.zeros(policy.shape)


@dataclass(frozen=True, eq=False)
class Soft:
    """Entropy- or KL-regularised: `alpha log sum_a w exp(Q / alpha)`, policy `w exp(Q / alpha) / Z`.

    `w` is 1 without a reference, which adds alpha times the entropy; with one, `w = reference` and alpha times
    `KL(policy | reference)` is taken away. As `H = log A - KL(. | uniform)`, the two differ by the constant
    `alpha log A` a step where the reference is uniform; their policies are the same.
    """

    alpha: float
    reference: Table | None = None

    def __post_init__(self):
        if not self.alpha > 0:
            raise InputError(f"alpha {self.alpha}; expected a number above 0 (0 is Greedy)")

    @property
    def log_weights(self) -> Table | float:
        return 0.0 if self.reference is None else log_or_minus_inf(np.asarray(self.reference, float))

    def value(self, Q: Table) -> States:
        return log_mean_exp(Q, self.alpha, self.log_weights)

    def policy(self, Q: Table) -> Table:
        return softmax(Q / self.alpha + self.log_weights)

    def bonus(self, policy: Table) -> Table:
        return -self.alpha * log_ratio(policy, self.log_weights)


@dataclass(frozen=True, eq=False)
class Fixed:
    """A given policy, with the bonus of another choice in it (`Soft`) or without (`Greedy`)."""

    table: Table
    under: Choice = Greedy()

    def value(self, Q: Table) -> States:
        return (self.table * np.where(self.table > 0, Q + self.under.bonus(self.table), 0.0)).sum(-1)

    def policy(self, Q: Table) -> Table:
        return self.table

    def bonus(self, policy: Table) -> Table:
        return self.under.bonus(policy)


@dataclass(frozen=True, eq=False)
class Expectile:
    """The tau-expectile of Q under a behaviour [S, A]: V with `sum_a mu |tau - 1(Q < V)| (Q - V) = 0` (IQL).

    The behaviour's mean at tau = 1/2, its best action as tau -> 1. `policy` is the greedy one among its actions.
    """

    tau: float
    behaviour: Table

    def __post_init__(self):
        if not 0 < self.tau < 1:
            raise InputError(f"tau {self.tau}; expected a number between 0 and 1")

    def value(self, Q: Table) -> States:
        return expectile(Q, self.behaviour, self.tau)

    def policy(self, Q: Table) -> Table:
        return GREEDY.policy(np.where(self.behaviour > 0, Q, -np.inf))

    def bonus(self, policy: Table) -> Table:
        return np.zeros(policy.shape)


def expectile(x: Table, weights: Table, tau: float) -> States:
    """The tau-expectile of each row under its weights, exactly: no search.

    Above the k smallest values it is `(a sum_low + b sum_high) / (a w_low + b w_high)`, a = 1 - tau, b = tau; the
    right k is the one whose result lies between its neighbours.

    >>> expectile(np.array([[0.0, 1.0, 2.0, 10.0]]), np.full((1, 4), 0.25), 0.7)
    array([4.9375])
    """
    order = np.argsort(x, axis=-1)
    x, w = np.take_along_axis(x, order, -1), np.take_along_axis(weights, order, -1)
    low, mass = np.cumsum(w * x, -1), np.cumsum(w, -1)
    high, rest = low[..., -1:] - low, mass[..., -1:] - mass
    found = ((1 - tau) * low + tau * high) / np.maximum((1 - tau) * mass + tau * rest, np.finfo(float).tiny)
    # The condition falls with V and is the same on both sides of a value: x_k <= V exactly where x_k <= found_k.
    last = x.shape[-1] - 1 - np.argmax((x <= found)[..., ::-1], axis=-1)
    return np.take_along_axis(found, last[..., None], -1)[..., 0]


GREEDY = Greedy()


def log_ratio(p: np.ndarray, log_weights: np.ndarray | float = 0.0) -> np.ndarray:
    """`log p - log w`, 0 where p is 0. Its mean under p is a KL where w is a distribution, minus the entropy at 1."""
    used = p > 0
    return np.log(np.where(used, p, 1.0)) - np.where(used, log_weights, 0.0)
