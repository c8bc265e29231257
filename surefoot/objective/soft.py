"""Soft steps: the step is a mixture of candidates, and what is reinforced is the noise that made it.

A soft thought feeds back `sum_i y_i E[i]`, a mixture of the embeddings of a few candidates ("slots"). With
`g_i = log p_i + noise` and `y = softmax(g / tau)`, the perturbed `g` is the action: `y` forgets a constant, `g` does
not. As tau -> 0 the mixture is its largest slot, which is a draw from p where the noise is Gumbel's.

Slots [... k]; a slot that is not there has `there` false, and whatever stands in it does not count.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Reduction = Literal["sum", "mean"]
RELEASED = (-1.5, 3.0)  # bounds of SofT-GRPO's released code on the noise


def renormalized(logits: Float[Tensor, "*n k"], there: Bool[Tensor, "*n k"]) -> Float[Tensor, "*n k"]:
    """`log(p_i / sum_j p_j)` over the slots that are there; 0 elsewhere.

    >>> renormalized(torch.tensor([0.0, 0.0, 5.0]), torch.tensor([True, True, False]))
    tensor([-0.6931, -0.6931,  0.0000])
    """
    return logits.where(there, -torch.inf).log_softmax(-1).where(there, 0.0)


def gumbel_logp(
    logp: Float[Tensor, "*n k"],
    perturbed: Float[Tensor, "*n k"],
    there: Bool[Tensor, "*n k"],
    reduction: Reduction = "sum",
    bounds: tuple[float, float] | None = None,
    floor: float | None = None,
) -> Float[Tensor, "*n"]:
    """Log-density of `perturbed = logp + Gumbel noise` (SofT-GRPO, arXiv 2511.06411): `sum_i -u_i - exp(-u_i)`.

    u = perturbed - logp. Its gradient in `logp` is `1 - exp(-u)`: mean 0 and variance 1 a slot, on policy.

    Args:
        reduction: `sum` is the joint density; `mean`, over the slots that count, is the released code's, the power
            1/k of it, whose ratios do not average to 1.
        bounds: u is held within them, as in the released code (`RELEASED`), which biases the gradient; None does not.
        floor: slots with `logp` at or below it do not count (the released code: -3); None counts all.

    >>> g, p = torch.tensor([0.2, -0.5, -2.0]), torch.tensor([0.6, 0.3, 0.1])
    >>> gumbel_logp(p.log(), g, torch.ones(3, dtype=torch.bool))
    tensor(-3.4421)
    """
    if floor is not None:
        there = there & (logp.detach() > floor)
    noise = (perturbed.detach() - logp).where(there, 0.0)
    if bounds is not None:
        noise = noise.clamp(*bounds)
    total = (-noise - (-noise).exp()).where(there, 0.0).sum(-1)
    return total if reduction == "sum" else total / there.sum(-1).clamp_min(1)


def gumbel(uniform: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Standard Gumbel noise at these quantiles, in [0, 1).

    >>> gumbel(torch.tensor([0.5]))
    tensor([0.3665], dtype=torch.float64)
    """
    return -(-uniform.double().clamp(1e-12, 1 - 1e-12).log()).log()


def mixture(perturbed: Float[Tensor, "*n k"], there: Bool[Tensor, "*n k"], tau: float) -> Float[Tensor, "*n k"]:
    """The shares `softmax(perturbed / tau)` of the slots that are there; 0 elsewhere.

    >>> mixture(torch.tensor([0.0, 0.0, 9.0]), torch.tensor([True, True, False]), 0.1)
    tensor([0.5000, 0.5000, 0.0000])
    """
    return (perturbed / tau).where(there, -torch.inf).softmax(-1).nan_to_num(0.0)
