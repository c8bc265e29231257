"""Advantages of whole trajectories: how much better one was than expected. (`credit` has those of steps and turns.)

Functions take rewards [n] and return advantages [n]; parts spread them over the steps that train.
Which of them give unbiased policy gradients is stated here and checked by enumeration in tests/objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.errors import InputError
from surefoot.objective.groups import (
    Statistic,
    batch_mean,
    batch_std,
    group_count,
    group_mean,
    group_std,
    group_sum,
    joint_key,
    leave_one_out_mean,
    relative,
    working,
)
from surefoot.objective.rewards import totals
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def spread(per_row: Float[Tensor, "n"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """One number a trajectory on each of its training steps, 0 elsewhere.

    >>> spread(torch.tensor([2.0]), torch.tensor([[True, True, False]]))
    tensor([[2., 2., 0.]])
    """
    return per_row[:, None] * mask.to(per_row.dtype)


def group_normalized(reward: Float[Tensor, "n"], group: Int[Tensor, "n"], eps: float = 1e-4) -> Float[Tensor, "n"]:
    """`(r - mean) / (std + eps)` within the group (GRPO, arXiv 2402.03300, section 4.1.2).

    The deviation is the sample's (G - 1), as in the authors' and TRL's code. Dividing by it weighs prompts by
    1/std, so this is not the gradient of expected reward (Dr. GRPO, arXiv 2503.20783).

    >>> group_normalized(torch.tensor([1., 0., 0., 1.]), torch.zeros(4, dtype=torch.long), eps=0.0)
    tensor([ 0.8660, -0.8660, -0.8660,  0.8660])
    """
    return relative(reward, group, group_mean, group_std, eps)


def group_centred(reward: Float[Tensor, "n"], group: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """`r - mean` within the group (Dr. GRPO): (G - 1)/G times the leave-one-out advantage, so unbiased up to it.

    >>> group_centred(torch.tensor([1., 0., 0., 1.]), torch.zeros(4, dtype=torch.long))
    tensor([ 0.5000, -0.5000, -0.5000,  0.5000])
    """
    return relative(reward, group, group_mean)


def leave_one_out(reward: Float[Tensor, "n"], group: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """`r_i - mean of the others` (RLOO, arXiv 2402.14740, eq. 8): unbiased; 0 for a trajectory alone in its group.

    >>> leave_one_out(torch.tensor([1., 0., 0., 1.]), torch.zeros(4, dtype=torch.long))
    tensor([ 0.6667, -0.6667, -0.6667,  0.6667])
    """
    return relative(reward, group, leave_one_out_mean)


def whiten(
    x: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"], eps: float = 1e-8, scale: Statistic = group_std
) -> Float[Tensor, "n t"]:
    """Zero mean and unit deviation over the masked steps; 0 elsewhere, and everywhere without contrast.

    >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([[-0.7071,  0.7071,  0.0000]])
    """
    out, chosen = torch.zeros_like(working(x)), x[mask]
    out[mask] = relative(chosen, torch.zeros_like(chosen, dtype=torch.long), group_mean, scale, eps)
    return out


def length_weighted_baseline(reward: Float[Tensor, "n"], group: Int[Tensor, "n"], length: Int[Tensor, "n"]) -> Tensor:
    """`sum |o_j| r_j / sum |o_j|` within the group (OPO, arXiv 2505.23585, eq. 9).

    The variance-minimal baseline if a trajectory's squared score grows as its length.

    >>> length_weighted_baseline(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), torch.tensor([30, 10]))
    tensor([0.7500, 0.7500])
    """
    weight = length.double()
    baseline = group_sum(weight * reward.double(), group) / group_sum(weight, group).clamp_min(1)
    return baseline.to(working(reward).dtype)


def pass_at_k_normalized(correct: Bool[Tensor, "n"], group: Int[Tensor, "n"], k: int) -> Float[Tensor, "n"]:
    """Pass@k training's analytic advantage (arXiv 2508.10751, eq. 12-15).

    With `F(m, j) = C(m, j) / C(G, j)`-like shares of k-subsets: mean `R = 1 - C(neg, k) / C(G, k)`, deviation
    `sqrt(R (1 - R))`; right ones get `(1 - R) / dev`, wrong ones `(1 - R - C(neg - 1, k - 1) / C(G - 1, k - 1)) / dev`.
    Groups without contrast (all k-subsets alike) get 0.

    >>> pass_at_k_normalized(torch.tensor([True, False, False, False]), torch.zeros(4, dtype=torch.long), 2)
    tensor([ 1.0000, -0.3333, -0.3333, -0.3333])
    """
    size = group_count(group)
    wrong = size - group_sum(correct.float(), group)
    mean = 1 - _choose_ratio(wrong, size, k)
    others = _choose_ratio(wrong - 1, size - 1, k - 1)
    deviation = (mean * (1 - mean)).clamp_min(0).sqrt()
    gain = torch.where(correct, 1 - mean, 1 - mean - others)
    return (gain / deviation.clamp_min(1e-12)).where(deviation > 1e-6, 0.0)


def pass_at_k_reward(correct: Bool[Tensor, "n"], group: Int[Tensor, "n"], k: int) -> Float[Tensor, "n"]:
    """Rewards whose score-function gradient, summed over the group, is unbiased for pass@k (PKPO, arXiv 2505.15201,
    theorem 2): `k/G` if right, else `k/G * (1 - C(G - 1 - c, k - 1) / C(G - 1, k - 1))` with c right ones.

    >>> pass_at_k_reward(torch.tensor([True, False, False, False]), torch.zeros(4, dtype=torch.long), 2)
    tensor([0.5000, 0.1667, 0.1667, 0.1667])
    """
    size = group_count(group)
    right = group_sum(correct.float(), group)
    other = 1 - _choose_ratio(size - 1 - right, size - 1, k - 1)
    return k / size * torch.where(correct, torch.ones_like(size), other)


def lift_of_best(reward: Float[Tensor, "n"], group: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """`max of the group - max of the others`: best minus second best for the best, 0 for all else (arXiv 2503.19595).

    The others' maximum is a baseline that does not see the trajectory, so that the score-function gradient, summed over
    the group, is unbiased for the expected maximum (pass@G where rewards are binary). A tie for best lifts nothing; a
    trajectory alone in its group gets its reward, the maximum of one.

    >>> lift_of_best(torch.tensor([0.2, 0.7, 0.1, 3.0]), torch.tensor([0, 0, 0, 1]))
    tensor([0.0000, 0.5000, 0.0000, 3.0000])
    """
    same = group[:, None] == group[None]
    rivals = same & ~torch.eye(len(group), dtype=torch.bool, device=group.device)
    x = working(reward)
    second = x.expand(len(x), -1).where(rivals, -torch.inf).amax(1) if len(x) else x
    return (x - second.where(rivals.any(1), 0.0)).clamp_min(0).where(rivals.any(1), x)


def _choose_ratio(m: Tensor, n: Tensor, k: int) -> Tensor:
    """`C(m, k) / C(n, k)`, as a product; 0 where m < k."""
    ratio = torch.ones_like(m)
    for i in range(k):
        ratio = ratio * ((m - i).clamp_min(0) / (n - i).clamp_min(1))
    return ratio


def even(p: Tensor) -> Tensor:
    """Weight 1: every prompt counts as its expected reward does (Dr. GRPO).

    >>> even(torch.tensor([0.1, 0.5]))
    tensor([1., 1.])
    """
    return torch.ones_like(p)


def inverse_deviation(p: Tensor) -> Tensor:
    """`1 / sqrt(p (1 - p))`: GRPO's, which favours prompts that are nearly always, or nearly never, solved.

    >>> inverse_deviation(torch.tensor([0.1, 0.5]))
    tensor([3.3333, 2.0000])
    """
    return (p * (1 - p)).rsqrt()


def inverse_success(p: Tensor) -> Tensor:
    """`1 / p`: the gradient of `log p`, so that hard prompts count as their relative gain (maximum likelihood).

    >>> inverse_success(torch.tensor([0.1, 0.5]))
    tensor([10.,  2.])
    """
    return 1 / p


def success_weighted(
    reward: Float[Tensor, "n"], group: Int[Tensor, "n"], weight: Callable[[Tensor], Tensor] = inverse_deviation
) -> Float[Tensor, "n"]:
    """`w(p) (r - p)`, p the group's success rate (mean reward): one family, in which w says which difficulty counts.

    Groups without contrast get 0, whatever w says there.

    Raises:
        InputError: a reward outside [0, 1], whose mean is no rate: w would not be finite, or turn the gradient round.

    >>> success_weighted(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.long), inverse_success)
    tensor([ 3., -1., -1., -1.])
    """
    if not ((reward >= 0) & (reward <= 1)).all():
        low, high = reward.aminmax()
        raise InputError(
            f"success_weighted: rewards between {float(low):g} and {float(high):g}, expected between 0 and 1"
        )
    p = group_mean(reward, group)
    gap = working(reward) - p
    return (weight(p) * gap).where(gap != 0, 0.0)


def identity(gap: Tensor) -> Tensor:
    """The gap itself: `pairwise` is then the centred reward.

    >>> identity(torch.tensor(0.5))
    tensor(0.5000)
    """
    return gap


def win_rate(gap: Tensor) -> Tensor:
    """`sign(gap) / 2`: `pairwise` is then the share of the group that a trajectory beats, centred; ties count half.

    Only the order of the rewards counts, whatever their scale.

    >>> win_rate(torch.tensor([3.0, 0.0, -0.1]))
    tensor([ 0.5000,  0.0000, -0.5000])
    """
    return gap.sign() / 2


def pairwise(
    reward: Float[Tensor, "n"], group: Int[Tensor, "n"], kernel: Callable[[Tensor], Tensor] = win_rate
) -> Float[Tensor, "n"]:
    """`(1/G) sum_j kernel(r_i - r_j)` over the group. For odd kernels the group's sum is 0.

    >>> pairwise(torch.tensor([5.0, 1.0, 1.0, 0.0]), torch.zeros(4, dtype=torch.long))
    tensor([ 0.3750,  0.0000,  0.0000, -0.3750])
    """
    same = group[:, None] == group[None]
    gaps = kernel(working(reward)[:, None] - working(reward)[None])
    return gaps.where(same, 0.0).sum(1) / same.sum(1)


@dataclass(frozen=True)
class Relative(Part):
    """Any centre and any scale, within groups by any key: the general form of the parts below (`groups.relative`).

    Attributes:
        centre, scale: statistics of `surefoot.objective.groups`; none centres by 0, scales by 1.
        keys: integer columns; trajectories that agree in all of them are one group.
        members: a selection; the others are left out of the statistics and get 0.
    """

    centre: Statistic | None = group_mean
    scale: Statistic | None = None
    eps: float = 1e-4
    keys: tuple[str, ...] = ("group",)
    members: Part | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("reward", "mask", *self.keys, *(self.members.reads if self.members else ()))))

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        key = joint_key(*(rollouts[name] for name in self.keys))
        member = None if self.members is None else self.members(rollouts).bool()
        if member is not None and member.ndim == 2:
            member = (member & rollouts.mask).any(1)
        return spread(relative(rollouts.reward, key, self.centre, self.scale, self.eps, member), rollouts.mask)


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
        one = torch.zeros(len(rollouts), dtype=torch.long, device=rollouts.reward.device)
        return spread(relative(rollouts.reward, one, group_mean if self.baseline else None), rollouts.mask)


@dataclass(frozen=True)
class BatchNormalized(Part):
    """Group mean, batch deviation (LitePPO, arXiv 2508.08221): easy groups do not blow up a tiny deviation."""

    eps: float = 1e-4
    reads = ("reward", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return spread(relative(rollouts.reward, rollouts.group, group_mean, batch_std, self.eps), rollouts.mask)


@dataclass(frozen=True)
class ReinforcePlusPlus(Part):
    """REINFORCE++ (arXiv 2501.03262): the reward, normalised over all tokens of the batch.

    Attributes:
        group_baseline: subtract the group's mean first (the paper's "w/ baseline" form for several rollouts).
    """

    group_baseline: bool = False
    reads = ("reward", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        reward = group_centred(rollouts.reward, rollouts.group) if self.group_baseline else rollouts.reward
        return whiten(spread(reward, rollouts.mask), rollouts.mask)


REINFORCE_PLUS_PLUS_BASELINE = ReinforcePlusPlus(group_baseline=True)


@dataclass(frozen=True)
class ReMax(Part):
    """Reward minus that of a greedy trajectory of the same prompt (arXiv 2310.10505, eq. 5)."""

    reads = ("reward", "baseline_reward", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return spread(working(rollouts.reward) - working(rollouts.baseline_reward), rollouts.mask)


@dataclass(frozen=True)
class OPO(Part):
    """Reward minus the group's length-weighted mean (`length_weighted_baseline`)."""

    reads = ("reward", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        baseline = length_weighted_baseline(rollouts.reward, rollouts.group, rollouts.mask.sum(1))
        return spread(rollouts.reward - baseline, rollouts.mask)


@dataclass(frozen=True)
class GPG(Part):
    """Centred rewards, times the batch over its trajectories in groups with a signal (GPG, arXiv 2504.02546, eq. 8).

    verl counts the trajectories whose reward is not 0 instead: prompts that are always solved then count as signal.
    """

    reads = ("reward", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        centred = group_centred(rollouts.reward, rollouts.group)
        useful = (group_sum(centred.abs(), rollouts.group) > 0).to(centred.dtype).sum()
        return spread(centred * len(centred) / useful.clamp_min(1), rollouts.mask)


@dataclass(frozen=True)
class SuccessWeighted(Part):
    """`success_weighted`: `inverse_deviation` is GRPO's for binary rewards, `even` Dr. GRPO's, `inverse_success`
    maximum likelihood's."""

    weight: Callable[[Tensor], Tensor] = inverse_deviation
    reads = ("reward", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return spread(success_weighted(rollouts.reward, rollouts.group, self.weight), rollouts.mask)


@dataclass(frozen=True)
class Pairwise(Part):
    """`pairwise` comparisons within the group through an odd kernel: `win_rate`, `identity`, `torch.tanh`."""

    kernel: Callable[[Tensor], Tensor] = win_rate
    reads = ("reward", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return spread(pairwise(rollouts.reward, rollouts.group, self.kernel), rollouts.mask)


@dataclass(frozen=True)
class PassAtK(Part):
    """Credit for pass@k instead of pass@1; rewards above 1/2 count as right.

    Attributes:
        rule: `pass_at_k_normalized`, or `pass_at_k_reward`, of which a mean over trajectories has 1/G of the gradient.

    Raises:
        InputError: a group smaller than k.
    """

    k: int = 4
    rule: Callable[[Tensor, Tensor, int], Tensor] = pass_at_k_normalized
    reads = ("reward", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        smallest = int(group_count(rollouts.group).min()) if len(rollouts) else self.k
        if smallest < self.k:
            raise InputError(
                f"advantage (PassAtK): a group of {smallest} trajectories, expected at least k = {self.k} a prompt"
            )
        return spread(self.rule(rollouts.reward > 0.5, rollouts.group, self.k), rollouts.mask)


PKPO = PassAtK(rule=pass_at_k_reward)


@dataclass(frozen=True)
class LiftOfBest(Part):
    """Unbiased credit for the best of the group (`lift_of_best`): a mean over trajectories has 1/G of its gradient."""

    reads = ("reward", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return spread(lift_of_best(rollouts.reward, rollouts.group), rollouts.mask)


@dataclass(frozen=True)
class GDPO(Part):
    """Each named reward normalised in its group by itself, summed, then normalised over the batch (arXiv 2601.05242).

    Summing first, as GRPO does, lets the reward with the largest spread decide. The last normalisation is over
    trajectories; verl's is over tokens, where long ones count more, and it leaves a reward alone in its group raw.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    eps: float = 1e-4
    reads = ("group", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        parts = [
            self.weights.get(name, 1.0) * group_normalized(r, rollouts.group, self.eps)
            for name, r in totals(rollouts.rewards).items()
        ]
        total = torch.stack(parts).sum(0)
        return spread(relative(total, rollouts.group, batch_mean, batch_std, self.eps), rollouts.mask)
