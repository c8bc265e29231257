"""Rewards that check an answer: exact match, mathematical equality, or a function of one's own."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path
from typing import Any

from reasoning_gym.utils import extract_answer

from surefoot.errors import InputError, nearest
from surefoot.tasks.base import RewardFunction


def final_answer(completion: str) -> str:
    """The text between the last `<answer>` tags, else the last line that is not empty."""
    tagged = extract_answer(completion)
    if tagged is not None:
        return tagged
    lines = [line for line in completion.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def exact(completions: list[str], answers: list[str]) -> list[float]:
    """1 where the final answer is the reference answer, up to white space at the ends; else 0."""
    return [float(final_answer(c) == str(a).strip()) for c, a in zip(completions, answers, strict=True)]


def math(completions: list[str], answers: list[str]) -> list[float]:
    """1 where math-verify finds the final answer mathematically equal to the reference; else 0."""
    from math_verify import parse, verify

    main = threading.current_thread() is threading.main_thread()  # math-verify's time limit is an alarm signal
    limit: Any = 5 if main else None

    def equal(completion: str, answer: str) -> float:
        gold = parse(f"${answer}$", parsing_timeout=limit)
        said = final_answer(completion)
        readings = (parse(text, parsing_timeout=limit) for text in (f"${said}$", said))
        return float(any(verify(gold, reading, timeout_seconds=limit) for reading in readings))

    return [equal(c, str(a)) for c, a in zip(completions, answers, strict=True)]


NAMED: dict[str, RewardFunction] = {"exact": exact, "math": math}


def reward_function(name: str) -> RewardFunction:
    """`exact`, `math`, or `module:function` (a module on the path or in the working folder).

    Raises:
        InputError: an unknown name, or a module or function that cannot be found.
    """
    if name in NAMED:
        return NAMED[name]
    module, _, function = name.partition(":")
    if not function:
        raise InputError(f"reward {name!r}: expected 'exact', 'math' or 'module:function'{nearest(name, NAMED)}")
    if (Path.cwd() / f"{module.split('.')[0]}.py").is_file() and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as e:
        raise InputError(f"reward {name!r}: {e}") from None
