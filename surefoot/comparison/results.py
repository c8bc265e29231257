"""Read finished runs into tables [seed, problem] and test the differences between methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from surefoot.errors import InputError
from surefoot.evaluation.paired import crossed_test, holm
from surefoot.report.data import read_config, read_evaluation, read_lines

LEVEL = 0.05


@dataclass(frozen=True)
class MethodResult:
    """One method's accuracy (pass@1 on the held-out problems) over its seeds.

    Attributes:
        mean, low, high: with a 95 % interval that is to hold for new seeds and new problems.
        per_seed: pass@1 of each seed.
        best: mean pass@k over seeds.
        before: mean pass@1 before training.
        tokens: generated in training, mean over seeds.
        seconds: of training, mean over seeds.
    """

    name: str
    mean: float
    low: float
    high: float
    per_seed: tuple[float, ...]
    best: float
    before: float
    tokens: float
    seconds: float


@dataclass(frozen=True)
class Pair:
    """The difference `a - b` of two methods, paired by problem and seed; `adjusted` is Holm's p over all pairs."""

    a: str
    b: str
    mean: float
    low: float
    high: float
    p: float
    adjusted: float

    @property
    def real(self) -> bool:
        """The difference is unlikely (under 5 %, over all pairs together) to be luck."""
        return self.adjusted < LEVEL


@dataclass(frozen=True)
class Comparison:
    """What a comparison found; `rows` from best to worst, `pairs` in the same order."""

    folder: Path
    task: str
    policy: str
    seeds: tuple[int, ...]
    problems: int
    k: int
    rows: tuple[MethodResult, ...]
    pairs: tuple[Pair, ...]
    runs: dict[str, list[Path]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in `comparison.json`."""
        return {
            "task": self.task,
            "policy": self.policy,
            "seeds": list(self.seeds),
            "problems": self.problems,
            "k": self.k,
            "methods": [asdict(row) | {"per_seed": list(row.per_seed)} for row in self.rows],
            "pairs": [asdict(pair) | {"real": pair.real} for pair in self.pairs],
        }


def compare_runs(runs: Mapping[str, Sequence[Path]], folder: Path) -> Comparison:
    """Compare finished runs: method -> run folders, the same seeds in the same order for each.

    Raises:
        InputError: a run without its evaluation; other problems or another number of samples than the first run.
    """
    tables, rows, first = {}, [], None
    for name, folders in runs.items():
        records = [_evaluated(path) for path in folders]
        first = first or records[0]
        for path, record in zip(folders, records, strict=True):
            _same_problems(path, record, first)
        tables[name] = np.array([_shares(record["after"]) for record in records])
        rows.append(_row(name, tables[name], records, folders))
    if first is None:
        raise InputError("compare: no runs to compare")
    rows.sort(key=lambda row: -row.mean)
    config = read_config(next(iter(runs.values()))[0])[1]
    return Comparison(
        folder=folder,
        task=first["task"],
        policy=config.get("policy", ""),
        problems=first["after"]["n"],
        k=first["k"],
        seeds=tuple(int(path.name.rsplit("-", 1)[-1]) for path in next(iter(runs.values()))),
        rows=tuple(rows),
        pairs=tuple(_pairs([row.name for row in rows], tables)),
        runs={name: list(folders) for name, folders in runs.items()},
    )


def _evaluated(path: Path) -> dict[str, Any]:
    record = read_evaluation(path)
    if not record.get("after"):
        raise InputError(f"{path}: no evaluation after training; expected a finished run")
    return record


def _same_problems(path: Path, record: dict[str, Any], first: dict[str, Any]) -> None:
    for what in ("task", "k"):
        if record[what] != first[what]:
            raise InputError(f"{path}: evaluated with {what} {record[what]!r}, the first run with {first[what]!r}")
    if _problems(record) != _problems(first):
        raise InputError(f"{path}: evaluated on other held-out problems than the first run")


def _problems(record: dict[str, Any]) -> list[int]:
    return [p["prompt"] for p in record["after"]["per_problem"]]


def _shares(side: dict[str, Any]) -> Float[np.ndarray, "p"]:
    return np.array([p["correct"] / p["samples"] for p in side["per_problem"]])


def _row(
    name: str, table: Float[np.ndarray, "s p"], records: list[dict[str, Any]], folders: Sequence[Path]
) -> MethodResult:
    interval = crossed_test(table)
    return MethodResult(
        name=name,
        mean=interval.mean,
        low=max(0.0, interval.low),
        high=min(1.0, interval.high),
        per_seed=tuple(table.mean(1).tolist()),
        best=float(np.mean([r["after"][f"pass@{r['k']}"] for r in records])),
        before=float(np.mean([r["before"]["pass@1"] for r in records if r.get("before")] or [np.nan])),
        tokens=float(np.mean([_total(path, "metrics.jsonl", "tokens") for path in folders])),
        seconds=float(np.mean([_total(path, "timings.jsonl", "total") for path in folders])),
    )


def _total(folder: Path, file: str, key: str) -> float:
    return sum(line.get(key) or 0 for line in read_lines(folder / file))


def _pairs(names: list[str], tables: Mapping[str, Float[np.ndarray, "s p"]]) -> list[Pair]:
    """Every pair once, better first, by the test that takes both seeds and problems as samples of more."""
    found = [(a, b, crossed_test(tables[a] - tables[b])) for a, b in combinations(names, 2)]
    adjusted = holm(np.array([d.p for _, _, d in found]))
    return [Pair(a, b, d.mean, d.low, d.high, d.p, float(p)) for (a, b, d), p in zip(found, adjusted, strict=True)]
