"""Divergences between distributions, and the optimum of `E_p[r] - beta D(p | q)` for each of them.

An f-divergence is `D(p | q) = sum_i q_i f(p_i / q_i)`, f convex, `f(1) = 0` (Csiszar 1967). Its regularised optimum on
the support of q is `p = q max(0, (f')^-1((r - lambda) / beta))` with the one lambda that makes it sum to 1: by closed
form where there is one, by a bracketed root otherwise. Distributions lie along the last axis; leading axes are batches.
Turned round (`r = -V`) the same optimum is nature's worst next state: see `robust`.
Sources: arXiv 2205.11275 (KL); Belousov and Peters, arXiv 1907.04214 (alpha-divergences); arXiv 2411.18612 (robust).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import wrightomega

from surefoot.errors import InputError
from surefoot.exact.operators import log_mean_exp, log_or_minus_inf, softmax
from surefoot.exact.roots import bracketed_root

Dist = Float[np.ndarray, "*batch a"]
Numbers = Float[np.ndarray, "*batch"]


class Divergence:
    """An f-divergence: f, its slope, the inverse of its slope, and the slopes at 0 and infinity."""

    at_zero = -np.inf
    at_infinity = np.inf

    def f(self, t: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def slope(self, t: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def inverse(self, y: np.ndarray) -> np.ndarray:
        """The ratio at which the slope is y, for y in `[at_zero, at_infinity)`."""
        raise NotImplementedError

    def __call__(self, p: Dist, q: Dist) -> Numbers:
        """`D(p | q)`; mass outside the support of q costs `at_infinity` a unit."""
        inside = q > 0
        outside = np.where(inside, 0.0, p).sum(-1)
        within = np.where(inside, q * self.f(np.where(inside, p / np.where(inside, q, 1.0), 1.0)), 0.0).sum(-1)
        with np.errstate(invalid="ignore"):
            return within + np.where(outside > 0, self.at_infinity * outside, 0.0)

    def optimum(self, q: Dist, r: Dist, beta: float | np.ndarray) -> Dist:
        """`argmax_p E_p[r] - beta D(p | q)` on the support of q.

        With `c = (max r - lambda) / beta`, `sum_i q_i (f')^-1(c - (max r - r_i) / beta)` rises with c, is at most 1 at
        `c = f'(1)`, and at least 1 where the best entry alone has it all.
        """
        q, r = np.asarray(q, float), np.where(q > 0, r, -np.inf)
        best = r.max(-1, keepdims=True)
        below = (best - r) / beta
        heaviest = np.where(r == best, q, 0.0).max(-1, keepdims=True)

        def excess(c: np.ndarray) -> np.ndarray:
            return self._weigh(q, c - below).sum(-1, keepdims=True) - 1

        low = np.broadcast_to(self.slope(np.ones(())), best.shape)
        p = self._weigh(q, bracketed_root(excess, low, self.slope(1 / heaviest)) - below)
        return p / p.sum(-1, keepdims=True)

    def best_value(self, q: Dist, r: Dist, beta: float | np.ndarray) -> Numbers:
        """`max_p E_p[r] - beta D(p | q)`; beta may be an array that keeps the last axis."""
        p = self.optimum(q, r, beta)
        price = np.squeeze(beta, -1) if np.ndim(beta) else beta
        return (p * np.where(p > 0, r, 0.0)).sum(-1) - price * self(p, q)

    def _weigh(self, q: Dist, y: Dist) -> Dist:
        with np.errstate(over="ignore"):
            return q * np.where(y > self.at_zero, self.inverse(np.maximum(y, self.at_zero)), 0.0)


class _KL(Divergence):
    """`KL(p | q) = sum p log(p / q)`: `f = t log t`, optimum `q exp(r / beta) / Z`."""

    def f(self, t):
        return t * np.log(np.where(t > 0, t, 1.0))

    def slope(self, t):
        return 1 + np.log(t)

    def inverse(self, y):
        return np.exp(y - 1)

    def optimum(self, q, r, beta):
        return softmax(log_or_minus_inf(q) + r / beta)

    def best_value(self, q, r, beta):
        return log_mean_exp(r, beta, log_or_minus_inf(q))


class _ForwardKL(Divergence):
    """`KL(q | p) = sum q log(q / p)`: `f = -log t`, optimum `beta q / (lambda - r)`. It keeps all of q's support."""

    at_infinity = 0.0

    def f(self, t):
        return -log_or_minus_inf(t)

    def slope(self, t):
        return -1 / t

    def inverse(self, y):
        return -1 / y


