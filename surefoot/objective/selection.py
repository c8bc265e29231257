"""Which trajectories and steps train: masks that are multiplied into the table's own.

A selection serves as the method's `select`, taken once a batch, or in an aggregate (`aggregation.On`), taken on every
minibatch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from surefoot.objective.divergences import k3
from surefoot.objective.groups import working
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
class NoVoidTurn(Part):
    """Trajectories each of whose turns called a tool or answered (SimpleTIR, arXiv 2509.02479)."""

    reads = ("void",)

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n"]:
        return ~rollouts.void


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
        return _within(rollouts[self.column], self.low, self.high, rollouts.mask)


def _within(value: Tensor, low: float | None, high: float | None, mask: Bool[Tensor, "n t"]) -> Bool[Tensor, "n t"]:
    """Steps on the mask whose value, of the step or of its trajectory, lies within the bounds."""
    value = value if value.ndim == 2 else value[:, None]
    chosen = mask if low is None else mask & (value >= low)
    return chosen if high is None else chosen & (value <= high)


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


def mean_of_steps(x: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n"]:
    """Mean over the masked steps; 0 where there is none.

    >>> mean_of_steps(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([2.])
    """
    return sum_of_steps(x, mask) / mask.sum(1).clamp_min(1)


def sum_of_steps(x: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n"]:
    """Sum over the masked steps.

    >>> sum_of_steps(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([4.])
    """
    return x.where(mask, 0.0).sum(1)


def max_of_steps(x: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n"]:
    """Largest over the masked steps; 0 where there is none.

    >>> max_of_steps(torch.tensor([[1.0, 3.0, 9.0], [1.0, 3.0, 9.0]]), torch.tensor([[True, True, False], [False] * 3]))
    tensor([3., 0.])
    """
    return x.where(mask, -torch.inf).amax(1).where(mask.any(1), 0.0) if x.numel() else x.sum(1)


@dataclass(frozen=True)
class EngineMatch(Part):
    """Steps, or trajectories, on which the sampling engine and the trainer agree (verl's `rollout_rs`).

    Attributes:
        estimator: of the divergence of the engine from the trainer: `k1`, `k2` or `k3` of `divergences`.
        pool: over a trajectory's steps, which judges it whole: `mean_of_steps`, `sum_of_steps`, `max_of_steps`; none
            judges each step by itself.
        low, high: what is kept, both included, nats; none for no bound.
    """

    estimator: Callable[[Tensor, Tensor], Tensor] = k3
    pool: Callable[[Tensor, Tensor], Tensor] | None = None
    low: float | None = None
    high: float | None = 0.01
    reads = ("old_logp", "rollout_logp", "mask")

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n t"]:
        engine, trainer = (rollouts[c].where(rollouts.mask, 0.0) for c in ("rollout_logp", "old_logp"))
        value = self.estimator(engine, trainer)
        value = value if self.pool is None else self.pool(value, rollouts.mask)
        return _within(value, self.low, self.high, rollouts.mask)


def covariance(
    logp: Float[Tensor, "n t"], advantage: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]
) -> Float[Tensor, "n t"]:
    """Each step's term of the covariance of log-probability and advantage (arXiv 2505.22617, eq. 10).

    Their mean over the masked steps is the covariance, which says how fast a policy gradient step lowers the entropy.

    >>> covariance(torch.tensor([[-1.0, -3.0]]), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2).bool())
    tensor([[1., 1.]])
    """
    count = mask.sum().clamp_min(1)
    x, y = (working(v).detach().where(mask, 0.0) for v in (logp, advantage))
    return ((x - x.sum() / count) * (y - y.sum() / count)).where(mask, 0.0)


@dataclass(frozen=True)
class HighCovariance(Part):
    """The steps with the highest covariance (`covariance`; KL-Cov, arXiv 2505.22617, eq. 11).

    Attributes:
        share: of the steps that train; at least one step is chosen.
        column: the log-probabilities. The authors' code takes the current ones (`now_logp`); at the first update after
            sampling they are `old_logp`, which costs no forward pass.
    """

    share: float = 2e-4
    column: str = "old_logp"

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.column, "advantage", "mask")

    def covariance(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        """Of every step, from the columns."""
        return covariance(rollouts[self.column], rollouts.advantage, rollouts.mask)

    def count(self, rollouts: Rollouts) -> int:
        """How many steps are chosen."""
        return max(1, int(self.share * rollouts.mask.sum()))

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n t"]:
        ranked = self.covariance(rollouts).where(rollouts.mask, -torch.inf).flatten()
        top = ranked.topk(min(self.count(rollouts), len(ranked))).indices
        return _at(top, rollouts.mask) & rollouts.mask


@dataclass(frozen=True)
class CovarianceBand(HighCovariance):
    """A random few of the steps whose covariance lies in a band (Clip-Cov, arXiv 2505.22617, eq. 13).

    Draws are a function of how many were made, so that a resumed run repeats them.

    Attributes:
        floor, ceiling: the band (of the paper's code).
    """

    floor: float = 1.0
    ceiling: float = 5.0

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n t"]:
        found = self.covariance(rollouts)
        inside = ((found > self.floor) & (found < self.ceiling) & rollouts.mask).flatten().nonzero().flatten()
        self.memory["draws"] = self.memory.get("draws", 0) + 1
        order = torch.randperm(len(inside), generator=torch.Generator().manual_seed(self.memory["draws"]))
        return _at(inside[order[: self.count(rollouts)].to(inside.device)], rollouts.mask)


def _at(index: Tensor, mask: Bool[Tensor, "n t"]) -> Bool[Tensor, "n t"]:
    """True at the flat indices."""
    return torch.zeros_like(mask).flatten().index_fill(0, index, True).view_as(mask)


@dataclass(frozen=True)
class Not(Part):
    """The steps that train and are not selected."""

    of: Part

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("mask", *self.of.reads)))

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n t"]:
        return rollouts.mask & ~on_steps(self.of(rollouts))


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
    """A choice of trajectories as one of steps (width 1, to be broadcast); one of steps as it is.

    >>> on_steps(torch.tensor([True, False]))
    tensor([[ True],
            [False]])
    """
    return chosen.bool() if chosen.ndim == 2 else chosen.bool()[:, None]
