"""Soft steps: the step is a mixture of candidates, and what is reinforced is the noise that made it.

A soft thought feeds back a mixture of the embeddings E[i] of a few candidates ("slots"), of renormalised probabilities
p. A noise law says what is random in it, hence what the action is and what density it has:

    GumbelNoise     g_i = log p_i + eps_i,                      fed back: sum_i softmax(g / tau)_i E[i]     action g
    GaussianNoise   e = sum_i softmax(log p / tau)_i E[i] + sigma eps,     fed back: e                      action e

Of Gumbel noise the perturbed `g` is the action, not the shares: `softmax(g / tau)` forgets a constant, `g` does not. As
tau -> 0 the mixture is its largest slot, which is a draw from p.

Slots [... k]; a slot that is not there has `there` false, and whatever stands in it does not count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.errors import InputError

Reduction = Literal["sum", "mean"]
RELEASED = (-1.5, 3.0)  # bounds of SofT-GRPO's released code on the noise


def _kept(values: Tensor, there: Tensor) -> Tensor:
    """-inf where a slot is not there, but 0 where none is: a softmax, and its gradient, stay finite."""
    return values.where(there, -torch.inf).where(there.any(-1, keepdim=True), 0.0)


def renormalized(logits: Float[Tensor, "*n k"], there: Bool[Tensor, "*n k"]) -> Float[Tensor, "*n k"]:
    """`log(p_i / sum_j p_j)` over the slots that are there; 0 elsewhere.

    >>> renormalized(torch.tensor([0.0, 0.0, 5.0]), torch.tensor([True, True, False]))
    tensor([-0.6931, -0.6931,  0.0000])
    """
    return _kept(logits, there).log_softmax(-1).where(there, 0.0)


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
    return _kept(perturbed / tau, there).softmax(-1).where(there, 0.0)


def mixed(shares: Float[Tensor, "*n k"], vectors: Float[Tensor, "*n k d"]) -> Float[Tensor, "*n d"]:
    """`sum_i shares_i vectors_i`: the embedding that slots of these shares make.

    >>> mixed(torch.tensor([0.25, 0.75]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([0.2500, 0.7500])
    """
    return (shares[..., None] * vectors).sum(-2)


def gaussian_logp(
    mean: Float[Tensor, "*n d"], action: Float[Tensor, "*n d"], deviation: float, reduction: Reduction = "sum"
) -> Float[Tensor, "*n"]:
    """Log-density of `action` under N(mean, deviation^2 I): the sum over entries, or (`mean`) their mean.

    >>> gaussian_logp(torch.zeros(2), torch.tensor([1.0, 0.0]), 1.0)
    tensor(-2.3379)
    """
    z = (action.detach() - mean) / deviation
    each = -0.5 * z.square() - math.log(deviation) - 0.5 * math.log(2 * math.pi)
    return each.sum(-1) if reduction == "sum" else each.mean(-1)


def normal(uniform: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Standard normal noise at these quantiles, in [0, 1).

    >>> normal(torch.tensor([0.5, 0.975]))
    tensor([0.0000, 1.9600], dtype=torch.float64)
    """
    return torch.special.ndtri(uniform.double().clamp(1e-12, 1 - 1e-12))


class NoiseLaw(Protocol):
    """What is random in a soft step: a switch of one policy.

    The slots have renormalised log-probabilities `logp` [... k] and embeddings `vectors` [... k d]; an action has `a`
    entries.
    """

    name: ClassVar[str]

    def on(self, table: Float[Tensor, "v d"]) -> NoiseLaw:
        """The law for these embeddings."""
        ...

    def entries(self, k: int, width: int) -> int:
        """Entries of an action, each of which takes one uniform."""
        ...

    def draw(
        self, logp: Tensor, there: Tensor, vectors: Tensor, uniform: Float[Tensor, "*n a"], factor: float
    ) -> Tensor:
        """The action, its noise times `factor` (the density is that of 1)."""
        ...

    def logp(self, logp: Tensor, there: Tensor, vectors: Tensor, action: Float[Tensor, "*n a"]) -> Float[Tensor, "*n"]:
        """Log-density of the action, which is data, with gradient in what it depends on."""
        ...

    def fed(self, action: Float[Tensor, "*n a"], there: Tensor, vectors: Tensor) -> Float[Tensor, "*n d"]:
        """The embedding that the step feeds back."""
        ...

    def label(self, logp: Tensor, there: Tensor, action: Float[Tensor, "*n a"]) -> Int[Tensor, "*n"]:
        """The slot that names the step, and ends thinking where it is the end's."""
        ...


@dataclass(frozen=True)
class GumbelNoise:
    """Gumbel noise on the log-probabilities (SofT-GRPO, arXiv 2511.06411); the largest slot names the step.

    Attributes:
        tau: temperature of the mixture; towards 0 it is one token.
        reduction: over slots (`gumbel_logp`).
        released: with the bounds and the floor of the released code.
    """

    name: ClassVar[str] = "gumbel"
    tau: float = 0.1
    reduction: Reduction = "sum"
    released: bool = False

    def __post_init__(self):
        if not self.tau > 0 or self.reduction not in get_args(Reduction):
            raise InputError(f"noise law: {self}, expected tau > 0, reduction sum or mean")

    def on(self, table: Tensor) -> GumbelNoise:
        return self

    def entries(self, k: int, width: int) -> int:
        return k

    def draw(self, logp: Tensor, there: Tensor, vectors: Tensor, uniform: Tensor, factor: float) -> Tensor:
        return (logp + factor * gumbel(uniform).to(logp)).where(there, 0.0)

    def logp(self, logp: Tensor, there: Tensor, vectors: Tensor, action: Tensor) -> Tensor:
        bounds, floor = (RELEASED, -3.0) if self.released else (None, None)
        return gumbel_logp(logp, action, there, self.reduction, bounds, floor)

    def fed(self, action: Tensor, there: Tensor, vectors: Tensor) -> Tensor:
        return mixed(mixture(action, there, self.tau), vectors)

    def label(self, logp: Tensor, there: Tensor, action: Tensor) -> Tensor:
        return action.where(there, -torch.inf).argmax(-1)


@dataclass(frozen=True)
class GaussianNoise:
    """Gaussian noise on the mixed embedding (Soft Tokens, Hard Truths, arXiv 2509.19170); the likeliest slot names it.

    The score in the logits z is `y_i (E[i] - m) . eps / (tau sigma)`, y the shares and m their mixture: mean 0, and a
    gradient reaches the embeddings as well.

    OUR READING: the mixture is of the kept slots, not of the whole vocabulary; sigma is a third of the table's scale,
    since embeddings have no scale of their own. (The released code of SofT-GRPO has another Gaussian arm, deviation .05
    on the shares themselves, which leave the simplex.) What ends thinking is no noise here: when the end's token is the
    likeliest, the thought is over, and the gradient does not see that choice.

    Attributes:
        tau: temperature of the mixture.
        sigma: deviation of the noise, in units.
        unit: None takes the root mean square of the entries of the table that the policy starts with.
        reduction: over entries: `sum` is the density.
    """

    name: ClassVar[str] = "gaussian"
    tau: float = 0.5
    sigma: float = 0.33
    unit: float | None = None
    reduction: Reduction = "sum"

    def __post_init__(self):
        if not (self.tau > 0 and self.deviation > 0) or self.reduction not in get_args(Reduction):
            raise InputError(f"noise law: {self}, expected tau, sigma and unit > 0, reduction sum or mean")

    def on(self, table: Tensor) -> GaussianNoise:
        return self if self.unit is not None else replace(self, unit=float(table.detach().square().mean().sqrt()))

    @property
    def deviation(self) -> float:
        return self.sigma * (1.0 if self.unit is None else self.unit)

    def entries(self, k: int, width: int) -> int:
        return width

    def draw(self, logp: Tensor, there: Tensor, vectors: Tensor, uniform: Tensor, factor: float) -> Tensor:
        return self._mean(logp, there, vectors) + factor * self.deviation * normal(uniform).to(logp)

    def logp(self, logp: Tensor, there: Tensor, vectors: Tensor, action: Tensor) -> Tensor:
        return gaussian_logp(self._mean(logp, there, vectors), action, self.deviation, self.reduction)

    def fed(self, action: Tensor, there: Tensor, vectors: Tensor) -> Tensor:
        return action

    def label(self, logp: Tensor, there: Tensor, action: Tensor) -> Tensor:
        return logp.where(there, -torch.inf).argmax(-1)

    def _mean(self, logp: Tensor, there: Tensor, vectors: Tensor) -> Tensor:
        return mixed(mixture(logp, there, self.tau), vectors)


NOISE_LAWS: dict[str, type[GumbelNoise] | type[GaussianNoise]] = {law.name: law for law in (GumbelNoise, GaussianNoise)}
