"""From a loss of each step to one number: weights that sum the same under any split of the batch.

The scalar loss is `sum(weights * loss)`, with weights taken once on the whole minibatch. Microbatches then simply add
up. Over ranks or accumulated batches, `total` sums a count over all of them (`here` by default, `over_ranks`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.objective.selection import Everything, on_steps
from surefoot.parts import Part
from surefoot.rollouts import Rollouts

Total = Callable[[Tensor], Tensor]


def here(count: Tensor) -> Tensor:
    """The count of this batch alone.

    >>> here(torch.tensor(3.0))
    tensor(3.)
    """
    return count


def over_ranks(count: Tensor) -> Tensor:
    """The count summed over all processes of `torch.distributed`, which then sum (not average) their gradients.

    >>> over_ranks(torch.tensor(3.0))  # no process group: one rank
    tensor(3.)
    """
    if not dist.is_initialized():
        return count
    total = count.clone()
    dist.all_reduce(total)
    return total


def token_mean(mask: Bool[Tensor, "n t"], total: Total = here) -> Float[Tensor, "n t"]:
    """Every step weighs the same: `1 / sum of mask` (DAPO, arXiv 2503.14476, eq. 12).

    >>> token_mean(torch.tensor([[True, True], [True, False]])).sum(1)
    tensor([0.6667, 0.3333])
    """
    weights = mask.float()
    return weights / total(weights.sum()).clamp_min(1)


def sequence_mean(mask: Bool[Tensor, "n t"], total: Total = here) -> Float[Tensor, "n t"]:
    """Every trajectory weighs the same, its steps share that: `1 / (N |o_i|)` (GRPO, arXiv 2402.03300, eq. 3).

    N counts all trajectories of the batch, also those without a step that trains.

    >>> sequence_mean(torch.tensor([[True, True], [True, False]]))
    tensor([[0.2500, 0.2500],
            [0.5000, 0.0000]])
    """
    weights = mask.float()
    rows = total(weights.new_tensor(float(len(weights))))
    return weights / weights.sum(1, keepdim=True).clamp_min(1) / rows.clamp_min(1)


def prompt_mean(mask: Bool[Tensor, "n t"], group: Int[Tensor, "n"], total: Total = here) -> Float[Tensor, "n t"]:
    """Every group weighs the same, its trajectories share that, and each one's steps share its own.

    `sequence_mean` where all groups are of one size.

    >>> prompt_mean(torch.tensor([[True, True], [True, False], [True, False]]), torch.tensor([0, 0, 1])).sum(1)
    tensor([0.2500, 0.2500, 0.5000])
    """
    keys, row, size = group.unique(return_inverse=True, return_counts=True)
    weights = mask.float()
    groups = total(weights.new_tensor(float(len(keys))))
    return weights / weights.sum(1, keepdim=True).clamp_min(1) / size[row][:, None] / groups.clamp_min(1)


def constant_length(mask: Bool[Tensor, "n t"], length: float, total: Total = here) -> Float[Tensor, "n t"]:
    """`1 / (N L)` with a constant L, so that length has no influence (Dr. GRPO, arXiv 2503.20783).

    >>> constant_length(torch.tensor([[True, True], [True, False]]), 4.0)
    tensor([[0.1250, 0.1250],
            [0.1250, 0.0000]])
    """
    weights = mask.float()
    return weights / (length * total(weights.new_tensor(float(len(weights)))).clamp_min(1))


def turn_mean(mask: Bool[Tensor, "n t"], turn: Int[Tensor, "n t"], total: Total = here) -> Float[Tensor, "n t"]:
    """Every turn with a step that trains weighs the same, its steps share that.

    >>> turn_mean(torch.ones(1, 3).bool(), torch.tensor([[0, 0, 1]]))
    tensor([[0.2500, 0.2500, 0.5000]])
    """
    index = turn.clamp_min(0)
    size = int(index.max()) + 1 if index.numel() else 1
    weights = mask.float()
    counts = weights.new_zeros(len(mask), size).scatter_add(1, index, weights)
    turns = total((counts > 0).sum().to(weights.dtype))
    return weights / counts.gather(1, index).clamp_min(1) / turns.clamp_min(1)


@dataclass(frozen=True)
class TokenMean(Part):
    """`token_mean` of the steps that train."""

    reads = ("mask",)

    def __call__(self, rollouts: Rollouts, total: Total = here) -> Float[Tensor, "n t"]:
        return token_mean(rollouts.mask, total)


@dataclass(frozen=True)
class SequenceMean(Part):
    """`sequence_mean` of the steps that train."""

    reads = ("mask",)

    def __call__(self, rollouts: Rollouts, total: Total = here) -> Float[Tensor, "n t"]:
        return sequence_mean(rollouts.mask, total)


@dataclass(frozen=True)
class PromptMean(Part):
    """`prompt_mean` of the steps that train: for groups of different sizes."""

    reads = ("mask", "group")

    def __call__(self, rollouts: Rollouts, total: Total = here) -> Float[Tensor, "n t"]:
        return prompt_mean(rollouts.mask, rollouts.group, total)


@dataclass(frozen=True)
class ConstantLength(Part):
    """`constant_length` of the steps that train.

    Attributes:
        length: the constant L; the paper takes the generation limit.
    """

    length: float = 64.0
    reads = ("mask",)

    def __call__(self, rollouts: Rollouts, total: Total = here) -> Float[Tensor, "n t"]:
        return constant_length(rollouts.mask, self.length, total)


@dataclass(frozen=True)
class TurnMean(Part):
    """`turn_mean` of the steps that train."""

    reads = ("mask", "turn")

    def __call__(self, rollouts: Rollouts, total: Total = here) -> Float[Tensor, "n t"]:
        return turn_mean(rollouts.mask, rollouts.turn, total)


@dataclass(frozen=True)
class TokenBudget(Part):
    """A constant number of tokens in the denominator, whatever the batch holds: steps of long batches are larger."""

    tokens: float = 4096.0
    reads = ("mask",)

    def __call__(self, rollouts: Rollouts, total: Total = here) -> Float[Tensor, "n t"]:
        return rollouts.mask.float() / self.tokens


@dataclass(frozen=True)
class On(Part):
    """The weights of `base` on the steps that `steps` selects, and 0 on the others, which still count in the mean.

    The selection is made on a minibatch as a whole, whatever its microbatches. Both of arXiv 2505.22617 are made of it
    (with `absolute` of `divergences`):

        Clip-Cov   Clip(), with aggregate On(TokenMean(), Not(CovarianceBand()))
        KL-Cov     Clip(inf, inf), and Term(KL(absolute, 1, "old_logp"), aggregate=On(TokenMean(), HighCovariance()))
    """

    base: Part = TokenMean()
    steps: Part = Everything()

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.base.reads, *self.steps.reads)))

    def __call__(self, rollouts: Rollouts, total: Total = here) -> Float[Tensor, "n t"]:
        return self.base(rollouts, total) * on_steps(self.steps(rollouts))


@dataclass(frozen=True)
class Per(Part):
    """The weights of `base`, divided by a column that is above 0 on the mask: a loss per time, per length.

    Attributes:
        column: [n t].
    """

    base: Part = TokenMean()
    column: str = "step_dt"

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.base.reads, self.column, "mask")))

    def __call__(self, rollouts: Rollouts, total: Total = here) -> Float[Tensor, "n t"]:
        return self.base(rollouts, total) / rollouts[self.column].where(rollouts.mask, 1.0)
