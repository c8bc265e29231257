"""Run training jobs in processes of their own: here, some at a time, or on a Ray cluster."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from surefoot.errors import InputError, SurefootError
from surefoot.report.data import read_evaluation, read_lines

SAVING = 120.0  # seconds that interrupted jobs on a cluster get to save


@dataclass(frozen=True)
class Job:
    """One run: its method and seed, its folder, and how it is started.

    Attributes:
        arguments: of `surefoot`, for a process of its own.
        here: called in this process instead, where the method or task is an object that no command line can name.
    """

    method: str
    seed: int
    folder: Path
    arguments: list[str] = field(default_factory=list)
    here: Callable[[], object] | None = None

    @property
    def finished(self) -> bool:
        """The run came to its end and was evaluated."""
        ended = any(e.get("kind") == "end" for e in read_lines(self.folder / "events.jsonl"))
        return ended and bool(read_evaluation(self.folder).get("after"))

    def command(self) -> list[str]:
        """What to call now: resume where a checkpoint is kept, else start anew."""
        surefoot = [sys.executable, "-c", "import sys; from surefoot.cli import main; sys.exit(main())"]
        if self.resumable:
            return [*surefoot, "train", "--resume", str(self.folder), "--quiet"]
        self.make_room()
        return [*surefoot, *self.arguments]

    @property
    def resumable(self) -> bool:
        """A checkpoint is kept."""
        return any((self.folder / "checkpoints").glob("step-*"))

    def make_room(self) -> None:
        """Set aside a folder from which nothing can go on."""
        if self.folder.exists():
            names = (f"{self.folder.name}.unfinished-{i}" for i in range(1, 1000))
            self.folder.rename(next(p for n in names if not (p := self.folder.with_name(n)).exists()))
        self.folder.parent.mkdir(parents=True, exist_ok=True)


class RunsFailed(SurefootError):
    """Some runs failed; the others are kept, and the same command goes on."""


class Stopped(SurefootError):
    """Ctrl-C; every run that had begun kept a checkpoint."""

    status = 130


@dataclass
class Processes:
    """The child processes that are running, so that Ctrl-C reaches each of them once."""

    threads: int
    running: set[subprocess.Popen] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False

    def run(self, job: Job) -> str:
        """Run one job to its end; returns an empty text, or why it failed."""
        command, log = job.command(), log_of(job)
        with open(log, "ab") as output:
            with self.lock:
                if self.stopped:
                    return "not started"
                process = start(command, output, self.threads)
                self.running.add(process)
            try:
                status = patiently(process)
            except KeyboardInterrupt:  # a cancelled Ray task
                process.send_signal(signal.SIGINT)
                status = process.wait()
            with self.lock:
                self.running.discard(process)
        return "" if status == 0 else f"exit status {status}: {last_line(log)}"

    def interrupt(self) -> None:
        """Ask every child to save and stop."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.send_signal(signal.SIGINT)


def run_jobs(jobs: Sequence[Job], at_once: int = 1, ray_address: str | None = None, progress: bool = True) -> None:
    """Run all jobs that are not finished.

    Raises:
        InputError: Ray asked for and not installed.
        RunsFailed: after the others have run.
        Stopped: Ctrl-C.
    """
    waiting = [job for job in jobs if not job.finished]
    say = _teller(jobs, waiting, progress)
    failures = (
        (_on_ray(waiting, ray_address, say) if ray_address is not None else _here(waiting, at_once, say))
        if waiting
        else {}
    )
    if failures:
        job, why = next(iter(failures.items()))
        raise RunsFailed(
            f"compare: {len(failures)} of {len(jobs)} runs failed; the first, {job}: {why}. The others "
            f"are kept; the same command goes on"
        )


