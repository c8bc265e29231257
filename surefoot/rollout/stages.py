"""Training in stages: at the start of each, a policy absorbs what it has learnt, and learns on from a fresh start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from surefoot.errors import InputError
from surefoot.rollout.prompts import Request
from surefoot.rollout.strategies import OnPolicy, World
from surefoot.rollouts import Rollouts


@dataclass(frozen=True)
class Stages(OnPolicy):
    """On-policy batches; before those of the steps in `starts`, the policy absorbs its own behaviour.

    For a policy with `executed(states, actions)` and `absorb(states, done, seed)` (`policies.latent`). Batches made for
    that do not train. The optimizer forgets its state: the parameters are no longer those that it is about.

    Attributes:
        starts: steps (from 1) that begin a stage after the first one.
        collect: batches that the policy absorbs.
        keep: share of their trajectories, those of the highest return, that it learns from; 1 for all.
    """

    starts: tuple[int, ...] = ()
    collect: int = 20
    keep: float = 1.0
    moves_policy: ClassVar[bool] = True

    def __post_init__(self):
        if self.collect < 1 or not 0 < self.keep <= 1:
            raise InputError(f"Stages: collect={self.collect}, keep={self.keep}, expected collect >= 1, 0 < keep <= 1")

    def __call__(self, world: World, requests: Sequence[Request]) -> Rollouts:
        step = self.memory.get("step", 0) + 1
        if step in self.starts:
            made = []
            for _ in range(self.collect):
                made.append(world.sample(requests, self.sampling(world)))
                requests = world.more()
            self.memory["absorbed"] = absorb(world, made, self.keep)
            world.renew_optimizer()
        self.memory["step"] = step
        return super().__call__(world, requests)


def absorb(world: World, made: Sequence[Rollouts], keep: float = 1.0) -> dict[str, float]:
    """Let the policy absorb what it did in these batches, or in the share of trajectories that earned most."""
    if not hasattr(world.policy, "absorb"):
        raise InputError(
            f"rollout.starts: policy {world.policy.name!r} of kind {world.policy.kind!r} cannot absorb its behaviour; "
            "expected 'latent'"
        )
    total = torch.cat([torch.stack([r if r.ndim == 1 else r.sum(1) for r in b.rewards.values()]).sum(0) for b in made])
    chosen = torch.zeros(len(total), dtype=torch.bool)
    chosen[total.argsort(descending=True, stable=True)[: max(1, round(keep * len(total)))]] = True
    states, done = [], []
    for batch, rows in zip(made, chosen.split([len(b) for b in made]), strict=True):
        there = batch.mask & rows[:, None]
        states.append(batch.states[there])
        done.append(world.policy.executed(states[-1], batch.actions[there]))
    return world.policy.absorb(torch.cat(states), torch.cat(done), int(made[0].seed[0]))
