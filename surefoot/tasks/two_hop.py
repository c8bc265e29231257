"""A lookup in two hops: `two-hop`. One thought, then the answer, from two fixed random tables.

The question names one of 64 keys and one of 16 colours; the thought is `F[key]`, the answer `G[F[key], colour]`, each
one letter of 16. Four keys share a thought, so that questions never seen can be answered.
"""

from __future__ import annotations

import string

import numpy as np

from surefoot.tasks.base import Problem, TextTask
from surefoot.tasks.splits import is_held_out
from surefoot.tasks.verifiers import exact

KEYS = string.ascii_letters + string.digits + "+-"
LETTERS = string.ascii_lowercase[:16]


class TwoHop(TextTask):
    """All 1024 questions, told apart by a hash of their text."""

    def __init__(self):
        rng = np.random.default_rng(16)
        first, second = rng.permutation(np.arange(64) % 16), rng.integers(16, size=(16, 16))
        problems = []
        for i in rng.permutation(1024):
            key, colour = divmod(int(i), 16)
            thought = first[key]
            answer = LETTERS[second[thought, colour]]
            problems.append(Problem(f"{KEYS[key]}{LETTERS[colour]}", answer, {"thought": LETTERS[thought]}))
        held = [p for p in problems if is_held_out(p.question)]
        super().__init__("two-hop", [p for p in problems if not is_held_out(p.question)], held, exact, 5)

    def demonstrations(self, rng: np.random.Generator, count: int) -> list[list[tuple[str, bool]]]:
        """Questions with the thought and the answer."""
        drawn = [self.train[int(i)] for i in rng.integers(len(self.train), size=count)]
        return [[(p.question, False), (f"{p.data['thought']}<answer>{p.answer}</answer>", True)] for p in drawn]


def load(rest: str) -> TwoHop:
    """The task; it has no options."""
    return TwoHop()
