"""Train several methods with several seeds, then compare them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from surefoot import methods as library
from surefoot import tasks
from surefoot.comparison.launch import Job, run_jobs
from surefoot.comparison.output import write
from surefoot.comparison.results import Comparison, compare_runs
from surefoot.errors import InputError
from surefoot.files import write_aside
from surefoot.method import Method
from surefoot.tasks.base import Task
from surefoot.training.loop import apply_overrides, resume, train
from surefoot.training.settings import Settings


def compare(
    methods: Sequence[str | Method],
    task: str | Task = tasks.DEFAULT,
    policy: str = "pebble",
    *,
    seeds: int | Sequence[int] = 3,
    steps: int | None = None,
    out: str | Path | None = None,
    set: Mapping[str, Any] | None = None,  # noqa: A002 (the command's word)
    reward: str | None = None,
    jobs: int = 1,
    ray: str | None = None,
    progress: bool = True,
) -> Comparison:
    """Train every method with every seed, each run in its own process, and say which differences are real.

    The run of a method and seed is `out/<method>/seed-<seed>`; a finished one is not run again and an interrupted one
    goes on from its checkpoint, so the same call can be repeated until it is done, or with more methods or seeds.
    Writes `comparison.json`, `comparison.md` and `comparison.png` to `out`.

    Args:
        methods: slugs, `module:OBJECT` for methods of one's own, or Method objects.
        task: a specification, or a task object. Where an object is given, the runs happen in this process, one by one.
        seeds: how many (0, 1, ...), or which.
        set: overrides for every method and the trainer, such as `{"train.lr": 1e-3}`.
        jobs: runs at a time on this machine; the cores are shared among them.
        ray: address of a Ray cluster (`local` starts one here) that runs the jobs instead; `out` must be on a disk that
            its machines share.

    Raises:
        InputError: an unknown method, task or field; a folder of another comparison; Ray asked for and not installed.
        RunsFailed: runs that failed; the others are kept.
    """
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    chosen = {label(m): library.find(m) if isinstance(m, str) else m for m in methods}
    check(methods, chosen, numbers, set or {}, jobs)
    posed = tasks.load(task, reward)
    folder = Path(out) if out else Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-compare"
    plan = {
        "task": task if isinstance(task, str) else posed.name,
        "policy": policy,
        "steps": steps,
        "reward": reward,
        "set": {k: str(v) for k, v in (set or {}).items()},
    }
    keep_plan(folder, plan)
    grid = {name: [folder / name.replace(":", "-") / f"seed-{seed}" for seed in numbers] for name in chosen}
    named = all(isinstance(m, str) for m in (*methods, task))
    made = [
        Job(name, seed, path, command(name, seed, path, plan))
        for name, paths in grid.items()
        for seed, path in zip(numbers, paths, strict=True)
    ]
    if not named:
        made = [replace(job, here=partial(train_here, job, chosen[job.method], posed, plan)) for job in made]
    run_jobs(made, at_once=jobs, ray_address=ray, progress=progress)
    comparison = compare_runs(grid, folder)
    write(comparison)
    return comparison


def label(method: str | Method) -> str:
    """The name of a method in the comparison, and of its folder."""
    return method if isinstance(method, str) else method.name


def check(
    methods: Sequence[str | Method],
    chosen: Mapping[str, Method],
    seeds: Sequence[int],
    overrides: Mapping[str, Any],
    jobs: int,
) -> None:
    """Refuse what could only fail later, in every run."""
    if not methods or not len(seeds):
        raise InputError(f"compare: {len(methods)} methods and {len(seeds)} seeds; expected at least one of each")
    names = [label(m) for m in methods]
    repeated = [m for m in names if names.count(m) > 1] + [s for s in seeds if list(seeds).count(s) > 1]
    if repeated:
        raise InputError(f"compare: {repeated[0]!r} is given twice")
    if jobs < 1:
        raise InputError(f"compare: {jobs} jobs at a time; expected at least 1")
    for method in chosen.values():
        method, settings = apply_overrides(method, Settings(), overrides)
        method.check()
        if not settings.final_problems or not settings.final_samples:
            raise InputError(
                "compare: train.final_problems and train.final_samples must be above 0; they are what is compared"
            )


def keep_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Write what all runs of the folder share; refuse a folder that was made with something else."""
    path = folder / "plan.json"
    if path.is_file():
        known = json.loads(path.read_text())
        for key, value in plan.items():
            if known.get(key) != value:
                raise InputError(
                    f"output folder {str(folder)!r} holds a comparison with {key} {known.get(key)!r}, not "
                    f"{value!r}; choose another --out"
                )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"output folder {str(folder)!r} exists and holds no comparison; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(path, json.dumps(plan, indent=1).encode())


def train_here(job: Job, method: Method, task: Task, plan: Mapping[str, Any]) -> None:
    """Train one run in this process."""
    if job.resumable:
        resume(job.folder, task=task, method=method, progress=False)
        return
    job.make_room()
    train(
        plan["policy"],
        task,
        method,
        steps=plan["steps"],
        seed=job.seed,
        out=job.folder,
        set=plan["set"],
        progress=False,
    )


def command(method: str, seed: int, folder: Path, plan: Mapping[str, Any]) -> list[str]:
    """Arguments of `surefoot` for one run."""
    out = [
        "train",
        "--policy",
        plan["policy"],
        "--task",
        plan["task"],
        "--method",
        method,
        "--seed",
        str(seed),
        "--out",
        str(folder),
        "--quiet",
    ]
    if plan["steps"] is not None:
        out += ["--steps", str(plan["steps"])]
    if plan["reward"]:
        out += ["--reward", plan["reward"]]
    for path, value in plan["set"].items():
        out += ["--set", f"{path}={value}"]
    return out
