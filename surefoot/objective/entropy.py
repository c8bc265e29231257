"""Entropies of a step's distribution, and the bonuses made of them. All in nats."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import InputError
from surefoot.objective.controllers import Steering
from surefoot.objective.groups import working
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def entropy(logp: Float[Tensor, "*s v"]) -> Float[Tensor, "*s"]:
    """Shannon entropy `-sum p log p` of log-probabilities; zero-probability entries count nothing.

    >>> entropy(torch.tensor([0.5, 0.25, 0.25]).log())
    tensor(1.0397)
    """
    return -(logp.exp() * logp.where(logp > -torch.inf, 0.0)).sum(-1)


def entropy_slope(logp: Float[Tensor, "*s v"], push: Float[Tensor, "*s v"]) -> Float[Tensor, "*s"]:
    """`-Cov_pi(log pi, push)`: how fast the entropy grows as the logits move along `push`.

    >>> entropy_slope(torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([1.0, 0.0, 0.0]))
    tensor(-0.1733)
    """
    mean = (logp.exp() * push).sum(-1, keepdim=True)
    return -(logp.exp() * logp.where(logp > -torch.inf, 0.0) * (push - mean)).sum(-1)


def nucleus_entropy(logp: Float[Tensor, "*s v"], top_p: float) -> Float[Tensor, "*s"]:
    """Entropy of the distribution renormalised on its smallest set of candidates with mass at least `top_p`.

    >>> nucleus_entropy(torch.tensor([0.4, 0.4, 0.2]).log(), 0.8)
    tensor(0.6931)
    """
    ordered = logp.sort(-1, descending=True).values
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = ordered.masked_fill(before >= top_p, -torch.inf)
    return entropy(kept.log_softmax(-1))


def tsallis_entropy(logp: Float[Tensor, "*s v"], q: float) -> Float[Tensor, "*s"]:
    """`(1 - sum p^q) / (q - 1)`; Shannon's in the limit q -> 1, which is returned there.

    >>> tsallis_entropy(torch.tensor([0.5, 0.5]).log(), 2.0)
    tensor(0.5000)
    """
    return entropy(logp) if q == 1 else (1 - (q * logp).exp().sum(-1)) / (q - 1)


def bucket_entropy(logp: Float[Tensor, "*s v"], bucket: Int[Tensor, "v"], buckets: int) -> Float[Tensor, "*s"]:
    """Entropy over buckets of candidates that mean the same (semantic entropy, arXiv 2302.09664).

    >>> bucket_entropy(torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0, 1, 1]), 2)
    tensor(0.6931)
    """
    mass = logp.new_zeros(*logp.shape[:-1], buckets).index_add(-1, bucket, logp.exp())
    return -(mass * mass.clamp_min(torch.finfo(mass.dtype).tiny).log()).sum(-1)


@dataclass(frozen=True)
class Nucleus(Part):
    """`nucleus_entropy`: uncertainty among the candidates that matter, not the mass of a long tail."""

    top_p: float = 0.95

    def __call__(self, logp: Float[Tensor, "*s v"]) -> Float[Tensor, "*s"]:
        return nucleus_entropy(logp, self.top_p)


@dataclass(frozen=True)
class Tsallis(Part):
    """`tsallis_entropy`: q above 1 looks less at rare candidates than Shannon's does."""

    q: float = 2.0

    def __call__(self, logp: Float[Tensor, "*s v"]) -> Float[Tensor, "*s"]:
        return tsallis_entropy(logp, self.q)


@dataclass(frozen=True)
class Buckets(Part):
    """`bucket_entropy` for a map of the vocabulary to meanings, numbered from 0."""

    of: tuple[int, ...] = ()

    def __call__(self, logp: Float[Tensor, "*s v"]) -> Float[Tensor, "*s"]:
        if len(self.of) != logp.shape[-1]:
            raise InputError(f"Buckets.of: {len(self.of)} entries, expected one a candidate ({logp.shape[-1]})")
        return bucket_entropy(logp, torch.tensor(self.of, device=logp.device), max(self.of) + 1)


@dataclass(frozen=True)
class EntropyBonus(Part):
    """`-coef * H(pi(.|s_t))` on every step; a coefficient of 0 reads nothing.

    Attributes:
        kind: `Nucleus`, `Tsallis` or `Buckets`, which need the whole vocabulary; none for Shannon's entropy.
    """

    coef: float = 0.001
    kind: Part | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        if not self.coef:
            return ()
        return ("entropy", "mask") if self.kind is None else ("logits", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        mask = rollouts.mask
        if not self.coef:
            return torch.zeros_like(mask, dtype=torch.float32)
        if self.kind is None:
            value = working(rollouts.entropy)
        else:
            value = self.kind(working(rollouts.logits).where(mask[..., None], 0.0))
        return -self.coef * value.where(mask, 0.0)


@dataclass(frozen=True)
class EntropyAdvantage(Part):
    """An advantage with a bonus for uncertain steps, `A + min(alpha * H, |A| / kappa)` (arXiv 2506.14758, eq. 4).

    The entropy is detached, and the bonus never turns the sign of an advantage (kappa > 1).

    Attributes:
        base: the advantage to shape.
        alpha, kappa: scale and bound of the bonus.
    """

    base: Part
    alpha: float = 0.4
    kappa: float = 2.0

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.base.reads, "old_entropy", "mask")))

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        advantage = self.base(rollouts)
        bonus = clipped_bonus(self.alpha * rollouts.old_entropy, advantage, self.kappa)
        return (advantage + bonus).where(rollouts.mask, 0.0)


def clipped_bonus(bonus: Float[Tensor, "n t"], advantage: Float[Tensor, "n t"], kappa: float) -> Float[Tensor, "n t"]:
    """`min(relu(bonus), |A| / kappa)`, detached: a bonus that cannot turn an advantage's sign.

    >>> clipped_bonus(torch.tensor([0.3, 5.0, -1.0]), torch.tensor([1.0, -1.0, 1.0]), kappa=2.0)
    tensor([0.3000, 0.5000, 0.0000])
    """
    return torch.minimum(bonus.detach().relu(), advantage.detach().abs() / kappa)


@dataclass(frozen=True)
class EntropyTarget(Steering):
    """A controller: moves the coefficient of an entropy bonus so that the measured entropy meets a target.

    `log coef += rate * (target - entropy)` (soft actor-critic's temperature, arXiv 1812.05905, eq. 17), within bounds.

    Attributes:
        target: wanted entropy, nats a step.
        field: the field to move.
    """

    target: float = 0.5
    rate: float = 0.1
    start: float = 1e-3
    low: float = 1e-6
    high: float = 0.1
    metric: str = "entropy"
    field: str = "regularizers.entropybonus.coef"

    def value(self, now: float) -> float:
        log_coef = math.log(self.memory.get("coef", self.start)) + self.rate * (self.target - now)
        coef = min(self.high, max(self.low, math.exp(log_coef)))
        self.memory["coef"] = coef
        return coef
