"""Entropies and the bonuses made of them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from surefoot.parts import Part
from surefoot.rollouts import Rollouts


@dataclass(frozen=True)
class EntropyBonus(Part):
    """`-coef * H(pi(.|s_t))` on every step; a coefficient of 0 reads nothing."""

    coef: float = 0.001

    @property
    def reads(self) -> tuple[str, ...]:
        return ("entropy", "mask") if self.coef else ()

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        if not self.coef:
            return rollouts.mask * 0.0
        return -self.coef * rollouts.entropy.where(rollouts.mask, 0.0)
