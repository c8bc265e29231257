"""BNPO: the normaliser of the advantage is a Beta density fitted to the prompts' success rates, batch by batch.

Xiao, Zhang, Cao, "BNPO: Beta Normalization Policy Optimization", arXiv 2506.02864. A prompt q has success rate p(q)
over its group. Their mean m and (unbiased) variance v over the batch's prompts give p ~ Beta(a, b) by moments:

    k = m (1 - m) / v - 1,   a = k m,   b = k (1 - m)
    alpha = max(1, 1 + a / 3),   beta = max(1, 1 + b / 3)
    A(q, o) = (R(q, o) - p(q)) / f(p(q); alpha, beta),     f the density of Beta(alpha, beta)

alpha = beta = 1 is REINFORCE with the group's mean as baseline, alpha = beta = 3/2 is GRPO times pi / 8. Several
rewards are normalised each by its own density, and their advantages averaged.

Claim: 1 + a / 3, 1 + b / 3 minimise the gradient's variance among Beta densities, so that training is steadier.

OUR CHOICE: where the moments say nothing (one prompt, or v < 1e-6) alpha = beta = 1. `decay` averages the moments over
batches; the paper's is 0, the batch alone. (TRL's loss type `bnpo` is another thing: a mean over active tokens.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.method import Paper
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.advantages import spread
from surefoot.objective.aggregation import ConstantLength
from surefoot.objective.groups import group_mean, working
from surefoot.objective.rewards import totals
from surefoot.objective.surrogates import Clip
from surefoot.parts import Part
from surefoot.rollouts import Rollouts

LEAST_VARIANCE = 1e-6


def normaliser(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and beta of the density to divide by, from mean and variance of the success rates; 1, 1 where v is ~0.

    >>> m, v = torch.tensor(0.40625), torch.tensor(0.0768229)
    >>> [round(float(x), 4) for x in normaliser(m, v)]
    [1.2898, 1.4235]
    """
    k = mean * (1 - mean) / variance.clamp_min(LEAST_VARIANCE) - 1
    known = variance >= LEAST_VARIANCE
    alpha, beta = ((1 + k * share / 3).clamp_min(1).where(known, 1.0) for share in (mean, 1 - mean))
    return alpha, beta


def inverse_density(p: Tensor, alpha: Tensor, beta: Tensor, cap: float = 1e6) -> Tensor:
    """`1 / f(p; alpha, beta)`, at most `cap` (at p = 0 or 1 the density may be 0); alpha, beta >= 1.

    >>> inverse_density(torch.tensor([0.25, 0.5]), torch.tensor(1.5), torch.tensor(1.5))   # (pi / 8) / sqrt(p (1 - p))
    tensor([0.9069, 0.7854])
    """
    log_f = torch.xlogy(alpha - 1, p) + torch.special.xlog1py(beta - 1, -p)
    log_b = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    return (log_b - log_f).exp().clamp(max=cap)


@dataclass(frozen=True)
class BetaNormalized(Part):
    """`(R - p) / f(p)` for each named reward, averaged over the rewards.

    Attributes:
        low, high: range of every reward; mapped to [0, 1].
        decay: of the average of the moments over batches; 0 takes the batch's own.
    """

    low: float = 0.0
    high: float = 1.0
    decay: float = 0.0
    reads = ("group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        each = [self.credit(name, r, rollouts.group) for name, r in totals(rollouts.rewards).items()]
        return spread(torch.stack(each).mean(0), rollouts.mask)

    def credit(self, name: str, reward: Float[Tensor, "n"], group: Tensor) -> Float[Tensor, "n"]:
        """Advantages of one reward; groups without contrast get exactly 0."""
        reward = (working(reward) - self.low) / (self.high - self.low)
        p = group_mean(reward, group)
        keys, row = group.unique(return_inverse=True)
        rates = p.new_empty(len(keys)).index_copy(0, row, p)
        alpha, beta = normaliser(*self._moments(name, rates.double()))
        gap = reward - p
        return (gap * inverse_density(p, alpha.to(p), beta.to(p))).where(gap != 0, 0.0)

    def _moments(self, name: str, rates: Float[Tensor, "m"]) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance over prompts, averaged with what is remembered (bias-corrected)."""
        now = torch.stack([rates.mean(), rates.var() if len(rates) > 1 else rates.new_zeros(())])
        past, weight = self.memory.get(name, (torch.zeros_like(now), 0.0))
        total, weight = self.decay * past + (1 - self.decay) * now, self.decay * weight + 1 - self.decay
        self.memory[name] = [total, weight]
        mean, variance = total / weight
        return mean, variance


BNPO = GRPO.but(
    name="bnpo",
    paper=Paper(arxiv="2506.02864", year=2025, title="BNPO: Beta Normalization Policy Optimization"),
    advantage=BetaNormalized(),
    surrogate=Clip(low=0.2, high=0.28, dual=10.0),
    regularizers=(),
    aggregate=ConstantLength(1.0),
)
