"""What is measured: a model, prompts and lengths, given alike to both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.errors import InputError, nearest


@dataclass(frozen=True)
class Case:
    """One scenario of the bench; every field holds for both sides.

    Attributes:
        policy: as for `surefoot train`.
        task: where the questions come from; its reward is not used.
        prompts, group: a step samples `group` completions of each of `prompts` prompts, in the task's order.
        limit: new tokens at most.
        fixed: forbid the end of text, so that every completion has exactly `limit` tokens.
        temperature: of sampling.
        beta: coefficient of the KL divergence to the reference; above 0 it costs a pass of the reference a step.
    """

    name: str
    policy: str
    task: str
    prompts: int
    group: int
    limit: int
    fixed: bool
    temperature: float = 1.0
    beta: float = 0.04
    lr: float = 1e-6
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    clip: float = 0.2

    @property
    def rows(self) -> int:
        """Completions a step."""
        return self.prompts * self.group


SUMS = "rg:chain_sum:min_terms=2,max_terms=4,min_digits=2,max_digits=2"
WORDS = "rg:spell_backward:min_word_len=8,max_word_len=14"  # 37 tokens on average; one in twelve runs into the limit
CASES = {
    case.name: case
    for case in (
        Case("pebble-fixed", "pebble", SUMS, prompts=8, group=8, limit=32, fixed=True),
        Case("pebble-mixed", "pebble", WORDS, prompts=8, group=8, limit=128, fixed=False),
        Case("smollm2", "smollm2-135m", SUMS, prompts=2, group=8, limit=32, fixed=True),
    )
}


def find(name: str) -> Case:
    """The case of that name.

    Raises:
        InputError: no such case.
    """
    if name not in CASES:
        raise InputError(f"--case {name!r}: expected one of {', '.join(CASES)}{nearest(name, CASES)}")
    return CASES[name]


def trivial_reward(completions: Sequence[str], **_: object) -> list[float]:
    """A reward that costs nothing and differs within a group: the completion's characters modulo 7."""
    return [sum(map(ord, text)) % 7 / 6 for text in completions]
