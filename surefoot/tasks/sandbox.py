"""Python that a model wrote, run where it can do no harm: a process of its own under limits (`tasks._jail`).

It may compute, read Python's standard library and write a scratch folder that is thrown away. Time, memory, size of
files and output are limited; there are no processes, no network and no other files, and nothing of ours is importable.
Linux (5.13 or later) on x86-64 or ARM; elsewhere nothing is run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from surefoot.errors import InputError
from surefoot.tasks import _jail


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall time, and (rounded up) of processor time.
        memory_mb: address space.
        file_mb: size of each file, standard output and error among them.
        output: characters of standard output that are returned, and of the end of the error.
    """

    seconds: float = 5.0
    memory_mb: int = 512
    file_mb: int = 4
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
    with tempfile.TemporaryDirectory(prefix="surefoot-") as scratch:
        said, error = Path(scratch) / "stdout", Path(scratch) / "stderr"
        numbers = (int(limits.seconds) + 1, limits.memory_mb << 20, limits.file_mb << 20)
        with open(said, "wb") as out, open(error, "wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", _jail.__file__, scratch, *map(str, numbers)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                cwd=scratch,
                env={"LANG": "C.UTF-8", "HOME": scratch, "TMPDIR": scratch},
                start_new_session=True,
            )
            try:
                process.communicate(code.encode("utf-8", "replace"), timeout=limits.seconds)
                timed_out = process.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if process.returncode == _jail.CANNOT:
            raise InputError("sandbox: this machine cannot confine a program; expected Linux with Landlock and seccomp")
        with open(said, "rb") as out, open(error, "rb") as err:
            shown = out.read(4 * limits.output).decode("utf-8", "replace")[: limits.output]
            err.seek(max(0, error.stat().st_size - 4 * limits.output))
            trouble = err.read().decode("utf-8", "replace")[-limits.output :]
        if not trouble and not timed_out and process.returncode:
            trouble = f"stopped with status {process.returncode}"
        return Ran(shown, trouble, timed_out)


def run_all(codes: Sequence[str], limits: Limits = Limits(), workers: int | None = None) -> list[Ran]:
    """Run programs side by side, as many at a time as there are cores."""
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(lambda code: run(code, limits), codes))
