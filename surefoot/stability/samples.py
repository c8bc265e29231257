"""What the estimators read: responses sampled from one policy, their rewards and their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from surefoot.errors import InputError, nearest

NEEDED = ("prompt", "completion", "reward")
LABELS = ("answer", "text")


@dataclass(frozen=True)
class Samples:
    """n responses. Rewards are raw: before any normalisation within a group.

    Attributes:
        prompt: which prompt each response answers.
        reward: the combined reward, `sum_k w_k r_k`.
        label: the class of each response: its final answer, its format, a flag ... (text).
        rewards: the rewards it is made of, by name.
        weights: how much each of them counts; those not named count 1.
        log_ratio: `log pi(y|x) - log pi_ref(y|x)`, summed over the response, in nats; None where it was not computed.
        step: the checkpoint that each response came from; None where all came from one.
        weight: probability of each response under the policy, where all of them are enumerated; None for a sample.
        cut: whether the response ran into its length limit; None where it is not known.
    """

    prompt: Int[np.ndarray, "n"]
    reward: Float[np.ndarray, "n"]
    label: np.ndarray
    rewards: Mapping[str, Float[np.ndarray, "n"]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    log_ratio: Float[np.ndarray, "n"] | None = None
    step: Int[np.ndarray, "n"] | None = None
    weight: Float[np.ndarray, "n"] | None = None
    cut: Bool[np.ndarray, "n"] | None = None

    def __post_init__(self) -> None:
        n = len(self.reward)
        for name, values in self._columns().items():
            if np.shape(values) != (n,):
                raise InputError(f"samples: {name} has shape {np.shape(values)}; expected ({n},) as reward has")
        for name, values in {"reward": self.reward, **{f"reward {k!r}": v for k, v in self.rewards.items()}}.items():
            if not np.all(np.isfinite(values)):
                raise InputError(f"samples: {name} is not finite at row {int(np.argmin(np.isfinite(values)))}")

    def __len__(self) -> int:
        return len(self.reward)

    def _columns(self) -> dict[str, np.ndarray]:
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("rewards", "weights")}
        return {k: v for k, v in plain.items() if v is not None} | {f"rewards.{k}": v for k, v in self.rewards.items()}

    def where(self, keep: np.ndarray) -> Samples:
        """Some of the responses: a mask or indices."""
        plain = {k: v[keep] for k, v in self._columns().items() if not k.startswith("rewards.")}
        return replace(self, **plain, rewards={k: v[keep] for k, v in self.rewards.items()})

    def by_prompt(self) -> Iterator[tuple[int, Samples]]:
        """The responses to each prompt, prompts in rising order."""
        order = np.argsort(self.prompt, kind="stable")
        ids, starts = np.unique(self.prompt[order], return_index=True)
        for prompt, rows in zip(ids, np.split(order, starts[1:]), strict=True):
            yield int(prompt), self.where(rows)


def concatenate(parts: Sequence[Samples]) -> Samples:
    """Responses one after another; all parts have the same columns and weights."""
    first = parts[0]
    columns = {k: np.concatenate([p._columns()[k] for p in parts]) for k in first._columns()}
    rewards = {k: columns.pop(f"rewards.{k}") for k in first.rewards}
    return replace(first, **columns, rewards=rewards)


def samples_from_rollouts(
    frame: Any,
    label: Callable[[str], str] | None = None,
    weights: Mapping[str, float] | None = None,
    penalised: bool = False,
) -> Samples:
    """Samples from a table of rollouts (columns: see the run folder), one row a response.

    Args:
        frame: a pyarrow table, a pandas frame, or a mapping from column to values.
        label: completion -> class; None takes the final answer.
        weights: weight of each named reward in the combined one.
        penalised: the column `reward` has a KL penalty in it; the weighted sum of the named rewards is taken instead.

    Raises:
        InputError: a column that is needed is missing, or there is no row.
    """
    columns = {name: _values(frame[name]) for name in _names(frame)}
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise InputError(f"rollouts: no column {missing[0]!r}; expected at least {', '.join(NEEDED)}")
    if not len(columns["reward"]):
        raise InputError("rollouts: no rows; expected at least one response")
    cut = columns["truncated"].astype(bool) if "truncated" in columns else None
    named = {k.removeprefix("reward."): v.astype(float) for k, v in columns.items() if k.startswith("reward.")}
    weights, reward = dict(weights or {}), columns["reward"].astype(float)
    if penalised and named:
        reward = np.sum([weights.get(k, 1.0) * v for k, v in named.items()], 0)
    return Samples(
        prompt=columns["prompt"].astype(np.int64),
        reward=reward,
        label=classes(columns["completion"], cut, label),
        rewards=named,
        weights=weights,
        log_ratio=_log_ratio(columns),
        cut=cut,
        step=columns["step"].astype(np.int64) if "step" in columns else None,
    )


def classes(
    completions: Sequence[str] | np.ndarray,
    cut: Bool[np.ndarray, "n"] | None = None,
    label: Callable[[str], str] | None = None,
) -> np.ndarray:
    """The class of each response: `label` of it; None takes its final answer.

    The final answer is the text between the last `<answer>` tags, else the last line; a response that ran into its
    length limit (`cut`) has none, and gets the class `(cut)`.
    """
    from surefoot.tasks.verifiers import final_answer

    labels = np.array([(label or final_answer)(text) for text in completions], dtype=object)
    if cut is not None and label is None:
        labels[cut] = "(cut)"
    return labels


def labelling(name: str) -> Callable[[str], str] | None:
    """What `classes` takes as `label`: for `answer` None, for `text` the whole response.

    Raises:
        InputError: another name.
    """
    if name not in LABELS:
        raise InputError(f"classes {name!r}; expected {' or '.join(LABELS)}{nearest(name, LABELS)}")
    return None if name == "answer" else str.strip


def read_rollouts(run: str | Path, first: int | None = None, last: int | None = None) -> Any:
    """The rollouts of a run folder as one pyarrow table, steps `first` to `last` (both inclusive).

    Raises:
        InputError: not a run folder, no rollouts in it, or none in those steps.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(run)
    files = sorted((folder / "rollouts").glob("*.parquet"))
    if not files:
        raise InputError(f"{folder}: no rollouts/*.parquet; expected a run folder of surefoot train")
    try:
        table = pa.concat_tables([pq.read_table(f) for f in files], promote_options="permissive")
    except pa.ArrowInvalid as e:
        raise InputError(f"{folder / 'rollouts'}: {e}; expected Parquet files of a run") from None
    if "step" in table.column_names:
        step = table["step"].to_numpy()
        keep = (step >= (0 if first is None else first)) & (step <= (2**62 if last is None else last))
        table = table.filter(pa.array(keep))
    if not table.num_rows:
        raise InputError(f"{folder}: no rollouts in steps {first} to {last}")
    return table


def _names(frame: Any) -> list[str]:
    return list(frame.column_names if hasattr(frame, "column_names") else frame.keys())


def _values(column: Any) -> np.ndarray:
    """A column as an array; null becomes NaN or None."""
    if hasattr(column, "to_numpy"):
        return np.asarray(column.to_numpy())
    return np.asarray(column)


def _log_ratio(columns: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """`logp - ref_logp`, or None where the run did not compute the reference for every response."""
    if "logp" not in columns or "ref_logp" not in columns:
        return None
    ratio = columns["logp"].astype(float) - columns["ref_logp"].astype(float)
    return ratio if np.all(np.isfinite(ratio)) else None
