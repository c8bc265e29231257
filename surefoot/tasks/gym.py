"""Worlds of Gymnasium: `gym:<environment>[:key=value,...]`, such as `gym:Hopper-v5` or `gym:Pendulum-v1:steps=100`.

A problem is a start (a seed of the environment), a trajectory one episode from it. The policy acts in all episodes of
a batch at once, each of which has its own copy of the environment and its own stream of noise. It acts in [-1, 1],
which is mapped to the environment's bounds; held-out episodes are acted by its mean. Rewards are paid at every step.

An episode that the environment ends (`terminated`: the pendulum fell, the goal is reached) is worth nothing after its
last step: `ended`. One that is only cut (a time limit, the method's own limit) goes on in truth: `truncated`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import InputError
from surefoot.rollouts import Rollouts
from surefoot.specs import call, read_options
from surefoot.tasks.base import Problem

HELDOUT = 2**30  # seeds of held-out starts begin here
LOOKED_AT = 4000  # random steps from which the scale of the states is taken


def environment(name: str) -> Any:
    """One environment, with its own time limit.

    Raises:
        InputError: Gymnasium is not installed, or has no such environment, or one whose states or actions are no
            vectors of numbers.
    """
    try:
        import gymnasium
    except ImportError:
        raise InputError("environments need Gymnasium; pip install 'surefoot[control]'") from None
    try:
        made = gymnasium.make(name)
    except gymnasium.error.Error as e:
        raise InputError(f"environment {name!r}: {str(e).splitlines()[0]}") from None
    for what, space in (("states", made.observation_space), ("actions", made.action_space)):
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise InputError(f"environment {name!r}: its {what} are {space}; expected vectors of numbers")
    return made


class Starts(Sequence[Problem]):
    """Problems that differ by the seed of the environment alone."""

    def __init__(self, name: str, first: int, count: int, explore: bool):
        self.name, self.first, self.size, self.explore = name, first, count, explore

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Problem:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= i < self.size:
            raise IndexError(i)
        seed = self.first + i
        return Problem(f"{self.name}, start {seed}", data={"seed": seed, "explore": self.explore})


class Gym:
    """One environment as a task.

    Args:
        env: the id of an environment of Gymnasium, with vectors for states and actions.
        steps: an episode is cut after so many; 0 takes the environment's own time limit.
        starts: number of training starts.
    """

    def __init__(self, env: str, steps: int = 0, starts: int = 4096):
        self.env, self.name = env, f"gym:{env}" + (f":steps={steps}" if steps else "")
        self._envs = [environment(env)]
        limit = self._envs[0].spec.max_episode_steps
        if not (steps or limit):
            raise InputError(f"environment {env!r} has no time limit; expected {env}:steps=<number>")
        self.max_new_tokens = min(steps or limit, limit or steps)
        space = self._envs[0].action_space
        self._middle, self._half = (space.high + space.low) / 2, (space.high - space.low) / 2
        self.observations, self.actions = self._envs[0].observation_space.shape[0], space.shape[0]
        self.train, self.heldout = Starts(env, 0, starts, True), Starts(env, HELDOUT, 256, False)

    def scale(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
        """Mean and deviation of the states that random actions lead to (the same numbers every time)."""
        rng, seen, env = np.random.default_rng(0), [], self._envs[0]
        while len(seen) < LOOKED_AT:
            state, _ = env.reset(seed=int(rng.integers(HELDOUT)))
            over, length = False, 0
            while not over and length < self.max_new_tokens:
                seen.append(state)
                state, _, ended, cut, _ = env.step(self.bounded(rng.uniform(-1, 1, self.actions)))
                over, length = ended or cut, length + 1
        states = torch.from_numpy(np.array(seen)).float()
        return states.mean(0), states.std(0).clamp_min(1e-3)

    def bounded(self, actions: Float[np.ndarray, "... a"]) -> Float[np.ndarray, "... a"]:
        """From [-1, 1], where what lies outside is cut, to the environment's bounds."""
        return (self._middle + self._half * np.clip(actions, -1, 1)).astype(np.float32)

    def rollout(
        self,
        policy: Any,
        problems: Sequence[Problem],
        group: Int[Tensor, "n"],
        seeds: Int[Tensor, "n"],
        sampling: Any,
    ) -> Rollouts:
        """One episode for each entry of `group`; rows whose episode is over wait as padding."""
        rows = [problems[g] for g in group.tolist()]
        n, limit = len(rows), min(sampling.max_new_tokens, self.max_new_tokens)
        while len(self._envs) < n:
            self._envs.append(environment(self.env))
        state = torch.zeros(n, self.observations)
        for i, problem in enumerate(rows):
            state[i] = _tensor(self._envs[i].reset(seed=problem.data["seed"])[0])
        explore = torch.tensor([float(p.data["explore"]) for p in rows])[:, None, None]
        noise = explore * torch.stack([_noise(int(s), limit, policy.width) for s in seeds])
        kept: dict[str, list[Tensor]] = {}
        alive, cut = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
        for t in range(limit):
            live = alive.nonzero().flatten()
            taken, logp, done = policy.act(state[live], noise[live, t])
            forces = self.bounded(done.double().numpy())
            after, reward, ended = state.clone(), torch.zeros(n), torch.zeros(n, dtype=torch.bool)
            for i, force in zip(live.tolist(), forces, strict=True):
                seen, paid, ended[i], over, _ = self._envs[i].step(force)
                after[i], reward[i] = _tensor(seen), float(paid)
                cut[i] = over and not ended[i]
            row = dict(states=state, next_states=after, present=alive, ended=ended, reward=reward)
            row["actions"], row["rollout_logp"] = _placed(taken, live, n), _placed(logp, live, n)
            for name, value in row.items():
                kept.setdefault(name, []).append(value)
            alive, state = alive & ~ended & ~cut, after
            if not alive.any():
                break
        columns = {name: torch.stack(values, 1) for name, values in kept.items()}
        reward = columns.pop("reward")
        columns |= dict(mask=columns["present"], group=group, seed=seeds, truncated=cut | alive)
        return Rollouts(columns, rewards={"return": reward})

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts:
        """The environment has paid already."""
        return rollouts

    def pictures(self, policy: Any, folder: Path, when: str) -> None:
        """What the policy sees, does and earns in one held-out episode: `episode_<when>.png`."""
        from matplotlib.figure import Figure

        zero = torch.zeros(1, dtype=torch.long)
        one = self.rollout(policy, [self.heldout[0]], zero, zero, _Whole)
        earned = one.rewards["return"].cumsum(1)[0]
        figure = Figure(figsize=(8, 6), layout="constrained")
        axes = figure.subplots(3, 1, sharex=True)
        for axis, values, what in zip(
            axes,
            (one.states[0], one.actions[0], earned),
            ("states", "actions, in [-1, 1]", "return so far"),
            strict=True,
        ):
            axis.plot(values.numpy(), linewidth=1)
            axis.set_ylabel(what)
        axes[0].set_title(f"{self.env}: one held-out episode, return {float(earned[-1]):.4g}")
        axes[-1].set_xlabel("step")
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"episode_{when}.png", dpi=110)


class _Whole:
    """Sampling without a limit of its own."""

    max_new_tokens = 2**30


def _noise(seed: int, steps: int, width: int) -> Float[Tensor, "t a"]:
    return torch.randn(steps, width, generator=torch.Generator().manual_seed(seed))


def _tensor(x: Any) -> Tensor:
    return torch.from_numpy(np.asarray(x)).float()


def _placed(values: Tensor, rows: Int[Tensor, "l"], n: int) -> Tensor:
    """The values at their rows, 0 at the others."""
    return values.new_zeros(n, *values.shape[1:]).index_copy(0, rows, values)


def load(rest: str) -> Gym:
    """The task of `gym:<rest>`."""
    env, _, options = rest.partition(":")
    if not env:
        raise InputError("task 'gym': expected gym:<environment>, such as gym:Pendulum-v1")
    where = f"task {f'gym:{rest}'!r}"
    return call(Gym, read_options(options, where), where, env)
