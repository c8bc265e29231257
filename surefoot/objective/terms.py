"""A loss of several terms: each with its own coefficient and its own way of adding up."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from surefoot.objective.aggregation import TokenMean
from surefoot.objective.surrogates import Clip
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


@dataclass(frozen=True)
class Term(Part):
    """Another surrogate beside the method's: `coef * of`, its steps weighted by its own aggregate.

    Attributes:
        of: the loss, of steps or of trajectories.
        aggregate: how this term's losses add up (the method's aggregate has no say here).

    >>> one = torch.ones(1, 2)
    >>> table = Rollouts({"logp": -one, "old_logp": -one, "advantage": 3 * one, "mask": one.bool()})
    >>> Term(Clip(), coef=0.1)(table)
    tensor([[-0.3000, -0.3000]])
    """

    of: Part = Clip()
    coef: float = 1.0
    aggregate: Part = TokenMean()

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.of.reads, *self.aggregate.reads))) if self.coef else ()

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"] | Float[Tensor, "n"]:
        return self.coef * self.of(rollouts) if self.coef else rollouts.mask.float() * 0.0
