"""What rollout parts see of a run: the requests of one step, and a policy whose trajectories are sampled and judged.

`Flight` makes a step's trajectories beside the update of the step before it (`Settings.ahead`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from surefoot.method import UPDATE_SLOTS, Method
from surefoot.objective.references import own_copy
from surefoot.rollout.native import Sampling
from surefoot.rollout.prompts import Request
from surefoot.rollouts import Rollouts
from surefoot.tasks import play
from surefoot.tasks.base import Task


class Clock(dict[str, float]):
    """Seconds by phase; a phase inside another counts once, for itself."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what runs inside."""
        started, inner = time.perf_counter(), sum(self.values())
        yield
        nested = sum(self.values()) - inner
        self[name] = self.get(name, 0.0) + time.perf_counter() - started - nested


@dataclass
class StepWorld:
    """The `rollout.strategies.World` of one step. Every random draw is a function of (seed, step).

    Attributes:
        age: updates between the policy that samples and the one that will learn.
        renew_optimizer: forgets the optimizer's moments and counts: a part has replaced what they were about.
        seconds: spent sampling (`rollout`) and judging (`score`).
        tokens: steps that were sampled.
        draws: times that requests were drawn.
        temperature: of the last sampling.
        exact: whether `rollout_logp` of what was sampled last is what the policy's `score` would say.
        sampled: set when what is left of the first sampling waits for others more than it computes: it is being judged,
            or is played by the task (tools, environments).
    """

    policy: Any
    task: Task
    method: Method
    seed: int
    step: int
    age: int = 0
    renew_optimizer: Callable[[], None] = lambda: None
    seconds: Clock = field(default_factory=Clock)
    tokens: int = 0
    draws: int = 0
    temperature: float = 1.0
    exact: bool = False
    sampled: threading.Event = field(default_factory=threading.Event)

    @property
    def max_new_tokens(self) -> int:
        """The task's length limit."""
        return self.task.max_new_tokens

    def rng(self, purpose: int) -> np.random.Generator:
        """A generator of this step's own."""
        return np.random.default_rng([self.seed, self.step, purpose, self.draws])

    def make(self) -> Rollouts:
        """The step's trajectories, by the method's rollout part."""
        return self.method.rollout(self, self.more())

    def more(self) -> list[Request]:
        """Draw (more) requests of this step from the method's prompts part."""
        self.draws += 1
        return self.method.prompts(len(self.task.train), self.rng(0))

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> Rollouts:
        """Sample and judge trajectories for the requests."""
        problems = [self.task.train[r.prompt] for r in requests]
        group = torch.arange(len(requests)).repeat_interleave(torch.tensor([r.rollouts for r in requests]))
        seeds = torch.from_numpy(self.rng(1).integers(0, 2**62, len(group)))
        if hasattr(self.task, "rollout"):
            self.sampled.set()
        with self.seconds.phase("rollout"):
            batch = play.act(self.policy, self.task, problems, group, seeds, sampling)
        self.sampled.set()
        with self.seconds.phase("score"):
            batch = play.judged(self.task, problems, torch.tensor([r.prompt for r in requests]), batch)
            batch = batch if "age" in batch else batch.having(age=torch.full_like(batch.prompt, self.age))
        self.tokens += int(batch.present.sum()) if "present" in batch else int(batch.mask.sum())
        self.temperature = sampling.temperature
        exact = getattr(self.policy, "engine_exact", False) and not sampling.truncates
        self.exact = exact and "rollout_logp" in batch  # what was logged has none
        return batch

    def extend(self, rollouts: Rollouts, sampling: Sampling, limit: int) -> Rollouts:
        """Let the policy go on with trajectories that were cut before `limit` steps, and judge them again."""
        before = int(rollouts.present.sum())
        with self.seconds.phase("rollout"):
            batch = self.policy.extend(rollouts, sampling, limit)
        with self.seconds.phase("score"):
            batch = self.task.judge([self.task.train[p] for p in batch.prompt.tolist()], batch)
        self.tokens += int(batch.present.sum()) - before
        return batch


Made = tuple[StepWorld, Rollouts]
_KEPT = ("step", "age", "tokens", "draws", "temperature", "exact")


@dataclass(frozen=True)
class Flight:
    """A world whose trajectories are being made in a thread of their own, by a copy of the policy as it is now.

    What overlaps the update is what waits. Sampling itself would only compete with it for the same cores (measured:
    docs/performance.md), so `of` returns when the policy has sampled and its text is being judged.

    `old_logp` is that copy's: a ratio to it corrects for the updates in between. Where a part weighs by
    `rollout_logp` (`EngineCorrected`), `old_logp` is left to be the learner's.
    """

    step: int
    _made: Future[Made]

    @classmethod
    def of(cls, world: StepWorld) -> Flight:
        """Take off."""
        world.policy = own_copy(world.policy)
        threads = max(1, torch.get_num_threads() // 2)  # two full sets would keep each other from their cores
        pool = ThreadPoolExecutor(1, "surefoot-ahead", torch.set_num_threads, (threads,))
        flight = cls(world.step, pool.submit(_fly, world))
        pool.shutdown(wait=False)
        world.sampled.wait()
        return flight

    def land(self) -> Made:
        """Wait for it; an error in it is raised here."""
        return self._made.result()

    def plain(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, once it has landed; empty where it failed."""
        if self._made.exception():
            return {}
        world, batch = self.land()
        return {name: getattr(world, name) for name in _KEPT} | {"batch": batch.plain()}

    @classmethod
    def restored(cls, plain: dict[str, Any], world: StepWorld) -> Flight:
        """The flight that `plain` was of; `world` lends the policy, task and method."""
        made: Future[Made] = Future()
        made.set_result((replace(world, **{n: plain[n] for n in _KEPT}), Rollouts(**plain["batch"])))
        return cls(plain["step"], made)


def _fly(world: StepWorld) -> Made:
    try:
        batch, readers = world.make(), world.method.readers(*UPDATE_SLOTS)
    finally:
        world.sampled.set()
    if "old_logp" in readers and "rollout_logp" not in readers:
        if world.exact:
            return world, batch.having(old_logp=batch.rollout_logp)
        with world.seconds.phase("score"), torch.no_grad():
            scored = world.policy.score(batch, {"logp"}, world.temperature)
            batch = batch.having(old_logp=scored["logp"])
    return world, batch
