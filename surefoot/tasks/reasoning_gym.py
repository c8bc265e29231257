"""Every dataset of reasoning-gym by name, judged by its own `score_answer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache

from surefoot.errors import InputError, nearest
from surefoot.specs import read_options
from surefoot.tasks.base import Problem, TextTask
from surefoot.tasks.splits import is_held_out

TRAIN_SEED, HELDOUT_SEED = 1_000_000_000, 2_000_000_000
_STRIDE = 9_999_991  # where a drawn question is on the wrong side, the next try is this many items further


def parse_spec(spec: str) -> tuple[str, dict]:
    """`rg:chain_sum:min_terms=2,max_terms=4` -> `("chain_sum", {"min_terms": 2, "max_terms": 4})`.

    Raises:
        InputError: text that is not of this form.
    """
    _, _, rest = spec.partition(":")
    name, _, settings = rest.partition(":")
    return name, read_options(settings, f"task {spec!r}", "rg:<dataset>:key=value,key=value")


def _dataset(spec: str, name: str, options: dict, seed: int, size: int):
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise InputError(f"task {spec!r}: reasoning-gym has no dataset {name!r}{nearest(name, DATASETS)}")
    known = {f.name for f in fields(DATASETS[name][1])} - {"seed", "size"}
    for key in options:
        if key not in known:
            raise InputError(f"task {spec!r}: {name} has no setting {key!r}{nearest(key, known)}")
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **options)
    except (AssertionError, ValueError, TypeError) as e:
        raise InputError(f"task {spec!r}: {e or 'settings out of range'}") from None


class _Side(Sequence):
    """The problems of one side of the split, made when asked for.

    Training problems are an endless stream by index (repeats are possible in small question spaces); held-out ones
    are distinct.
    """

    def __init__(self, dataset, held_out: bool, size: int, distinct: bool):
        self.dataset, self.held_out, self.size = dataset, held_out, size
        self.problem = lru_cache(maxsize=8192)(self._problem)
        self.indices = self._distinct(size) if distinct else None

    def __len__(self) -> int:
        return len(self.indices) if self.indices is not None else self.size

    def __getitem__(self, i: int) -> Problem:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.problem(self.indices[i] if self.indices is not None else i)

    def _problem(self, i: int) -> Problem:
        for attempt in range(400):
            entry = self.dataset[i + attempt * _STRIDE]
            if is_held_out(entry["question"]) == self.held_out:
                answer = None if entry["answer"] is None else str(entry["answer"])
                return Problem(entry["question"], answer, entry)
        side = "held-out" if self.held_out else "training"
        raise InputError(f"task: no {side} question in 400 draws; the dataset's question space is too small to split")

    def _distinct(self, size: int) -> list[int]:
        seen: dict[str, int] = {}
        for i in range(20 * size):
            seen.setdefault(self.problem(i).question, i)
            if len(seen) == size:
                break
        return list(seen.values())


class ReasoningGym(TextTask):
    """`rg:<dataset>[:key=value,...]`: training and held-out questions are told apart by a hash of their text.

    The reward is the dataset's own `score_answer` on the text between the last `<answer>` tags.
    """

    def __init__(self, spec: str, heldout: int = 512, max_new_tokens: int = 128):
        name, options = parse_spec(spec)
        self.dataset = _dataset(spec, name, options, TRAIN_SEED, 1 << 30)
        other = _dataset(spec, name, options, HELDOUT_SEED, 1 << 30)
        super().__init__(
            spec,
            _Side(self.dataset, False, 1 << 20, distinct=False),
            _Side(other, True, heldout, distinct=True),
            self.score,
            max_new_tokens,
        )

    def score(self, completions: list[str], problems: list[Problem]) -> list[float]:
        """`score_answer` of each completion's final answer, in [0, 1]."""
        from reasoning_gym.utils import extract_answer

        return [
            float(self.dataset.score_answer(extract_answer(c), dict(p.data)))
            for c, p in zip(completions, problems, strict=True)
        ]