class _ChiSquared(Divergence):
    """`sum (p - q)^2 / q`: `f = (t - 1)^2`, optimum `q max(0, 1 + (r - lambda) / (2 beta))`: drops what is bad."""

    at_zero = -2.0

    def f(self, t):
        return (t - 1) ** 2

    def slope(self, t):
        return 2 * (t - 1)

    def inverse(self, y):
        return 1 + y / 2

    def optimum(self, q, r, beta):
        """Exact: with the k best kept, lambda is linear in r; k is the most for which the k-th still has mass."""
        q, r = np.broadcast_arrays(np.asarray(q, float), r)
        order = np.argsort(-np.where(q > 0, r, -np.inf), -1, kind="stable")
        q_, r_ = np.take_along_axis(q, order, -1), np.take_along_axis(r, order, -1)
        mass = q_.cumsum(-1)
        lam = ((q_ * r_).cumsum(-1) - 2 * beta * (1 - mass)) / mass
        kept = (r_ > lam - 2 * beta) & (q_ > 0)
        last = kept.shape[-1] - 1 - kept[..., ::-1].argmax(-1)[..., None]
        p = q * np.maximum(0.0, 1 + (r - np.take_along_axis(lam, last, -1)) / (2 * beta))
        return p / p.sum(-1, keepdims=True)


class _ChiSquaredKL(Divergence):
    """`CHI2 / 2 + KL` (chi-PO, arXiv 2407.13399): `f = (t - 1)^2 / 2 + t log t`, slope `t + log t`.

    Its optimum `q W0(exp((r - lambda) / beta))`, W0 Lambert's, keeps all of q's support, and ratios grow as r, not as
    e^r: at most `1 + R / beta` for rewards in a range R.
    """

    def f(self, t):
        return (t - 1) ** 2 / 2 + KL.f(t)

    def slope(self, t):
        return t + np.log(t)

    def inverse(self, y):
        return wrightomega(y)


class _Hellinger(Divergence):
    """Squared Hellinger distance `1/2 sum (sqrt p - sqrt q)^2`, in [0, 1]: `f = (sqrt t - 1)^2 / 2`."""

    at_infinity = 0.5

    def f(self, t):
        return (np.sqrt(t) - 1) ** 2 / 2

    def slope(self, t):
        return (1 - 1 / np.sqrt(t)) / 2

    def inverse(self, y):
        return (1 - 2 * y) ** -2.0


class _JensenShannon(Divergence):
    """`1/2 KL(p | m) + 1/2 KL(q | m)`, `m = (p + q) / 2`, at most log 2."""

    at_infinity = np.log(2) / 2

    def f(self, t):
        return (KL.f(t) - (1 + t) * np.log((1 + t) / 2)) / 2

    def slope(self, t):
        return np.log(2 * t / (1 + t)) / 2

    def inverse(self, y):
        return 1 / (2 * np.exp(-2 * y) - 1)


class _TotalVariation(Divergence):
    """`1/2 sum |p - q|`: what is worse than the best by more than beta moves to the best, the rest stays."""

    at_infinity = 0.5

    def f(self, t):
        return np.abs(t - 1) / 2

    def optimum(self, q, r, beta):
        q, r = np.asarray(q, float), np.where(q > 0, r, -np.inf)
        best = r.argmax(-1, keepdims=True)
        stays = np.take_along_axis(r, best, -1) - r <= beta
        p = np.where(stays, q, 0.0)
        moved = 1 - p.sum(-1, keepdims=True)
        np.put_along_axis(p, best, np.take_along_axis(p, best, -1) + moved, -1)
        return p


