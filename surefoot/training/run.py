"""A run is a folder: what is resumed, compared, diagnosed and reported.

config.toml       fully resolved; training from it repeats the run
metrics.jsonl     one line a step, flushed; numbers that a repeated or resumed run gives again, bit for bit
timings.jsonl     seconds of each step by phase (kept apart, because they never repeat)
events.jsonl      starts, resumes, checkpoints, alarms, stops
rollouts/         what was said, rewarded and learnt from, as Parquet, one file a block of steps
evaluation.json   held-out accuracy before and after, with samples
checkpoints/      step-N folders (see `training.checkpoint`)
report.html
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from surefoot.errors import InputError
from surefoot.files import write_aside
from surefoot.rollouts import Rollouts

BLOCK = 10  # steps in one Parquet file


class Run:
    """Writes a run folder.

    Raises:
        InputError: `create` where the folder already holds something; `open` where it is no run folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._block: list[dict[str, Any]] = []
        self._block_end = 0
        self._made: list[Path] = []  # the folders that `create` made, the run's own first

    @staticmethod
    def check_free(folder: Path) -> None:
        """Raise `InputError` where the folder already holds something."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"output folder {str(folder)!r} exists and is not empty; choose another --out, or go on "
                f"with --resume {folder}"
            )

    @classmethod
    def create(cls, folder: Path, config: Mapping[str, Any]) -> Run:
        cls.check_free(folder)
        run = cls(folder)
        run._made = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rollouts").mkdir()
        (folder / "checkpoints").mkdir()
        write_aside(folder / "config.toml", tomli_w.dumps(dict(config)).encode())
        for name in ("metrics.jsonl", "timings.jsonl", "events.jsonl"):
            (folder / name).touch()
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        if not (folder / "config.toml").is_file():
            raise InputError(f"{str(folder)!r} is not a run folder: it has no config.toml")
        return cls(folder)

    def forget_unless_begun(self) -> None:
        """Remove what `create` made, where no step was written: of a run that was refused, nothing stays behind."""
        if (self.folder / "metrics.jsonl").stat().st_size:
            return
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for made in self._made:
            if any(made.iterdir()):
                break  # somebody else's
            made.rmdir()

    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        import tomllib

        try:
            return tomllib.loads((self.folder / "config.toml").read_text())
        except tomllib.TOMLDecodeError as e:
            raise InputError(f"{self.folder / 'config.toml'}: {e}") from None

    def step(self, step: int, metrics: Mapping[str, Any], seconds: Mapping[str, float], batch: Rollouts | None) -> None:
        """Write one step; its rollouts wait for their block."""
        self._line("metrics.jsonl", {"step": step} | dict(metrics))
        self._line("timings.jsonl", {"step": step} | {k: round(v, 4) for k, v in seconds.items()})
        if batch is not None:
            self._block.append({"step": step, "batch": batch})
            self._block_end = step
            if len(self._block) >= BLOCK:
                self.flush()

    def event(self, step: int, kind: str, message: str, **facts: Any) -> None:
        """Write an event, with the time of day."""
        self._line(
            "events.jsonl",
            {"step": step, "kind": kind, "message": message, "time": time.strftime("%Y-%m-%dT%H:%M:%S")} | facts,
        )

    def evaluation(self, **parts: Any) -> None:
        """Add to `evaluation.json`."""
        path = self.folder / "evaluation.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        write_aside(path, json.dumps(known | parts, indent=1).encode())

    def flush(self) -> None:
        """Write the waiting rollouts as one Parquet file."""
        if not self._block:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.concat_tables(
            [pa.table(rows_of(b["step"], b["batch"])) for b in self._block], promote_options="permissive"
        )
        path = self.folder / "rollouts" / f"step-{self._block_end:06d}.parquet"
        pq.write_table(table, whole := pa.BufferOutputStream(), compression="zstd")
        write_aside(path, whole.getvalue().to_pybytes())
        self._block = []

    def rewind(self, step: int) -> None:
        """Forget what was written after `step`, so that a resumed run writes it again."""
        for name in ("metrics.jsonl", "timings.jsonl"):
            path = self.folder / name
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            write_aside(path, "".join(line + "\n" for line in kept).encode())
        for path in (self.folder / "rollouts").glob("step-*.parquet"):
            if int(path.stem.split("-")[1]) > step:
                path.unlink()

    def _line(self, name: str, record: Mapping[str, Any]) -> None:
        with open(self.folder / name, "a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line cut short by a crash


def rows_of(step: int, batch: Rollouts) -> dict[str, list]:
    """One row a trajectory: what the Parquet files hold."""
    mask = batch.mask if "mask" in batch else batch.present
    n = len(batch)

    def listed(name: str, default: Any = None) -> list:
        return batch[name].tolist() if name in batch else [default] * n

    def summed(name: str) -> list:
        return batch[name].double().where(mask, 0.0).sum(1).tolist() if name in batch else [None] * n

    rows = {
        "step": [step] * n,
        "prompt": listed("prompt"),
        "group": listed("group"),
        "question": batch.notes.get("question", [None] * n),
        "answer": batch.notes.get("answer", [None] * n),
        "completion": batch.notes.get("completion", [None] * n),
        "reward": listed("reward"),
        "correct": listed("correct"),
        "truncated": listed("truncated", False),
        "length": mask.sum(1).tolist(),
        "logp": summed("rollout_logp"),
        "ref_logp": summed("ref_logp"),
        "advantage": [a / max(k, 1) for a, k in zip(summed("advantage"), mask.sum(1).tolist(), strict=True)],
        "seed": listed("seed"),
    }
    for name, values in batch.rewards.items():
        rows[f"reward.{name}"] = (values if values.ndim == 1 else values.sum(1)).tolist()
    return rows
