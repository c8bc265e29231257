"""The command's verbs as functions."""

from __future__ import annotations

from typing import Any

from surefoot import policies, tasks
from surefoot.evaluation import evaluate as _evaluation
from surefoot.rollout.native import Sampling


def load_policy(spec: str, task: Any = None, lora: int = 0) -> Any:
    """A policy by its specification: a causal language model, or another kind with its options (`policies.load`)."""
    return policies.load(spec, task, lora)


def evaluate(
    policy: str | Any,
    task: str | Any = tasks.DEFAULT,
    *,
    problems: int = 512,
    k: int = 16,
    seed: int = 0,
    sampling: Sampling | None = None,
    reward: Any = None,
) -> dict[str, Any]:
    """Held-out pass@1, pass@k, maj@k and calibration with 95 % intervals (see `evaluation.evaluate.evaluate`)."""
    task = tasks.load(task, reward)
    loaded = load_policy(policy, task) if isinstance(policy, str) else policy
    return _evaluation.evaluate(loaded, task, problems, k, seed, sampling)
