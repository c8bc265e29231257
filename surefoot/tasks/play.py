"""A policy meets the problems of a task: trajectories, and what they are judged to be worth.

Most tasks pose a question and judge the answer, and the policy samples by itself. A task that is a world of its own (an
environment, tools that answer, logged data, pairs that somebody preferred) has

    rollout(policy, problems, group, seeds, sampling) -> Rollouts

and makes the trajectories with what it asks of its policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from surefoot.rollouts import Rollouts
from surefoot.tasks.base import Problem, Task


def act(
    policy: Any,
    task: Task,
    problems: Sequence[Problem],
    group: Int[Tensor, "n"],
    seeds: Int[Tensor, "n"],
    sampling: Any,
) -> Rollouts:
    """One trajectory for each entry of `group`, which indexes `problems`; not judged yet."""
    own = getattr(task, "rollout", None)
    if own:
        return own(policy, problems, group, seeds, sampling)
    return policy.sample([p.question for p in problems], group, seeds, sampling)


def judged(task: Task, problems: Sequence[Problem], prompt: Int[Tensor, "m"], batch: Rollouts) -> Rollouts:
    """The batch with its prompts' indices, questions and answers, and the task's rewards."""
    rows = [problems[g] for g in batch.group.tolist()]
    notes = {"question": [p.question for p in rows], "answer": [p.answer for p in rows]}
    return task.judge(rows, batch.having(prompt=prompt[batch.group], notes=notes))
