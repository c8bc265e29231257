"""Credit: how much better a trajectory, or a step, was than expected.

Functions take rewards [n] (or step rewards [n t]) and return advantages; parts spread them over the steps that train.
Which of them give unbiased policy gradients is stated here and checked by enumeration in tests/objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.objective.groups import group_mean, group_std, leave_one_out_mean
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def spread(per_row: Float[Tensor, "n"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """One number a trajectory on each of its training steps, 0 elsewhere."""
    return per_row[:, None] * mask.to(per_row.dtype)


def group_normalized(reward: Float[Tensor, "n"], group: Int[Tensor, "n"], eps: float = 1e-4) -> Float[Tensor, "n"]:
    """`(r - mean) / (std + eps)` within the group (GRPO, arXiv 2402.03300, section 4.1.2).

    The deviation is the sample's (G - 1), as in the authors' and TRL's code. Dividing by it weighs prompts by
    1/std, so this is not the gradient of expected reward (Dr. GRPO, arXiv 2503.20783).

    >>> group_normalized(torch.tensor([1., 0., 0., 1.]), torch.zeros(4, dtype=torch.long), eps=0.0)
    tensor([ 0.8660, -0.8660, -0.8660,  0.8660])
    """
    return (reward - group_mean(reward, group)) / (group_std(reward, group) + eps)


def group_centred(reward: Float[Tensor, "n"], group: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """`r - mean` within the group (Dr. GRPO): (G - 1)/G times the leave-one-out advantage, so unbiased up to it."""
    return reward - group_mean(reward, group)


def leave_one_out(reward: Float[Tensor, "n"], group: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """`r_i - mean of the others` (RLOO, arXiv 2402.14740, eq. 8): unbiased; 0 for a trajectory alone in its group."""
    return reward - leave_one_out_mean(reward, group)


def gae(
    reward: Float[Tensor, "n t"], value: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"], gamma: float = 1.0,
    lam: float = 1.0,
) -> tuple[Float[Tensor, "n t"], Float[Tensor, "n t"]]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16): advantages and value targets, 0 off the mask.

    Steps off the mask (tool output, padding) are skipped: the next chosen step is the successor. The trajectory
    ends after its last chosen step, with value 0.

    >>> one = torch.ones(1, 3, dtype=torch.bool)
    >>> gae(torch.tensor([[0., 0., 1.]]), torch.tensor([[.5, .5, .5]]), one, lam=0.5)[0]
    tensor([[0.1250, 0.2500, 0.5000]])
    """
    advantage = torch.zeros_like(value)
    next_value = value.new_zeros(len(value))
    running = value.new_zeros(len(value))
    for t in reversed(range(value.shape[1])):
        here = mask[:, t]
        delta = reward[:, t] + gamma * next_value - value[:, t]
        step = delta + gamma * lam * running
        running = step.where(here, running)
        next_value = value[:, t].where(here, next_value)
        advantage[:, t] = step.where(here, 0.0)
    return advantage, (advantage + value).where(mask, 0.0)


def reward_at_last_step(reward: Float[Tensor, "n"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """The trajectory's reward on its last chosen step, 0 elsewhere."""
    remaining = mask.flip(1).cumsum(1).flip(1)
    return reward[:, None] * (mask & (remaining == 1)).to(reward.dtype)


def whiten(x: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"], eps: float = 1e-8) -> Float[Tensor, "n t"]:
    """Zero mean and unit deviation over the masked steps; 0 elsewhere, and everywhere for fewer than two steps."""
    chosen = x[mask]
    if chosen.numel() < 2:
        return torch.zeros_like(x)
    return ((x - chosen.mean()) / (chosen.std() + eps)).where(mask, 0.0)


@dataclass(frozen=True)
class GroupNormalized(Part):
    """Reward minus its group's mean, over its group's standard deviation (`group_normalized`)."""

    eps: float = 1e-4
    reads = ("reward", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return spread(group_normalized(rollouts.reward, rollouts.group, self.eps), rollouts.mask)


@dataclass(frozen=True)
class GroupCentred(Part):
    """Reward minus its group's mean (`group_centred`)."""

    reads = ("reward", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return spread(group_centred(rollouts.reward, rollouts.group), rollouts.mask)


@dataclass(frozen=True)
class LeaveOneOut(Part):
    """Reward minus the mean reward of the group's other members (`leave_one_out`)."""

    reads = ("reward", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return spread(leave_one_out(rollouts.reward, rollouts.group), rollouts.mask)


@dataclass(frozen=True)
class Reinforce(Part):
    """Reward, minus the batch's mean (`baseline=False` leaves it out).

    The baseline contains the trajectory itself, so the gradient shrinks by (N - 1)/N and is otherwise unbiased.
    """

    baseline: bool = True
    reads = ("reward", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        centre = rollouts.reward.mean() if self.baseline else 0.0
        return spread(rollouts.reward - centre, rollouts.mask)


@dataclass(frozen=True)
class GAE(Part):
    """Generalised advantage estimation from a critic, whitened over the batch (`gae`, `whiten`)."""

    gamma: float = 1.0
    lam: float = 0.95
    whitened: bool = True
    reads = ("reward", "old_value", "mask")
    adds = ("returns",)

    def __call__(self, rollouts: Rollouts) -> dict[str, Tensor]:
        paid = reward_at_last_step(rollouts.reward, rollouts.mask)
        advantage, returns = gae(paid, rollouts.old_value, rollouts.mask, self.gamma, self.lam)
        return {"advantage": whiten(advantage, rollouts.mask) if self.whitened else advantage, "returns": returns}
