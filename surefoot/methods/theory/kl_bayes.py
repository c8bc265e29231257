"""RL with KL penalties as Bayesian inference: first choose the target, then an engine that approaches it.

"RL with KL penalties is better viewed as Bayesian inference", Korbak, Perez and Buckley, arXiv 2205.11275.

    (1) J(pi)      = E_pi[r]                                      best: any pi on argmax r, a collapse
    (2) J_beta(pi) = E_pi[r] - beta KL(pi | pi0)
    (3) pi*(x)     = pi0(x) exp(r(x) / beta) / Z                  the posterior: prior pi0, evidence exp(r / beta)
    (4) J_beta(pi) = beta log Z - beta KL(pi | pi*)               J_beta / beta is the evidence lower bound
    (5) p(x)       = pi0(x) b(x) / Z,  or  pi0(x) exp(lambda . phi(x)) / Z  with  E_p[phi] given
    (6) grad KL(p | pi)  = - E_q[ P(x) / (Z q(x)) grad log pi(x) ]        q any proposal, P = Z p
    (7) grad J_beta      = E_pi[ (u(x) - b) grad log pi(x) ],   u = r - beta log(pi / pi0) not differentiated

`Target` is (3) or another energy model (5). Three engines approach it, all from the same u: `reverse_kl` weighs samples
by u (7), `forward_kl` by exp(u / beta) (6, q = pi), `importance` redraws samples of pi0 without any training.
`KL_BAYES` and `FORWARD_KL` are the first two as compositions that train a language model; a group is one prompt's
samples, each prompt has its posterior.

Our reading: 5 to 7 are the standard forms of what the paper states in words; it has no experiments and no default beta.
Claim: sampled REINFORCE without the penalty collapses; with beta of .5 or more either engine ends near the posterior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from torch import Tensor

from surefoot.errors import InputError
from surefoot.exact.divergence import KL
from surefoot.exact.operators import log_mean_exp, log_or_minus_inf, softmax
from surefoot.exact.tree import TokenTree
from surefoot.method import Paper
from surefoot.methods.rlvr.rloo import RLOO
from surefoot.objective.advantages import spread
from surefoot.objective.aggregation import ConstantLength
from surefoot.objective.groups import group_count, group_softmax
from surefoot.objective.rewards import KLInReward, Sum
from surefoot.parts import Part
from surefoot.rollouts import Rollouts

Sequences = Float[np.ndarray, "x"]
Weights = Float[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class Target:
    """A distribution over sequences, known up to its normaliser.

    Attributes:
        log_weight: `log P(x)` [x], -inf where x is excluded.

    Raises:
        InputError: everything is excluded.

    >>> target = Target.posterior(np.array([.5, .3, .2]), np.array([0., 1, 2]), .5)
    >>> target.probabilities.round(7), round(.5 * target.log_z, 7)
    (array([0.0366667, 0.1625594, 0.8007739]), 1.3063694)
    """

    log_weight: Sequences

    def __post_init__(self):
        if not np.isfinite(self.log_weight).any():
            raise InputError("target: every sequence has weight 0; expected one that the prior and the limits allow")

    @classmethod
    def posterior(cls, prior: Sequences, reward: Sequences, beta: float) -> Target:
        """`pi0 exp(r / beta)` (eq. 3)."""
        if not beta > 0:
            raise InputError(f"posterior: beta {beta}; expected a number above 0")
        return cls(log_or_minus_inf(prior) + np.asarray(reward, float) / beta)

    @classmethod
    def constrained(cls, prior: Sequences, allowed: Bool[np.ndarray, "x"]) -> Target:
        """`pi0 b`, b one where `allowed` (eq. 5): what a filter of infinitely many samples gives."""
        return cls(np.where(allowed, log_or_minus_inf(prior), -np.inf))

    @classmethod
    def with_moments(
        cls, prior: Sequences, features: Float[np.ndarray, "f x"], moments: Float[np.ndarray, "f"]
    ) -> Target:
        """`pi0 exp(lambda . phi)` with `E[phi] = moments` (eq. 5): the least change of pi0 that has them.

        lambda minimises the convex dual `log Z(lambda) - lambda . moments`, infinite where no distribution has them.

        Raises:
            InputError: moments that no distribution on the support of pi0 has.
        """
        log_prior = log_or_minus_inf(prior)

        def dual(lam: np.ndarray) -> tuple[float, np.ndarray]:
            target = cls(log_prior + lam @ features)
            return target.log_z - float(lam @ moments), features @ target.probabilities - moments

        limits = [(-1e3 / w, 1e3 / w) for w in np.maximum(np.ptp(features, 1), 1e-12)]
        options = {"ftol": 1e-16, "gtol": 1e-10}
        found = minimize(dual, np.zeros(len(moments)), jac=True, method="L-BFGS-B", bounds=limits, options=options)
        target = cls(log_prior + found.x @ features)
        missed = np.abs(features @ target.probabilities - moments).max()
        if not missed < 1e-6:
            raise InputError(f"with_moments: closest moments are {missed:.2g} off; expected moments that pi0 can reach")
        return target

    @property
    def log_z(self) -> float:
        return float(log_mean_exp(self.log_weight, 1.0))

    @property
    def probabilities(self) -> Sequences:
        return softmax(self.log_weight)

    def reverse_kl(self, policy: Sequences) -> float:
        """`KL(policy | target)`, what a KL-penalised learner makes small (eq. 4)."""
        return float(KL(policy, self.probabilities))

    def forward_kl(self, policy: Sequences) -> float:
        """`KL(target | policy)`, what a distributional learner makes small (eq. 6)."""
        return float(KL(self.probabilities, policy))


# An engine gives each of n samples the weight of its score, grad log pi


def reverse_kl(payoff: Weights) -> Weights:
    """Equation 7 with the batch's mean as baseline: `(u - mean u) / n`."""
    return (payoff - payoff.mean()) / len(payoff)


