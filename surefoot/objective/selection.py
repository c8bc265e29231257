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
class Where(Part):
    """Trajectories, or steps, whose `column` lies in [low, high]: recent ones (`age`), uncertain ones (`old_entropy`).

    Attributes:
        low, high: bounds, both included; none for no bound.
    """

    column: str = "old_entropy"
    low: float | None = None
    high: float | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        return ("mask", self.column)

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n t"]:
        value = rollouts[self.column]
        value = value if value.ndim == 2 else value[:, None]
        chosen = rollouts.mask
        if self.low is not None:
            chosen = chosen & (value >= self.low)
        return chosen if self.high is None else chosen & (value <= self.high)


@dataclass(frozen=True)
class Top(Part):
    """The share of the batch's training steps with the highest `column` (high-entropy tokens, arXiv 2506.01939).

    Attributes:
        share: in (0, 1]; at least one step trains. Steps that tie with the last one chosen train too.
    """

    column: str = "old_entropy"
    share: float = 0.2

    @property
    def reads(self) -> tuple[str, ...]:
        return ("mask", self.column)

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n t"]:
        value = rollouts[self.column]
        candidates = value[rollouts.mask]
        if not len(candidates):
            return rollouts.mask
        count = max(1, round(self.share * len(candidates)))
        return rollouts.mask & (value >= candidates.topk(count).values[-1])


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
            chosen = chosen & on_steps(part(rollouts))
        return chosen


@dataclass(frozen=True)
class AnyOf(All):
    """Steps that at least one of the parts selects; none where there are no parts."""

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n t"]:
        chosen = rollouts.mask & False
        for part in self.of:
            chosen = chosen | on_steps(part(rollouts))
        return chosen & rollouts.mask


def on_steps(chosen: Bool[Tensor, "n"] | Bool[Tensor, "n t"]) -> Bool[Tensor, "n t"]:
    """A choice of trajectories as one of steps (width 1, to be broadcast); one of steps as it is."""
    return chosen.bool() if chosen.ndim == 2 else chosen.bool()[:, None]
