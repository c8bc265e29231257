"""How trajectories are made: once from the current policy, or again until there is something to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from surefoot.parts import Part
from surefoot.rollout.native import Sampling
from surefoot.rollout.prompts import Request
from surefoot.rollouts import Rollouts, concatenate


class World(Protocol):
    """What a rollout part may do: sample and judge requests, and draw more of them.

    Attributes:
        policy, task: those of the run, for parts that make trajectories in their own way.
    """

    policy: Any
    task: Any

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> Rollouts: ...

    def extend(self, rollouts: Rollouts, sampling: Sampling, limit: int) -> Rollouts: ...

    def more(self) -> list[Request]: ...

    def renew_optimizer(self) -> None: ...

    @property
    def max_new_tokens(self) -> int: ...


@dataclass(frozen=True)
class OnPolicy(Part):
    """Fresh trajectories from the current policy.

    Attributes:
        temperature, top_p, top_k, min_p: the sampling distribution (`rollout.native.Sampling`).
        max_new_tokens: length limit; none takes the task's.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int | None = None

    def sampling(self, world: World) -> Sampling:
        """The distribution to sample from in this world."""
        return Sampling(
            self.temperature, self.top_p, self.top_k, self.min_p, self.max_new_tokens or world.max_new_tokens
        )

    def __call__(self, world: World, requests: Sequence[Request]) -> Rollouts:
        return world.sample(requests, self.sampling(world))


@dataclass(frozen=True)
class DynamicSampling(OnPolicy):
    """Sample until a full batch of groups has both right and wrong trajectories (DAPO, arXiv 2503.14476, eq. 11).

    Groups whose rewards are all equal are dropped. After `max_rounds` draws the batch goes on as it is: smaller, and
    with at least one group.
    """

    max_rounds: int = 4

    def __call__(self, world: World, requests: Sequence[Request]) -> Rollouts:
        kept: list[Rollouts] = []
        wanted, have = len(requests), 0
        for _ in range(self.max_rounds):
            batch = super().__call__(world, requests)
            useful = informative_groups(batch)
            if len(useful):
                useful = useful[: wanted - have]
                kept.append(only(batch, useful))
                have += len(useful)
            if have == wanted:
                break
            requests = world.more()
        return concatenate(kept) if kept else batch


@dataclass(frozen=True)
class BestAndWorst(OnPolicy):
    """Of `of` trajectories a prompt, those of highest and of lowest total reward: pairs of the widest contrast.

    The pair is not a draw of two from the policy. Where all are worth the same, it is the first and the last of them.
    """

    of: int = 8

    def __call__(self, world: World, requests: Sequence[Request]) -> Rollouts:
        batch = world.sample([r._replace(rollouts=self.of) for r in requests], self.sampling(world))
        total = torch.stack([r if r.ndim == 1 else r.sum(1) for r in batch.rewards.values()]).sum(0)
        order = total.argsort(descending=True, stable=True)
        order = order[batch.group[order].argsort(stable=True)].view(len(requests), self.of)
        return batch.rows(order[:, [0, -1]].flatten().sort().values)


def informative_groups(rollouts: Rollouts) -> torch.Tensor:
    """The groups whose total reward is not the same for all their trajectories."""
    total = torch.stack([r if r.ndim == 1 else r.sum(1) for r in rollouts.rewards.values()]).sum(0)
    groups = rollouts.group.unique()
    spread = [total[rollouts.group == g] for g in groups]
    return groups[torch.tensor([bool((r != r[0]).any()) for r in spread], dtype=torch.bool)]


def only(rollouts: Rollouts, groups: torch.Tensor) -> Rollouts:
    """The trajectories of `groups` (in order), renumbered from 0, with their prompts alone."""
    rows = rollouts.rows(torch.isin(rollouts.group, groups))
    columns = {"group": torch.searchsorted(groups, rows.group)}
    for name in ("prompt_tokens", "prompt_mask"):
        if name in rows:
            columns[name] = rows[name][groups]
    return Rollouts({k: rows[k] for k in rows} | columns, rows.rewards, rows.notes)
