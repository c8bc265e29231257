"""STEER: tokens whose update would change the entropy much, up or down, weigh less.

"Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective", arXiv 2510.10150. To first order, a step on
token t lowers its distribution's entropy H (nats) in proportion to

    Omega_t = (A_t / pi_old) pi (1 - pi) (ln pi + H)
    w_t     = w_max - (w_max - w_min) (|Omega_t| - min) / (max - min)        linear, or
    w_t     = exp(-k |Omega_t|) in [w_min, 1],  k = -ln(w_min) / max(max |Omega|, .02)
    L       = mean_t w_t L_clip,t                                            not divided by the sum of w

all of w detached, pi and H those of the policy as each minibatch finds it. So w is a way of adding up: an aggregate.
Minimum and maximum are over the whole minibatch (the authors' code: over each microbatch, whatever its size).

Claim: entropy falls more slowly at equal reward, beyond what a constant weight, a smaller step, would do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from surefoot.method import Paper, Update
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.aggregation import TokenMean, Total, here
from surefoot.objective.entropy import entropy_slope
from surefoot.objective.surrogates import Clip
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def entropy_fall(logp: Tensor, old_logp: Tensor, entropy: Tensor, advantage: Tensor) -> Tensor:
    """Omega: how much a step on each token lowers the entropy, to first order and up to the step's size.

    >>> logp = torch.tensor([2.0, 1.0, 0.0, -1.0]).log_softmax(0)
    >>> entropy_fall(logp, logp, entropy(logp), torch.ones(4))
    tensor([ 0.1807, -0.3760, -1.3626, -2.4127])
    """
    return advantage * (-old_logp).exp() * _own(logp, entropy)


def own_logit_fall(logp: Tensor, old_logp: Tensor, entropy: Tensor, advantage: Tensor) -> Tensor:
    """What the change of the token's own logit does: Omega without the division by pi_old."""
    return advantage * _own(logp, entropy)


def exact_fall(log_policy: Float[Tensor, "n v"], action: Int[Tensor, "n"], advantage: Float[Tensor, "n"]) -> Tensor:
    """`-dH / d eta` for logits `+= eta A (e_a - pi)`: `A [pi_a g_a - sum_k pi_k^2 g_k]` with g = ln pi + H."""
    push = one_hot(action, log_policy.shape[1]) - log_policy.exp()
    return -advantage * entropy_slope(log_policy, push)


def _own(logp: Tensor, entropy: Tensor) -> Tensor:
    pi = logp.exp().clamp(1e-8, 1 - 1e-8)
    return pi * (1 - pi) * (logp + entropy)


def linear(change: Tensor, mask: Bool[Tensor, "n t"], low: float, high: float) -> Tensor:
    """From `high` for the smallest change to `low` for the largest; the middle where all are alike."""
    if not mask.any():
        return torch.ones_like(change)
    least, most = change[mask].min(), change[mask].max()
    if least == most:
        return torch.full_like(change, (low + high) / 2)
    return high - (change - least) * (high - low) / (most - least)


def exponential(change: Tensor, mask: Bool[Tensor, "n t"], low: float, high: float = 1.0) -> Tensor:
    """`exp(-k change)` within [low, 1], with k such that a change of max(largest, .02) gets `low`."""
    most = change[mask].max().clamp_min(0.02) if mask.any() else change.new_tensor(0.02)
    return (math.log(low) / most * change).exp().clamp(low, 1.0)


@dataclass(frozen=True)
class EntropyChangeWeighted(Part):
    """The weights of `base`, times a factor that falls with the entropy change that is predicted of a token.

    Attributes:
        low, high: the factor's range.
        shape: `linear`, or `exponential` (whose `high` is 1).
        estimate: `entropy_fall` (the paper's Omega) or `own_logit_fall`.
    """

    base: Part = TokenMean()
    low: float = 0.8
    high: float = 1.2
    shape: Callable[..., Tensor] = linear
    estimate: Callable[..., Tensor] = entropy_fall

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.base.reads, "mask", "old_logp", "now_logp", "now_entropy", "advantage")))

    def factor(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        """w, detached; 0 off the mask."""
        mask = rollouts.mask
        columns = (rollouts[c].detach().where(mask, 0.0) for c in ("now_logp", "old_logp", "now_entropy", "advantage"))
        change = self.estimate(*columns).abs()
        return self.shape(change, mask, self.low, self.high).where(mask, 0.0)

    def __call__(self, rollouts: Rollouts, total: Total = here) -> Float[Tensor, "n t"]:
        return self.base(rollouts, total) * self.factor(rollouts)


STEER = GRPO.but(
    name="steer",
    paper=Paper(
        arxiv="2510.10150",
        year=2025,
        title="Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective",
    ),
    surrogate=Clip(low=0.2, high=0.28, dual=10.0),
    regularizers=(),
    aggregate=EntropyChangeWeighted(),
    update=Update(epochs=1, minibatches=4),
)
