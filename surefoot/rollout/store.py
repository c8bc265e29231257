"""Trajectories that outlive their step: replayed up to an age limit, or made in pieces by one policy after another.

What is stored is what was sampled and judged (`tokens`, `rollout_logp`, rewards), not what a part made of it. When
trajectories come back, credit is given anew, `old_logp` is the current policy's, `rollout_logp` still that of the
policy that sampled, and `age` says how many batches it has been trained on since. A surrogate that corrects for age
anchors its ratio in `rollout_logp` (`BalancedClip`), or weighs by `old_logp - rollout_logp` (`EngineCorrected`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from surefoot.errors import InputError
from surefoot.parts import Part
from surefoot.rollout.prompts import Request
from surefoot.rollout.strategies import OnPolicy, World, only
from surefoot.rollouts import Rollouts, concatenate


@dataclass(frozen=True)
class Replay(Part):
    """Some of each batch's groups are drawn at random from those of earlier steps.

    A batch has as many groups as requests; while the store holds too few, more are sampled. A stored group may come
    back several times, until it is too old.

    Attributes:
        of: how fresh trajectories are made.
        replayed: share of the batch's groups that come from the store, once it holds enough; below 1.
        max_age: groups with a trajectory older than this are forgotten.
    """

    of: Part = OnPolicy()
    replayed: float = 0.5
    max_age: int = 4

    def __post_init__(self):
        if not 0 <= self.replayed < 1 or self.max_age < 1:
            raise InputError(
                f"rollout: replayed={self.replayed}, max_age={self.max_age}, expected 0 <= replayed < 1, max_age >= 1"
            )

    @property
    def max_new_tokens(self) -> int | None:
        """The length limit of what is sampled."""
        return getattr(self.of, "max_new_tokens", None)

    def __call__(self, world: World, requests: Sequence[Request]) -> Rollouts:
        stored, usable = self._stored()
        count = min(len(usable), int(self.replayed * len(requests)))
        batch = kept = self.of(world, requests[: len(requests) - count])
        if stored is not None and len(usable):
            kept = concatenate([batch, only(stored, usable)])
        if stored is not None and count:
            batch = concatenate([batch, only(stored, usable[self._draw(len(usable), count)])])
        self.memory["stored"] = kept.plain()
        return batch

    def _stored(self) -> tuple[Rollouts | None, Tensor]:
        """The store, a step older, and its groups that are not too old."""
        if "stored" not in self.memory:
            return None, torch.zeros(0, dtype=torch.long)
        stored = Rollouts(**self.memory["stored"])
        stored = stored.having(age=stored.age + 1)
        old = stored.group[stored.age > self.max_age]
        groups = stored.group.unique()
        return stored, groups[~torch.isin(groups, old)]

    def _draw(self, size: int, count: int) -> Tensor:
        """`count` different ones of `size`, in order; a function of how many draws were made."""
        self.memory["draws"] = self.memory.get("draws", 0) + 1
        generator = torch.Generator().manual_seed(self.memory["draws"])
        return torch.randperm(size, generator=generator)[:count].sort().values


@dataclass(frozen=True)
class Partial(OnPolicy):
    """A step samples at most `budget` tokens of a trajectory; what has not ended waits, and a later policy goes on.

    A group trains when all its trajectories have ended, or are as long as they may be. As many groups are begun as
    requests; in the first steps fewer come out, and if none would, sampling goes on until one does. `age` is that of
    the first token; `rollout_logp` is of the policy that said each.
    """

    budget: int = 64

    def __call__(self, world: World, requests: Sequence[Request]) -> Rollouts:
        limit = self.max_new_tokens or world.max_new_tokens
        sampling = replace(self.sampling(world), max_new_tokens=min(self.budget, limit))
        batch = world.sample(requests, sampling)
        if "waiting" in self.memory:
            waiting = Rollouts(**self.memory["waiting"])
            waiting = world.extend(waiting.having(age=waiting.age + 1), sampling, limit)
            batch = concatenate([waiting, batch])
        while not len(done := _complete(batch, limit)):
            batch = world.extend(batch, sampling, limit)
        groups = batch.group.unique()
        rest = groups[~torch.isin(groups, done)]
        self.memory.pop("waiting", None)
        if len(rest):
            self.memory["waiting"] = only(batch, rest).plain()
        return only(batch, done)


def _complete(rollouts: Rollouts, limit: int) -> Tensor:
    """The groups of which no trajectory can go on."""
    going = rollouts.truncated & (rollouts.present.sum(1) < limit)
    groups = rollouts.group.unique()
    return groups[~torch.isin(groups, rollouts.group[going])]
