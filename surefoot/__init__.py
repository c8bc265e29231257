"""Surefoot: policy optimization that keeps its footing.

    import surefoot as sf
    result = sf.train(policy="pebble", task="rg:gcd", method="dr-grpo")

Names are loaded when they are first used, so that `import surefoot` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "train": "surefoot.training.loop",
    "resume": "surefoot.training.loop",
    "Result": "surefoot.training.loop",
    "compare": "surefoot.comparison",
    "evaluate": "surefoot.api",
    "load_policy": "surefoot.api",
    "Method": "surefoot.method",
    "Paper": "surefoot.method",
    "Update": "surefoot.method",
    "Part": "surefoot.parts",
    "Rollouts": "surefoot.rollouts",
    "Column": "surefoot.rollouts",
    "declare": "surefoot.rollouts",
    "Problem": "surefoot.tasks.base",
    "TextTask": "surefoot.tasks.base",
    "CausalLM": "surefoot.policies.causal_lm",
    "Sampling": "surefoot.rollout.native",
    "InputError": "surefoot.errors",
    "GuardStop": "surefoot.errors",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from surefoot.api import evaluate, load_policy
    from surefoot.comparison import compare
    from surefoot.errors import GuardStop, InputError
    from surefoot.method import Method, Paper, Update
    from surefoot.parts import Part
    from surefoot.policies.causal_lm import CausalLM
    from surefoot.rollout.native import Sampling
    from surefoot.rollouts import Column, Rollouts, declare
    from surefoot.tasks.base import Problem, TextTask
    from surefoot.training.loop import Result, resume, train


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'surefoot' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
