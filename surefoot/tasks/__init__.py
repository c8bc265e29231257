"""Tasks by name: `load("rg:gcd")`, `load("problems.jsonl", reward="math")`, or one registered here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from surefoot.errors import InputError, nearest
from surefoot.specs import kinds
from surefoot.tasks.base import Problem, RewardFunction, Task, TextTask

__all__ = ["Problem", "Task", "TextTask", "fetch", "load", "register"]

DEFAULT = "rg:chain_sum:min_terms=2,max_terms=4,min_digits=2,max_digits=2"
_REGISTERED: dict[str, Callable[[], Task]] = {}


def register(name: str) -> Callable[[Callable[[], Task]], Callable[[], Task]]:
    """Give a task of one's own a name: a decorator of a function that makes it."""

    def keep(make: Callable[[], Task]) -> Callable[[], Task]:
        _REGISTERED[name] = make
        return make

    return keep


def load(spec: str | Task, reward: str | RewardFunction | None = None) -> Task:
    """The task of a specification: `rg:<dataset>[:key=value,...]`, a JSONL or Parquet path, `<kind>[:...]` for another
    kind of this package (a module with a function `load(rest) -> Task`), or a registered name.

    Raises:
        InputError: nothing of that name; a reward where the task brings its own, or none where it needs one.
    """
    if not isinstance(spec, str):
        return spec
    from surefoot.tasks.files import FileTask
    from surefoot.tasks.reasoning_gym import ReasoningGym
    from surefoot.tasks.verifiers import reward_function

    if spec.startswith("rg:") or spec in _REGISTERED:
        if reward:
            raise InputError(f"task {spec!r} brings its own reward; --reward is for files")
        return _REGISTERED[spec]() if spec in _REGISTERED else ReasoningGym(spec)
    kind, _, rest = spec.partition(":")
    if kind in kinds(__name__):
        return importlib.import_module(kinds(__name__)[kind]).load(rest)
    if spec.endswith((".jsonl", ".json", ".parquet")) or Path(spec).is_file():
        if not reward:
            raise InputError(f"task {spec!r}: a file needs a reward; give --reward exact, math or module:function")
        return FileTask(spec, reward_function(reward) if isinstance(reward, str) else reward)
    raise InputError(
        f"task {spec!r}: expected rg:<dataset>[:key=value,...], a .jsonl or .parquet path, or a registered "
        f"task{nearest(spec, [*_REGISTERED, *kinds(__name__), DEFAULT])}"
    )


def fetch(spec: str) -> Path:
    """Where the data of a task lie in the cache (its `path`), made first if they are not there.

    Raises:
        InputError: as `load`, and for a task that keeps nothing in the cache.
    """
    path = getattr(load(spec), "path", None)
    if path is None:
        raise InputError(f"task {spec!r}: keeps no data in the cache, so there is nothing to fetch")
    return path
