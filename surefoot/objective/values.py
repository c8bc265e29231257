"""Losses of critics: of a value before each step, and of action values."""

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


def expectile_loss(gap: Float[Tensor, "..."], tau: float) -> Float[Tensor, "..."]:
    """`|tau - 1(u < 0)| u^2`: least at the tau-expectile of what u is measured from; half the square at tau = 1/2.

    >>> expectile_loss(torch.tensor([2.0, -2.0]), 0.75)
    tensor([3., 1.])
    """
    return (tau - (gap < 0).to(gap.dtype)).abs() * gap.square()


@dataclass(frozen=True)
class ExpectileValue(Part):
    """V(s) as the tau-expectile, over the actions in the data, of the least target critic (IQL, arXiv 2110.06169).

        L_V = |tau - 1(u < 0)| u^2,   u = min_i Qbar_i(s, a) - V(s)

    The critics get no gradient. tau = 1/2 is the mean: the value of the policy that acted. tau -> 1 is the best action
    that the data have.
    """

    tau: float = 0.7
    coef: float = 1.0
    reads = ("value", "target_q", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        gap = (rollouts.target_q.detach().amin(-1) - rollouts.value).where(rollouts.mask, 0.0)
        return self.coef * expectile_loss(gap, self.tau)

    def metrics(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """Mean value of the batch."""
        return {"value": rollouts.value.where(rollouts.mask, 0.0).sum() / rollouts.mask.sum().clamp_min(1)}


@dataclass(frozen=True)
class TemporalDifference(Part):
    """`sum_i (r + gamma V(s') - Q_i(s, a))^2`, the target without gradient; nothing comes after an end.

    Only an end that the environment made (`ended`) has no value behind it; a time limit has.
    """

    gamma: float = 0.99
    coef: float = 1.0
    reads = ("step_reward", "next_value", "ended", "q", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        after = rollouts.next_value.detach().where(~rollouts.ended, 0.0)
        target = (rollouts.step_reward + self.gamma * after).where(rollouts.mask, 0.0)
        gaps = target[..., None] - rollouts.q.where(rollouts.mask[..., None], 0.0)
        return self.coef * gaps.square().sum(-1)
