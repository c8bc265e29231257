"""Claims: one short file a paper, each a small experiment that can refute what the paper says.

A claim module is `surefoot/claims/<slug with _ for ->.py` and holds one `CLAIM`.

>>> sorted(modules())[:1]   # doctest: +SKIP
['alignment_asymptotics']
"""

from __future__ import annotations

import datetime
import importlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from surefoot.errors import InputError, nearest

HERE = Path(__file__).parent
Size = Literal["quick", "full"]
Verdict = Literal["reproduced", "not reproduced", "refuted"]
VERDICTS = ("reproduced", "not reproduced", "refuted")
SIZES = ("quick", "full")


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Attributes:
        verdict: `reproduced`, `not reproduced` (neither shown nor contradicted) or `refuted` (contradicted).
        measured: one dict a number: `name`, `value`, and where they apply `expected`, `bound`, `spread`, `seeds`.
        pictures: files that were drawn, where a report folder was given.
        notes: what a reader must know to judge the numbers.
        seconds: how long it took (filled in by `reproduce`).
    """

    verdict: Verdict
    measured: list[dict[str, Any]]
    pictures: list[Path] = field(default_factory=list)
    notes: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict {self.verdict!r}; expected one of {', '.join(VERDICTS)}")


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, and the experiment that could contradict it.

    Attributes:
        slug: the paper's name everywhere.
        statement: what is claimed, in one or two sentences.
        refuted_if: the observation that would contradict it, fixed before the experiment.
        run: `run(size, seeds, report) -> Outcome`; `report` is a folder for pictures, or None for no pictures.
        seeds: the seeds of a run when none are named.
    """

    slug: str
    statement: str
    refuted_if: str
    run: Callable[[Size, Sequence[int], Path | None], Outcome]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


def modules() -> list[str]:
    """Module names of all claims."""
    return sorted(p.stem for p in HERE.glob("[!_]*.py"))


def claim(slug: str) -> Claim:
    """The claim of a paper.

    Raises:
        InputError: a slug without a claim, with the nearest one.
    """
    name = slug.replace("-", "_")
    if name not in modules():
        known = [m.replace("_", "-") for m in modules()]
        raise InputError(f"no claim for {slug!r}{nearest(slug, known)}")
    return importlib.import_module(f"surefoot.claims.{name}").CLAIM


def reproduce(
    slug: str,
    size: Size = "quick",
    seeds: Sequence[int] | None = None,
    out: str | Path | None = None,
    record: bool = False,
) -> Outcome:
    """Run the claim of a paper.

    Args:
        slug: the paper.
        size: `quick` (at most a minute on two cores) or `full`.
        seeds: seeds of the sampled parts; None takes the claim's own.
        out: a folder for pictures and `outcome.json`; None writes nothing.
        record: keep the outcome in the package (`surefoot/claims/results/<slug>.json`), where `surefoot papers` and
            `surefoot show` read the verdict.

    Raises:
        InputError: an unknown slug or size, or no seeds.
    """
    if size not in SIZES:
        raise InputError(f"size {size!r}; expected quick or full{nearest(size, SIZES)}")
    if seeds is not None and not len(seeds):
        raise InputError("seeds is empty; expected at least one")
    asked = claim(slug)
    seeds = tuple(asked.seeds if seeds is None else seeds)
    folder = Path(out) if out else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    outcome = asked.run(size, seeds, folder)
    outcome = replace(outcome, seconds=round(time.perf_counter() - start, 2))
    text = json.dumps(plain(result(asked, outcome, size, seeds)), indent=1, allow_nan=False) + "\n"
    for path in ([folder / "outcome.json"] if folder else []) + ([_recorded(slug)] if record else []):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return outcome


def result(asked: Claim, outcome: Outcome, size: Size, seeds: Sequence[int]) -> dict[str, Any]:
    """The record of an outcome: what was claimed, measured and concluded, when, where and at what cost."""
    found = asdict(outcome)
    found["pictures"] = [path.name for path in outcome.pictures]
    return {
        "slug": asked.slug,
        "verdict": found.pop("verdict"),
        "statement": asked.statement,
        "refuted_if": asked.refuted_if,
        "size": size,
        "seeds": list(seeds),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        **found,
    }


def machine() -> str:
    """Where this runs: processor type, cores that may be used, Python.

    >>> machine()   # doctest: +SKIP
    'x86_64, 2 cores, Linux, Python 3.11.9'
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()}, {cores} cores, {platform.system()}, Python {platform.python_version()}"


def _recorded(slug: str) -> Path:
    return HERE / "results" / f"{slug}.json"


def plain(value: Any) -> Any:
    """JSON types only: numpy and torch scalars become numbers, what is not finite becomes text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
