"""Likelihood ratios between the current policy and the one that acted, at the level of tokens or sequences."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from surefoot.parts import Part

LIMIT = 20.0  # ratios are held within e^-20 .. e^20: beyond that float32 products overflow, and no clip can tell


def log_ratio(logp: Float[Tensor, "n t"], anchor: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Tensor:
    """`logp - anchor` on the mask and 0 off it (whatever stands there), held within +-`LIMIT`; gradient to `logp`."""
    return (logp - anchor.detach()).where(mask, 0.0).clamp(-LIMIT, LIMIT)


@dataclass(frozen=True)
class TokenRatio(Part):
    """One ratio a token: PPO's."""

    def log(self, logp: Tensor, anchor: Tensor, mask: Tensor) -> Float[Tensor, "n t"]:
        return log_ratio(logp, anchor, mask)


@dataclass(frozen=True)
class SequenceRatio(Part):
    """The length-normalised ratio of the sequence on each of its tokens (GSPO, arXiv 2507.18071, eq. 7)."""

    def log(self, logp: Tensor, anchor: Tensor, mask: Tensor) -> Float[Tensor, "n t"]:
        gap = log_ratio(logp, anchor, mask)
        mean = gap.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1)
        return mean.expand_as(gap)
