"""What a task is: problems to pose, and a judge of what came of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from surefoot.errors import InputError
from surefoot.rollouts import Rollouts


@dataclass(frozen=True)
class Problem:
    """One prompt and what is needed to judge an answer to it."""

    question: str
    answer: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict, compare=False)


class Task(Protocol):
    """Gives problems and judges trajectories.

    `train` and `heldout` never share a question. `judge` returns the table with named `rewards` and, where the task
    can verify, `correct`.
    """

    name: str
    train: Sequence[Problem]
    heldout: Sequence[Problem]
    max_new_tokens: int

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts: ...


RewardFunction = Callable[..., Sequence[float] | Mapping[str, Sequence[float]]]


class TextTask:
    """Problems in text with a reward function over whole batches.

    Args:
        name: shown in run folders and reports.
        train, heldout: problems by index.
        reward: called with the keywords it names among `completions`, `answers`, `questions` and `problems`; returns
            a number for each completion, or several named lists. A reward of 1 counts as correct.
        max_new_tokens: length at which an answer is cut, unless the method's rollout part says otherwise.

    Raises:
        InputError: a split without problems; a reward that raises, returns another number of values, or a value that
            is not finite (the message names the reward, the problem and the value).
    """

    def __init__(
        self,
        name: str,
        train: Sequence[Problem],
        heldout: Sequence[Problem],
        reward: RewardFunction,
        max_new_tokens: int = 256,
    ):
        if not len(train) or not len(heldout):
            raise InputError(
                f"task {name!r}: {len(train)} training and {len(heldout)} held-out problems; "
                f"expected at least one of each"
            )
        self.name, self.train, self.heldout = name, train, heldout
        self.reward, self.max_new_tokens = reward, max_new_tokens
        self._keywords = _accepted(reward)

    def demonstrations(self, rng: np.random.Generator, count: int) -> list[list[tuple[str, bool]]]:
        """Conversations to learn from: pieces of text, each with whether the policy says it."""
        return answered(self.name, self.train, rng, count)

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts:
        """Add each named reward [n], and `correct` from the reward `accuracy` (or the only reward)."""
        completions = rollouts.notes["completion"]
        offered = {
            "completions": completions,
            "answers": [p.answer for p in problems],
            "questions": [p.question for p in problems],
            "problems": list(problems),
        }
        label = getattr(self.reward, "__name__", type(self.reward).__name__)
        try:
            result = self.reward(**{k: v for k, v in offered.items() if k in self._keywords})
        except InputError:
            raise
        except Exception as e:
            raise InputError(f"task {self.name!r}: reward {label!r} raised {type(e).__name__}: {e}") from e
        named = result if isinstance(result, Mapping) else {"accuracy": result}
        rewards = {name: _checked(self.name, name, values, problems) for name, values in named.items()}
        decisive = rewards.get("accuracy", next(iter(rewards.values())))
        return rollouts.having(rewards=rewards, correct=decisive >= 1 - 1e-6)


def _accepted(function: Callable) -> set[str]:
    offered = {"completions", "answers", "questions", "problems"}
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return offered
    required = {p.name for p in parameters if p.default is p.empty}
    if required - offered:
        raise InputError(
            f"reward {getattr(function, '__name__', function)!r} asks for {min(required - offered)!r}; "
            f"expected names among {', '.join(sorted(offered))}"
        )
    return {p.name for p in parameters} & offered


def answered(task: str, train: Sequence[Problem], rng: np.random.Generator, count: int) -> list[list[tuple[str, bool]]]:
    """Training questions (of the first 8192), each with its answer in its tags, without work.

    Raises:
        InputError: a question without an answer.
    """
    drawn = [train[int(i)] for i in rng.integers(min(len(train), 8192), size=count)]
    if any(p.answer is None for p in drawn):
        raise InputError(f"task {task!r} has no answers to learn from")
    return [[(p.question, False), (f"<answer>{p.answer}</answer>", True)] for p in drawn]


def _checked(task: str, name: str, values: Any, problems: Sequence[Problem]) -> torch.Tensor:
    try:
        listed = [float(v) for v in values]
    except (TypeError, ValueError):
        raise InputError(
            f"task {task!r}: reward {name!r} returned {str(values)[:80]!r}; expected {len(problems)} numbers"
        ) from None
    if len(listed) != len(problems):
        raise InputError(
            f"task {task!r}: reward {name!r} returned {len(listed)} values for {len(problems)} completions"
        )
    for value, problem in zip(listed, problems, strict=True):
        if not math.isfinite(value):
            raise InputError(
                f"task {task!r}: reward {name!r} is {value} for the question "
                f"{problem.question.strip()[:60]!r}; expected a finite number"
            )
    return torch.tensor(listed, dtype=torch.float32)