def forward_kl(log_weight: Weights, log_proposal: Weights) -> Weights:
    """Equation 6: `P / (Z q)`, Z by the mean of `P / q`; the weights sum to 1. See `effective_sample_size`."""
    return softmax(log_weight - log_proposal)


def importance(reward: Weights, beta: float) -> Weights:
    """Weights of samples of pi0 under the posterior, 1 in sum: for estimates, and to redraw by. No training."""
    return softmax(np.asarray(reward, float) / beta)


def effective_sample_size(weights: Weights) -> float:
    """`(sum w)^2 / sum w^2`, from 1 (one sample has it all) to n."""
    return float(weights.sum() ** 2 / (weights**2).sum())


Engine = Callable[[Int[np.ndarray, "n"], Sequences], Weights]


def reverse_engine(tree: TokenTree, beta: float) -> Engine:
    """REINFORCE on `r - beta log(pi / pi0)`; beta 0 is reward alone (eq. 1)."""
    log_prior = log_or_minus_inf(np.asarray(tree.reference))

    def engine(samples: np.ndarray, log_p: Sequences) -> Weights:
        gap = log_p[samples] - log_prior[samples] if beta else 0.0
        return reverse_kl(tree.leaf_reward[samples] - beta * gap)

    return engine


def forward_engine(tree: TokenTree, beta: float) -> Engine:
    """Distributional policy gradient towards the posterior, proposals from the policy itself."""
    target = Target.posterior(np.asarray(tree.reference), tree.leaf_reward, beta)
    return lambda samples, log_p: forward_kl(target.log_weight[samples], log_p[samples])


def train(
    tree: TokenTree, engine: Engine, logits: np.ndarray, steps: int, batch: int, rate: float, rng: np.random.Generator
) -> np.ndarray:
    """Plain ascent on tabular logits [N, V] from samples; `engine(samples, log_policy)` gives the weights."""
    for _ in range(steps):
        log_p = tree.log_leaves(logits)
        samples = sample(log_p, batch, rng)
        logits = logits + rate * score(tree, logits, np.bincount(samples, engine(samples, log_p), tree.leaves))
    return logits


def sample(log_p: Sequences, n: int, rng: np.random.Generator) -> Int[np.ndarray, "n"]:
    """n independent draws."""
    return np.searchsorted(np.exp(log_p).cumsum(), rng.random(n)).clip(max=len(log_p) - 1)


def score(tree: TokenTree, logits: np.ndarray, weights: Sequences) -> np.ndarray:
    """`sum_x w(x) grad log pi(x)` in the logits: what passes an edge, less the policy's share of its node."""
    passed = tree.node_sums(weights)
    return passed - softmax(logits) * passed.sum(1, keepdims=True)


@dataclass(frozen=True)
class ForwardKL(Part):
    """Weights `P / (Z pi)` of a group (eq. 6), with a mean of 1; that 1 is then taken off, which changes no
    expectation: without it a group would be pulled towards whatever it sampled."""

    beta: float = 0.04
    reads = ("reward", "group", "mask", "old_logp", "ref_logp")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        log_ratio = (rollouts.old_logp - rollouts.ref_logp).where(rollouts.mask, 0.0).sum(1)
        share = group_softmax(rollouts.reward / self.beta - log_ratio, rollouts.group)
        return spread(share * group_count(rollouts.group) - 1, rollouts.mask)


# One constant divides every length, as a sequence's score is the sum of its tokens'.
KL_BAYES = RLOO.but(
    name="kl-bayes",
    paper=Paper(arxiv="2205.11275", year=2022, title="RL with KL penalties is better viewed as Bayesian inference"),
    reward=KLInReward(),
    aggregate=ConstantLength(),
)
FORWARD_KL = KL_BAYES.but(name="kl-bayes-forward", reward=Sum(), advantage=ForwardKL())
