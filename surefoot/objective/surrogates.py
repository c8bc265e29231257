"""Surrogate losses: ratio and trust region. Each returns a loss of every step, to be minimised.

The one clip is `clipped`, the one ratio is an object of `objective.ratios`. At the first update after sampling all
ratios are 1, and the gradient of every surrogate here is then the policy gradient (tests hold them to that).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from surefoot.errors import InputError
from surefoot.objective.groups import working
from surefoot.objective.preferences import LogRatio, square
from surefoot.objective.ratios import Ratio, TokenRatio, TrajectoryRatio, clipped_geometric_mean, log_ratio, mean_over
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
    """`(4 / tau) sigmoid(tau (rho - 1))` (SAPO, arXiv 2511.20347, eq. 6): slope 1 at rho = 1, fading away from it.

    >>> soft_gate(torch.tensor([1.0, 3.0]), 1.0)
    tensor([2.0000, 3.5232])
    """
    return 4 / temperature * torch.sigmoid(temperature * (ratio - 1))


def binary_tv(logp: Float[Tensor, "n t"], old: Float[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """Total variation of the two-outcome distributions (this token, any other): `|pi - mu|`, at most the full one.

    >>> binary_tv(torch.tensor(0.6).log(), torch.tensor(0.5).log())
    tensor(0.1000)
    """
    return (logp.exp() - old.exp()).abs()


def binary_kl(logp: Float[Tensor, "n t"], old: Float[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """`KL(mu || pi)` of the two-outcome distributions (this token, any other), at most the full one.

    >>> binary_kl(torch.tensor(0.6).log(), torch.tensor(0.5).log())
    tensor(0.0204)
    """
    rest_new, rest_old = _log1mexp(logp), _log1mexp(old)
    return old.exp() * (old - logp) + rest_old.exp() * (rest_old - rest_new)


def _log1mexp(x: Tensor) -> Tensor:
    """`log(1 - e^x)` for x < 0, without cancellation; x = 0 is taken as -1e-7."""
    x = x.clamp(max=-1e-7)
    return torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-x.exp()))


def gamma_kernel(log_ratio: Float[Tensor, "*s"], power: float | Tensor, rate: float | Tensor) -> Float[Tensor, "*s"]:
    """`w^k e^(l (1 - w))` of a ratio w (VESPO, arXiv 2602.10693): 1 at w = 1, 0 at both ends, largest at w = k / l.

    >>> gamma_kernel(torch.tensor([0.5, 1.0, 2.0]).log(), 2.0, 3.0)
    tensor([1.1204, 1.0000, 0.1991])
    """
    return (power * log_ratio - rate * log_ratio.expm1()).exp()


@dataclass(frozen=True)
class PolicyGradient(Part):
    """`-A log pi`: the score function, no ratio."""

    reads = ("logp", "advantage", "mask")
    vanishes_with_advantage = True

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return -rollouts.advantage * working(rollouts.logp).where(rollouts.mask, 0.0)


@dataclass(frozen=True)
class OffPolicy(PolicyGradient):
    """Base of the surrogates that look at the ratio of `logp` to `old_logp`; `-w A log pi` for a detached weight w."""

    reads = ("logp", "old_logp", "advantage", "mask")

    def weight(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        """w on every step."""
        raise NotImplementedError

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return super().__call__(rollouts) * self.weight(rollouts).detach()


@dataclass(frozen=True)
class Clip(OffPolicy):
    """PPO's clipped surrogate (`clipped`) on a ratio of any level.

    Attributes:
        low, high: the ratio is clipped to [1 - low, 1 + high]; `high` is `low` where it is none, `inf` is no clip.
        dual: dual-clip bound; none for no such bound.
        ratio: `TokenRatio()` (PPO), `SequenceRatio()` (GSPO), `TurnRatio()`, `TrajectoryRatio()`.
    """

    low: float = 0.2
    high: float | None = None
    dual: float | None = None
    ratio: Ratio = TokenRatio()

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*OffPolicy.reads, *self.ratio.reads)))

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        high = self.low if self.high is None else self.high
        return clipped(self.ratio.of(rollouts), rollouts.advantage, self.low, high, self.dual)

    def metrics(self, rollouts: Rollouts) -> dict[str, float]:
        """Share of the steps whose gradient the clip removed."""
        ratio = self.ratio.of(rollouts)
        up = (ratio > 1 + (self.low if self.high is None else self.high)) & (rollouts.advantage > 0)
        down = (ratio < 1 - self.low) & (rollouts.advantage < 0)
        return {"clipped": _share(up | down, rollouts.mask)}


@dataclass(frozen=True)
class GeometricMean(OffPolicy):
    """GMPO (arXiv 2507.20673, eq. 4): `-A` times the geometric mean of token ratios (`clipped_geometric_mean`).

    Attributes:
        width: log-ratios are clipped to +-width.
    """

    width: float = 0.4

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        gap = log_ratio(rollouts.logp, rollouts.old_logp, rollouts.mask)
        return -rollouts.advantage * clipped_geometric_mean(gap, rollouts.mask, rollouts.advantage, self.width).exp()


@dataclass(frozen=True)
class CISPO(OffPolicy):
    """`-sg(min(rho, 1 + high)) A log pi` (MiniMax-M1, arXiv 2506.13585, eq. 4-5): no token loses its gradient.

    Attributes:
        high: upper bound of the detached weight above 1; the paper tunes only this one.
        low: lower bound below 1; 1 means none.
    """

    high: float = 0.28
    low: float = 1.0

    def weight(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return TokenRatio().of(rollouts).clamp(1 - self.low, 1 + self.high)


@dataclass(frozen=True)
class SAPO(OffPolicy):
    """Soft gates instead of clips, colder for negative advantages (`soft_gate`; arXiv 2511.20347)."""

    positive: float = 1.0
    negative: float = 1.05

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        ratio = TokenRatio().of(rollouts)
        cold = torch.full_like(ratio, self.negative).masked_fill(rollouts.advantage > 0, self.positive)
        return -soft_gate(ratio, cold) * rollouts.advantage


@dataclass(frozen=True)
class VESPO(OffPolicy):
    """`-sg(phi(w)) A log pi`, w the whole trajectory's ratio, phi a `gamma_kernel` (arXiv 2602.10693; TRL's defaults).

    Attributes:
        positive, negative: power and rate of the kernel where the advantage is not negative, and where it is.
    """

    positive: tuple[float, float] = (2.0, 3.0)
    negative: tuple[float, float] = (3.0, 2.0)

    def weight(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        log = TrajectoryRatio().between(rollouts)
        up, down = (gamma_kernel(log, *kernel) for kernel in (self.positive, self.negative))
        return torch.where(rollouts.advantage < 0, down, up)


@dataclass(frozen=True)
class TrustRegion(OffPolicy):
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
        ratio = TokenRatio().of(rollouts)
        logp, old = (working(rollouts[c]).detach().where(rollouts.mask, -1.0) for c in ("logp", "old_logp"))
        outside = (self.divergence(logp, old) > self.limit) & ((ratio.detach() - 1) * rollouts.advantage > 0)
        return -(ratio * rollouts.advantage).where(~outside, 0.0)


@dataclass(frozen=True)
class TOPR(OffPolicy):
    """Tapered off-policy REINFORCE (arXiv 2503.14286, eq. 6): the ratio, cut at 1, weighs only what went wrong.

    Positive trajectories are learnt from at full weight, however unlikely now; negative ones fade with the
    (whole-sequence) probability that the policy still gives them.
    """

    def weight(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        taper = TrajectoryRatio().of(rollouts).clamp(max=1.0)
        return torch.where(rollouts.advantage < 0, taper, 1.0)


@dataclass(frozen=True)
class AdvantageWeighted(Part):
    """`-min(e^(A / beta), cap) log pi` (AWR, arXiv 1910.00177, eq. 9): weighted cloning, no ratio."""

    beta: float = 1.0
    cap: float = 20.0
    reads = ("logp", "advantage", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        weight = (working(rollouts.advantage).detach() / self.beta).clamp(max=math.log(self.cap)).exp()
        return -weight * working(rollouts.logp).where(rollouts.mask, 0.0)


@dataclass(frozen=True)
class Regression(Part):
    """Least squares of a whole trajectory's score: `coef (d / L^per - psi A)^2`, d its log-ratio, L its length.

    No ratio and no exp: where d reaches its target the gradient ends. The advantage is the mean over the trajectory's
    steps, detached (GDSD, arXiv 2605.29398). With psi = 0 it is a squared distance from the anchors.

    Attributes:
        score: `LogRatio` to the policy that the target is told from.
        psi: strength of the tilt; 0 reads no advantage.
        per: power of the length that d is divided by: 0 for sums, 1 for means.
        clamp: d is held within [log(1 - clamp), log(1 + clamp)], with no gradient outside, on either side; none for no
            such bound.
        coef: factor of the loss; with 0 nothing is read.
    """

    score: Part = LogRatio(anchors=("old_logp",))
    psi: float = 1.0
    per: float = 1.0
    clamp: float | None = None
    coef: float = 1.0

    def __post_init__(self):
        if self.clamp is not None and not 0 < self.clamp < 1:
            raise InputError(f"Regression.clamp: got {self.clamp}, expected a number between 0 and 1, or none")

    @property
    def reads(self) -> tuple[str, ...]:
        if not self.coef:
            return ("mask",)
        return tuple(dict.fromkeys((*self.score.reads, "mask", *(("advantage",) if self.psi else ()))))

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        mask = rollouts.mask
        if not self.coef:
            return torch.zeros(len(mask), device=mask.device)
        gap = self._held(self.score(rollouts))
        target = self.psi * mean_over(rollouts.advantage, mask, None)[:, 0].detach() if self.psi else 0.0
        return self.coef * square(gap / mask.sum(1).clamp_min(1) ** self.per, target)

    def _held(self, gap: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return gap if self.clamp is None else gap.clamp(math.log1p(-self.clamp), math.log1p(self.clamp))

    def metrics(self, rollouts: Rollouts) -> dict[str, float]:
        """Share of the trajectories that the clamp left without gradient."""
        if self.clamp is None or not self.coef:
            return {}
        gap = self.score(rollouts)
        return {"clamped": float((gap != self._held(gap)).float().mean())}


@dataclass(frozen=True)
class Corrected(Part):
    """Base of the parts that multiply a surrogate by a detached factor."""

    base: Part = Clip()

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.base.reads, *self.needs)))

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns that the factor reads."""
        return ()

    @property
    def vanishes_with_advantage(self) -> bool:
        return getattr(self.base, "vanishes_with_advantage", False)

    def factor(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        """Of every step, or [n 1] of every trajectory."""
        raise NotImplementedError

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return self.base(rollouts) * self.factor(rollouts).detach()


@dataclass(frozen=True)
class EngineCorrected(Corrected):
    """Any surrogate, corrected for a sampling engine whose numerics are not the trainer's.

    The factor is the ratio of `old_logp` to `rollout_logp`. Truncated (TIS) it is held within [floor, cap]; masked
    (MIS, IcePop) steps with a factor outside are dropped. (`selection.EngineMatch` only drops.)

    Attributes:
        base: the surrogate to correct.
        ratio: `TokenRatio()`, or `TrajectoryRatio()` for one factor a trajectory.
        masked: drop instead of truncate.
    """

    cap: float = 2.0
    floor: float = 0.0
    ratio: Ratio = TokenRatio()
    masked: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        return ("old_logp", "rollout_logp", "mask")

    def factor(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        factor = self.ratio.between(rollouts, "old_logp", "rollout_logp").exp()
        held = factor.clamp(self.floor, self.cap)
        return factor.where(factor == held, 0.0) if self.masked else held


@dataclass(frozen=True)
class OffPolicyMasked(Corrected):
    """Any surrogate, without the trajectories that went wrong and that the policy has moved away from
    (DeepSeek-V3.2, arXiv 2512.02556, eq. 9): a negative advantage, and a mean of `log old - log pi` above the limit."""

    limit: float = 0.5

    @property
    def needs(self) -> tuple[str, ...]:
        return ("logp", "old_logp", "advantage", "mask")

    def factor(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        away = -mean_over(log_ratio(rollouts.logp, rollouts.old_logp, rollouts.mask), rollouts.mask, None)
        return ((rollouts.advantage >= 0) | (away <= self.limit)).to(away.dtype)


def _share(flag: Bool[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> float:
    return float((flag & mask).sum() / mask.sum().clamp_min(1))
