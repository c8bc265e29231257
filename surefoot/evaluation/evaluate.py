"""Evaluate a policy on a task's held-out problems."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from surefoot.evaluation.intervals import bootstrap_interval
from surefoot.evaluation.metrics import summarise
from surefoot.rollout.native import Sampling
from surefoot.rollouts import Rollouts
from surefoot.tasks.base import Task
from surefoot.tasks.play import act, judged
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
        batch = act(policy, task, posed, group, torch.from_numpy(seeds), sampling)
        batches.append(judged(task, posed, torch.arange(start, start + len(posed)), batch))
    return batches


def evaluate(
    policy: Any, task: Task, problems: int = 512, k: int = 16, seed: int = 0, sampling: Sampling | None = None
) -> dict[str, Any]:
    """pass@1, pass@k, maj@k, calibration and intervals on held-out problems (see `evaluation.metrics.summarise`).

    Where a task verifies nothing, or its answers are not texts, the record holds the mean of each reward with its
    interval over problems. `headline` names the number to look at first. To that record a task may add numbers of its
    own, from the judged batches: `summarise(batches, k)`.

    Args:
        sampling: the distribution to sample from; temperature 1 and the task's length limit by default.
    """
    sampling = sampling or Sampling(max_new_tokens=task.max_new_tokens)
    batches = sample_heldout(policy, task, problems, k, seed, sampling)
    own = getattr(task, "summarise", None)
    if own:
        return mean_rewards(batches, k) | own(batches, k)
    if "correct" not in batches[0] or "completion" not in batches[0].notes:
        return mean_rewards(batches, k)
    correct = np.concatenate([b.correct.numpy() for b in batches]).reshape(-1, k)
    logp = np.concatenate([b.rollout_logp.double().sum(1).numpy() for b in batches]).reshape(-1, k)
    length = np.concatenate([b.present.sum(1).numpy() for b in batches]).reshape(-1, k)
    said = [final_answer(c) for b in batches for c in b.notes["completion"]]
    answers = [said[i : i + k] for i in range(0, len(said), k)]
    record = {"headline": "pass@1"} | summarise(correct, logp, length, answers, k)
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


def mean_rewards(batches: list[Rollouts], k: int) -> dict[str, Any]:
    """The mean of each named reward over held-out problems, with its bootstrap interval; the first is the headline."""
    names = list(batches[0].rewards)
    record: dict[str, Any] = {"headline": names[0]}
    for name in names:
        values = [r if r.ndim == 1 else r.sum(1) for r in (b.rewards[name] for b in batches)]
        means = torch.cat(values).double().reshape(-1, k).mean(1).numpy()
        record |= {name: float(means.mean()), f"{name}_interval": bootstrap_interval(means)}
    return record | {"n": len(means), "samples_each": k}


def quick_score(policy: Any, task: Task, problems: int, seed: int, sampling: Sampling) -> tuple[str, float]:
    """Name and value of the task's headline number, on held-out problems with one sample each."""
    batches = sample_heldout(policy, task, problems, 1, seed, sampling)
    if "correct" in batches[0]:
        return "pass@1", float(np.mean(np.concatenate([b.correct.numpy() for b in batches])))
    name, values = next(iter(batches[0].rewards)), [next(iter(b.rewards.values())) for b in batches]
    return name, float(torch.cat([v if v.ndim == 1 else v.sum(1) for v in values]).double().mean())


def shown(record: dict[str, Any], name: str) -> str:
    """A number of a record as text, with its interval where there is one: `68.8% [65.7, 71.7]`, `0.31 [0.28, 0.35]`."""
    share = name.startswith(("pass@", "maj@"))
    low, high = record.get(f"{name}_interval", (None, None))
    if share:
        return f"{100 * record[name]:.1f}%" + ("" if low is None else f" [{100 * low:.1f}, {100 * high:.1f}]")
    return f"{record[name]:.4g}" + ("" if low is None else f" [{low:.4g}, {high:.4g}]")