@dataclass(frozen=True)
class Alpha(Divergence):
    """`f = (t^a - a t + a - 1) / (a (a - 1))`: `CHI2 / 2` at a = 2, `4 HELLINGER` at 1/2, near `KL` as a tends to 1.

    The optimum is a Tsallis softmax, sparse for `a > 1`.
    """

    a: float

    def __post_init__(self):
        if self.a in (0, 1):
            name = "KL" if self.a else "FORWARD_KL"
            raise InputError(f"alpha-divergence: a = {self.a:g} is {name}; expected another")

    @property
    def at_zero(self) -> float:
        return -1 / (self.a - 1) if self.a > 1 else -np.inf

    @property
    def at_infinity(self) -> float:
        return np.inf if self.a > 1 else 1 / (1 - self.a)

    def f(self, t):
        with np.errstate(divide="ignore"):
            return (np.asarray(t, float) ** self.a - self.a * t + self.a - 1) / (self.a * (self.a - 1))

    def slope(self, t):
        return (np.asarray(t, float) ** (self.a - 1) - 1) / (self.a - 1)

    def inverse(self, y):
        return (1 + (self.a - 1) * np.asarray(y, float)) ** (1 / (self.a - 1))


KL, FORWARD_KL, CHI2, HELLINGER = _KL(), _ForwardKL(), _ChiSquared(), _Hellinger()
JENSEN_SHANNON, TV, CHI2_KL = _JensenShannon(), _TotalVariation(), _ChiSquaredKL()


def renyi(p: Dist, q: Dist, order: float) -> Numbers:
    """`log(sum p^a q^(1-a)) / (a - 1)`, a > 0; KL at a = 1, `log max p / q` at infinity (Renyi 1961).

    >>> round(float(renyi(np.array([.5, .5]), np.array([.25, .75]), 2.)), 6) == round(float(np.log(4 / 3)), 6)
    True
    """
    if order == 1:
        return KL(p, q)
    log_p, log_q = log_or_minus_inf(np.asarray(p, float)), log_or_minus_inf(np.asarray(q, float))
    used = p > 0
    ratio = np.where(used, log_p, 0.0) - np.where(used, log_q, 0.0)
    if np.isinf(order):
        return np.where(used, ratio, -np.inf).max(-1)
    return np.logaddexp.reduce(log_p + (order - 1) * ratio, -1) / (order - 1)


def f_regularised_optimum(q: Dist, r: Dist, beta: float | np.ndarray, f: Divergence = KL) -> Dist:
    """`argmax_p E_p[r] - beta D_f(p | q)` for a contextual bandit, on the support of q [*batch, a].

    Raises:
        InputError: a beta that is not positive.

    >>> f_regularised_optimum(np.array([.5, .3, .2]), np.array([0., 1, 2]), .5).round(7)
    array([0.0366667, 0.1625594, 0.8007739])
    """
    if not np.all(np.asarray(beta) > 0):
        raise InputError(f"beta {beta}; expected a number above 0")
    return f.optimum(np.asarray(q, float), np.asarray(r, float), beta)


def f_regularised_value(q: Dist, r: Dist, beta: float, f: Divergence = KL) -> Numbers:
    """`max_p E_p[r] - beta D_f(p | q)`; for KL `beta log E_q[exp(r / beta)]`."""
    return f.best_value(np.asarray(q, float), np.asarray(r, float), beta)


@dataclass(frozen=True, eq=False)
class Regularised:
    """The choice of an action at `beta D_f(policy | reference)` a step: any solver's `choose`. For KL it is `Soft`.

    >>> from surefoot.exact.generators import chain
    >>> from surefoot.exact.mdp import value_iteration
    >>> cautious = Regularised(.1, np.full((3, 2), .5), CHI2)
    >>> value_iteration(chain(3), choose=cautious).policy[0].round(3)
    array([0., 1.])
    """

    beta: float
    reference: Dist
    f: Divergence = KL

    def __post_init__(self):
        if not self.beta > 0:
            raise InputError(f"beta {self.beta}; expected a number above 0 (0 is Greedy)")

    def value(self, Q: Dist) -> Numbers:
        return self.f.best_value(self.reference, Q, self.beta)

    def policy(self, Q: Dist) -> Dist:
        return f_regularised_optimum(self.reference, Q, self.beta, self.f)

    def bonus(self, policy: Dist) -> Dist:
        """The same for every action of a state: what is never chosen costs too, and has no share of its own."""
        return np.broadcast_to(-self.beta * self.f(policy, self.reference)[..., None], policy.shape)
