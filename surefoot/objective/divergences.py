"""Divergences between policies, from one sampled token or from whole distributions.

Estimates of KL(pi || ref) from tokens sampled by pi, with d = log ref - log pi (Schulman, "Approximating KL
divergence", 2020). What each gives when it is *differentiated as a loss* is another matter than its value:

    k1 = -d               value unbiased; expected gradient zero (the score function's own mean)
    k2 = d^2 / 2          value biased; expected gradient that of the reverse KL(pi || ref)
    k3 = e^d - 1 - d      value unbiased, never negative; expected gradient that of the forward KL(ref || pi)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
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
