"""Loops that torch would spread over many small operations, in C (`rows.c`), compiled where they run.

The first call has the machine's own C compiler make a library of it (a second or two), which stays in the cache. Where
there is no compiler, or `SUREFOOT_KERNELS=off`, `library()` is none and callers take their torch path, which is also
the slow twin that tests hold these against. The loops run on torch's own OpenMP threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch  # loads the OpenMP that the library shares
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.cache import cache_folder
from surefoot.files import write_aside

SOURCE = Path(__file__).with_name("rows.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
PATIENCE = 60.0  # seconds that the compiler gets
LANES = 16  # as in rows.c
_P, _N, _F = c_void_p, c_int64, c_float
SIGNATURES = {
    "add_norm": (_P, _P, _P, _N, _N, _F),
    "gated": (_P, _P, _N, _N),
    "attend": (*[_P] * 10, *[_N] * 7),
    "draw": (_P, _P, _F, _P, _P, _N, _N),
}


@cache
def library() -> Any | None:
    """The compiled library, or none where it cannot be had."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if os.environ.get("SUREFOOT_KERNELS") == "off" or compiler is None:
        return None
    try:
        loaded = ctypes.CDLL(str(_built(compiler)))
        for name, arguments in SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, None
        return loaded
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None


def _built(compiler: str) -> Path:
    """The library for this source, compiler and processor, from the cache if it was made before."""
    processor = Path("/proc/cpuinfo").read_text().split("\n\n")[0] if Path("/proc/cpuinfo").exists() else ""
    flags = [line for line in processor.splitlines() if line.startswith(("model name", "flags", "Features"))]
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=PATIENCE, check=True).stdout
    made_of = "\n".join([SOURCE.read_text(), *FLAGS, str(version), platform.machine(), *flags])
    path = cache_folder() / "kernels" / f"rows-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "rows.so"
            for threads in (["-fopenmp"], []):  # Apple's compiler comes without OpenMP
                call = [compiler, *FLAGS, *threads, str(SOURCE), "-o", str(out), "-lm"]
                if subprocess.run(call, capture_output=True, timeout=PATIENCE).returncode == 0:
                    break
            write_aside(path, out.read_bytes())
    return path


def applies(x: Tensor) -> bool:
    """Whether the loops can work on `x`: float32, dense, on a CPU, and there is a library."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() and library() is not None


def add_norm(x: Float[Tensor, "n d"], delta: Float[Tensor, "n d"] | None, out: Tensor, eps: float) -> None:
    """`x += delta`, in place; `out = x / rms(x)`."""
    library().add_norm(x.data_ptr(), None if delta is None else delta.data_ptr(), out.data_ptr(), *x.shape, eps)


def gated(both: Float[Tensor, "n 2f"]) -> Float[Tensor, "n f"]:
    """`silu(gate) * up` of rows that hold a gate and, behind it, what it lets through."""
    n, width = both.shape
    out = both.new_empty(n, width // 2)
    library().gated(both.data_ptr(), out.data_ptr(), n, width // 2)
    return out


def attend(
    y: Float[Tensor, "n (h+2g)*w"],
    turns: Float[Tensor, "p w"],
    position: Int[Tensor, "n"],
    group: Int[Tensor, "n"],
    padding: Int[Tensor, "m"],
    prompt_keys: Float[Tensor, "m g w p"],
    prompt_values: Float[Tensor, "m g p w"],
    keys: Float[Tensor, "n g w room"],
    values: Float[Tensor, "n g room w"],
    out: Float[Tensor, "n h*w"],
    slot: int,
) -> None:
    """One step of decoding: turns the heads in `y` by their positions, writes key and value at `slot`, attends.

    Row i meets prompt `group[i]`, but for its first `padding[group[i]]` steps, and its own steps up to `slot`. `p` and
    `room` are multiples of `LANES`.
    """
    _, kv, width, size = prompt_keys.shape
    tables = (y, turns, position, group, padding, prompt_keys, prompt_values, keys, values, out)
    heads = out.shape[1] // width
    library().attend(*[t.data_ptr() for t in tables], len(y), heads, kv, width, size, keys.shape[3], slot)


def draw(
    logits: Float[Tensor, "b v"], u: Float[Tensor, "b"], temperature: float = 1.0
) -> tuple[Int[Tensor, "b"], Float[Tensor, "b"]]:
    """The token at quantile `u` (float64) of each row of `softmax(logits / temperature)`, and its log-probability.

    The plain twin is `rollout.native.draw`.
    """
    n, v = logits.shape
    tokens, logp = torch.empty(n, dtype=torch.long), logits.new_empty(n)
    library().draw(logits.data_ptr(), u.data_ptr(), 1 / temperature, tokens.data_ptr(), logp.data_ptr(), n, v)
    return tokens, logp


__all__ = ["LANES", "add_norm", "applies", "attend", "draw", "gated", "library"]
