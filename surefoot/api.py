"""The command's verbs as functions."""

from __future__ import annotations

from typing import Any

from surefoot import tasks
from surefoot.evaluation import evaluate as _evaluation
from surefoot.policies.causal_lm import CausalLM
from surefoot.rollout.native import Sampling


def load_policy(name: str, **options: Any) -> CausalLM:
    """A causal language model by shipped or cached name, folder, or Hugging Face id (see `CausalLM.load`)."""
    return CausalLM.load(name, **options)


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
    """Held-out pass@1, pass@k, maj@k and calibration with 95 % intervals (see `evaluation.metrics.summarise`)."""
    loaded = load_policy(policy) if isinstance(policy, str) else policy
    return _evaluation.evaluate(loaded, tasks.load(task, reward), problems, k, seed, sampling)
