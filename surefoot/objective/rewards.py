"""Named rewards into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import InputError, nearest
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def totals(rewards: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "n"]]:
    """Each named reward as one number a trajectory (step rewards are summed)."""
    return {name: r if r.ndim == 1 else r.sum(1) for name, r in rewards.items()}


def overlong_penalty(length: Int[Tensor, "n"], limit: int, buffer: int) -> Float[Tensor, "n"]:
    """DAPO's soft punishment (arXiv 2503.14476, eq. 13): 0 up to `limit - buffer`, then linear to -1 at `limit`.

    >>> overlong_penalty(torch.tensor([70, 80, 90, 100]), limit=100, buffer=20)
    tensor([ 0.0000,  0.0000, -0.5000, -1.0000])
    """
    over = length.float() - (limit - buffer)
    return -(over / buffer).clamp(0, 1) if buffer else torch.zeros_like(over)


@dataclass(frozen=True)
class Sum(Part):
    """Weighted sum of the named rewards; a name without a weight counts once.

    Raises:
        InputError: a weight for a reward that the task does not give.
    """

    weights: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        named = totals(rollouts.rewards)
        for name in self.weights:
            if name not in named:
                raise InputError(f"reward: weight for {name!r}, which the task does not give{nearest(name, named)}")
        return torch.stack([float(self.weights.get(name, 1.0)) * r for name, r in named.items()]).sum(0)


@dataclass(frozen=True)
class OverlongPenalty(Sum):
    """The weighted sum, minus DAPO's punishment of responses near the length limit (`overlong_penalty`).

    Attributes:
        limit: length limit in steps; none takes the longest trajectory that was truncated (no punishment where none).
        share: of the limit over which the punishment grows (4096 of 20480 tokens in the paper).
    """

    limit: int | None = None
    share: float = 0.2
    reads = ("mask", "truncated")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        reward, length = super().__call__(rollouts), rollouts.mask.sum(1)
        if self.limit is None and not rollouts.truncated.any():
            return reward
        limit = self.limit or int(length[rollouts.truncated].max())
        return reward + overlong_penalty(length, limit, round(self.share * limit))
