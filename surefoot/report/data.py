"""Read a run folder into plain data, whatever of it is there."""

from __future__ import annotations

import json
import math
import tomllib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surefoot.errors import InputError
from surefoot.files import read_json

SHOWN_STEPS = 60  # steps whose rewards the page carries
SHOWN_POINTS = 2000  # points of one curve
TEXT_BUDGET = 1_500_000  # characters of completions on the page
COLUMNS = ("step", "group", "question", "answer", "completion", "reward", "correct", "length")

Series = dict[str, list[tuple[int, float]]]


def read_run(folder: Path) -> dict[str, Any]:
    """Everything the page shows of one run: configuration, curves, evaluation, events, rewards by group.

    Only `config.toml` or `metrics.jsonl` must be there; whatever else is missing is left out.

    Raises:
        InputError: no run folder, or a file that cannot be read (named, with its line).
    """
    if not (folder / "config.toml").is_file() and not (folder / "metrics.jsonl").is_file():
        raise InputError(f"{str(folder)!r} is not a run folder: it has neither config.toml nor metrics.jsonl")
    text, config = read_config(folder)
    events = read_lines(folder / "events.jsonl")
    metrics, timings = read_lines(folder / "metrics.jsonl"), read_lines(folder / "timings.jsonl")
    return finite(
        {
            "name": folder.resolve().name,
            "config": config,
            "toml": text,
            "curves": curves(metrics) | {f"time.{k}": v for k, v in curves(timings).items()},
            "steps": len(metrics),
            "unit": next((e["policy"]["unit"] for e in events if "unit" in e.get("policy", ())), "steps"),
            "tokens": sum(m.get("tokens") or 0 for m in metrics),
            "seconds": sum(t.get("total") or 0 for t in timings),
            "evaluation": read_evaluation(folder),
            "events": events,
            "rewards": read_rewards(folder),
            "pictures": read_pictures(folder),
        }
    )


def read_pictures(folder: Path) -> list[dict[str, str]]:
    """The PNG files of `pictures/`, by name, as data addresses: the page needs no other file."""
    return [
        {"name": p.stem.replace("_", " "), "data": f"data:image/png;base64,{b64encode(p.read_bytes()).decode()}"}
        for p in sorted((folder / "pictures").glob("*.png"))
    ]


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """`config.toml` as text and as data; both empty where there is none."""
    path = folder / "config.toml"
    if not path.is_file():
        return "", {}
    text = path.read_text(encoding="utf-8")
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise InputError(f"{path}: {e}") from None


def read_evaluation(folder: Path) -> dict[str, Any]:
    """`evaluation.json`, or an empty dict."""
    path = folder / "evaluation.json"
    return read_json(path) if path.is_file() else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file; a last line cut short by a crash is left out."""
    if not path.is_file():
        return []
    lines, records = path.read_text(encoding="utf-8").splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise InputError(f"{path} line {number}: not JSON") from None
    return records


def curves(records: list[dict[str, Any]]) -> Series:
    """Name -> [(step, value)]; nested names are joined by a dot; long curves keep every second, third ... point."""
    found: Series = {}
    for record in records:
        for name, value in numbers(record):
            if name != "step":
                found.setdefault(name, []).append((record["step"], value))
    return {name: points[:: math.ceil(len(points) / SHOWN_POINTS)] for name, points in found.items()}


def numbers(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a nested record, by dotted name."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, value


def read_rewards(folder: Path) -> list[dict[str, Any]]:
    """Rewards and texts by step and group, for at most `SHOWN_STEPS` steps spread evenly over the run."""
    files = sorted((folder / "rollouts").glob("*.parquet"))
    if not files:
        return []
    import pyarrow.parquet as pq

    present = [(step, f) for f in files for step in set(pq.read_table(f, columns=["step"])["step"].to_pylist())]
    wanted = set(evenly(sorted(present), SHOWN_STEPS))
    steps: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for file in files:
        if any(f == file for _, f in wanted):
            kept = [name for name in pq.read_schema(file).names if name in COLUMNS]
            for row in pq.read_table(file, columns=kept).to_pylist():
                if (row["step"], file) in wanted:
                    steps.setdefault(row["step"], {}).setdefault(row["group"], []).append(row)
    shown = [
        {"step": step, "groups": [group_record(rows) for rows in groups.values()]}
        for step, groups in sorted(steps.items())
    ]
    shorten(shown)
    return shown


def group_record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One prompt's trajectories: question, reference answer and [reward, correct, length, text] of each."""
    return {
        "question": rows[0].get("question") or "",
        "answer": rows[0].get("answer"),
        "rows": [[round(r["reward"], 4), r.get("correct"), r["length"], r.get("completion") or ""] for r in rows],
    }


def shorten(steps: list[dict[str, Any]]) -> None:
    """Cut the texts so that all of them fit in the budget, in place."""
    groups = [g for step in steps for g in step["groups"]]
    count = sum(1 + len(g["rows"]) for g in groups)
    limit = max(60, TEXT_BUDGET // max(1, count))
    for group in groups:
        group["question"] = clip(group["question"], limit)
        for row in group["rows"]:
            row[3] = clip(row[3], limit)


def clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + " …"


def evenly(items: list, count: int) -> list:
    """At most `count` items, first and last among them, spread evenly.

    >>> evenly(list(range(10)), 4)
    [0, 3, 6, 9]
    """
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def finite(value: Any) -> Any:
    """The same data with None for numbers that JSON cannot carry."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
