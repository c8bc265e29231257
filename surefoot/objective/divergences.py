"""Divergences between policies, from one sampled token or from whole distributions.

Estimates of KL(pi || ref) from tokens sampled by pi, with d = log ref - log pi (Schulman, "Approximating KL
divergence", 2020). What each gives when it is *differentiated as a loss* is another matter than its value:

    k1 = -d               value unbiased; expected gradient zero (the score function's own mean)
    k2 = d^2 / 2          value biased; expected gradient that of the reverse KL(pi || ref)
    k3 = e^d - 1 - d      value unbiased, never negative; expected gradient that of the forward KL(ref || pi)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.objective.groups import working
from surefoot.objective.ratios import LIMIT
from surefoot.parts import Part
from surefoot.rollouts import Rollouts

Estimator = Callable[[Tensor, Tensor], Tensor]


def k1(logp: Float[Tensor, "*s"], ref: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """`log pi - log ref`."""
    return logp - ref


def k2(logp: Float[Tensor, "*s"], ref: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """`(log pi - log ref)^2 / 2`."""
    return 0.5 * (logp - ref).square()


def absolute(logp: Float[Tensor, "*s"], ref: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """`|log pi - log ref|`: a price on any change, not an estimate of a KL (verl's `abs`)."""
    return (logp - ref).abs()


def k3(logp: Float[Tensor, "*s"], ref: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """`e^d - 1 - d` with d = log ref - log pi, held within +-20 in the exponent (GRPO, arXiv 2402.03300, eq. 4).

    >>> k3(torch.tensor(-1.0), torch.tensor(-2.0))
    tensor(0.3679)
    """
    gap = (ref - logp).clamp(-LIMIT, LIMIT)
    return gap.expm1() - gap


@dataclass(frozen=True)
class KL(Part):
    """`coef * estimator(log pi, log ref)` on every step; a coefficient of 0 reads (and costs) nothing."""

    estimator: Estimator = k3
    coef: float = 0.04
    reference: str = "ref_logp"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("logp", self.reference, "mask") if self.coef else ()

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        if not self.coef:
            return torch.zeros_like(rollouts.mask, dtype=torch.float32)
        logp = rollouts.logp.where(rollouts.mask, 0.0)
        ref = rollouts[self.reference].where(rollouts.mask, 0.0)
        return self.coef * self.estimator(logp, ref)


# --- over the whole vocabulary ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Generator:
    """An f-divergence `D_f(p || q) = sum q f(p / q)` by its convex f with f(1) = 0, as a function of log(p/q).

    Attributes:
        name: for showing.
        f: `u -> f(e^u)`, so that extreme ratios stay in log space until the end.
        at_zero: `f(0)`, the price of no mass where q has some; `INF` where it is not finite.
        slope_at_infinity: `lim f(t) / t`, the price of mass where q has none.
    """

    name: str
    f: Callable[[Tensor], Tensor]
    at_zero: float
    slope_at_infinity: float


INF = float("inf")
REVERSE_KL = Generator("KL(p||q)", lambda u: u.exp() * u, 0.0, INF)
FORWARD_KL = Generator("KL(q||p)", lambda u: -u, INF, 0.0)
JEFFREYS = Generator("KL(p||q) + KL(q||p)", lambda u: u.expm1() * u, INF, INF)
CHI_SQUARED = Generator("chi^2(p||q)", lambda u: u.expm1().square(), 1.0, INF)
TOTAL_VARIATION = Generator("TV(p, q)", lambda u: 0.5 * u.expm1().abs(), 0.5, 0.5)
SQUARED_HELLINGER = Generator("H^2(p, q)", lambda u: 0.5 * (0.5 * u).expm1().square(), 0.5, 0.5)


def skewed_js(weight: float = 0.5) -> Generator:
    """Generalised Jensen-Shannon: `w KL(p||m) + (1 - w) KL(q||m)`, m = w p + (1 - w) q; bounded by log 2 at w = 1/2.

    (Lin 1991; in distillation: GKD, arXiv 2306.13649, eq. 1.)
    """

    def f(u: Tensor) -> Tensor:
        mixture = torch.logaddexp(u + math.log(weight), torch.full_like(u, math.log1p(-weight)))
        return weight * u.exp() * (u - mixture) - (1 - weight) * mixture

    return Generator(f"JS_{weight}(p, q)", f, -(1 - weight) * math.log1p(-weight), -weight * math.log(weight))


def alpha_divergence(alpha: float) -> Generator:
    """Amari's alpha divergence, `(t^a - a t - (1 - a)) / (a (a - 1))`; its limits at 1 and 0 are the two KLs."""
    if alpha == 1:
        return REVERSE_KL
    if alpha == 0:
        return FORWARD_KL
    scale = alpha * (alpha - 1)
    return Generator(
        f"alpha_{alpha}(p||q)",
        lambda u: ((alpha * u).exp() - alpha * u.exp() - (1 - alpha)) / scale,
        1 / alpha if alpha > 0 else INF,
        INF if alpha > 1 else 1 / (1 - alpha),
    )


def f_divergence(logp: Float[Tensor, "*s v"], logq: Float[Tensor, "*s v"], generator: Generator) -> Float[Tensor, "*s"]:
    """`sum_v q f(p / q)` of two log-distributions; 0 where both are 0, infinite where f prices missing mass so.

    >>> p, q = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    >>> f_divergence(p, q, REVERSE_KL), f_divergence(p, q, TOTAL_VARIATION), f_divergence(p, q, CHI_SQUARED)
    (tensor(0.3681), tensor(0.4000), tensor(0.6400))
    """
    inside = logq > -torch.inf
    p_zero = logp == -torch.inf
    u = (logp - logq).where(inside & ~p_zero, 0.0)
    value = logq.where(inside, 0.0).exp() * generator.f(u)
    missed = logq.exp().where(p_zero & inside, 0.0).sum(-1)
    outside = logp.exp().where(~inside, 0.0).sum(-1)
    return (
        value.where(inside & ~p_zero, 0.0).sum(-1)
        + (missed * generator.at_zero).where(missed > 0, 0.0)
        + (outside * generator.slope_at_infinity).where(outside > 0, 0.0)
    )


def renyi(logp: Float[Tensor, "*s v"], logq: Float[Tensor, "*s v"], alpha: float) -> Float[Tensor, "*s"]:
    """Renyi divergence of order alpha > 0, alpha != 1: `log sum p^a q^(1-a) / (a - 1)`."""
    both = (logp > -torch.inf) & (logq > -torch.inf)
    terms = (alpha * logp + (1 - alpha) * logq).where(both, -torch.inf)
    if alpha > 1:
        terms = terms.where(~((logp > -torch.inf) & (logq == -torch.inf)), torch.inf)
    return terms.logsumexp(-1) / (alpha - 1)


def with_tail(logits_top: Float[Tensor, "*s k"]) -> Float[Tensor, "*s m"]:
    """Log-probabilities of the k kept candidates and, last, of all the others together (m = k + 1).

    A divergence of two such coarse distributions is a lower bound of the full one (data processing).
    """
    kept = logits_top.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-7)
    return torch.cat([logits_top, torch.log1p(-kept)], -1)


def sequence_divergence(per_token: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n"]:
    """Sum over the steps of a trajectory: for KL in expectation over p's own trajectories, the divergence of whole
    sequences (chain rule). For other divergences no such rule holds and the sum is a surrogate."""
    return per_token.where(mask, 0.0).sum(1)


def tempered(logp: Float[Tensor, "*s v"], temperature: float) -> Float[Tensor, "*s v"]:
    """Log-probabilities of `softmax(logp / temperature)`; the constant between logits and log-probabilities cancels."""
    return (working(logp) / temperature).log_softmax(-1)


def top_k_divergence(
    logp: Float[Tensor, "*s v"],
    top: Float[Tensor, "*s k"],
    kept: Int[Tensor, "*s k"],
    generator: Generator = REVERSE_KL,
) -> Float[Tensor, "*s"]:
    """Divergence from a distribution of which only k candidates are known, the others together as one.

    Never above the full divergence, and equal to it if the tail is one candidate or nothing (data processing). Leaving
    the tail out instead, or normalising the k anew, lets the policy spread mass over the tail for free.

    Args:
        logp: the policy's log-probabilities of all candidates.
        top: the other's log-probabilities of the kept ones (not normalised among them).
        kept: their ids.

    >>> student, teacher = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.6, 0.3]).log()
    >>> top_k_divergence(student, teacher, torch.tensor([0, 1]), FORWARD_KL)
    tensor(0.0401)
    """
    return f_divergence(with_tail(working(logp).gather(-1, kept)), with_tail(working(top)), generator)


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

    generator: Generator = REVERSE_KL
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
