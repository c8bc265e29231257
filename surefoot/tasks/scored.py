"""A task whose rewards are learned models.

    scored:by=RUN+RUN+RUN,[gold=RUN,]TASK      (`scored:by=rm1+rm2,rg:chain_sum`)

TASK poses the problems and its own judge says what is `correct`, which is only watched. Every run of `by` (a method
such as `reward-model`) gives a reward `proxy1`, `proxy2`, ...; `gold`, where there is one, the reward `gold`, which is
watched too. Models have no scale of their own: each is standardised on samples of the policy it was taken from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import InputError
from surefoot.rollout.native import Sampling
from surefoot.rollouts import Rollouts
from surefoot.specs import call, leading_options
from surefoot.tasks.base import Problem, Task, answered
from surefoot.tasks.play import act

PROXY, GOLD = "proxy", "gold"


def load(rest: str) -> Scored:
    """The task `scored:<rest>`: options, then the specification of the task that poses the problems.

    Raises:
        InputError: no models, an unknown option, or a policy without a value head.
    """
    from surefoot import policies, tasks

    where = f"task 'scored:{rest}'"
    given, base = leading_options(rest, where)
    if not base or "by" not in given:
        raise InputError(f"{where}: expected scored:by=RUN+RUN,TASK")
    models = {f"{PROXY}{i + 1}": name for i, name in enumerate(str(given.pop("by")).split("+"))}
    models |= {GOLD: str(given.pop(GOLD))} if GOLD in given else {}
    posed = tasks.load(base)
    reference = policies.load(str(given.pop("reference", "pebble")))
    made = {name: RewardModel(policies.load(run)) for name, run in models.items()}
    return call(Scored, given, where, f"scored:{rest}", posed, made, reference)


class RewardModel:
    """A policy's value head as a score of whole responses, frozen.

    Raises:
        InputError: a policy that has no value head.
    """

    def __init__(self, policy: Any):
        if getattr(policy, "value_head", None) is None:
            raise InputError(f"reward model {policy.name!r}: no value head; expected a run of --method reward-model")
        self.policy = policy

    @torch.no_grad()
    def __call__(self, questions: Sequence[str], responses: Sequence[str], chunk: int = 256) -> Float[Tensor, "n"]:
        """The score of each response to its question."""
        scores = []
        for start in range(0, len(responses), chunk):
            asked, said = questions[start : start + chunk], responses[start : start + chunk]
            place = {question: i for i, question in enumerate(dict.fromkeys(asked))}
            group = torch.tensor([place[question] for question in asked])
            table = self.policy.logged(list(place), group, torch.zeros_like(group), said)
            value = self.policy.score(table, {"value"})["value"]
            scores.append(value.gather(1, table.mask.sum(1, keepdim=True) - 1)[:, 0])
        return torch.cat(scores)


class Scored:
    """Problems of `base`, rewarded by models.

    Args:
        models: by the name of the reward.
        reference: the policy on whose samples each model has mean 0 and deviation 1.
        problems, samples: of those samples.
    """

    def __init__(
        self,
        name: str,
        base: Task,
        models: dict[str, RewardModel],
        reference: Any,
        problems: int = 64,
        samples: int = 4,
    ):
        self.name, self.base, self.models, self.reference = name, base, models, reference
        self.train, self.heldout, self.max_new_tokens = base.train, base.heldout, base.max_new_tokens
        self.problems, self.samples = problems, samples

    @cached_property
    def scales(self) -> dict[str, tuple[float, float]]:
        """Mean and deviation of each model on the reference's samples."""
        posed = [self.base.train[i] for i in range(self.problems)]
        group = torch.arange(len(posed)).repeat_interleave(self.samples)
        sampling = Sampling(max_new_tokens=self.max_new_tokens)
        batch = act(self.reference, self.base, posed, group, torch.arange(len(group)) + 77, sampling)
        questions, said = [posed[g].question for g in group.tolist()], batch.notes["completion"]
        scores = {name: model(questions, said).double() for name, model in self.models.items()}
        return {name: (float(s.mean()), float(s.std().clamp_min(1e-6))) for name, s in scores.items()}

    def demonstrations(self, rng: np.random.Generator, count: int) -> list[list[tuple[str, bool]]]:
        """Training questions with their answers."""
        return answered(self.name, self.train, rng, count)

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts:
        """The standardised score of each model as a reward; `correct` from the task's own judge."""
        questions, said = [p.question for p in problems], rollouts.notes["completion"]
        rewards = {}
        for name, model in self.models.items():
            mean, deviation = self.scales[name]
            rewards[name] = (model(questions, said) - mean) / deviation
        watched = self.base.judge(problems, rollouts)
        return rollouts.having(rewards=rewards, correct=watched.correct)
