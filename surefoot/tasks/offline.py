"""Logged data of a real environment: `offline:<environment>:quality=<random|medium|mixed>[,key=value]`.

A training problem is one logged transition, and the task plays back those that the prompts draw: trajectories of one
step that nobody samples. Held-out problems are starts of the environment itself, where the policy acts.

The data are made here, once, and kept in the cache (`surefoot fetch offline:Hopper-v5:quality=mixed` makes them
beforehand, and says where they are). Augmented random search (ARS, Mania et al., arXiv 1803.07055: linear policies, top
directions, states in units of their running scale) looks for a good policy within a budget of steps. Then

    random   uniform actions
    medium   the first policy of the search whose return is half way from random to the best one's
    mixed    a third each of random, medium and the best policy found

where policies act with Gaussian noise. States, actions in [-1, 1], rewards and next states are stored, and time limits
apart from ends. Rewards are scaled in training as in D4RL's locomotion: by 1000 / (best return - worst return).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save
from torch import Tensor

from surefoot.cache import cache_folder
from surefoot.errors import InputError, nearest
from surefoot.files import write_aside
from surefoot.rollouts import Rollouts
from surefoot.specs import call, read_options
from surefoot.tasks.base import Problem
from surefoot.tasks.gym import HELDOUT, Gym

QUALITIES = ("random", "medium", "mixed")
Act = Callable[[np.ndarray], np.ndarray]


class Transitions(Sequence[Problem]):
    """One problem a logged transition."""

    def __init__(self, count: int):
        self.size = count

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Problem:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Problem("", data={"row": i})


class Offline(Gym):
    """Transitions to learn from, and the environment they came from to be judged in.

    Args:
        env: the id of an environment of Gymnasium.
        quality: who acted: `random`, `medium` or `mixed`.
        size: transitions.
        search: steps that the search for a policy may take.
        noise: deviation of the noise on medium and best actions, which lie in [-1, 1].
        normalise: scale the rewards in training.
        steps: as for `gym`.
    """

    def __init__(
        self,
        env: str,
        quality: str = "mixed",
        size: int = 60_000,
        search: int = 150_000,
        noise: float = 0.2,
        normalise: bool = True,
        steps: int = 0,
    ):
        if quality not in QUALITIES:
            raise InputError(f"task offline:{env}: quality {quality!r}{nearest(quality, QUALITIES)}")
        super().__init__(env, steps)
        said = {"quality": quality, "size": size, "search": search, "noise": noise, "normalise": normalise}
        usual = inspect.signature(Offline).parameters
        changed = {k: v for k, v in (said | {"steps": steps}).items() if k == "quality" or v != usual[k].default}
        self.name = f"offline:{env}:" + ",".join(f"{k}={v}" for k, v in changed.items())
        stem = f"{env}-{quality}-{size}-{search}-{noise}-{steps}".replace("/", "--")
        self.path = cache_folder() / "offline" / f"{stem}.safetensors"
        if not self.path.is_file():
            write_aside(self.path, save(collect(self, quality, size, search, noise)))
        self.data = load_file(self.path)
        self.train = Transitions(len(self.data["reward"]))
        returns = self.data["returns"]
        self.unit = 1000 / float(returns.max() - returns.min()) if normalise else 1.0

    def scale(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
        """Mean and deviation of the logged states."""
        return self.data["states"].mean(0), self.data["states"].std(0).clamp_min(1e-3)

    def rollout(
        self,
        policy: Any,
        problems: Sequence[Problem],
        group: Int[Tensor, "n"],
        seeds: Int[Tensor, "n"],
        sampling: Any,
    ) -> Rollouts:
        """The logged transitions of training problems; episodes in the environment from held-out starts."""
        if "row" not in problems[0].data:
            return super().rollout(policy, problems, group, seeds, sampling)
        row = torch.tensor([p.data["row"] for p in problems])[group]
        mask = torch.ones(len(row), 1, dtype=torch.bool)
        columns = {name: self.data[name][row][:, None] for name in ("states", "actions", "next_states", "ended")}
        columns |= dict(mask=mask, present=mask, group=group, seed=seeds)
        return Rollouts(columns, rewards={"return": self.unit * self.data["reward"][row][:, None]})


def collect(world: Gym, quality: str, size: int, search: int, noise: float, seed: int = 0) -> dict[str, Tensor]:
    """`size` transitions of whole episodes (the last one cut short), and the `returns` of the episodes."""
    rng = np.random.default_rng(seed)
    chance: Act = lambda _: rng.uniform(-1, 1, world.actions)  # noqa: E731
    if quality == "random":
        actors = [chance]
    else:
        medium, best = (noisy(policy, noise, rng) for policy in ars(world, search, rng))
        actors = [medium] if quality == "medium" else [chance, medium, best]
    kept: dict[str, list[np.ndarray]] = {}
    returns: list[float] = []
    for k, act in enumerate(actors):
        room = size * (k + 1) // len(actors)
        while (taken := sum(map(len, kept.get("reward", [])))) < room:
            episode = play(world, act, int(rng.integers(HELDOUT)))
            returns.append(float(episode["reward"].sum()))
            for name, values in episode.items():
                kept.setdefault(name, []).append(values[: room - taken])
    out = {name: torch.from_numpy(np.concatenate(values)) for name, values in kept.items()}
    return out | {"returns": torch.tensor(returns)}


def play(world: Gym, act: Act, start: int) -> dict[str, np.ndarray]:
    """One episode: states, actions, next states [t d], rewards and ends [t]."""
    env = world._envs[0]
    state, _ = env.reset(seed=start)
    rows: list[tuple] = []
    for _ in range(world.max_new_tokens):
        action = np.clip(act(state), -1, 1)
        after, reward, ended, cut, _ = env.step(world.bounded(action))
        rows.append((state, action, after, reward, ended))
        state = after
        if ended or cut:
            break
    states, actions, afters, rewards, ends = zip(*rows, strict=True)
    vectors = dict(states=states, actions=actions, next_states=afters, reward=rewards)
    return {k: np.array(v, np.float32) for k, v in vectors.items()} | {"ended": np.array(ends, bool)}


def noisy(policy: Act, noise: float, rng: np.random.Generator) -> Act:
    """The policy with Gaussian noise on its actions."""
    return lambda state: policy(state) + noise * rng.normal(size=len(policy(state)))


def ars(
    world: Gym,
    budget: int,
    rng: np.random.Generator,
    pairs: int = 8,
    top: int = 4,
    rate: float = 0.05,
    sd: float = 0.05,
) -> tuple[Act, Act]:
    """Linear policies by augmented random search (V2-t): the medium one and the best (see the module)."""
    weights = np.zeros((world.actions, world.observations))
    states = np.concatenate(
        [play(world, _uniform(world, rng), int(s))["states"] for s in rng.integers(HELDOUT, size=8)]
    )
    total, count, squares = states.sum(0), len(states), np.square(states).sum(0)
    chance = np.mean([play(world, _uniform(world, rng), int(s))["reward"].sum() for s in rng.integers(HELDOUT, size=8)])
    spent, found = 0, []
    while spent < budget:
        mean = total / count
        scale = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
        tries = rng.normal(size=(pairs, *weights.shape))
        start = rng.integers(HELDOUT, size=pairs)
        scores = np.zeros((pairs, 2))
        for i in range(pairs):
            for j, sign in enumerate((1, -1)):
                episode = play(world, linear(weights + sign * sd * tries[i], mean, scale), int(start[i]))
                scores[i, j] = episode["reward"].sum()
                spent += len(episode["reward"])
                total, squares = total + episode["states"].sum(0), squares + np.square(episode["states"]).sum(0)
                count += len(episode["reward"])
        best = np.argsort(-scores.max(1))[:top]
        spread = max(float(scores[best].std()), 1e-6)
        found.append((float(scores.mean()), linear(weights.copy(), mean, scale)))
        weights = weights + rate / (top * spread) * np.tensordot(scores[best, 0] - scores[best, 1], tries[best], 1)
    highest = max(score for score, _ in found)
    medium = next(policy for score, policy in found if score >= (chance + highest) / 2)
    return medium, next(policy for score, policy in found if score == highest)


def linear(weights: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Act:
    """`W (s - mean) / scale`."""
    return lambda state: weights @ ((state - mean) / scale)


def _uniform(world: Gym, rng: np.random.Generator) -> Act:
    return lambda _: rng.uniform(-1, 1, world.actions)


def load(rest: str) -> Offline:
    """The task of `offline:<rest>`."""
    env, _, options = rest.partition(":")
    if not env:
        raise InputError("task 'offline': expected offline:<environment>:quality=mixed, such as offline:Hopper-v5")
    where = f"task {f'offline:{rest}'!r}"
    return call(Offline, read_options(options, where), where, env)
