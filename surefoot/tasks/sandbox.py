"""Python that a model wrote, run where it can do no harm: a process of its own under limits (`tasks._jail`).

It may compute, read Python's standard library and write files in a scratch folder that is thrown away. Time, memory,
size of each file and of all, and output are limited; there are no processes, no network and no other files, and nothing
of ours is importable.
Linux (5.13 or later) on x86-64 or ARM; elsewhere nothing is run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from surefoot.errors import InputError
from surefoot.tasks import _jail

EVERY = 0.02
_BLOCK = 4096


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall time, and (rounded up) of processor time.
        memory_mb: address space.
        file_mb: size of each file, standard output and error among them.
        scratch_mb: size of the scratch folder, each file taken as a block more than it holds. It is looked at every 20
            milliseconds, so a program may be over it by what a disk takes in that time before it is stopped.
        output: characters of standard output that are returned, and of the end of the error.
    """

    seconds: float = 5.0
    memory_mb: int = 512
    file_mb: int = 4
    scratch_mb: int = 16
    output: int = 512


@dataclass(frozen=True)
class Ran:
    """What a program said: standard output, its error's last lines, and whether it was stopped at the time limit."""

    output: str
    error: str
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        return not self.error and not self.timed_out


def run(code: str, limits: Limits = Limits()) -> Ran:
    """Run one program.

    Raises:
        InputError: a machine that cannot confine it.
    """
    numbers = (int(limits.seconds) + 1, limits.memory_mb << 20, limits.file_mb << 20)
    with (
        tempfile.TemporaryDirectory(prefix="surefoot-") as scratch,
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as error,
    ):
        source.write(code.encode("utf-8", "replace"))
        source.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", _jail.__file__, scratch, *map(str, numbers)],
            stdin=source,
            stdout=output,
            stderr=error,
            cwd=scratch,
            env={"LANG": "C.UTF-8", "HOME": scratch, "TMPDIR": scratch},
            start_new_session=True,
        )
        try:
            timed_out, full = _attend(process, scratch, limits)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode == _jail.CANNOT:
            raise InputError("sandbox: this machine cannot confine a program; expected Linux with Landlock and seccomp")
        output.seek(0)
        shown = output.read(4 * limits.output).decode("utf-8", "replace")[: limits.output]
        error.seek(max(0, error.seek(0, os.SEEK_END) - 4 * limits.output))
        trouble = error.read().decode("utf-8", "replace")[-limits.output :]
    if full:
        trouble = f"stopped: the files of the scratch folder are larger than {limits.scratch_mb} MB together"
    if not trouble and not timed_out and process.returncode:
        trouble = f"stopped with status {process.returncode}"
    return Ran(shown, trouble, timed_out)


def _attend(process: subprocess.Popen, scratch: str, limits: Limits) -> tuple[bool, bool]:
    """Wait for the end, or for a limit: whether the time is over, and whether the scratch folder is full."""
    deadline, ended = time.monotonic() + limits.seconds, False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(EVERY, max(0.0, deadline - time.monotonic())))
            ended = True
        full = _size(scratch) > limits.scratch_mb << 20
        if ended:
            return process.returncode in (-signal.SIGXCPU, -signal.SIGKILL), full
        if full or time.monotonic() >= deadline:
            return not full, full


def _size(scratch: str) -> int:
    """Bytes of all files of a folder without folders, each with a block for itself."""
    total = 0
    with os.scandir(scratch) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                total += entry.stat(follow_symlinks=False).st_size + _BLOCK
    return total


def run_all(codes: Sequence[str], limits: Limits = Limits(), workers: int | None = None) -> list[Ran]:
    """Run programs side by side, as many at a time as there are cores."""
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda code: run(code, limits), codes))
