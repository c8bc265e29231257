"""Divergences between policies, from one sampled token or from whole distributions.

Estimates of KL(pi || ref) from tokens sampled by pi, with d = log ref - log pi (Schulman, "Approximating KL
divergence", 2020). What each gives when it is *differentiated as a loss* is another matter than its value:

    k1 = -d               value unbiased; expected gradient zero (the score function's own mean)
    k2 = d^2 / 2          value biased; expected gradient that of the reverse KL(pi || ref)
    k3 = e^d - 1 - d      value unbiased, never negative; expected gradient that of the forward KL(ref || pi)

Three ways to have both right: `Sampled(REVERSE_KL)`, which does it for every divergence here;
`StraightThrough(k3, k2)`; or `KL(k3, ratio=TokenRatio())`, also for tokens that an older policy sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.objective.groups import working
from surefoot.objective.ratios import LIMIT, Ratio
from surefoot.parts import Part
from surefoot.rollouts import Rollouts

Estimator = Callable[[Tensor, Tensor], Tensor]

ROUNDING = 1e-5  # nats: two passes over the same weights and tokens may differ by it


def k1(logp: Float[Tensor, "*s"], ref: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """`log pi - log ref`.

    >>> k1(torch.tensor(-1.0), torch.tensor(-2.0))
    tensor(1.)
    """
    return logp - ref


def k2(logp: Float[Tensor, "*s"], ref: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """`(log pi - log ref)^2 / 2`.

    >>> k2(torch.tensor(-1.0), torch.tensor(-3.0))
    tensor(2.)
    """
    return 0.5 * (logp - ref).square()


def absolute(logp: Float[Tensor, "*s"], ref: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """`|log pi - log ref|`: a price on any change, not an estimate of a KL (verl's `abs`).

    A gap within `ROUNDING` counts as none, and has no gradient: of a policy that has not moved it is float32's noise,
    whose sign is all that the gradient would be.

    >>> absolute(torch.tensor(-1.0), torch.tensor(-3.0))
    tensor(2.)
    """
    gap = (logp - ref).abs()
    return gap.where(gap > ROUNDING, 0.0)


def k3(logp: Float[Tensor, "*s"], ref: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """`e^d - 1 - d` with d = log ref - log pi, held within +-20 in the exponent (GRPO, arXiv 2402.03300, eq. 4).

    >>> k3(torch.tensor(-1.0), torch.tensor(-2.0))
    tensor(0.3679)
    """
    gap = (ref - logp).clamp(-LIMIT, LIMIT)
    return gap.expm1() - gap


@dataclass(frozen=True)
class StraightThrough(Part):
    """An estimator with the value of one and the gradient of another (verl's `k3+`)."""

    value: Estimator = k3
    gradient: Estimator = k2

    def __call__(self, logp: Float[Tensor, "*s"], ref: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        slope = self.gradient(logp, ref)
        return self.value(logp, ref).detach() + (slope - slope.detach())


@dataclass(frozen=True)
class KL(Part):
    """`coef * estimator(log pi, log ref)` on every step; a coefficient of 0 reads (and costs) nothing.

    Attributes:
        estimator: `k1`, `k2`, `k3`, `absolute`, or `Sampled` of any divergence.
        ratio: weighs the estimate by the ratio to the policy that sampled, with gradient: where its value is unbiased
            its gradient then is too, and off-policy (DeepSeek-V3.2, arXiv 2512.02556); none for no weight.
    """

    estimator: Estimator = k3
    coef: float = 0.04
    reference: str = "ref_logp"
    ratio: Ratio | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        if not self.coef:
            return ()
        return ("logp", self.reference, "mask", *(("old_logp",) if self.ratio else ()))

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        if not self.coef:
            return torch.zeros_like(rollouts.mask, dtype=torch.float32)
        logp, ref = (working(rollouts[c]).where(rollouts.mask, 0.0) for c in ("logp", self.reference))
        value = self.coef * self.estimator(logp, ref)
        return value * self.ratio.of(rollouts) if self.ratio else value


# --- over the whole vocabulary ------------------------------------------------------------------------------------


class FDivergence(Protocol):
    """An f-divergence `D_f(p || q) = sum q f(p / q)` by its convex f with f(1) = 0, as a function of log(p/q).

    Attributes:
        f: `u -> f(e^u)`, taken where p is below q.
        over: `u -> f(e^u) / e^u`, taken where p is above: `q f(p/q) = p over(log p/q)`, and nothing overflows that the
            divergence itself does not.
        at_zero: `f(0)`, the price of no mass where q has some; `INF` where it is not finite.
        slope_at_infinity: `lim f(t) / t`, the price of mass where q has none.
    """

    @property
    def f(self) -> Callable[[Tensor], Tensor]: ...
    @property
    def over(self) -> Callable[[Tensor], Tensor]: ...
    @property
    def at_zero(self) -> float: ...
    @property
    def slope_at_infinity(self) -> float: ...


@dataclass(frozen=True)
class Generator:
    """An `FDivergence` without parameters."""

    name: str
    f: Callable[[Tensor], Tensor]
    over: Callable[[Tensor], Tensor]
    at_zero: float
    slope_at_infinity: float


INF = float("inf")
REVERSE_KL = Generator("KL(p||q)", lambda u: u.exp() * u, lambda u: u, 0.0, INF)
FORWARD_KL = Generator("KL(q||p)", lambda u: -u, lambda u: -u * (-u).exp(), INF, 0.0)
JEFFREYS = Generator("KL(p||q) + KL(q||p)", lambda u: u.expm1() * u, lambda u: -(-u).expm1() * u, INF, INF)
CHI_SQUARED = Generator("chi^2(p||q)", lambda u: u.expm1().square(), lambda u: -u.expm1() * (-u).expm1(), 1.0, INF)
TOTAL_VARIATION = Generator("TV(p, q)", lambda u: 0.5 * u.expm1().abs(), lambda u: 0.5 * (-u).expm1().abs(), 0.5, 0.5)
SQUARED_HELLINGER = Generator(
    "H^2(p, q)", lambda u: 0.5 * (0.5 * u).expm1().square(), lambda u: 0.5 * (-0.5 * u).expm1().square(), 0.5, 0.5
)


@dataclass(frozen=True)
class SkewedJS(Part):
    """Generalised Jensen-Shannon: `w KL(p||m) + (1 - w) KL(q||m)`, m = w p + (1 - w) q; at most log 2 at w = 1/2.

    (Lin 1991; in distillation: GKD, arXiv 2306.13649, eq. 1.)

    >>> p, q = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log()
    >>> f_divergence(p, q, SkewedJS(0.5)), f_divergence(p, q, SkewedJS(0.1))
    (tensor(0.6931), tensor(0.3251))
    """

    weight: float = 0.5

    def f(self, u: Tensor) -> Tensor:
        mixture = self._mixture(u)
        return self.weight * u.exp() * (u - mixture) - (1 - self.weight) * mixture

    def over(self, u: Tensor) -> Tensor:
        mixture = self._mixture(u)
        return self.weight * (u - mixture) - (1 - self.weight) * mixture * (-u).exp()

    def _mixture(self, u: Tensor) -> Tensor:
        """`log(m / q)`."""
        return torch.logaddexp(u + math.log(self.weight), torch.full_like(u, math.log1p(-self.weight)))

    @property
    def at_zero(self) -> float:
        return -(1 - self.weight) * math.log1p(-self.weight)

    @property
    def slope_at_infinity(self) -> float:
        return -self.weight * math.log(self.weight)


@dataclass(frozen=True)
class Alpha(Part):
    """Amari's alpha divergence, `(t^a - a t - (1 - a)) / (a (a - 1))`; at 1 and 0 its limits, the two KLs.

    >>> p, q = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    >>> f_divergence(p, q, Alpha(2.0)), 0.5 * f_divergence(p, q, CHI_SQUARED)
    (tensor(0.3200), tensor(0.3200))
    """

    alpha: float = 0.5

    def f(self, u: Tensor) -> Tensor:
        if self.alpha == 1:
            return u.exp() * u - u.expm1()
        if self.alpha == 0:
            return u.expm1() - u
        return ((self.alpha * u).expm1() - self.alpha * u.expm1()) / (self.alpha * (self.alpha - 1))

    def over(self, u: Tensor) -> Tensor:
        if self.alpha == 1:
            return u + (-u).expm1()
        if self.alpha == 0:
            return -(-u).expm1() - u * (-u).exp()
        power = ((self.alpha - 1) * u).expm1() - (-u).expm1()
        return (power + self.alpha * (-u).expm1()) / (self.alpha * (self.alpha - 1))

    @property
    def at_zero(self) -> float:
        return 1 / self.alpha if self.alpha > 0 else INF

    @property
    def slope_at_infinity(self) -> float:
        return 1 / (1 - self.alpha) if self.alpha < 1 else INF


def f_divergence(
    logp: Float[Tensor, "*s v"], logq: Float[Tensor, "*s v"], generator: FDivergence
) -> Float[Tensor, "*s"]:
    """`sum_v q f(p / q)` of two log-distributions; 0 where both are 0, infinite where f prices missing mass so.

    >>> p, q = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    >>> f_divergence(p, q, REVERSE_KL), f_divergence(p, q, TOTAL_VARIATION), f_divergence(p, q, CHI_SQUARED)
    (tensor(0.3681), tensor(0.4000), tensor(0.6400))
    """
    inside = logq > -torch.inf
    p_zero = logp == -torch.inf
    u = (logp - logq).where(inside & ~p_zero, 0.0)
    p, q = logp.where(~p_zero, 0.0).exp(), logq.where(inside, 0.0).exp()
    value = torch.where(u > 0, p * generator.over(u.clamp_min(0)), q * generator.f(u.clamp_max(0)))
    missed = logq.exp().where(p_zero & inside, 0.0).sum(-1)
    outside = logp.exp().where(~inside, 0.0).sum(-1)
    return (
        value.where(inside & ~p_zero, 0.0).sum(-1)
        + _price(missed, generator.at_zero)
        + _price(outside, generator.slope_at_infinity)
    )


def _price(mass: Float[Tensor, "*s"], each: float) -> Float[Tensor, "*s"]:
    """`mass * each`; an infinite price has no gradient, and costs nothing where there is no mass."""
    return mass * each if math.isfinite(each) else torch.zeros_like(mass).masked_fill(mass > 0, INF)


@dataclass(frozen=True)
class Sampled(Part):
    """An estimator of any f-divergence from steps that p sampled: `(q/p) f(p/q)`, unbiased as value and as gradient.

    The gradient is set to `(f'(p/q) - f'(1)) grad log p`, the unbiased one; the value's own is not (see the top). Of
    log-probabilities summed over trajectories it estimates the divergence of whole sequences. Log-ratios are held
    within +-20; where f grows fast at either end the variance is large (forward KL, chi-squared).

    >>> p, q = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    >>> (p.exp() * Sampled(CHI_SQUARED)(p, q)).sum()
    tensor(0.6400)
    """

    of: FDivergence = REVERSE_KL

    def __call__(self, logp: Float[Tensor, "*s"], ref: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        u = (logp - ref).detach().clamp(-LIMIT, LIMIT)
        slope = self._slope(u) - self._slope(torch.zeros_like(u))
        return self.of.over(u) + slope * (logp - logp.detach())

    def _slope(self, u: Tensor) -> Tensor:
        """f' at e^u."""
        with torch.enable_grad():
            leaf = u.detach().requires_grad_()
            return torch.autograd.grad(self.of.f(leaf).sum(), leaf)[0] * (-u).exp()


def renyi(logp: Float[Tensor, "*s v"], logq: Float[Tensor, "*s v"], alpha: float) -> Float[Tensor, "*s"]:
    """Renyi divergence of order alpha > 0, alpha != 1: `log sum p^a q^(1-a) / (a - 1)`.

    >>> renyi(torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log(), 2.0)  # log(1 + chi^2)
    tensor(0.4947)
    """
    both = (logp > -torch.inf) & (logq > -torch.inf)
    terms = (alpha * logp + (1 - alpha) * logq).where(both, -torch.inf)
    if alpha > 1:
        terms = terms.where(~((logp > -torch.inf) & (logq == -torch.inf)), torch.inf)
    return terms.logsumexp(-1) / (alpha - 1)


def with_tail(logits_top: Float[Tensor, "*s k"]) -> Float[Tensor, "*s m"]:
    """Log-probabilities of the k kept candidates and, last, of all the others together (m = k + 1).

    The others have at least 1e-7.

    >>> with_tail(torch.tensor([0.5, 0.25]).log()).exp()
    tensor([0.5000, 0.2500, 0.2500])
    """
    kept = logits_top.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-7)
    return torch.cat([logits_top, torch.log1p(-kept)], -1)


def sequence_divergence(per_token: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n"]:
    """Sum over the steps of a trajectory: for KL in expectation over p's own trajectories, the divergence of whole
    sequences (chain rule). For other divergences no such rule holds and the sum is a surrogate.

    >>> sequence_divergence(torch.tensor([[0.5, 0.25, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([0.7500])
    """
    return per_token.where(mask, 0.0).sum(1)


def tempered(logp: Float[Tensor, "*s v"], temperature: float) -> Float[Tensor, "*s v"]:
    """Log-probabilities of `softmax(logp / temperature)`; the constant between logits and log-probabilities cancels.

    >>> tempered(torch.tensor([0.8, 0.2]).log(), 2.0).exp()
    tensor([0.6667, 0.3333])
    """
    return (working(logp) / temperature).log_softmax(-1)


def top_k_divergence(
    logp: Float[Tensor, "*s v"],
    top: Float[Tensor, "*s k"],
    kept: Int[Tensor, "*s k"],
    generator: FDivergence = REVERSE_KL,
) -> Float[Tensor, "*s"]:
    """Divergence from a distribution of which only k candidates are known, the others together as one.

    Never above the full divergence, and equal to it if the tail is one candidate or nothing (data processing). Leaving
    the tail out instead, or normalising the k anew, lets the policy spread mass over the tail for free. The policy's
    own tail is summed, not what is left of 1, so that it has a gradient however small it is.

    Args:
        logp: the policy's log-probabilities of all candidates.
        top: the other's log-probabilities of the kept ones (not normalised among them).
        kept: their ids.

    >>> student, teacher = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.6, 0.3]).log()
    >>> top_k_divergence(student, teacher, torch.tensor([0, 1]), FORWARD_KL)
    tensor(0.0401)
    """
    logp, top = working(logp), working(top)
    mine = logp.gather(-1, kept)
    if kept.shape[-1] == logp.shape[-1]:
        return f_divergence(mine, top, generator)
    tail = logp.scatter(-1, kept, -torch.inf).logsumexp(-1, keepdim=True)
    return f_divergence(torch.cat([mine, tail], -1), with_tail(top), generator)


@dataclass(frozen=True)
class FullDivergence(Part):
    """`coef * D_f(pi || other)` at every step, over the whole vocabulary or the other's top k and their tail.

    Exact per state, no estimator.

    Attributes:
        generator: any of this module (p is the policy).
        reference: the column of the other's log-probabilities.
        top: k; 0 for the whole vocabulary.
        temperature: both distributions are tempered by it first (Hinton et al., arXiv 1503.02531); their gradients
            shrink as its inverse square, which `coef` may undo.
    """

    generator: FDivergence = REVERSE_KL
    coef: float = 0.04
    reference: str = "ref_logits"
    top: int = 0
    temperature: float = 1.0

    @property
    def reads(self) -> tuple[str, ...]:
        return ("logits", self.reference, "mask") if self.coef else ()

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        mask = rollouts.mask
        if not self.coef:
            return torch.zeros_like(mask, dtype=torch.float32)
        mine, other = (
            tempered(x.where(mask[..., None], 0.0), self.temperature)
            for x in (rollouts.logits, rollouts[self.reference].detach())
        )
        if self.top:
            best = other.topk(min(self.top, other.shape[-1]), -1)
            value = top_k_divergence(mine, best.values, best.indices, self.generator)
        else:
            value = f_divergence(mine, other, self.generator)
        return self.coef * value.where(mask, 0.0)
