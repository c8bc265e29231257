"""Credit over time: which step, or which turn, earned what.

Rewards of steps come from a reward part (`rewards.PerStep` and its kin) as the column `step_reward`. A turn is a run
of steps between two replies of the environment; what is paid while the environment speaks counts for the turn.

    GAE                   from a critic
    EpisodeGAE            the same, of rewards paid at each step, in episodes that may be cut
    StepLevel             reward-to-go of a step, against all steps of its group
    TurnLevel             reward-to-go of a turn, against the group's turns of the same index
    ProcessSupervision    each turn's reward against all turns of the group, then reward-to-go
    OptimalTokenBaseline  reward against the group, weighted by how much a step moves the policy
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.objective.advantages import whiten
from surefoot.objective.groups import Statistic, group_mean, group_std, joint_key, relative, working
from surefoot.objective.rewards import reward_at_last_step
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def gae(
    reward: Float[Tensor, "n t"],
    value: Float[Tensor, "n t"],
    mask: Bool[Tensor, "n t"],
    gamma: float = 1.0,
    lam: float = 1.0,
    final: Float[Tensor, "n"] | None = None,
) -> tuple[Float[Tensor, "n t"], Float[Tensor, "n t"]]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16): advantages and value targets, 0 off the mask.

    Steps off the mask (tool output, padding) are skipped: the next chosen step is the successor, and what is paid on
    them counts for the chosen step before. After its last chosen step a trajectory is worth `final`, or 0.

    >>> one = torch.ones(1, 3, dtype=torch.bool)
    >>> gae(torch.tensor([[0., 0., 1.]]), torch.tensor([[.5, .5, .5]]), one, lam=0.5)[0]
    tensor([[0.1250, 0.2500, 0.5000]])
    """
    reward, value = working(reward), working(value)
    advantage = torch.zeros_like(value)
    running = pending = value.new_zeros(len(value))
    next_value = running if final is None else working(final)
    for t in reversed(range(value.shape[1])):
        here, paid = mask[:, t], reward[:, t] + pending
        step = paid + gamma * next_value - value[:, t] + gamma * lam * running
        running = step.where(here, running)
        next_value = value[:, t].where(here, next_value)
        pending = paid.where(~here, 0.0)
        advantage[:, t] = step.where(here, 0.0)
    return advantage, (advantage + value).where(mask, 0.0)


