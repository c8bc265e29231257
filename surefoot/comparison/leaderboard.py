"""Every method against every other on several tasks, equally tuned, and what larger learning rates do to each.

Three stages, each a set of runs that is made once and found again:

    tune      each method, one task, one seed of its own, at several learning rates: the best by training accuracy
    compare   each method, each task, each seed, at the learning rate that tuning chose
    stress    each method, one task, each seed, at multiples of the default learning rate: which runs collapse

Tuning looks at training problems alone, so the held-out problems of the comparison are touched once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surefoot import methods as library
from surefoot import tasks
from surefoot.comparison.compare import check, command, keep_plan
from surefoot.comparison.launch import Job, RunsFailed, run_jobs
from surefoot.comparison.results import Comparison, compare_runs
from surefoot.evaluation.evaluate import sample_heldout
from surefoot.evaluation.intervals import clopper_pearson
from surefoot.files import write_aside
from surefoot.policies.causal_lm import CausalLM
from surefoot.report.data import finite, read_config, read_evaluation, read_lines
from surefoot.rollout.native import Sampling
from surefoot.training.checkpoint import checkpoints

TASKS = (tasks.DEFAULT, "rg:gcd:min_value=2,max_value=60", "rg:letter_counting:min_words=1,max_words=3")
TUNING_SEED = 1000
SPIKE = 5.0  # a gradient norm above this many running medians is a spike


@dataclass(frozen=True)
class Plan:
    """What a leaderboard compares, and how much of it.

    Attributes:
        methods: slugs.
        tasks: specifications; the first is also that of tuning and stress.
        factors: of the policy's suggested learning rate, tried in tuning.
        stress: multiples of the suggested learning rate.
        problems, samples: held-out problems and samples of each final evaluation.
        stress_samples: the same under stress, where only a fall of pass@1 is looked for.
    """

    methods: tuple[str, ...]
    tasks: tuple[str, ...] = TASKS
    policy: str = "pebble"
    seeds: int = 3
    steps: int = 30
    factors: tuple[float, ...] = (0.3, 1.0, 3.0)
    stress: tuple[float, ...] = (3.0, 10.0)
    problems: int = 256
    samples: int = 16
    stress_samples: int = 4

    def shared(self) -> dict[str, Any]:
        """What all runs of one folder have in common, as plain data; methods and seeds may be added later."""
        return json.loads(json.dumps({k: v for k, v in asdict(self).items() if k not in ("methods", "seeds")}))


@dataclass(frozen=True)
class Entry:
    """One method on one task, means over seeds.

    Attributes:
        gain, low, high: points of pass@1 won in training, with the 95 % interval of the comparison's own test.
        kl: nats a token to the policy before training, on the trained policy's own samples (k1).
        ece: expected calibration error of the likelihood per token.
        spikes: steps whose gradient norm was above 5 running medians, a run.
    """

    task: str
    method: str
    lr: float
    pass1: float
    low: float
    high: float
    before: float
    passk: float
    passk_before: float
    entropy: float
    kl: float
    ece: float
    spikes: float
    seconds: float


@dataclass(frozen=True)
class Stressed:
    """Runs of one method at a multiple of the default learning rate.

    A run has collapsed if it stopped on a number that is not finite, or ends with a lower pass@1 than it began with.
    """

    method: str
    factor: float
    runs: int
    collapsed: int
    pass1: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the collapse rate (Clopper-Pearson)."""
        return clopper_pearson(self.collapsed, self.runs)


