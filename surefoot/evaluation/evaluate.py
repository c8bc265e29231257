"""Evaluate a policy on a task's held-out problems."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from surefoot.evaluation.metrics import summarise
from surefoot.rollout.native import Sampling
from surefoot.rollouts import Rollouts
from surefoot.tasks.base import Task
from surefoot.tasks.verifiers import final_answer

SHOWN = 24  # problems whose samples are kept for the report


def sample_heldout(
    policy: Any, task: Task, problems: int, k: int, seed: int, sampling: Sampling, rows: int = 1024
) -> list[Rollouts]:
    """Judged samples of the first `problems` held-out problems, k each, about `rows` trajectories at a time.

    The seeds depend on (seed, problem, sample) alone, so that two policies, or two checkpoints, meet the same draws.
    """
    problems = min(problems, len(task.heldout))
    batches, size = [], max(1, rows // k)
    for start in range(0, problems, size):
        index = range(start, min(problems, start + size))
        posed = [task.heldout[i] for i in index]
        group = torch.arange(len(posed)).repeat_interleave(k)
        seeds = np.stack([np.random.default_rng([seed, 4, i]).integers(0, 2**62, k) for i in index]).ravel()
        batch = policy.sample([p.question for p in posed], group, torch.from_numpy(seeds), sampling)
        judged = [posed[g] for g in group.tolist()]
        notes = {"question": [p.question for p in judged], "answer": [p.answer for p in judged]}
        batches.append(task.judge(judged, batch.having(prompt=start + group, notes=notes)))
    return batches


def evaluate(
    policy: Any, task: Task, problems: int = 512, k: int = 16, seed: int = 0, sampling: Sampling | None = None
) -> dict[str, Any]:
    """pass@1, pass@k, maj@k, calibration and intervals on held-out problems (see `evaluation.metrics.summarise`).

    Args:
        sampling: the distribution to sample from; temperature 1 and the task's length limit by default.
    """
    sampling = sampling or Sampling(max_new_tokens=task.max_new_tokens)
    batches = sample_heldout(policy, task, problems, k, seed, sampling)
    correct = np.concatenate([b.correct.numpy() for b in batches]).reshape(-1, k)
    logp = np.concatenate([b.rollout_logp.double().sum(1).numpy() for b in batches]).reshape(-1, k)
    length = np.concatenate([b.present.sum(1).numpy() for b in batches]).reshape(-1, k)
    said = [final_answer(c) for b in batches for c in b.notes["completion"]]
    answers = [said[i : i + k] for i in range(0, len(said), k)]
    record = summarise(correct, logp, length, answers, k)
    first = batches[0]
    record["samples"] = [
        {
            "question": first.notes["question"][i],
            "answer": first.notes["answer"][i],
            "completion": first.notes["completion"][i],
            "correct": bool(first.correct[i]),
        }
        for i in range(0, min(len(first), SHOWN * k), k)
    ]
    return record


def quick_accuracy(policy: Any, task: Task, problems: int, seed: int, sampling: Sampling) -> float:
    """Share of held-out problems answered correctly with one sample each."""
    batches = sample_heldout(policy, task, problems, 1, seed, sampling)
    return float(np.mean(np.concatenate([b.correct.numpy() for b in batches])))
