"""Statistics within groups: one machine behind every group-relative advantage.

A group is all rows with one key; keys are any integers, groups may differ in size, and members may be left out (they
may hold anything, NaN too). A `Statistic` gives each row a number of its group; `relative` centres by one statistic
and scales by another, which is GRPO, Dr. GRPO, RLOO, REINFORCE and batch-level scaling in turn.

Sums run in float64 and come back in float32 (float64 for float64), whatever the input: rewards that are all equal are
then exactly equal to their mean, so that a group without contrast has advantage 0 and not scaled-up rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Statistic = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def working(x: Tensor) -> Tensor:
    """The values in float32, or float64 where they are: bfloat16 cannot even count to 257.

    >>> working(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x if x.dtype == torch.float64 else x.float()


def joint_key(*keys: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """One key for rows that agree in all of `keys` (prompt and turn, prompt and tag).

    >>> joint_key(torch.tensor([5, 5, 7]), torch.tensor([1, 1, 1]))
    tensor([0, 0, 1])
    """
    return torch.stack(keys, dim=1).unique(dim=0, return_inverse=True)[1]


def group_sum(x: Float[Tensor, "n"], group: Int[Tensor, "n"], member: Bool[Tensor, "n"] | None = None) -> Tensor:
    """Each row's group total, over the counted members.

    >>> group_sum(torch.tensor([1., 2., 5.]), torch.tensor([0, 0, 1]))
    tensor([3., 3., 5.])
    """
    return _sum(x.double(), group, member).to(working(x).dtype)


def group_count(group: Int[Tensor, "n"], member: Bool[Tensor, "n"] | None = None) -> Float[Tensor, "n"]:
    """Number of counted members of each row's group.

    >>> group_count(torch.tensor([0, 0, 1]), torch.tensor([True, False, True]))
    tensor([1., 1., 1.])
    """
    return _count(group, member).float()


def group_mean(x: Float[Tensor, "n"], group: Int[Tensor, "n"], member: Bool[Tensor, "n"] | None = None) -> Tensor:
    """Mean of each row's group, over the counted members; 0 where none is counted.

    >>> group_mean(torch.tensor([1., 3., 9.]), torch.tensor([0, 0, 1]))
    tensor([2., 2., 9.])
    """
    return (_sum(x.double(), group, member) / _count(group, member).clamp_min(1)).to(working(x).dtype)


def group_std(
    x: Float[Tensor, "n"], group: Int[Tensor, "n"], member: Bool[Tensor, "n"] | None = None, correction: int = 1
) -> Tensor:
    """Standard deviation of each row's group; 0 for fewer than `correction` + 1 counted members.

    Args:
        correction: 1 divides by G - 1 (torch.std, TRL, verl), 0 by G.

    >>> group_std(torch.tensor([1., 3., 9.]), torch.tensor([0, 0, 1]))
    tensor([1.4142, 1.4142, 0.0000])
    """
    count = _count(group, member)
    gap = x.double() - _sum(x.double(), group, member) / count.clamp_min(1)
    degrees = count - correction
    variance = _sum(gap.square(), group, member) / degrees.clamp_min(1) * (degrees > 0)
    return variance.sqrt().to(working(x).dtype)


def group_population_std(x: Float[Tensor, "n"], group: Int[Tensor, "n"], member: Bool[Tensor, "n"] | None = None):
    """`group_std` that divides by G.

    >>> group_population_std(torch.tensor([1., 3., 9.]), torch.tensor([0, 0, 1]))
    tensor([1., 1., 0.])
    """
    return group_std(x, group, member, correction=0)


def leave_one_out_mean(
    x: Float[Tensor, "n"], group: Int[Tensor, "n"], member: Bool[Tensor, "n"] | None = None
) -> Float[Tensor, "n"]:
    """Mean of the other counted members of each row's group; the row's own value where there is no other.

    >>> leave_one_out_mean(torch.tensor([1., 2., 6.]), torch.tensor([0, 0, 0]))
    tensor([4.0000, 3.5000, 1.5000])
    """
    counted = torch.ones_like(group, dtype=torch.bool) if member is None else member
    own = x.double().where(counted, 0.0)
    others = _count(group, member) - counted.double()
    mean = (_sum(x.double(), group, member) - own) / others.clamp_min(1)
    return mean.where(others > 0, own).to(working(x).dtype)


def group_softmax(x: Float[Tensor, "n"], group: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """`exp(x) / sum exp(x)` within the group, in float64 inside, shifted by the group's largest.

    >>> group_softmax(torch.tensor([1000., 1000., 3.]), torch.tensor([0, 0, 1]))
    tensor([0.5000, 0.5000, 1.0000])
    """
    keys, row = group.unique(return_inverse=True)
    top = x.double().new_full((len(keys),), -torch.inf).scatter_reduce(0, row, x.double(), "amax")[row]
    weight = (x.double() - top).exp()
    return (weight / _sum(weight, group, None)).to(working(x).dtype)


def batch_mean(x: Float[Tensor, "n"], group: Int[Tensor, "n"], member: Bool[Tensor, "n"] | None = None) -> Tensor:
    """`group_mean` with all rows in one group.

    >>> batch_mean(torch.tensor([1., 3., 5.]), torch.tensor([0, 0, 1]))
    tensor([3., 3., 3.])
    """
    return group_mean(x, torch.zeros_like(group), member)


def batch_std(x: Float[Tensor, "n"], group: Int[Tensor, "n"], member: Bool[Tensor, "n"] | None = None) -> Tensor:
    """`group_std` with all rows in one group.

    >>> batch_std(torch.tensor([1., 3., 5.]), torch.tensor([0, 0, 1]))
    tensor([2., 2., 2.])
    """
    return group_std(x, torch.zeros_like(group), member)


def relative(
    x: Float[Tensor, "n"],
    group: Int[Tensor, "n"],
    centre: Statistic | None = group_mean,
    scale: Statistic | None = None,
    eps: float = 0.0,
    member: Bool[Tensor, "n"] | None = None,
) -> Float[Tensor, "n"]:
    """`(x - centre) / (scale + eps)`; `None` centres by 0 and scales by 1.

    Rows that are not members are left out of the statistics and get 0, as do rows whose divisor is 0.

    >>> relative(torch.tensor([1., 3., 9.]), torch.tensor([0, 0, 0]), member=torch.tensor([True, True, False]))
    tensor([-1.,  1.,  0.])
    """
    out = working(x)
    if centre is not None:
        out = out - centre(x, group, member)
    if scale is not None:
        width = scale(x, group, member) + eps
        out = (out / width).where(width > 0, 0.0)
    return out if member is None else out.where(member, 0.0)


def _sum(x: Tensor, group: Tensor, member: Tensor | None) -> Tensor:
    counted = x if member is None else x.where(member, 0.0)
    keys, row = group.unique(return_inverse=True)
    return counted.new_zeros(len(keys)).index_add(0, row, counted)[row]


def _count(group: Tensor, member: Tensor | None) -> Tensor:
    return _sum(torch.ones_like(group, dtype=torch.float64), group, member)
