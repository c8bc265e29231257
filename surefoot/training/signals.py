"""Signals on demand: a column is computed once, and only because a part reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from surefoot.errors import InputError
from surefoot.rollouts import COLUMNS, MissingColumn, Rollouts

_OLD = {"old_logp": "logp", "old_entropy": "entropy", "old_collision": "collision", "old_value": "value"}
_REFERENCE = {"ref_logp": "logp", "ref_logits": "logits"}
_TEACHER = {"teacher_logp": "logp", "teacher_logits": "logits"}


@dataclass
class Signals:
    """Fills in the detached columns of a batch from the policies at hand.

    Attributes:
        policy: the current policy; it has not moved since the batch was sampled when `fill` is called.
        temperature: sampling temperature of the batch; log-probabilities are under it.
        chunk: trajectories scored at a time.
        reference: makes the reference policy; called when the first column of it is read.
        teacher: the teacher policy, where there is one.
        passes: number of scoring passes over a batch, by source (for tests and timings).
    """

    policy: Any
    temperature: float = 1.0
    chunk: int = 256
    reference: Callable[[], Any] | None = None
    teacher: Any | None = None
    passes: dict[str, int] = field(default_factory=dict)

    def fill(self, rollouts: Rollouts, wanted: Iterable[str]) -> Rollouts:
        """The batch with the `wanted` signal columns that it lacks; one pass for all columns of one policy."""
        missing = {c for c in wanted if c not in rollouts and COLUMNS[c].source == "signal"}
        columns: dict[str, Tensor] = {}
        for source, names, scorer in (
            ("policy", _OLD, lambda: self.policy),
            ("reference", _REFERENCE, self._reference),
            ("teacher", _TEACHER, self._teacher),
        ):
            mine = {c: names[c] for c in missing if c in names}
            if mine:
                self.passes[source] = self.passes.get(source, 0) + 1
                scored = self._score(scorer(), rollouts, set(mine.values()))
                columns |= {c: scored[live] for c, live in mine.items()}
        return rollouts.having(None, None, **columns) if columns else rollouts

    def _reference(self) -> Any:
        if self.reference is None:
            raise InputError("a part reads the reference policy, and this run has none")
        return self.reference()

    def _teacher(self) -> Any:
        if self.teacher is None:
            raise InputError("a part reads a teacher's columns; give one with --teacher")
        return self.teacher

    @torch.no_grad()
    def _score(self, policy: Any, rollouts: Rollouts, want: set[str]) -> dict[str, Tensor]:
        pieces = []
        for rows in torch.arange(len(rollouts)).split(self.chunk):
            scored = policy.score(rollouts.rows(rows), want, self.temperature)
            pieces.append({k: _widen(v, rollouts.steps) for k, v in scored.items()})
        return {k: torch.cat([p[k] for p in pieces]) for k in pieces[0]}


def _widen(x: Tensor, steps: int) -> Tensor:
    filler = x.new_zeros(x.shape[0], steps - x.shape[1], *x.shape[2:])
    return torch.cat([x, filler], dim=1)


def require(rollouts: Rollouts, path: str, part: Any) -> None:
    """Raise `MissingColumn`, naming the part and the column, where a part would read what is not there."""
    for column in part.reads:
        if column not in rollouts:
            column_is = COLUMNS[column].meaning if column in COLUMNS else "not a known column"
            raise MissingColumn(
                f"{path} ({type(part).__name__}) reads column {column!r} ({column_is}), "
                f"which nothing in this run provides"
            )
