"""Likelihood ratios between the current policy and the one that acted, at the level of tokens, turns or sequences.

A ratio is an object with one method, `log(logp, anchor, mask, turn) -> [n t]`: the log-ratio that stands on each step.
Several anchors with weights make one (`anchored`): PPO's has one anchor, RLAD's has two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.parts import Part

LIMIT = 20.0  # log-ratios are held within +-20: beyond that float32 products overflow, and no clip can tell


def log_ratio(logp: Float[Tensor, "n t"], anchor: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Tensor:
    """`logp - sg(anchor)` on the mask and 0 off it (whatever stands there), held within +-`LIMIT`."""
    return (logp.where(mask, 0.0) - anchor.detach().where(mask, 0.0)).clamp(-LIMIT, LIMIT)


def anchored(anchors: Sequence[Float[Tensor, "n t"]], weights: Sequence[float]) -> Float[Tensor, "n t"]:
    """`sum_k w_k log anchor_k`: the anchor of `pi / prod_k anchor_k^w_k`."""
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


@dataclass(frozen=True)
class TokenRatio(Part):
    """One ratio a token: PPO's."""

    def log(self, logp: Tensor, anchor: Tensor, mask: Tensor, turn: Tensor | None = None) -> Float[Tensor, "n t"]:
        return log_ratio(logp, anchor, mask)


@dataclass(frozen=True)
class SequenceRatio(Part):
    """The sequence's length-normalised ratio on each of its tokens (GSPO, arXiv 2507.18071, eq. 7).

    It is the geometric mean of the token ratios, the object of GMPO (arXiv 2507.20673) before its token clip.
    """

    def log(self, logp: Tensor, anchor: Tensor, mask: Tensor, turn: Tensor | None = None) -> Float[Tensor, "n t"]:
        return mean_over(log_ratio(logp, anchor, mask), mask, None)


@dataclass(frozen=True)
class SequenceTokenRatio(Part):
    """GSPO-token (arXiv 2507.18071, eq. 14): the sequence ratio's value, each token's own gradient."""

    def log(self, logp: Tensor, anchor: Tensor, mask: Tensor, turn: Tensor | None = None) -> Float[Tensor, "n t"]:
        level = mean_over(log_ratio(logp, anchor, mask), mask, None).detach()
        own = logp.where(mask, 0.0)
        return level + own - own.detach()


@dataclass(frozen=True)
class TurnRatio(Part):
    """The length-normalised ratio of each turn on its tokens."""

    def log(self, logp: Tensor, anchor: Tensor, mask: Tensor, turn: Tensor | None = None) -> Float[Tensor, "n t"]:
        return mean_over(log_ratio(logp, anchor, mask), mask, turn)


@dataclass(frozen=True)
class GeometricRatio(Part):
    """GMPO (arXiv 2507.20673, eq. 4): the geometric mean of token ratios that are clipped, in log space, one by one.

    A token's log-ratio is held to +-`width` on the side that its trajectory's advantage pushes towards; the clip
    needs that sign, so the surrogate passes it on. Paper: width 0.4.
    """

    width: float = 0.4

    def log(
        self, logp: Tensor, anchor: Tensor, mask: Tensor, turn: Tensor | None = None, advantage: Tensor | None = None
    ) -> Float[Tensor, "n t"]:
        gap = log_ratio(logp, anchor, mask)
        held = gap.clamp(-self.width, self.width)
        if advantage is not None:  # pessimistic, as PPO's minimum: clip only what moves with the advantage
            sign = advantage.sign()
            held = torch.where(sign * gap > sign * held, held, gap)
        return mean_over(held, mask, None)
