"""Which trajectories and steps train: masks that are multiplied into the table's own."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from surefoot.parts import Part
from surefoot.rollouts import Rollouts


@dataclass(frozen=True)
class Everything(Part):
    """All steps that the policy chose."""

    reads = ("mask",)

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n t"]:
        return rollouts.mask


@dataclass(frozen=True)
class NotTruncated(Part):
    """Trajectories that ended by themselves (DAPO's over-long filtering, arXiv 2503.14476, section 3.4)."""

    reads = ("truncated",)

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n"]:
        return ~rollouts.truncated


@dataclass(frozen=True)
class NonZeroAdvantage(Part):
    """Trajectories with some advantage that is not zero."""

    reads = ("advantage",)

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n"]:
        return (rollouts.advantage != 0).any(1)


@dataclass(frozen=True)
class All(Part):
    """Steps that every one of the parts selects."""

    of: tuple[Part, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("mask", *(c for part in self.of for c in part.reads))))

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n t"]:
        chosen = rollouts.mask
        for part in self.of:
            one = part(rollouts).bool()
            chosen = chosen & (one if one.ndim == 2 else one[:, None])
        return chosen
