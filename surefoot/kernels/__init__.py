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
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass
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
LANES, RUN = 16, 256  # as in rows.c
_P, _N, _F = c_void_p, c_int64, c_float
SIGNATURES = {
    "add_norm": (_P, _P, _P, _N, _N, _F),
    "norm_forward": (*[_P] * 6, _N, _N, _F),
    "norm_backward": (*[_P] * 7, _N, _N),
    "gated": (_P, _P, _N, _N),
    "gated_backward": (_P, _P, _P, _N, _N),
    "attention_forward": (*[_P] * 9, *[_N] * 4, _F),
    "attention_backward": (*[_P] * 11, *[_N] * 4, _F),
    "attend": (*[_P] * 10, *[_N] * 7),
    "draw": (*[_P] * 4, _N, _N, _F),
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


def _run(name: str, tables: Sequence[Tensor | None], *numbers: float) -> None:
    """Call a loop with the addresses of dense tables; a missing one is NULL."""
    for t in tables:
        if t is not None and not t.is_contiguous():
            raise ValueError(
                f"{name}: a table of shape {tuple(t.shape)} with strides {t.stride()}; expected a dense one"
            )
    getattr(library(), name)(*[None if t is None else t.data_ptr() for t in tables], *numbers)


def applies(x: Tensor) -> bool:
    """Whether the loops can work on `x`: float32, dense, on a CPU, and there is a library."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() and library() is not None


def add_norm(x: Float[Tensor, "n d"], delta: Float[Tensor, "n d"] | None, out: Tensor, eps: float) -> None:
    """`x += delta`, in place; `out = x / rms(x)`."""
    _run("add_norm", (x, delta, out), *x.shape, eps)


def gated(both: Float[Tensor, "n 2f"]) -> Float[Tensor, "n f"]:
    """`silu(gate) * up` of rows that hold a gate and, behind it, what it lets through."""
    n, width = both.shape
    out = both.new_empty(n, width // 2)
    _run("gated", (both, out), n, width // 2)
    return out


def norm_forward(
    x: Float[Tensor, "n d"], delta: Float[Tensor, "n d"] | None, weight: Float[Tensor, "d"], eps: float
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"], Float[Tensor, "n"]]:
    """`sum = x + delta` (x itself without one), `sum / rms(sum) * weight` and `1 / rms`."""
    total, out, scale = x if delta is None else torch.empty_like(x), torch.empty_like(x), x.new_empty(len(x))
    _run("norm_forward", (x, delta, weight, total, out, scale), *x.shape, eps)
    return total, out, scale


def norm_backward(
    for_sum: Tensor | None, for_out: Float[Tensor, "n d"], total: Tensor, weight: Float[Tensor, "d"], scale: Tensor
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "d"]]:
    """Gradients of x (which is that of delta too) and of the weight."""
    n, d = total.shape
    for_x, parts = torch.empty_like(total), total.new_empty(-(-n // RUN), d)
    _run("norm_backward", (for_sum, for_out, total, weight, scale, for_x, parts), n, d)
    return for_x, parts.sum(0)


def gated_backward(both: Float[Tensor, "n 2f"], grad: Float[Tensor, "n f"]) -> Float[Tensor, "n 2f"]:
    """Gradient of `gated`."""
    out = torch.empty_like(both)
    _run("gated_backward", (both, grad, out), *grad.shape)
    return out


@dataclass(frozen=True)
class Packed:
    """Sequences of tokens that lie one after another in a table: prompts, and rows that go on from one.

    Attributes:
        start, length: [m + n] of each sequence, the m prompts first.
        first: [m + 1]; the rows of prompt p are `member[first[p]:first[p + 1]]`.
        member: [n] numbers of sequences, from m on, by prompt.
        cos, sin: [s w] of each token's position.
        queries, keys: heads.
        scale: of the scores.
    """

    start: Int[Tensor, "k"]
    length: Int[Tensor, "k"]
    first: Int[Tensor, "m+1"]
    member: Int[Tensor, "n"]
    cos: Float[Tensor, "s w"]
    sin: Float[Tensor, "s w"]
    queries: int
    keys: int
    scale: float

    def _run(self, name: str, y: Tensor, *tables: Tensor) -> None:
        own = (self.cos, self.sin, self.start, self.length, self.first, self.member)
        sizes = (len(self.first) - 1, self.queries, self.keys, self.cos.shape[1])
        _run(name, (y, *own, *tables), *sizes, self.scale)

    def attention(self, y: Float[Tensor, "s (h+2g)*w"]) -> tuple[Float[Tensor, "s h*w"], Float[Tensor, "s h"]]:
        """Causal attention of rows of heads (queries, keys, values), and the log-sum-exp of its scores.

        Rows follow their prompts. Tokens of no sequence get zeros.
        """
        out = y.new_zeros(len(y), self.queries * self.cos.shape[1])
        lse = y.new_zeros(len(y), self.queries)
        self._run("attention_forward", y, out, lse)
        return out, lse

    def attention_backward(self, y: Tensor, out: Tensor, lse: Tensor, grad: Tensor) -> Float[Tensor, "s (h+2g)*w"]:
        """Gradient of `attention` with respect to `y`."""
        for_y = torch.zeros_like(y)
        self._run("attention_backward", y, out, lse, grad, for_y)
        return for_y


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
    _run("attend", tables, len(y), heads, kv, width, size, keys.shape[3], slot)


def draw(
    logits: Float[Tensor, "b v"], u: Float[Tensor, "b"], temperature: float = 1.0
) -> tuple[Int[Tensor, "b"], Float[Tensor, "b"]]:
    """The token at quantile `u` (float64) of each row of `softmax(logits / temperature)`, and its log-probability.

    The plain twin is `rollout.native.draw`.
    """
    n, v = logits.shape
    tokens, logp = torch.empty(n, dtype=torch.long), logits.new_empty(n)
    _run("draw", (logits, u, tokens, logp), n, v, 1 / temperature)
    return tokens, logp


__all__ = [
    "LANES",
    "Packed",
    "add_norm",
    "applies",
    "attend",
    "draw",
    "gated",
    "gated_backward",
    "library",
    "norm_backward",
    "norm_forward",
]