def reward_to_go(step_reward: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"], gamma: float = 1.0) -> Tensor:
    """`G_t = sum_{s >= t} gamma^(s - t) r_s` over the chosen steps.

    Steps off the mask take no time, and what is paid there (by a tool's answer) counts for the chosen step before.

    >>> reward_to_go(torch.tensor([[0.0, 1.0, 2.0, 0.0]]), torch.tensor([[True, True, False, True]]), gamma=0.5)
    tensor([[1.5000, 3.0000, 0.0000, 0.0000]])
    """
    out, running = torch.zeros_like(step_reward), step_reward.new_zeros(len(step_reward))
    pending = running
    for t in reversed(range(step_reward.shape[1])):
        chosen, pending = mask[:, t], pending + step_reward[:, t]
        running = (pending + gamma * running).where(chosen, running)
        pending = pending.where(~chosen, 0.0)
        out[:, t] = running.where(chosen, 0.0)
    return out


def turn_rewards(
    step_reward: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"], turn: Int[Tensor, "n t"]
) -> tuple[Float[Tensor, "n k"], Bool[Tensor, "n k"]]:
    """What each turn was paid, and which turns have a step that the policy chose.

    Args:
        turn: index of each step's turn; -1 on padding, whose reward counts nothing.

    >>> turn_rewards(torch.tensor([[0.0, 1.0, 2.0, 5.0]]), torch.ones(1, 4).bool(), torch.tensor([[0, 0, 1, -1]]))
    (tensor([[1., 2.]]), tensor([[True, True]]))
    """
    index = turn.clamp_min(0)
    size = int(index.max()) + 1 if index.numel() else 1
    paid = working(step_reward).where(turn >= 0, 0.0)
    total = paid.new_zeros(len(paid), size).scatter_add(1, index, paid)
    chosen = paid.new_zeros(len(paid), size).scatter_add(1, index, (mask & (turn >= 0)).to(paid.dtype))
    return total, chosen > 0


def on_turns(
    per_turn: Float[Tensor, "n k"], mask: Bool[Tensor, "n t"], turn: Int[Tensor, "n t"]
) -> Float[Tensor, "n t"]:
    """One number a turn on each of its chosen steps, 0 elsewhere.

    >>> on_turns(torch.tensor([[5.0, 7.0]]), torch.tensor([[True, False, True]]), torch.tensor([[0, 0, 1]]))
    tensor([[5., 0., 7.]])
    """
    return per_turn.gather(1, turn.clamp_min(0)).where(mask, 0.0)


def _against(
    x: Float[Tensor, "n k"], key: Int[Tensor, "n k"], counted: Bool[Tensor, "n k"], scale: Statistic | None, eps: float
) -> Float[Tensor, "n k"]:
    """`relative` of a grid: entries with one key are one group, uncounted ones get 0."""
    flat = relative(x.flatten(), key.flatten(), group_mean, scale, eps, counted.flatten())
    return flat.view_as(x)


def optimal_token_baseline(
    to_go: Float[Tensor, "n t"],
    energy: Float[Tensor, "n t"],
    mask: Bool[Tensor, "n t"],
    group: Int[Tensor, "n"],
) -> Float[Tensor, "n t"]:
    """`B_t = E[W_t G_t] / E[W_t]` over the group, W_t the squared score norm gathered up to t (as in verl's OTB).

    Args:
        energy: each step's squared score norm, `1 - 2 pi(a) + sum pi^2` for a softmax's logits.

    >>> energy, to_go = torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [0.0]])
    >>> optimal_token_baseline(to_go, energy, torch.ones(2, 1).bool(), torch.tensor([0, 0]))
    tensor([[0.2500],
            [0.2500]])
    """
    weight = energy.where(mask, 0.0).cumsum(1) * mask
    keys, row = group.unique(return_inverse=True)
    top, low = (x.new_zeros(len(keys), x.shape[1]).index_add(0, row, x) for x in (weight * to_go, weight))
    return (top / low.clamp_min(1e-12))[row] * mask


@dataclass(frozen=True)
class GAE(Part):
    """Generalised advantage estimation from a critic, whitened over the batch (`gae`, `whiten`).

    Attributes:
        stepwise: the reward is `step_reward`, as it was paid (`rewards.PerStep` and its kin); else it is `reward`, all
            of it at the last step.
    """

    gamma: float = 1.0
    lam: float = 0.95
    whitened: bool = True
    stepwise: bool = False
    adds = ("returns",)

    @property
    def reads(self) -> tuple[str, ...]:
        return ("step_reward" if self.stepwise else "reward", "old_value", "mask")

    def __call__(self, rollouts: Rollouts) -> dict[str, Tensor]:
        paid = rollouts.step_reward if self.stepwise else reward_at_last_step(rollouts.reward, rollouts.mask)
        final = self.after_last(rollouts)
        advantage, returns = gae(paid, rollouts.old_value, rollouts.mask, self.gamma, self.lam, final)
        return {"advantage": whiten(advantage, rollouts.mask) if self.whitened else advantage, "returns": returns}

    def after_last(self, rollouts: Rollouts) -> Float[Tensor, "n"] | None:
        """What a trajectory is worth after its last chosen step: nothing."""
        return None


@dataclass(frozen=True)
class EpisodeGAE(GAE):
    """The same from rewards that are paid step by step, in episodes that an environment ends or a time limit cuts.

    What is cut goes on in truth: after its last step it is worth what the critic says, not 0.
    """

    gamma: float = 0.99
    stepwise: bool = True

    @property
    def reads(self) -> tuple[str, ...]:
        return (*super().reads, "old_next_value", "ended")

    def after_last(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        last = reward_at_last_step(torch.ones(len(rollouts)), rollouts.mask) > 0
        return rollouts.old_next_value.where(last & ~rollouts.ended, 0.0).sum(1)


@dataclass(frozen=True)
class StepLevel(Part):
    """Discounted reward-to-go of each step, normalised against all chosen steps of its group.

    Attributes:
        scale: a statistic of `objective.groups`; none leaves the scale alone.
    """

    gamma: float = 1.0
    scale: Statistic | None = group_std
    eps: float = 1e-4
    reads = ("step_reward", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        to_go = reward_to_go(working(rollouts.step_reward), rollouts.mask, self.gamma)
        key = rollouts.group[:, None].expand_as(to_go)
        return _against(to_go, key, rollouts.mask, self.scale, self.eps)


@dataclass(frozen=True)
class TurnLevel(Part):
    """Reward-to-go of each turn, discounted by turns, normalised against the group's turns of the same index.

    Every trajectory counts once a turn, however many tokens it spends there. A turn that only one member of the group
    reached has nothing to be compared with, and gets 0.
    """

    gamma: float = 1.0
    scale: Statistic | None = group_std
    eps: float = 1e-4
    reads = ("step_reward", "group", "turn", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        paid, chosen = turn_rewards(rollouts.step_reward, rollouts.mask, rollouts.turn)
        to_go = reward_to_go(paid, chosen, self.gamma)
        key = joint_key(rollouts.group)[:, None] * paid.shape[1] + torch.arange(paid.shape[1], device=paid.device)
        return on_turns(_against(to_go, key, chosen, self.scale, self.eps), rollouts.mask, rollouts.turn)


@dataclass(frozen=True)
class ProcessSupervision(Part):
    """GRPO with a reward a turn (arXiv 2402.03300, section 4.1.3): each normalised against all of the group's turn
    rewards, then summed from the turn on. The paper's reasoning steps are turns here."""

    eps: float = 1e-4
    reads = ("step_reward", "group", "turn", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        paid, chosen = turn_rewards(rollouts.step_reward, rollouts.mask, rollouts.turn)
        key = rollouts.group[:, None].expand_as(paid)
        return on_turns(
            reward_to_go(_against(paid, key, chosen, group_std, self.eps), chosen), rollouts.mask, rollouts.turn
        )


@dataclass(frozen=True)
class OptimalTokenBaseline(Part):
    """Reward minus `optimal_token_baseline`; its own trajectory is in its baseline, which shrinks the gradient."""

    reads = ("reward", "old_logp", "old_collision", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        energy = 1 - 2 * working(rollouts.old_logp).exp() + working(rollouts.old_collision).exp()
        to_go = working(rollouts.reward)[:, None] * rollouts.mask
        return to_go - optimal_token_baseline(to_go, energy, rollouts.mask, rollouts.group)
