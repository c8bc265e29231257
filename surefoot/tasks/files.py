"""Problems from a JSONL or Parquet file with the columns `prompt` and `answer`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surefoot.errors import InputError, nearest
from surefoot.tasks.base import Problem, RewardFunction, TextTask
from surefoot.tasks.splits import is_held_out


class FileTask(TextTask):
    """A file's problems; a column `split` (`train` or `heldout`) decides the side, else a hash of the prompt does.

    Raises:
        InputError: a missing file or column, malformed JSON (with its line), an empty prompt, a prompt on both sides.
    """

    def __init__(self, path: str, reward: RewardFunction, max_new_tokens: int = 256):
        rows = read_rows(Path(path))
        sides: dict[str, list[Problem]] = {"train": [], "heldout": []}
        for where, row in rows:
            question = row["prompt"]
            if not isinstance(question, str) or not question.strip():
                raise InputError(f"{where}: empty prompt; expected text")
            side = row.get("split") or ("heldout" if is_held_out(question) else "train")
            if side not in sides:
                raise InputError(f"{where}: split {side!r}; expected 'train' or 'heldout'")
            answer = row["answer"]
            sides[side].append(Problem(question, None if answer is None else str(answer), row))
        both = {p.question for p in sides["train"]} & {p.question for p in sides["heldout"]}
        if both:
            raise InputError(f"{path}: the prompt {min(both)[:60]!r} is in both splits; expected disjoint ones")
        super().__init__(str(path), sides["train"], sides["heldout"], reward, max_new_tokens)


def read_rows(path: Path, columns: Sequence[str] = ("prompt", "answer")) -> list[tuple[str, dict[str, Any]]]:
    """Rows with the place they stand at (`file.jsonl, line 3`); each has the `columns`."""
    if not path.is_file():
        raise InputError(f"task {str(path)!r}: no such file")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            listed = pq.read_table(path).to_pylist()
        except Exception as e:
            raise InputError(f"{path}: not a Parquet file ({type(e).__name__})") from None
        rows = [(f"{path}, row {i + 1}", row) for i, row in enumerate(listed)]
    else:
        rows = []
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as e:
                raise InputError(f"{path}, line {i}: malformed JSON ({e.msg} at column {e.colno})") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {i}: got {type(row).__name__}, expected an object")
            rows.append((f"{path}, line {i}", row))
    for where, row in rows:
        for column in columns:
            if column not in row:
                raise InputError(f"{where}: no column {column!r}{nearest(column, row)}")
    return rows
