"""Likelihood ratios between the current policy and the one that acted, at the level of tokens, turns or sequences.

A `Ratio` says which log-ratio stands on each step. Several anchors with weights make one (`anchored`): PPO's has one
anchor, RLAD's has two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.objective.groups import working
from surefoot.parts import Part
from surefoot.rollouts import Rollouts

LIMIT = 20.0  # log-ratios are held within +-20: beyond that float32 products overflow, and no clip can tell


def log_ratio(logp: Float[Tensor, "n t"], anchor: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Tensor:
    """`logp - sg(anchor)` on the mask and 0 off it (whatever stands there), held within +-`LIMIT`.

    >>> log_ratio(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, 0.0]]), torch.tensor([[True, False]]))
    tensor([[0.5000, 0.0000]])
    """
    return (working(logp).where(mask, 0.0) - working(anchor).detach().where(mask, 0.0)).clamp(-LIMIT, LIMIT)


def anchored(anchors: Sequence[Float[Tensor, "n t"]], weights: Sequence[float]) -> Float[Tensor, "n t"]:
    """`sum_k w_k log anchor_k`: the anchor of `pi / prod_k anchor_k^w_k`.

    >>> anchored([torch.tensor([[-1.0]]), torch.tensor([[-3.0]])], [0.25, 0.75])
    tensor([[-2.5000]])
    """
    return torch.stack([w * a for w, a in zip(weights, anchors, strict=True)]).sum(0)


def mean_over(x: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"], turn: Int[Tensor, "n t"] | None) -> Tensor:
    """Mean of `x` over the masked steps of each step's turn (of its whole trajectory where `turn` is None).

    >>> mean_over(torch.tensor([[1.0, 3.0, 8.0]]), torch.ones(1, 3).bool(), torch.tensor([[0, 0, 1]]))
    tensor([[2., 2., 8.]])
    """
    if turn is None:
        mean = x.where(mask, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1)
        return mean.expand_as(x)
    index = turn.clamp_min(0)
    size = int(index.max()) + 1 if index.numel() else 1
    total = x.new_zeros(len(x), size).scatter_add(1, index, x.where(mask, 0.0))
    count = x.new_zeros(len(x), size).scatter_add(1, index, mask.to(x.dtype))
    return (total / count.clamp_min(1)).gather(1, index)


def clipped_geometric_mean(
    gap: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"], advantage: Float[Tensor, "n t"], width: float
) -> Float[Tensor, "n t"]:
    """Mean over a trajectory of log-ratios `gap` that are clipped one by one (GMPO, arXiv 2507.20673, eq. 4).

    Each is held to +-`width` on the side that the advantage pushes towards, as PPO's minimum does.

    >>> gap, one = torch.tensor([[1.0, -1.0]]), torch.ones(1, 2)
    >>> clipped_geometric_mean(gap, one.bool(), one, 0.4), clipped_geometric_mean(gap, one.bool(), -one, 0.4)
    (tensor([[-0.3000, -0.3000]]), tensor([[0.3000, 0.3000]]))
    """
    held, sign = gap.clamp(-width, width), advantage.sign()
    return mean_over(torch.where(sign * gap > sign * held, held, gap), mask, None)


@dataclass(frozen=True)
class Ratio(Part):
    """Base of the ratios: `log` gives the log-ratio that stands on each step, 0 off the mask."""

    def log(
        self,
        logp: Float[Tensor, "n t"],
        anchor: Float[Tensor, "n t"],
        mask: Bool[Tensor, "n t"],
        turn: Int[Tensor, "n t"] | None = None,
    ) -> Float[Tensor, "n t"]:
        """The log-ratio of `logp` to `anchor` (detached), held within +-`LIMIT`."""
        raise NotImplementedError

    def between(self, rollouts: Rollouts, over: str = "logp", under: str = "old_logp") -> Float[Tensor, "n t"]:
        """The log-ratio of two columns of a table."""
        return self.log(rollouts[over], rollouts[under], rollouts.mask, rollouts.turn if "turn" in rollouts else None)

    def of(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        """The ratio of a table's `logp` to its `old_logp`."""
        return self.between(rollouts).exp()


@dataclass(frozen=True)
class TokenRatio(Ratio):
    """One ratio a token: PPO's."""

    def log(self, logp, anchor, mask, turn=None):
        return log_ratio(logp, anchor, mask)


@dataclass(frozen=True)
class TrajectoryRatio(Ratio):
    """The product of the trajectory's token ratios on each of its tokens: the exact weight of importance sampling."""

    def log(self, logp, anchor, mask, turn=None):
        total = log_ratio(logp, anchor, mask).sum(1, keepdim=True).clamp(-LIMIT, LIMIT)
        return total.expand(mask.shape)


@dataclass(frozen=True)
class SequenceRatio(Ratio):
    """The sequence's length-normalised ratio on each of its tokens (GSPO, arXiv 2507.18071, eq. 7).

    It is the geometric mean of the token ratios, the object of GMPO (arXiv 2507.20673) before its token clip.
    """

    def log(self, logp, anchor, mask, turn=None):
        return mean_over(log_ratio(logp, anchor, mask), mask, None)


@dataclass(frozen=True)
class SequenceTokenRatio(Ratio):
    """GSPO-token (arXiv 2507.18071, eq. 14): the sequence ratio's value, each token's own gradient."""

    def log(self, logp, anchor, mask, turn=None):
        level = mean_over(log_ratio(logp, anchor, mask), mask, None).detach()
        own = working(logp).where(mask, 0.0)
        return level + own - own.detach()


@dataclass(frozen=True)
class TurnRatio(Ratio):
    """The length-normalised ratio of each turn on its tokens."""

    def log(self, logp, anchor, mask, turn=None):
        return mean_over(log_ratio(logp, anchor, mask), mask, turn)


@dataclass(frozen=True)
class CentredRatio(Ratio):
    """RatioNorm of Gaussian steps (GRPO-Guard, arXiv 2510.22319): `s (log r + mean(dmu^2) / (2 s^2))`.

    With log-probabilities that are means over the step's entries this is `mean(eps dmu)`: no shift to the left, and a
    spread that does not know the noise s. The bias keeps its gradient.
    """

    reads = ("mean", "step_mean", "step_std", "mask")

    def between(self, rollouts: Rollouts, over: str = "logp", under: str = "old_logp") -> Float[Tensor, "n t"]:
        std = rollouts.step_std.where(rollouts.mask, 1.0)
        moved = (rollouts.mean - rollouts.step_mean).where(rollouts.mask[..., None], 0.0).square().mean(-1)
        return std * (log_ratio(rollouts[over], rollouts[under], rollouts.mask) + moved / (2 * std.square()))
