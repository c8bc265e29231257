"""Step time as the work grows: group size, length, vocabulary, parts that read. One trainer a point, alternating.

Every axis changes one number of the case `pebble-fixed`; the points of an axis take turns, so that a noisy minute falls
on all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from surefoot.bench.cases import CASES, Case, trivial_reward
from surefoot.bench.sides import make_trainer
from surefoot.objective.divergences import KL, k3
from surefoot.tasks.base import TextTask
from surefoot.training.trainer import Trainer

BASE = CASES["pebble-fixed"]
AXES: dict[str, tuple[int, ...]] = {
    "group": (4, 8, 16, 32),
    "length": (16, 32, 64, 128),
    "vocabulary": (104, 1024, 4096, 16384),
    "parts": (1, 2, 4, 8),
    "judge": (1, 30, 100, 300),
    "judge-ahead": (1, 30, 100, 300),
}
MEANING = {
    "group": "completions of each of 8 prompts, 32 tokens each",
    "length": "tokens of each of 64 completions",
    "vocabulary": "tokens in the vocabulary (the model's own rows, then random ones), 64 completions of 32 tokens",
    "parts": "KL regularizers that all read the reference's column, which is computed once",
    "judge": "milliseconds that a batch's judge waits for an answer over the network, completions ending as they do",
    "judge-ahead": "the same, with the next batch judged beside the update (`train.ahead=1`)",
}


def trainer_at(axis: str, value: int, base: Case = BASE) -> Trainer:
    """The trainer of one point of an axis."""
    if axis == "group":
        return make_trainer(replace(base, group=value), "cpu")
    if axis == "length":
        return make_trainer(replace(base, limit=value), "cpu")
    if axis in ("judge", "judge-ahead"):
        # Nothing is suppressed, so that what the engine says is what the policy would.
        return _waiting(make_trainer(replace(base, fixed=False), "cpu"), value / 1000, int(axis == "judge-ahead"))
    trainer = make_trainer(base, "cpu")
    if axis == "parts":
        kl = KL(k3, base.beta / value)
        trainer.method = replace(trainer.method, regularizers=(kl,) * value)
        return trainer
    trainer.policy.model.resize_token_embeddings(value)
    return Trainer(trainer.policy, trainer.task, trainer.method, trainer.settings)


@dataclass(frozen=True)
class Waiting:
    """The case's reward, after `seconds` in which nothing is computed."""

    seconds: float

    def __call__(self, completions: Sequence[str], answers: Sequence[str]) -> list[float]:
        time.sleep(self.seconds)
        return trivial_reward(completions)


def _waiting(trainer: Trainer, seconds: float, ahead: int) -> Trainer:
    plain = trainer.task
    task = TextTask(plain.name, plain.train, plain.heldout, Waiting(seconds), plain.max_new_tokens)
    return Trainer(trainer.policy, task, trainer.method, replace(trainer.settings, ahead=ahead, steps=10**6))


def curve(
    axis: str, values: Sequence[int], steps: int, make: Callable[[str, int], Trainer] = trainer_at
) -> dict[str, Any]:
    """Median seconds of a step at each value, and the slope of log seconds over log value."""
    trainers = {value: make(axis, value) for value in values}
    taken: dict[int, list[Mapping[str, float]]] = {value: [] for value in values}
    for step in range(steps + 1):
        for value, trainer in trainers.items():
            seconds = trainer.train_step().seconds
            started = time.perf_counter()
            trainer.settle()  # what is sampled ahead would go on beside the others' steps, and cost nothing
            waited = time.perf_counter() - started
            seconds |= {name: seconds[name] + waited for name in ("total", "rollout")}
            if step:
                taken[value].append(seconds)
    medians = {
        phase: [statistics.median(s[phase] for s in taken[v]) for v in values]
        for phase in ("total", "rollout", "score", "update")
    }
    return {
        "axis": axis,
        "values": list(values),
        "seconds": medians,
        "slopes": {phase: slope(values, numbers) for phase, numbers in medians.items()},
    }


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The exponent of growth: the slope of log seconds over log size, by least squares.

    >>> round(slope([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def table(found: Mapping[str, Any]) -> str:
    """One axis as lines for a terminal and, as they are, for a page."""
    lines = [f"| {found['axis']} | step (s) | generation | scoring | update |", "|---|---|---|---|---|"]
    for i, value in enumerate(found["values"]):
        cells = " | ".join(f"{found['seconds'][p][i]:.3f}" for p in ("total", "rollout", "score", "update"))
        lines.append(f"| {value} | {cells} |")
    cells = " | ".join(f"{found['slopes'][p]:.2f}" for p in ("total", "rollout", "score", "update"))
    return "\n".join([*lines, f"| log-log slope | {cells} |"])
