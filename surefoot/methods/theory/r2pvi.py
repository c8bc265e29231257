"""Robust regularised pessimistic value iteration: offline learning where nature bends the dynamics, and pays for it.

"Robust Offline Reinforcement Learning with Linearly Structured f-Divergence Regularization", arXiv 2411.18612.

A linear MDP mixes d next-state distributions, its factors. Nature may replace each factor by another at a price, which
needs no uncertainty set and no constrained dual:

    P_h(s' | s, a) = sum_i phi_i(s, a) mu_hi(s'),   r_h = phi . theta_h,   phi >= 0, sum_i phi_i = 1
    Q_h(s, a) = r_h + sum_i phi_i(s, a) nu_i,       nu_i = inf_m E_m[V_h+1] + price D(m | mu_hi)
    TV    nu = E_mu[min(V, min V + price)]
    KL    nu = -price log E_mu[exp(-V / price)]
    chi2  nu = sup_a E_mu[V_a] - Var_mu[V_a] / (4 price),   V_a = min(V, a)

From data, `E_mu[t(V)]` is a ridge regression of t(V(s')) on phi, and coordinate i is penalised for the little that is
known about it: `beta sqrt(sum_i phi_i^2 (Lambda^-1)_ii)` in the authors' code (`diagonal`), `beta sum_i phi_i
sqrt((Lambda^-1)_ii)` in the analysis (`by_coordinate`). With the plain mean and `elliptical` it is PEVI.

Our reading: the authors' code takes the smallest value of the chi-squared dual over a, which is no value at all
(`ChiSquared(price, np.min)` for comparison); the equations say the largest, and so do we.
Claim: where the test dynamics are worse than the data's the policy loses less than PEVI's, for a closed form's cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from surefoot.errors import InputError
from surefoot.exact.episodes import Episodes
from surefoot.exact.mdp import MDP, FiniteHorizon
from surefoot.exact.operators import GREEDY, Choice, log_or_minus_inf

SLUG = "r2pvi"
ARXIV = "2411.18612"

Features = Float[np.ndarray, "s a d"]
Factors = Float[np.ndarray, "d s"]  # distributions over next states, or their estimates, whose entries have any sign
Values = Float[np.ndarray, "s"]
Nature = Callable[[Factors, Values], Float[np.ndarray, "d"]]
Penalty = Callable[[Features, Float[np.ndarray, "d d"]], Float[np.ndarray, "s a"]]


# Nature: the worst mean of V for each factor. States that no data reach count for min V, with weight 0.


def mean(factors: Factors, V: Values) -> Float[np.ndarray, "d"]:
    """No adversary: `E_mu[V]`."""
    return factors @ V


@dataclass(frozen=True)
class TV:
    """`D = 1/2 sum |m - mu|`: no next state counts for more than the worst one and the price.

    The worst one's value is `floor` where it is known, as 0 with a fail state; pessimistic values may be far below it.
    """

    price: float
    floor: float | None = None

    def __call__(self, factors: Factors, V: Values) -> Float[np.ndarray, "d"]:
        return factors @ np.minimum(V, (V.min() if self.floor is None else self.floor) + self.price)


@dataclass(frozen=True)
class KL:
    """`D = KL(m | mu)`; an estimate of `E[exp(-V / price)]` below `exp(-cap / price)` is taken for that."""

    price: float
    cap: float = np.inf

    def __call__(self, factors: Factors, V: Values) -> Float[np.ndarray, "d"]:
        worst = V[(factors != 0).any(0)].min(initial=V.max())
        # States below the worst one are in no factor: what stands for them only has to be finite.
        moment = np.maximum(factors @ np.exp(np.minimum(worst - V, 0.0) / self.price), 0.0)
        return np.minimum(worst - self.price * log_or_minus_inf(moment), self.cap)


@dataclass(frozen=True)
class ChiSquared:
    """`D = sum (m - mu)^2 / mu`, by its dual in one number a.

    Between neighbouring values, with `E[V_a] = below + above a`, the dual is a quadratic of a, whose peak is at
    `a = (2 price + below) / (1 - above)`; so the best a is one of the values or one of the peaks.
    """

    price: float
    choose: Callable[..., np.ndarray] = np.max

    def __call__(self, factors: Factors, V: Values) -> Float[np.ndarray, "d"]:
        order = np.argsort(V)
        v, factors = V[order], factors[:, order]
        first, total = np.cumsum(factors * v, 1), np.cumsum(factors, 1)
        above = total[:, -1:] - total
        with np.errstate(divide="ignore", invalid="ignore"):
            peak = (2 * self.price + first) / (1 - above)
        peak = np.where(np.isfinite(peak), np.clip(peak, v, np.append(v[1:], v[-1])), v)
        second = np.cumsum(factors * v**2, 1)
        duals = [m - (second + above * a**2 - m**2) / (4 * self.price) for a in (v, peak) for m in (first + above * a,)]
        return self.choose(np.concatenate(duals, 1), axis=1)


# Pessimism: how little the data say about phi


def diagonal(phi: Features, inverse: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "s a"]:
    """`sqrt(sum_i phi_i^2 (Lambda^-1)_ii)`."""
    return np.sqrt(phi**2 @ np.diag(inverse))


def by_coordinate(phi: Features, inverse: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "s a"]:
    """`sum_i phi_i sqrt((Lambda^-1)_ii)`, at least `diagonal`."""
    return phi @ np.sqrt(np.diag(inverse))


def elliptical(phi: Features, inverse: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "s a"]:
    """`sqrt(phi' Lambda^-1 phi)`, the non-robust one."""
    return np.sqrt(np.einsum("sad,de,sae->sa", phi, inverse, phi))


# The problem, what is learnt of it, and backward induction


@dataclass(frozen=True, eq=False)
class LinearMDP:
    """A finite-horizon MDP whose dynamics and rewards are linear in features.

    Attributes:
        phi: features, at least 0, of sum 1 [S, A, d].
        factors: next-state distributions at each step [H, d, S].
        theta: rewards of the features at each step [H, d].
        mu: distribution of the first state [S].
    """

    phi: Features
    factors: Float[np.ndarray, "h d s"]
    theta: Float[np.ndarray, "h d"]
    mu: Values

    def __post_init__(self):
        if (self.phi < 0).any() or not np.allclose(self.phi.sum(-1), 1):
            raise InputError("LinearMDP: phi; expected features of at least 0 that sum to 1")

    def tabular(self) -> FiniteHorizon:
        """The same problem on tables, for exact answers."""
        stages = [MDP(self.phi @ f, self.phi @ t, 1.0, self.mu) for f, t in zip(self.factors, self.theta, strict=True)]
        return FiniteHorizon(tuple(stages), self.mu)


@dataclass(frozen=True, eq=False)
class Fit:
    """Ridge regression of one step: `factors @ t(V)` estimates `E_mu[t(V)]` for any t; `inverse` is `Lambda^-1`."""

    factors: Factors
    inverse: Float[np.ndarray, "d d"]


def fit(phi: Float[np.ndarray, "n d"], following: Int[np.ndarray, "n"], states: int, ridge: float) -> Fit:
    """`Lambda = ridge I + sum phi phi'`, factors `Lambda^-1 sum phi e(s')'`."""
    inverse = np.linalg.inv(ridge * np.eye(phi.shape[1]) + phi.T @ phi)
    met = sparse.csr_matrix((np.ones(len(phi)), following, np.arange(len(phi) + 1)), (len(phi), states))
    return Fit(inverse @ (met.T @ phi).T, inverse)


def fits(phi: Features, seen: Episodes, ridge: float) -> list[Fit]:
    """One regression a step."""
    at = [phi[seen.states[:, h], seen.actions[:, h]] for h in range(seen.horizon)]
    return [fit(x, seen.states[:, h + 1], len(phi), ridge) for h, x in enumerate(at)]


def r2pvi(
    phi: Features,
    theta: Float[np.ndarray, "h d"],
    steps: Sequence[Fit],
    nature: Nature,
    beta: float = 0.0,
    penalty: Penalty = diagonal,
    fail: Sequence[int] = (),
    choose: Choice | Sequence[Choice] = GREEDY,
) -> tuple[Float[np.ndarray, "h+1 s"], Float[np.ndarray, "h s a"]]:
    """Values `V` [H + 1, S] and `Q` [H, S, A] by backward induction; act by `Q.argmax(-1)`.

    With the true factors and beta 0 they are the exact robust values, of a policy where `choose` is `Fixed`.

    Args:
        beta: of the penalty; Q is capped at the number of steps left, and has no floor.
        fail: states known to be worth 0.
    """
    H, (S, A, _) = len(theta), phi.shape
    choices = choose if isinstance(choose, Sequence) else [choose] * H
    V, Q = np.zeros((H + 1, S)), np.zeros((H, S, A))
    for h in reversed(range(H)):
        at = steps[h]
        worth = phi @ (theta[h] + nature(at.factors, V[h + 1]))
        Q[h] = np.minimum(worth - beta * penalty(phi, at.inverse) if beta else worth, H - h)
        V[h] = choices[h].value(Q[h])
        V[h, list(fail)] = 0.0
    return V, Q


def exact(problem: LinearMDP) -> list[Fit]:
    """The true factors, with nothing left to learn."""
    nothing = np.zeros((problem.phi.shape[-1],) * 2)
    return [Fit(f, nothing) for f in problem.factors]


FAIL, GOAL = 3, 4


def five_states(q: float = 0.0, delta: float = 0.3, xi: Sequence[float] = (0.05,) * 4) -> LinearMDP:
    """The paper's simulated problem: 5 states, actions {-1, 1}^4, 3 steps; safe and slow, or a bet on the goal.

    Every action bets `delta + xi . a` on the goal, which pays 1 at each later step; what is left stays put and can bet
    again. In a test, a share q of the first bet ends in the fail state instead.
    """
    actions = np.stack(np.meshgrid(*[[-1, 1]] * len(xi), indexing="ij"), -1).reshape(-1, len(xi))
    bet = delta + actions @ np.asarray(xi)
    phi = np.zeros((5, len(bet), 4))
    for s in range(3):
        phi[s, :, s], phi[s, :, 3] = 1 - bet, bet
    phi[FAIL, :, 2] = phi[GOAL, :, 3] = 1
    factors = np.zeros((3, 4, 5))
    factors[:, :2, 1], factors[:, :2, FAIL] = 0.999, 0.001
    factors[:, 2, FAIL] = factors[:, 3, GOAL] = 1
    factors[0, 3, FAIL], factors[0, 3, GOAL] = q, 1 - q
    theta = np.zeros((3, 4))
    theta[1:, 3] = 1
    return LinearMDP(phi, factors, theta, np.eye(5)[0])
