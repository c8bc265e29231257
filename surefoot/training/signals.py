"""Signals on demand: a column is computed once, and only because a part reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from surefoot.errors import InputError
from surefoot.objective.divergences import REVERSE_KL, f_divergence
from surefoot.rollouts import COLUMNS, MissingColumn, Rollouts

_OLD = {
    "old_logp": "logp",
    "old_entropy": "entropy",
    "old_collision": "collision",
    "old_value": "value",
    "old_next_value": "next_value",
    "old_kl": "kl",
    "old_hidden": "hidden",
}
_NOW = {"now_logp": "logp", "now_entropy": "entropy", "now_kl": "kl"}
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
        statistics: columns made of the policy's whole distributions and the steps taken (`Part.statistics`).
        passes: number of scoring passes over a batch, by source (for tests and timings).
    """

    policy: Any
    temperature: float = 1.0
    chunk: int = 256
    reference: Callable[[], Any] | None = None
    teacher: Any | None = None
    statistics: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)

    def fill(self, rollouts: Rollouts, wanted: Iterable[str]) -> Rollouts:
        """The batch with the `wanted` signal columns that it lacks; one pass for all columns of one policy."""
        missing = {c for c in wanted if c not in rollouts and COLUMNS[c].source == "signal"}
        columns: dict[str, Tensor] = {}
        for source, names, scorer in (
            ("policy", _OLD | _NOW | {c: c for c in self.statistics}, lambda: self.policy),
            ("reference", _REFERENCE, self._reference),
            ("teacher", _TEACHER, self._teacher),
        ):
            mine = {c: names[c] for c in missing if c in names}
            if mine:
                self.passes[source] = self.passes.get(source, 0) + 1
                scored = self._score(scorer(), rollouts, set(mine.values()))
                columns |= {c: scored[live] for c, live in mine.items()}
        return rollouts.having(None, None, **columns) if columns else rollouts

    def refresh(self, rollouts: Rollouts) -> Rollouts:
        """The table with its `now_*` columns taken again: the policy has moved since they were."""
        now = [c for c in rollouts if c in _NOW]
        return self.fill(rollouts.without(*now), now) if now else rollouts

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
            scored = self._columns(policy, rollouts.rows(rows), want)
            pieces.append({k: _widen(v, rollouts.steps) for k, v in scored.items()})
        return {k: torch.cat([p[k] for p in pieces]) for k in pieces[0]}

    def _columns(self, policy: Any, rollouts: Rollouts, want: set[str]) -> dict[str, Tensor]:
        """The policy's columns; `kl` and statistics need all candidates, of which only what they make is kept."""
        whole = want & {"kl", *self.statistics}
        if not whole:
            return policy.score(rollouts, want, self.temperature)
        scored = policy.score(rollouts, want - whole | {"logits"}, self.temperature)
        made = {c: self.statistics[c](scored["logits"], rollouts.tokens) for c in whole - {"kl"}}
        if "kl" in whole:
            other = self._reference().score(rollouts, {"logits"}, self.temperature)["logits"]
            made["kl"] = f_divergence(scored["logits"], other, REVERSE_KL)
        return {k: v for k, v in scored.items() if k in want} | made


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
