"""The critic's loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.parts import Part
from surefoot.rollouts import Rollouts


@dataclass(frozen=True)
class ValueLoss(Part):
    """`coef / 2 * max((V - R)^2, (V_clipped - R)^2)`, the value clipped to within `clip` of its old self.

    The clip is that of PPO's code (openai/baselines), not of the paper; `clip=None` is the plain square.
    """

    coef: float = 0.1
    clip: float | None = 0.2
    reads = ("value", "old_value", "returns", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        value, target = rollouts.value.where(rollouts.mask, 0.0), rollouts.returns
        loss = (value - target).square()
        if self.clip is not None:
            near = rollouts.old_value + (value - rollouts.old_value).clamp(-self.clip, self.clip)
            loss = torch.maximum(loss, (near.where(rollouts.mask, 0.0) - target).square())
        return 0.5 * self.coef * loss
