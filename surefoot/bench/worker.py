"""One side of a bench in a process of its own, which steps when it is told to.

`Worker` is the parent's end. The child (`python -m surefoot.bench.worker SIDE CASE THREADS DEVICE`) answers each line
it reads with one line of JSON: `step` with a `Record`, anything else with what the side offers by that name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import Any

from surefoot.bench.cases import Case
from surefoot.errors import SurefootError


class Worker:
    """A side in its own process: `ask("step")` runs one step there and returns what it measured."""

    def __init__(self, side: str, case: Case, threads: int, device: str = "cpu"):
        self.side = side
        self._log = tempfile.TemporaryFile("w+")
        self._child = subprocess.Popen(
            [sys.executable, "-m", "surefoot.bench.worker", side, json.dumps(asdict(case)), str(threads), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ
            | {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "10000", "TOKENIZERS_PARALLELISM": "0"},
        )
        self.settings: dict[str, Any] = self._answer()

    def ask(self, what: str) -> dict[str, Any]:
        """The child's answer to `what`."""
        assert self._child.stdin
        self._child.stdin.write(what + "\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            self._log.seek(0)
            tail = [line for line in self._log.read().splitlines() if line.strip()][-1:]
            raise SurefootError(f"bench: the {self.side} side stopped ({' '.join(tail)[:300]})")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin
        self._child.stdin.close()
        if self._child.poll() is None:
            self._child.terminate()
        self._child.wait()
        self._log.close()


def resident() -> dict[str, float]:
    """Memory of this process in MB: now, and the high-water mark since it began (Linux)."""
    with open("/proc/self/status", encoding="ascii") as f:
        fields = dict(line.split(":", 1) for line in f)
    return {"now": int(fields["VmRSS"].split()[0]) / 1024, "peak": int(fields["VmHWM"].split()[0]) / 1024}


def forget_peak() -> None:
    """Begin the high-water mark anew, from now (Linux)."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as f:
        f.write("5")


def main(argv: list[str]) -> int:
    """The child."""
    side, case, threads, device = argv[0], Case(**json.loads(argv[1])), int(argv[2]), argv[3]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to the log

    import torch

    torch.set_num_threads(threads)
    from surefoot.bench import sides

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    getattr(sides, side)(case, device, sys.stdin, say)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
