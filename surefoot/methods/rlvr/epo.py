"""EPO: an entropy bonus, and a band around each turn's own history that the entropy should not leave.

Xu et al., "EPO: Entropy-regularized Policy Optimization for LLM Agents Reinforcement Learning", arXiv 2509.22576.
With H the entropy of a token in turn k of an episode, and e of E the step of training:

    Hist_k = mean over the phases so far (this one too) of the mean token entropy of turn k
    P      = alpha [ relu(H - high Hist_k) + relu(low Hist_k - H) ]      Hist detached
    L      = L_PG - c mean_tokens[ H - w(e) P ]
    w(e)   = 1 - exp(-3 e / E)                    `rising`; or, as released, falling from 1 to .04 (`release`)

THE RELEASED CODE has P = alpha where H is not strictly inside the band, else 0: comparisons and a constant, so its
gradient is zero, and what trains is the plain bonus c H. That is `EntropyBand(soft=False)`, which changes the reported
loss alone. OUR READING, the default here, is the soft P above, with low .8, high 1.2, alpha 1, at every turn, and a
weight that rises, as the paper's second version says (the READMEs have low 0, high 2, alpha .05 to .1: such a band
binds only if the entropy doubles).

A turn's history counts the phases that reached it, and tokens that train: the released code pads short episodes with
zeros on the wrong side. `window` forgets old phases. On a task of one turn there is one history.

Claim: the band keeps entropy steady, from early collapse to late chaos, at no cost in success.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import InputError
from surefoot.method import Paper
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.controllers import Scheduled
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def rising(done: float) -> float:
    """`1 - exp(-3 e / E)`: first free, then held."""
    return 1 - math.exp(-3 * done)


def release(done: float) -> float:
    """The released code's weight: from 1 to .83 over the first half, then from .8 to .04.

    >>> [round(release(e / 150), 4) for e in (0, 30, 75, 76, 110, 150)]
    [1.0, 0.8899, 0.8271, 0.7686, 0.1973, 0.0398]
    """
    return 1 - 0.2 * (1 - math.exp(-4 * done)) if done <= 0.5 else 0.8 * math.exp(-6 * (done - 0.5))


@dataclass(frozen=True)
class EntropyBand(Part):
    """`-coef [H - weight P]` on every step, P the distance of its entropy from the band of its turn's history.

    Attributes:
        coef: c; 0 reads nothing.
        low, high: the band, as factors on the history's mean.
        alpha: scale of the penalty.
        weight: w, moved by a controller.
        soft: the penalty is the distance, with gradient; else, as released, a constant outside the band.
        window: phases in the history, the newest; 0 for all of them.
        aggregate: how its steps add up: a mean over tokens, whatever the method's own.
    """

    coef: float = 0.001
    low: float = 0.8
    high: float = 1.2
    alpha: float = 1.0
    weight: float = 1.0
    soft: bool = True
    window: int = 0
    aggregate: Part = TokenMean()

    def __post_init__(self):
        if not 0 <= self.low <= self.high or self.window < 0:
            raise InputError(
                f"EntropyBand: low={self.low}, high={self.high}, window={self.window}, "
                f"expected 0 <= low <= high, window >= 0"
            )

    @property
    def reads(self) -> tuple[str, ...]:
        return ("entropy", "old_entropy", "turn", "mask") if self.coef else ()

    def observe(self, rollouts: Rollouts) -> None:
        """Add the mean token entropy of every turn of this phase; NaN for a turn that nobody reached."""
        if not self.coef:
            return
        mask = rollouts.mask
        turn, nats = rollouts.turn[mask], rollouts.old_entropy[mask].double()
        past = self.memory.get("phases", nats.new_zeros(0, 0))
        turns = max(past.shape[1], int(turn.max()) + 1 if len(turn) else 0)
        count = torch.bincount(turn, minlength=turns)
        phase = (torch.bincount(turn, nats, turns) / count).where(count > 0, torch.nan)
        past = torch.cat([past, past.new_full((len(past), turns - past.shape[1]), torch.nan)], 1)
        self.memory["phases"] = torch.cat([past, phase[None]])[-self.window :]

    def history(self) -> Float[Tensor, "k"]:
        """Hist: the mean of each turn over the phases that reached it, NaN where none did."""
        return self.memory["phases"].nanmean(0)

    def penalty(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        """P of every step; 0 off the mask."""
        entropy, usual = self._own_and_usual(rollouts)
        over, under = entropy - self.high * usual, self.low * usual - entropy
        outside = over.relu() + under.relu() if self.soft else ((over >= 0) | (under >= 0)).to(entropy.dtype)
        return self.alpha * outside.where(rollouts.mask, 0.0)

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        mask = rollouts.mask
        if not self.coef:
            return torch.zeros_like(mask, dtype=torch.float32)
        return -self.coef * (rollouts.entropy.where(mask, 0.0) - self.weight * self.penalty(rollouts))

    def metrics(self, rollouts: Rollouts) -> dict[str, Any]:
        """The share of the tokens that are outside their band."""
        if not self.coef:
            return {}
        entropy, usual = self._own_and_usual(rollouts)
        outside = (entropy <= self.low * usual) | (entropy >= self.high * usual)
        return {"outside_band": outside[rollouts.mask].double().mean()}

    def _own_and_usual(self, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        """Entropy of every step, with gradient, and the history of its turn; 0 off the mask."""
        mask = rollouts.mask
        usual = self.history().to(rollouts.entropy)[rollouts.turn.where(mask, 0)]
        return rollouts.entropy.where(mask, 0.0), usual.where(mask, 0.0)


EPO = GRPO.but(
    name="epo",
    paper=Paper(
        arxiv="2509.22576",
        year=2025,
        title="EPO: Entropy-regularized Policy Optimization for LLM Agents Reinforcement Learning",
    ),
    regularizers=(EntropyBand(weight=0.0),),  # w(0): the controller sets the weight of the step after it
    aggregate=TokenMean(),
    controllers=(Scheduled("regularizers.entropyband.weight", start=0.0, end=1.0, steps=150, shape=rising),),
)