def _here(jobs: Sequence[Job], at_once: int, say: Callable[[Job, str], None]) -> dict[str, str]:
    processes = Processes(threads=max(1, (os.cpu_count() or 1) // at_once))
    failures: dict[str, str] = {}
    for job in jobs:
        if job.here:
            _note(job, _call(job.here), failures, say)
    jobs = [job for job in jobs if not job.here]
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(processes.run, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                _note(futures[future], future.result(), failures, say)
        except KeyboardInterrupt:
            processes.interrupt()
            pool.shutdown(wait=True)
            raise Stopped("interrupted; the runs kept their checkpoints, and the same command goes on") from None
    return failures


def _call(train: Callable[[], object]) -> str:
    """Run a job in this process; returns an empty text, or why it failed."""
    try:
        train()
    except SurefootError as e:
        if e.status == Stopped.status:
            raise Stopped(f"{e}; the same call goes on") from None
        return str(e)
    return ""


def _on_ray(jobs: Sequence[Job], address: str, say: Callable[[Job, str], None]) -> dict[str, str]:
    """Each job a Ray task of one CPU, run in a process of its own on the machine that gets it."""
    if importlib.util.find_spec("ray") is None:
        raise InputError("compare --ray: ray is not installed; expected pip install 'surefoot[cluster]'")
    if any(job.here for job in jobs):
        raise InputError("compare --ray: a method or task is an object; expected names that another machine can load")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # pyright: ignore[reportMissingImports]

    ray.init(address=None if address == "local" else address, ignore_reinit_error=True, log_to_driver=False)
    remote = ray.remote(num_cpus=1)(_one_process)
    tasks = {remote.remote(job): job for job in jobs}
    failures: dict[str, str] = {}
    try:
        left = list(tasks)
        while left:
            (done,), left = ray.wait(left, num_returns=1)
            _note(tasks[done], ray.get(done), failures, say)
    except KeyboardInterrupt:
        for task in left:
            ray.cancel(task)
        ray.wait(left, num_returns=len(left), timeout=SAVING)
        raise Stopped("interrupted; the runs kept their checkpoints, and the same command goes on") from None
    finally:
        ray.shutdown()
    return failures


def _one_process(job: Job) -> str:
    return Processes(threads=1).run(job)


def _note(job: Job, why: str, failures: dict[str, str], say: Callable[[Job, str], None]) -> None:
    if why:
        failures[f"{job.method} seed {job.seed}"] = why
    say(job, why)


def _teller(jobs: Sequence[Job], waiting: Sequence[Job], progress: bool) -> Callable[[Job, str], None]:
    """Prints a line as each run ends: how many are done, and how its accuracy moved."""
    done = len(jobs) - len(waiting)
    if progress:
        found = f", {done} of them found finished" if done else ""
        print(f"comparing: {len(jobs)} run{'s' * (len(jobs) > 1)}{found}", file=sys.stderr, flush=True)

    def say(job: Job, why: str) -> None:
        nonlocal done
        done += 1
        if progress:
            text = f"failed ({why})" if why else moved(job.folder)
            print(f"  [{done}/{len(jobs)}] {job.method} seed {job.seed}: {text}", file=sys.stderr, flush=True)

    return say


def moved(folder: Path) -> str:
    """`pass@1 41.2% -> 67.8%`."""
    record = read_evaluation(folder)
    return "pass@1 " + " -> ".join(f"{100 * record[w]['pass@1']:.1f}%" for w in ("before", "after") if record.get(w))


def start(command: list[str], output: IO[bytes], threads: int) -> subprocess.Popen:
    """Start a child that Ctrl-C reaches once: through us.

    It has its own session, because a terminal's Ctrl-C would reach it beside ours, and two stop it without saving.
    Ray blocks the signal in its workers, which a child would inherit.
    """
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment(threads)
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def patiently(process: subprocess.Popen) -> int:
    """The exit status; waits in short turns, because Ray's cancellation does not wake a blocking wait."""
    while True:
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            continue


def environment(threads: int) -> dict[str, str]:
    """The environment of a run: its share of the cores, unless the user has said how many."""
    return {"OMP_NUM_THREADS": str(threads)} | os.environ


def log_of(job: Job) -> Path:
    """What the run prints goes beside its folder."""
    return job.folder.with_name(f"{job.folder.name}.log")


def last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"
