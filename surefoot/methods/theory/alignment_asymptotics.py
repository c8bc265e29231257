"""Two ways to align a model at a budget of KL: tilt it by the reward, or keep the best of N samples.

"Asymptotics of Language Model Alignment", arXiv 2404.01730. Model p, reward r, budget Delta.

    (1) tilt        phi_a(y) = p(y) exp(a r(y)) / Z(a)             best reward of all with KL(. | p) <= Delta, where
                    KL(phi_a | p) = a E[r] - log Z(a) = Delta      a = 1 / beta of the penalised problem
    (2) identity    KL(phi | phi_a) = KL(phi | p) - Delta + a (E_phi_a[r] - E_phi[r])             for every phi
    (3) best of N   P(r <= t) = F(t)^N,  KL(pi_N | p) <= log N - (N - 1) / N
    (4) memoryless  y of n symbols, independent; r(y) = sum r(y_i): phi_a has independent symbols too
    (5) deviations  P_phi_a(r / n ~ m') ~ exp(-n KL(phi_a' | phi_a)),  a' the tilt of mean m'
    (6) cumulants   log E_phi_a[e^(rho r)] / n = log Z(a + rho) / Z(a);   r = log q, a = 0:  -rho H_(1 + rho)(p | q)
    (7) the same    N = e^(n Delta):  E_pi_N[r] / n -> m(Delta)  and  KL(pi_N | phi_a) / n -> 0

Both depend on y through r(y) alone: within one level of reward they leave p as it is. `Levels` is therefore all there
is to know, 10^100 samples and 2560 symbols included. There is nothing to train here; `kl-bayes` trains towards phi_a.

Our reading: the paper's text was not at hand, only its abstract and opening; each equation was derived again.
Claim: with N = e^(n Delta), best of N comes to the tilt's reward per symbol, from below, as n grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from surefoot.errors import InputError
from surefoot.exact.operators import log_mean_exp, log_or_minus_inf
from surefoot.exact.roots import bracketed_root

SLUG = "alignment-asymptotics"
ARXIV = "2404.01730"

Values = Float[np.ndarray, "l"]


@dataclass(frozen=True, eq=False)
class Levels:
    """The levels of reward that a model reaches, rising, and the log-chance of each.

    >>> model = Levels.of(np.array([.5, .3, .2]), np.array([0., 1, 2]))
    >>> tilt = model.tilt(1.0)
    >>> np.exp(tilt).round(6), round(model.kl(tilt), 7), round(model.mean(tilt), 7)
    (array([0.179   , 0.291944, 0.529056]), 0.3228343, 1.3500565)
    >>> np.exp(model.best_of(3)).round(3)
    array([0.125, 0.387, 0.488])
    """

    reward: Values
    log_p: Values

    @classmethod
    def of(cls, p: Float[np.ndarray, "y"], reward: Float[np.ndarray, "y"]) -> Levels:
        """Of a distribution over answers; answers of one reward are one level.

        Raises:
            InputError: p is no distribution.
        """
        if not ((p >= 0).all() and abs(p.sum() - 1) < 1e-8):
            raise InputError(f"levels: p sums to {p.sum():.6g}; expected a distribution")
        levels, place = np.unique(reward[p > 0], return_inverse=True)
        return cls(levels.astype(float), log_or_minus_inf(np.bincount(place, p[p > 0])))

    @classmethod
    def additive(cls, p: Float[np.ndarray, "y"], reward: Int[np.ndarray, "y"], n: int) -> Levels:
        """Of the summed reward of n independent symbols (eq. 4), by n convolutions in log space.

        Raises:
            InputError: rewards that are not whole numbers: sums of others share no levels.
        """
        return cls.markov(p, np.tile(p, (len(p), 1)), reward, n)

    @classmethod
    def markov(
        cls, start: Float[np.ndarray, "y"], moves: Float[np.ndarray, "y y"], reward: Int[np.ndarray, "y"], n: int
    ) -> Levels:
        """Of the summed reward of n symbols, each drawn given the one before: outside the paper's assumptions."""
        steps = np.asarray(reward, int)
        if (steps != reward).any():
            raise InputError(f"levels: rewards {reward}; expected whole numbers")
        low, high = steps.min(), steps.max()
        total = np.full((len(steps), n * (high - low) + 1), -np.inf)  # [last symbol, sum - n low]
        total[np.arange(len(steps)), steps - low] = log_or_minus_inf(start)
        log_moves = log_or_minus_inf(moves)
        for _ in range(n - 1):
            arrived = np.logaddexp.reduce(total[:, None] + log_moves[:, :, None], 0)
            for symbol, step in enumerate(steps - low):
                total[symbol] = np.concatenate([np.full(step, -np.inf), arrived[symbol, : total.shape[1] - step]])
        log_p = np.logaddexp.reduce(total, 0)
        reached = log_p > -np.inf
        return cls((n * low + np.arange(total.shape[1]))[reached].astype(float), log_p[reached])

    def tilt(self, alpha: float) -> Values:
        """`log phi_alpha` of each level (eq. 1); an infinite alpha conditions on the best."""
        if np.isinf(alpha):
            return np.where(self.reward == self.reward[-1], 0.0, -np.inf)
        return self.log_p + alpha * self.reward - self.log_z(alpha)

    def log_z(self, alpha: float) -> float:
        return float(np.logaddexp.reduce(self.log_p + alpha * self.reward))

    def best_of(self, n: float) -> Values:
        """Log-chance of each level for the best of n samples (eq. 3); n need be no whole number."""
        log_cdf = n * self._log_cdf
        before = np.append(-np.inf, log_cdf[:-1])
        with np.errstate(invalid="ignore", divide="ignore"):
            mass = log_cdf + np.log(-np.expm1(before - log_cdf))
        return np.where(log_cdf > -np.inf, mass, -np.inf)

    @cached_property
    def _log_cdf(self) -> Values:
        """`log F`; above the median from the survival, as there F is a hair below 1."""
        log_cdf = np.logaddexp.accumulate(self.log_p)
        above = np.append(np.logaddexp.accumulate(self.log_p[::-1])[-2::-1], -np.inf)
        return np.where(above < np.log(0.5), np.log1p(-np.exp(np.minimum(above, np.log(0.5)))), log_cdf)

    def mean(self, log_q: Values) -> float:
        """`E_q[r]`."""
        return float(np.exp(log_q) @ self.reward)

    def kl(self, log_q: Values, log_other: Values | None = None) -> float:
        """`KL(q | p)`, or to another distribution that leaves p within each level as it is."""
        q, other = np.exp(log_q), self.log_p if log_other is None else log_other
        used = q > 0
        return float(q[used] @ (log_q[used] - other[used]))

    def alpha(self, budget: float) -> float:
        """The tilt that spends a budget of KL, to rounding; infinite where conditioning on the best reward costs less.

        Raises:
            InputError: a budget below 0.
        """
        if not budget >= 0:
            raise InputError(f"alpha: budget {budget}; expected 0 or more")
        if budget == 0:
            return 0.0
        if budget >= -self.log_p[-1]:
            return np.inf
        top = 1.0
        while self.kl(self.tilt(top)) < budget:
            top *= 2
        return float(
            bracketed_root(lambda a: np.array(self.kl(self.tilt(float(a))) - budget), np.array(0.0), np.array(top))
        )

    def frontier(self, budget: float) -> float:
        """The most reward that a budget of KL buys."""
        return self.mean(self.tilt(self.alpha(budget)))

    def inefficiency(self, kl: float, reward: float) -> float:
        """`KL(phi | phi_a)` of any phi from its KL and its reward alone, a the tilt of the same KL (eq. 2)."""
        a, shortfall = self.alpha(kl), self.frontier(kl) - reward
        if np.isinf(a):
            return np.inf if shortfall > 0 else float(kl + self.log_p[-1])
        return a * shortfall


def best_of_bound(n: float) -> float:
    """`log N - (N - 1) / N`, the KL of the best of N from p where no two rewards tie; a bound where they do."""
    return float(np.log(n) - (n - 1) / n)


def choose_best(reward: Float[np.ndarray, "m n"], rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    """Which of each row's n samples to keep: one of the best, any of them as likely."""
    tied = reward == reward.max(1, keepdims=True)
    return (tied * (1 + rng.random(reward.shape))).argmax(1)


def renyi_cross_entropy(p: Float[np.ndarray, "y"], q: Float[np.ndarray, "y"], order: float) -> float:
    """`log sum_y p q^(order - 1) / (1 - order)`; at order 1 its limit, the cross-entropy (eq. 6)."""
    if order == 1:
        return float(-(p * log_or_minus_inf(q))[p > 0].sum())
    return float(log_mean_exp((order - 1) * log_or_minus_inf(q), 1.0, log_or_minus_inf(p))) / (1 - order)
