"""Which prompts a step poses, and how many rollouts each gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

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
    """

    prompts: int = 16
    rollouts: int = 8

    def __post_init__(self):
        if self.prompts < 1 or self.rollouts < 1:
            raise InputError(f"prompts: {self.prompts} prompts x {self.rollouts} rollouts, expected at least 1 of each")

    def __call__(self, size: int, rng: np.random.Generator) -> list[Request]:
        drawn = rng.choice(size, self.prompts, replace=self.prompts > size, shuffle=False)
        return [Request(int(i), self.rollouts) for i in drawn]

    def observe(self, rollouts: Rollouts) -> None:
        """Nothing to learn: the draw does not depend on what came of earlier prompts."""
