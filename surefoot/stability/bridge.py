"""The bridge between samples and truth: each estimate of a prompt beside its exact value over all answers.

For a policy whose answers can be enumerated (`policies.enumerated`), the nine estimators are taken twice: of a sample
of responses, and of every answer with its probability. Exact values are up to `missing`, the mass of the answers that
were dropped; every share and total variation that the policy has is off by at most that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from surefoot.stability.analysis import ANYTHING, Question, of_group
from surefoot.stability.enumeration import Answers
from surefoot.stability.from_samples import Estimate
from surefoot.stability.samples import Samples


@dataclass(frozen=True)
class Beside:
    """One estimate and the truth.

    Attributes:
        sampled: of the sample.
        exact: over all answers; None where there is none.
        missing: probability of the answers that were not enumerated.
        answers: how many were.
    """

    sampled: Estimate
    exact: float | None
    missing: float
    answers: int

    @property
    def holds(self) -> bool | None:
        """Whether the bound or the interval is true; None for a plain estimate, or where either side is not known."""
        value, exact = self.sampled.value, self.exact
        if value is None or exact is None:
            return None
        slack = self.missing + 1e-9
        if self.sampled.kind == "upper bound":
            return exact <= value + slack
        if self.sampled.kind == "lower bound":
            return exact >= value - slack
        if self.sampled.interval is None:
            return None
        low, high = self.sampled.interval
        return low - slack <= exact <= high + slack


@dataclass(frozen=True)
class Summary:
    """One estimator over all prompts.

    Attributes:
        sampled, exact: means over the prompts that have both, of which there are `prompts`.
        error: mean of the absolute difference.
        holds, asked: how many bounds or intervals are true, of how many.
    """

    item: int
    name: str
    prompts: int
    sampled: float
    exact: float
    error: float
    holds: int
    asked: int


def bridge(
    enumerated: Sequence[tuple[Samples, Answers]], sampled: Samples, question: Question | None = None
) -> Iterator[Beside]:
    """Every estimate of every prompt in `enumerated`, from its responses in `sampled`, beside the exact value."""
    question = question or Question()
    for everything, answers in enumerated:
        own = sampled.where(sampled.prompt == everything.prompt[0])
        truth = {e.name: e.value for e in of_group(everything, question)} | unseen(everything, own)
        for estimate in of_group(own, question):
            yield Beside(estimate, truth.get(estimate.name), answers.rest, len(answers))


def unseen(everything: Samples, seen: Samples) -> dict[str, float]:
    """What the estimators of unseen mass (item 2) are after: it depends on the sample, so only here can it be known."""
    assert everything.weight is not None
    label = everything.label.astype(str)
    new = ~np.isin(label, seen.label.astype(str))
    by_class = np.bincount(np.unique(label, return_inverse=True)[1], everything.weight * new)
    outside = (everything.reward < seen.reward.min()) | (everything.reward > seen.reward.max())
    return {
        ANYTHING: float(by_class.max()),
        "mass of unseen classes": float(everything.weight[new].sum()),
        "mass outside the seen range": float(everything.weight[outside].sum()),
    }


def summarise(rows: Sequence[Beside]) -> list[Summary]:
    """Over prompts, in the order of the items."""
    found = []
    for item, name in dict.fromkeys((r.sampled.item, r.sampled.name) for r in rows):
        own = [r for r in rows if r.sampled.name == name]
        both = [(r.sampled.value, r.exact) for r in own if r.sampled.value is not None and r.exact is not None]
        if both:
            value, exact = np.array(both).T
            judged = [r.holds for r in own if r.holds is not None]
            numbers = float(value.mean()), float(exact.mean()), float(np.abs(value - exact).mean())
            found.append(Summary(item, name, len(both), *numbers, sum(judged), len(judged)))
    return sorted(found, key=lambda s: s.item)
