"""Surrogate losses: ratio and trust region. Each returns a loss of every step, to be minimised.

The one clip is `clipped`, the one ratio is an object of `objective.ratios`. At the first update after sampling all
ratios are 1, and the gradient of every surrogate here is then the policy gradient (tests hold them to that).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from surefoot.objective.ratios import GeometricRatio, TokenRatio, log_ratio
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def clipped(
    ratio: Float[Tensor, "n t"], advantage: Float[Tensor, "n t"], low: float, high: float, dual: float | None = None
) -> Float[Tensor, "n t"]:
    """`-min(rho A, clip(rho, 1 - low, 1 + high) A)` (PPO, arXiv 1707.06347, eq. 7), as a loss.

    Args:
        dual: for negative advantages the objective is kept above `dual * A` (dual clip, arXiv 1912.09729, eq. 5).

    >>> clipped(torch.tensor([[1.5, 0.5]]), torch.tensor([[1., -1.]]), 0.2, 0.2)
    tensor([[-1.2000,  0.8000]])
    """
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is not None:
        gain = torch.where(advantage < 0, torch.maximum(gain, dual * advantage), gain)
    return -gain


def soft_gate(ratio: Float[Tensor, "n t"], temperature: float | Tensor) -> Float[Tensor, "n t"]:
    """`(4 / tau) sigmoid(tau (rho - 1))` (SAPO, arXiv 2511.20347, eq. 6): slope 1 at rho = 1, fading away from it."""
    return 4 / temperature * torch.sigmoid(temperature * (ratio - 1))


def binary_tv(logp: Float[Tensor, "n t"], old: Float[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """Total variation of the two-outcome distributions (this token, any other): `|pi - mu|`, below the full one."""
    return (logp.exp() - old.exp()).abs()


def binary_kl(logp: Float[Tensor, "n t"], old: Float[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """`KL(mu || pi)` of the two-outcome distributions (this token, any other), below the full one."""
    rest_new, rest_old = _log1mexp(logp), _log1mexp(old)
    return old.exp() * (old - logp) + rest_old.exp() * (rest_old - rest_new)


def _log1mexp(x: Tensor) -> Tensor:
    """`log(1 - e^x)` for x < 0, without cancellation; x = 0 is taken as -1e-7."""
    x = x.clamp(max=-1e-7)
    return torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-x.exp()))


@dataclass(frozen=True)
class PolicyGradient(Part):
    """`-A log pi`: the score function, no ratio."""

    reads = ("logp", "advantage", "mask")
    vanishes_with_advantage = True

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return -rollouts.advantage * rollouts.logp.where(rollouts.mask, 0.0)


@dataclass(frozen=True)
class _Ratio(Part):
    """A surrogate that reads the ratio between `logp` and `old_logp`."""

    reads = ("logp", "old_logp", "advantage", "mask")
    vanishes_with_advantage = True

    def _log(self, rollouts: Rollouts, ratio: Any) -> Float[Tensor, "n t"]:
        turn = rollouts.turn if "turn" in rollouts else None
        return ratio.log(rollouts.logp, rollouts.old_logp, rollouts.mask, turn)


@dataclass(frozen=True)
class Clip(_Ratio):
    """PPO's clipped surrogate (`clipped`) on a ratio of any level.

    Attributes:
        low, high: the ratio is clipped to [1 - low, 1 + high]; `high` is `low` where it is none.
        dual: dual-clip bound; none for no such bound.
        ratio: `TokenRatio()` (PPO), `SequenceRatio()` (GSPO), `TurnRatio()`.
    """

    low: float = 0.2
    high: float | None = None
    dual: float | None = None
    ratio: Part = TokenRatio()

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        ratio = self._log(rollouts, self.ratio).exp()
        high = self.low if self.high is None else self.high
        return clipped(ratio, rollouts.advantage, self.low, high, self.dual)

    def metrics(self, rollouts: Rollouts) -> dict[str, float]:
        """Share of the steps whose gradient the clip removed."""
        ratio = self._log(rollouts, self.ratio).exp()
        up = (ratio > 1 + (self.low if self.high is None else self.high)) & (rollouts.advantage > 0)
        down = (ratio < 1 - self.low) & (rollouts.advantage < 0)
        return {"clipped": _share(up | down, rollouts.mask)}


@dataclass(frozen=True)
class GeometricMean(_Ratio):
    """GMPO (arXiv 2507.20673, eq. 4): `-A` times the geometric mean of token ratios clipped one by one."""

    ratio: GeometricRatio = GeometricRatio()

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        turn = rollouts.turn if "turn" in rollouts else None
        log = self.ratio.log(rollouts.logp, rollouts.old_logp, rollouts.mask, turn, rollouts.advantage)
        return -rollouts.advantage * log.exp()


@dataclass(frozen=True)
class CISPO(_Ratio):
    """`-sg(min(rho, 1 + high)) A log pi` (MiniMax-M1, arXiv 2506.13585, eq. 4-5): no token loses its gradient.

    Attributes:
        high: upper bound of the detached weight above 1; the paper tunes only this one.
        low: lower bound below 1; 1 means none.
    """

    high: float = 0.28
    low: float = 1.0

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        weight = self._log(rollouts, TokenRatio()).exp().detach().clamp(1 - self.low, 1 + self.high)
        return -weight * rollouts.advantage * rollouts.logp.where(rollouts.mask, 0.0)


@dataclass(frozen=True)
class SAPO(_Ratio):
    """Soft gates instead of clips, colder for negative advantages (arXiv 2511.20347; defaults of the paper)."""

    positive: float = 1.0
    negative: float = 1.05

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        ratio = self._log(rollouts, TokenRatio()).exp()
        cold = torch.full_like(ratio, self.negative).masked_fill(rollouts.advantage > 0, self.positive)
        return -soft_gate(ratio, cold) * rollouts.advantage


@dataclass(frozen=True)
class TrustRegion(_Ratio):
    """No gradient for a token that has left the trust region and would go further (DPPO, arXiv 2602.04879).

    The region is a bound on a divergence of the sampled token's two-outcome distributions (the paper's "binary"
    form), not on the ratio: rare tokens may move far in ratio and hardly in probability. The mask is that of the
    authors' code in verl (equal gradients, tests/parity); a stopped token's loss is 0 here and constant there.

    Attributes:
        divergence: `binary_tv` or `binary_kl`.
        limit: the bound.
    """

    divergence: Callable[[Tensor, Tensor], Tensor] = binary_tv
    limit: float = 0.15

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        log = self._log(rollouts, TokenRatio())
        logp, old = rollouts.logp.detach().where(rollouts.mask, -1.0), rollouts.old_logp.where(rollouts.mask, -1.0)
        outside = (self.divergence(logp, old) > self.limit) & (log.detach() * rollouts.advantage > 0)
        return -(log.exp() * rollouts.advantage).where(~outside, 0.0)


@dataclass(frozen=True)
class TOPR(Part):
    """Tapered off-policy REINFORCE (arXiv 2503.14286, eq. 6): the ratio, cut at 1, weighs only what went wrong.

    Positive trajectories are learnt from at full weight, however unlikely now; negative ones fade with the
    (whole-sequence) probability that the policy still gives them.
    """

    reads = ("logp", "old_logp", "advantage", "mask")
    vanishes_with_advantage = True

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        gap = log_ratio(rollouts.logp, rollouts.old_logp, rollouts.mask).sum(1, keepdim=True).detach()
        weight = torch.where(rollouts.advantage < 0, gap.clamp(max=0).exp(), 1.0)
        return -weight * rollouts.advantage * rollouts.logp.where(rollouts.mask, 0.0)


@dataclass(frozen=True)
class AdvantageWeighted(Part):
    """`-min(e^(A / beta), cap) log pi` (AWR, arXiv 1910.00177, eq. 9): weighted cloning, no ratio."""

    beta: float = 1.0
    cap: float = 20.0
    reads = ("logp", "advantage", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        weight = (rollouts.advantage.detach() / self.beta).clamp(max=20).exp().clamp(max=self.cap)
        return -weight * rollouts.logp.where(rollouts.mask, 0.0)


@dataclass(frozen=True)
class EngineCorrected(Part):
    """Any surrogate, corrected for a sampling engine whose numerics are not the trainer's.

    The factor is `exp(old_logp - rollout_logp)`, of the token or of the sequence. Truncated (TIS) it is cut at `cap`;
    masked (MIS, IcePop) steps with a factor outside [floor, cap] are dropped. Detached.

    Attributes:
        base: the surrogate to correct.
        sequence: one factor a trajectory, instead of one a token.
        masked: drop instead of truncate.
    """

    base: Part = Clip()
    cap: float = 2.0
    floor: float = 0.0
    sequence: bool = False
    masked: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.base.reads, "old_logp", "rollout_logp", "mask")))

    @property
    def vanishes_with_advantage(self) -> bool:
        return getattr(self.base, "vanishes_with_advantage", False)

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        gap = log_ratio(rollouts.old_logp, rollouts.rollout_logp, rollouts.mask)
        if self.sequence:
            gap = gap.sum(1, keepdim=True).clamp(-20, 20).expand_as(gap)
        factor = gap.exp().detach()
        if self.masked:
            factor = factor * ((factor >= self.floor) & (factor <= self.cap))
        return self.base(rollouts) * factor.clamp(max=self.cap)


def _share(flag: Bool[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> float:
    return float((flag & mask).sum() / mask.sum().clamp_min(1))
