"""The critic's loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.objective.groups import working
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def value_loss(
    value: Float[Tensor, "n t"], old: Float[Tensor, "n t"], target: Float[Tensor, "n t"], clip: float | None = None
) -> Float[Tensor, "n t"]:
    """`max((V - R)^2, (V_clipped - R)^2)`, the value clipped to within `clip` of its old self; none for no clip.

    >>> value_loss(torch.tensor([[0.9]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]), clip=0.2)
    tensor([[0.6400]])
    """
    loss = (value - target).square()
    if clip is None:
        return loss
    return torch.maximum(loss, (old + (value - old).clamp(-clip, clip) - target).square())


@dataclass(frozen=True)
class ValueLoss(Part):
    """`coef / 2 * value_loss`.

    The clip is that of PPO's code (openai/baselines), not of the paper; `clip=None` is the plain square.
    """

    coef: float = 0.1
    clip: float | None = 0.2
    reads = ("value", "old_value", "returns", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        value, old, target = (
            working(x).where(rollouts.mask, 0.0) for x in (rollouts.value, rollouts.old_value, rollouts.returns)
        )
        return 0.5 * self.coef * value_loss(value, old, target, self.clip)
