"""Statistics within groups: one machine behind every group-relative advantage.

A group is all trajectories with one key; groups may differ in size, and members may be left out of the statistics.
All functions are differentiable-free bookkeeping on [n] vectors and run in the dtype they are given (float32 at least).
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor


def group_sum(x: Float[Tensor, "n"], group: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Each row's group total.

    >>> group_sum(torch.tensor([1., 2., 5.]), torch.tensor([0, 0, 1]))
    tensor([3., 3., 5.])
    """
    if not len(x):
        return x
    totals = x.new_zeros(int(group.max()) + 1).index_add(0, group, x)
    return totals[group]


def group_count(group: Int[Tensor, "n"], member: Bool[Tensor, "n"] | None, like: Tensor) -> Float[Tensor, "n"]:
    """Number of counted members of each row's group."""
    ones = like.new_ones(len(group)) if member is None else member.to(like.dtype)
    return group_sum(ones, group)


def group_mean(x: Float[Tensor, "n"], group: Int[Tensor, "n"], member: Bool[Tensor, "n"] | None = None) -> Tensor:
    """Mean over each row's group, of the counted members; 0 where none is counted."""
    counted = x if member is None else x.where(member, 0.0)
    return group_sum(counted, group) / group_count(group, member, x).clamp_min(1)


def group_std(
    x: Float[Tensor, "n"], group: Int[Tensor, "n"], member: Bool[Tensor, "n"] | None = None, correction: int = 1
) -> Tensor:
    """Standard deviation over each row's group; 0 for fewer than `correction` + 1 members.

    Args:
        correction: 1 divides by G - 1 (torch.std, TRL, verl), 0 by G.
    """
    gap = x - group_mean(x, group, member)
    square = gap.square() if member is None else gap.square().where(member, 0.0)
    degrees = group_count(group, member, x) - correction
    return (group_sum(square, group) / degrees.clamp_min(1)).sqrt() * (degrees > 0)


def leave_one_out_mean(x: Float[Tensor, "n"], group: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Mean of the other members of each row's group; the row's own value where it is alone.

    >>> leave_one_out_mean(torch.tensor([1., 2., 6.]), torch.tensor([0, 0, 0]))
    tensor([4.0000, 3.5000, 1.5000])
    """
    count = group_count(group, None, x)
    others = (group_sum(x, group) - x) / (count - 1).clamp_min(1)
    return others.where(count > 1, x)