@dataclass(frozen=True)
class Leaderboard:
    """What was found. `comparisons` has a `Comparison` a task, with its paired tests."""

    plan: Plan
    entries: tuple[Entry, ...]
    stressed: tuple[Stressed, ...]
    tuning: dict[str, dict[float, float]]
    comparisons: dict[str, Comparison]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in `leaderboard.json`."""
        return finite(
            {
                "plan": asdict(self.plan),
                "entries": [asdict(e) for e in self.entries],
                "stressed": [asdict(s) | {"interval": s.interval} for s in self.stressed],
                "tuning": {m: {str(lr): v for lr, v in t.items()} for m, t in self.tuning.items()},
                "pairs": {t: c.to_dict()["pairs"] for t, c in self.comparisons.items()},
            }
        )


def leaderboard(plan: Plan, out: Path, jobs: int = 1, ray: str | None = None, progress: bool = True) -> Leaderboard:
    """Run all three stages (what is finished is not run again) and write `leaderboard.json` to `out`.

    Raises:
        InputError: an unknown method or task, or a folder of another leaderboard.
        RunsFailed: runs that failed for another reason than a guard; the others are kept.
        Stopped: Ctrl-C; the same call goes on.
    """
    chosen = {name: library.find(name) for name in plan.methods}
    check(plan.methods, chosen, range(plan.seeds), {}, jobs)
    for task in plan.tasks:
        tasks.load(task, None)
    keep_plan(out, plan.shared())
    suggested = CausalLM.load(plan.policy).suggested_lr

    def run(made: Sequence[Job]) -> None:
        launch(made, jobs, ray, progress)

    rates = [factor * suggested for factor in plan.factors]
    trials = {m: {lr: _job(plan, m, plan.tasks[0], lr, TUNING_SEED, out / "tune") for lr in rates} for m in chosen}
    run([job for row in trials.values() for job in row.values()])
    tuning = {m: {lr: learned(job.folder) for lr, job in row.items()} for m, row in trials.items()}
    best = {m: max(row, key=lambda lr: row[lr]) for m, row in tuning.items()}

    seeds = range(plan.seeds)
    grid = {
        task: {m: [_job(plan, m, task, best[m], s, out / "compare" / _folder(task)) for s in seeds] for m in chosen}
        for task in plan.tasks
    }
    run([job for row in grid.values() for made in row.values() for job in made])

    brief = replace(plan, samples=plan.stress_samples)
    pushed = {
        (m, factor): [_job(brief, m, plan.tasks[0], factor * suggested, s, out / "stress") for s in seeds]
        for m in chosen
        for factor in plan.stress
    }
    run([job for made in pushed.values() for job in made])

    comparisons, entries = {}, []
    for task, row in grid.items():
        whole = {m: [j.folder for j in made] for m, made in row.items() if all(j.finished for j in made)}
        comparisons[task] = compare_runs(whole, out / "compare" / _folder(task))
        entries += [_entry(task, best[r.name], r, whole[r.name]) for r in comparisons[task].rows]
    stressed = [_stressed(m, factor, made) for (m, factor), made in pushed.items()]
    found = Leaderboard(plan, tuple(entries), tuple(stressed), tuning, comparisons)
    write_aside(out / "leaderboard.json", json.dumps(found.to_dict(), indent=1).encode())
    return found


def launch(made: Sequence[Job], jobs: int, ray: str | None, progress: bool) -> None:
    """Run what has not ended; a run that a guard stopped has ended, and counts as what it is."""
    waiting = [job for job in made if not job.finished and not stopped(job.folder)]
    try:
        run_jobs(waiting, jobs, ray, progress)
    except RunsFailed:
        if any(not job.finished and not stopped(job.folder) for job in waiting):
            raise


def stopped(folder: Path) -> bool:
    """A guard stopped the run: a loss, reward or gradient was not finite."""
    return any(e.get("kind") == "stop" for e in read_lines(folder / "events.jsonl"))


def learned(folder: Path) -> float:
    """Mean training accuracy over the last third of a run's steps; minus infinity where a guard stopped it."""
    if stopped(folder):
        return -np.inf
    steps = [line.get("correct", line["reward"]) for line in read_lines(folder / "metrics.jsonl")]
    return float(np.mean(steps[-max(1, len(steps) // 3) :]))


def spikes(folder: Path) -> int:
    """Steps whose gradient norm was above `SPIKE` times the median of those before it (from the sixth on)."""
    norms = np.array([line["grad_norm"] for line in read_lines(folder / "metrics.jsonl")])
    return int(sum(norms[i] > SPIKE * np.median(norms[:i]) for i in range(5, len(norms))))


def drift(folder: Path, prompts: int = 128) -> float:
    """KL to the policy before training, nats a token, from the trained policy's samples; kept beside the run."""
    kept = folder / "drift.json"
    if kept.is_file():
        return json.loads(kept.read_text())["kl"]
    config = read_config(folder)[1]
    task = tasks.load(config["task"], config.get("reward") or None)
    trained = CausalLM.load(str(checkpoints(folder / "checkpoints")[-1]))
    start = CausalLM.load(config["policy"])
    batches = sample_heldout(trained, task, prompts, 4, TUNING_SEED, Sampling(max_new_tokens=task.max_new_tokens))
    gap = tokens = 0.0
    with torch.no_grad():
        for batch in batches:
            gap += float((batch.rollout_logp - start.score(batch, {"logp"})["logp"])[batch.present].sum())
            tokens += float(batch.present.sum())
    write_aside(kept, json.dumps({"kl": gap / max(1.0, tokens)}).encode())
    return gap / max(1.0, tokens)


def _job(plan: Plan, method: str, task: str, lr: float, seed: int, folder: Path) -> Job:
    path = folder / method / f"lr-{lr:.3g}" / f"seed-{seed}"
    tuning = seed == TUNING_SEED
    shared = {
        "policy": plan.policy,
        "task": task,
        "steps": plan.steps,
        "reward": None,
        "set": {
            "train.lr": repr(lr),
            "train.eval_every": "0",
            "train.log_rollouts": "false",
            "train.keep": "1",
            "train.final_problems": "8" if tuning else str(plan.problems),
            "train.final_samples": "2" if tuning else str(plan.samples),
        },
    }
    return Job(f"{method} on {_folder(task)[:20]}, lr {lr:.1e},", seed, path, command(method, seed, path, shared))


def _folder(task: str) -> str:
    """A folder name of its own for each task: what is folded or cut from any but the usual ones, a digest tells."""
    name = "".join(c if c.isalnum() else "-" for c in task)[:60]
    return name if task in TASKS else f"{name[:51]}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"


def _entry(task: str, lr: float, row: Any, folders: Sequence[Path]) -> Entry:
    records = [read_evaluation(path) for path in folders]

    def mean(key: str, when: str = "after") -> float:
        return float(np.mean([r[when][key] for r in records]))

    k = f"pass@{records[0]['k']}"
    return Entry(
        task=task,
        method=row.name,
        lr=lr,
        pass1=row.mean,
        low=row.low,
        high=row.high,
        before=row.before,
        passk=row.best,
        passk_before=mean(k, "before"),
        entropy=mean("entropy"),
        kl=float(np.mean([drift(path) for path in folders])),
        ece=mean("ece"),
        spikes=float(np.mean([spikes(path) for path in folders])),
        seconds=row.seconds,
    )


def _stressed(method: str, factor: float, made: Sequence[Job]) -> Stressed:
    ends = []
    for job in made:
        record = read_evaluation(job.folder)
        ends.append(None if stopped(job.folder) else (record["before"]["pass@1"], record["after"]["pass@1"]))
    collapsed = sum(end is None or end[1] < end[0] for end in ends)
    alive = [end[1] for end in ends if end is not None]
    return Stressed(method, factor, len(ends), collapsed, float(np.mean(alive)) if alive else float("nan"))
