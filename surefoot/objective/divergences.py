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
from jaxtyping import Bool, Float
from torch import Tensor

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
        slope_at_infinity: `lim f(t) / t`, the price of mass where q has none; `inf` where it is not finite.
    """

    name: str
    f: Callable[[Tensor], Tensor]
    slope_at_infinity: float = float("inf")


REVERSE_KL = Generator("KL(p||q)", lambda u: u.exp() * u)
FORWARD_KL = Generator("KL(q||p)", lambda u: -u, 0.0)
JEFFREYS = Generator("KL(p||q) + KL(q||p)", lambda u: u.expm1() * u)
CHI_SQUARED = Generator("chi^2(p||q)", lambda u: u.expm1().square())
TOTAL_VARIATION = Generator("TV(p, q)", lambda u: 0.5 * u.expm1().abs(), 0.5)
SQUARED_HELLINGER = Generator("H^2(p, q)", lambda u: 0.5 * (0.5 * u).expm1().square(), 0.5)


def skewed_js(weight: float = 0.5) -> Generator:
    """Generalised Jensen-Shannon: `w KL(p||m) + (1 - w) KL(q||m)`, m = w p + (1 - w) q; bounded by log 2 at w = 1/2.

    (Lin 1991; in distillation: GKD, arXiv 2306.13649, eq. 1.)
    """

    def f(u: Tensor) -> Tensor:
        mixture = torch.logaddexp(u + math.log(weight), torch.full_like(u, math.log1p(-weight)))
        return weight * u.exp() * (u - mixture) - (1 - weight) * mixture

    return Generator(f"JS_{weight}(p, q)", f, -weight * math.log(weight))


def alpha_divergence(alpha: float) -> Generator:
    """Amari's alpha divergence, `(t^a - a t - (1 - a)) / (a (a - 1))`; its limits at 1 and 0 are the two KLs."""
    if alpha == 1:
        return REVERSE_KL
    if alpha == 0:
        return FORWARD_KL
    scale = alpha * (alpha - 1)
    end = float("inf") if alpha > 1 else 1 / (1 - alpha)
    return Generator(f"alpha_{alpha}(p||q)", lambda u: ((alpha * u).exp() - alpha * u.exp() - (1 - alpha)) / scale, end)


def f_divergence(logp: Float[Tensor, "*s v"], logq: Float[Tensor, "*s v"], generator: Generator) -> Float[Tensor, "*s"]:
    """`sum_v q f(p / q)` of two log-distributions; 0 where both are 0, infinite where f prices mass outside q so.

    >>> p, q = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    >>> f_divergence(p, q, REVERSE_KL), f_divergence(p, q, TOTAL_VARIATION), f_divergence(p, q, CHI_SQUARED)
    (tensor(0.3681), tensor(0.4000), tensor(0.6400))
    """
    inside = logq > -torch.inf
    p_zero = logp == -torch.inf
    u = (logp - logq).where(inside & ~p_zero, 0.0)
    value = logq.where(inside, 0.0).exp() * generator.f(u)
    at_zero = generator.f(torch.full((), -80.0, dtype=logp.dtype)) if bool((p_zero & inside).any()) else 0.0
    value = value.where(~p_zero, logq.where(inside, 0.0).exp() * at_zero).where(inside, 0.0)
    outside = logp.exp().where(~inside, 0.0).sum(-1)
    price = torch.as_tensor(generator.slope_at_infinity, dtype=logp.dtype)
    return value.sum(-1) + (outside * price).where(outside > 0, 0.0)


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


@dataclass(frozen=True)
class FullDivergence(Part):
    """`coef * D_f(pi || ref)` over the whole vocabulary at every step: exact per state, no estimator."""

    generator: Generator = REVERSE_KL
    coef: float = 0.04
    reference: str = "ref_logits"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("logits", self.reference, "mask") if self.coef else ()

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        if not self.coef:
            return torch.zeros_like(rollouts.mask, dtype=torch.float32)
        kept = rollouts.mask[..., None]
        value = f_divergence(
            rollouts.logits.where(kept, 0.0), rollouts[self.reference].where(kept, 0.0), self.generator
        )
        return self.coef * value.where(rollouts.mask, 0.0)
