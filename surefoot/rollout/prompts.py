"""Which prompts a step poses, and how many rollouts each gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import InputError
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


class Request(NamedTuple):
    """Pose the task's training problem `prompt`, `rollouts` times."""

    prompt: int
    rollouts: int


class Prompts(Protocol):
    """The prompts slot: draws requests from `size` problems; may learn from the judged batch in `observe`."""

    def __call__(self, size: int, rng: np.random.Generator) -> list[Request]: ...

    def observe(self, rollouts: Rollouts) -> None: ...


@dataclass(frozen=True)
class Uniform(Part):
    """Prompts uniformly at random without replacement within a step, each with as many rollouts.

    Attributes:
        prompts: prompts a step.
        rollouts: rollouts of each prompt (the group size G).
        pool: how many of the task's problems, its first, are drawn from, so that each comes back; 0 for all of them.
    """

    prompts: int = 16
    rollouts: int = 8
    pool: int = 0

    def __post_init__(self):
        if self.prompts < 1 or self.rollouts < 1:
            raise InputError(f"prompts: {self.prompts} prompts x {self.rollouts} rollouts, expected at least 1 of each")
        if self.pool < 0:
            raise InputError(f"prompts.pool: {self.pool}, expected a number of problems, or 0 for all of them")

    def __call__(self, size: int, rng: np.random.Generator) -> list[Request]:
        size = min(size, self.pool or size)
        drawn = rng.choice(size, self.prompts, replace=self.prompts > size, shuffle=False)
        return [Request(int(i), self.rollouts) for i in drawn]

    def observe(self, rollouts: Rollouts) -> None:
        """Nothing to learn: the draw does not depend on what came of earlier prompts."""


@dataclass(frozen=True)
class PassRates(Part):
    """How often each prompt was solved, as far as it is known: brought up to date with every judged batch.

    What a prompts part keeps to choose, weight or budget prompts by their difficulty.

    Attributes:
        decay: what earlier visits of a prompt count at the next: 0 keeps the last visit alone, 1 counts them all.
        prior: right and as many wrong trajectories added to every count (a Beta prior); 0 for the plain rate.
    """

    decay: float = 0.0
    prior: float = 0.0

    def __post_init__(self):
        if not 0 <= self.decay <= 1 or self.prior < 0:
            raise InputError(f"rates: decay={self.decay}, prior={self.prior}, expected 0 <= decay <= 1, prior >= 0")

    def __call__(self, prompts: Int[Tensor, "m"]) -> Float[Tensor, "m"]:
        """The rate of each of the prompts, float64; NaN for those never seen."""
        known, right, seen = self._table()
        if not len(known):
            return torch.full(prompts.shape, torch.nan, dtype=torch.float64)
        at = torch.searchsorted(known, prompts).clamp(max=len(known) - 1)
        rate = (right + self.prior) / (seen + 2 * self.prior)
        return rate[at].where(known[at] == prompts, torch.nan)

    def observe(self, rollouts: Rollouts) -> None:
        """Count the right trajectories (`correct`) of each prompt of a judged batch."""
        prompts, row = rollouts.prompt.cpu().unique(return_inverse=True)
        fresh = torch.zeros(2, len(prompts), dtype=torch.float64)
        fresh.index_add_(1, row, torch.stack([rollouts.correct.double(), torch.ones(len(row)).double()]).cpu())
        known, *old = self._table()
        merged = torch.cat([known, prompts]).unique()
        counts = torch.zeros(2, len(merged), dtype=torch.float64)
        counts[:, torch.searchsorted(merged, known)] = torch.stack(old)
        at = torch.searchsorted(merged, prompts)
        counts[:, at] = self.decay * counts[:, at] + fresh
        self.memory.update(prompt=merged, right=counts[0], seen=counts[1])

    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts seen, in order, with their (decayed) counts of right and of all trajectories."""
        none = torch.zeros(0, dtype=torch.float64)
        return self.memory.get("prompt", none.long()), self.memory.get("right", none), self.memory.get("seen", none)
