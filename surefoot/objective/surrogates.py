"""Surrogate losses: ratio and trust region. Each returns a loss of every step, to be minimised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from surefoot.objective.ratios import SequenceRatio, TokenRatio
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def clipped(ratio: Float[Tensor, "n t"], advantage: Float[Tensor, "n t"], low: float, high: float,
            dual: float | None = None) -> Float[Tensor, "n t"]:
    """`-min(rho A, clip(rho, 1 - low, 1 + high) A)` (PPO, arXiv 1707.06347, eq. 7), as a loss.

    Args:
        dual: for negative advantages the objective is kept above `dual * A` (dual clip, arXiv 1912.09729, eq. 5).

    >>> clipped(torch.tensor([[1.5, 0.5]]), torch.tensor([[1., -1.]]), 0.2, 0.2)
    tensor([[-1.2000,  0.8000]])
    """
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is not None:
        gain = torch.where(advantage < 0, torch.maximum(gain, dual * advantage), gain)
    return -gain


@dataclass(frozen=True)
class PolicyGradient(Part):
    """`-A log pi`: the score function, no ratio."""

    reads = ("logp", "advantage", "mask")
    vanishes_with_advantage = True

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return -rollouts.advantage * rollouts.logp.where(rollouts.mask, 0.0)


@dataclass(frozen=True)
class Clip(Part):
    """PPO's clipped surrogate (`clipped`) on a ratio of any level.

    Attributes:
        low, high: the ratio is clipped to [1 - low, 1 + high]; `high` is `low` where it is none.
        dual: dual-clip bound; none for no such bound.
    """

    low: float = 0.2
    high: float | None = None
    dual: float | None = None
    ratio: TokenRatio | SequenceRatio = TokenRatio()
    reads = ("logp", "old_logp", "advantage", "mask")
    vanishes_with_advantage = True

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        ratio = self.ratio.log(rollouts.logp, rollouts.old_logp, rollouts.mask).exp()
        return clipped(ratio, rollouts.advantage, self.low, self.high or self.low, self.dual)

    def metrics(self, rollouts: Rollouts) -> dict[str, float]:
        """Share of the steps whose gradient the clip removed."""
        ratio = self.ratio.log(rollouts.logp, rollouts.old_logp, rollouts.mask).exp()
        up = (ratio > 1 + (self.high or self.low)) & (rollouts.advantage > 0)
        down = (ratio < 1 - self.low) & (rollouts.advantage < 0)
        return {"clipped": _share(up | down, rollouts.mask)}


@dataclass(frozen=True)
class CISPO(Part):
    """`-sg(min(rho, 1 + high)) A log pi` (MiniMax-M1, arXiv 2506.13585, eq. 4-5): no token loses its gradient.

    Attributes:
        high: upper bound of the detached weight above 1; the paper tunes only this one.
        low: lower bound below 1; 1 means none.
    """

    high: float = 0.28
    low: float = 1.0
    reads = ("logp", "old_logp", "advantage", "mask")
    vanishes_with_advantage = True

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        ratio = TokenRatio().log(rollouts.logp, rollouts.old_logp, rollouts.mask).exp().detach()
        weight = ratio.clamp(1 - self.low, 1 + self.high)
        return -weight * rollouts.advantage * rollouts.logp.where(rollouts.mask, 0.0)


def _share(flag: Bool[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> float:
    return float((flag & mask).sum() / mask.sum().clamp_min(1))
