"""STEER: weighting tokens by their predicted entropy change keeps entropy higher at equal reward (arXiv 2510.10150).

A contextual bandit (20 states, 16 actions, mean rewards .9, .8 and .1), 8 samples a state, 4 steps a batch. Beside the
base method stands a control: the base method with STEER's mean weight as a constant factor, a change of learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._tabular import Table, entropy_at, learn, mean_and_spread, over_seeds, runs, trajectories
from surefoot.method import Method, Update
from surefoot.methods.rlvr.steer import STEER, EntropyChangeWeighted
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.surrogates import Clip

STATES, ACTIONS, GROUP, LR = 20, 16, 8, 1.0
LEVELS = (0.4, 0.6, 0.8)
RANGES = {"paper's range .8 to 1.2": (0.8, 1.2), "strong range .3 to 1": (0.3, 1.0)}
CLIPS = {"extreme clip": Clip(0.99, 5.0, 10.0), "usual clip": Clip(0.2, 0.28, 10.0)}


class Course(NamedTuple):
    """A run: mean reward and entropy before every step, and the mean of the tokens' weights."""

    reward: list[float]
    entropy: list[float]
    weight: float

    def at_levels(self) -> float:
        """Entropy when the mean reward first passes the levels, averaged over them."""
        return float(np.mean([entropy_at(self.reward, self.entropy, level) for level in LEVELS]))


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """The extreme setting of the paper, until the last level is passed; `full` adds the usual clip."""
    clips = dict(list(CLIPS.items())[: 1 if size == "quick" else 2])
    courses = {name: _arms(clip, seeds) for name, clip in clips.items()}
    measured = [
        row for name, arms in courses.items() for arm, found in arms.items() for row in _rows(f"{name}, {arm}", found)
    ]
    judged = courses["extreme clip"]
    gaps = {arm: (_gap(judged, arm, f"constant weight of {arm}"), _gap(judged, arm, "base")) for arm in RANGES}
    for arm, (to_control, to_base) in gaps.items():
        measured.append(over_seeds(f"extreme clip, {arm}: entropy less its control's", to_control))
        measured.append(over_seeds(f"extreme clip, {arm}: entropy less the base method's", to_base))
    return Outcome(verdict(list(gaps.values())), measured, [_draw(report, judged)] if report else [], NOTES)


NOTES = (
    "Entropy is averaged over the moments when the mean reward first passes .4, .6 and .8; gaps are paired by seed. "
    "The paper's range has a mean weight near its upper end, which is a larger step: the weights make up for it, and "
    "the entropy ends level with the base method's. With the strong range it is above both."
)


def verdict(gaps: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Verdict:
    """From the gaps to control and base: for the paper's range first, then for the strong one."""
    clear = [tuple(_above(gap) for gap in pair) for pair in gaps]
    if not any(to_control for to_control, _ in clear):
        return "refuted"
    return "reproduced" if all(clear[0]) else "not reproduced"


def _above(gap: Sequence[float]) -> bool:
    mean, error = mean_and_spread(gap)
    return mean > 2 * error


def _gap(arms: dict[str, list[Course]], arm: str, other: str) -> list[float]:
    return [a.at_levels() - b.at_levels() for a, b in zip(arms[arm], arms[other], strict=True)]


def _arms(clip: Clip, seeds: Sequence[int]) -> dict[str, list[Course]]:
    base = STEER.but(surrogate=clip, aggregate=TokenMean(), update=Update(epochs=4))
    found = {"base": runs(lambda s: bandit(base, s), seeds)}
    for arm, (low, high) in RANGES.items():
        steered = base.but(aggregate=EntropyChangeWeighted(low=low, high=high))
        found[arm] = runs(lambda s, m=steered: bandit(m, s), seeds)
        factor = float(np.mean([c.weight for c in found[arm]]))
        found[f"constant weight of {arm}"] = runs(lambda s, f=factor: bandit(base, s, LR * f), seeds)
    return found


def bandit(method: Method, seed: int, lr: float = LR, limit: int = 400) -> Course:
    """Train until the mean reward passes the last level; `lr` is that of each state's own mean loss."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(STATES, ACTIONS, generator=generator).argsort(1)
    chance = torch.full((STATES, ACTIONS), 0.1).scatter(1, order[:, :1], 0.9).scatter(1, order[:, 1:2], 0.8)
    table, method = Table(0.5 * torch.randn(STATES, ACTIONS, generator=generator)), method.fresh()
    states = torch.arange(STATES).repeat_interleave(GROUP)
    watch, course = _Watch(method), Course([], [], 1.0)
    for _ in range(limit):
        course.reward.append(float((table.policy() * chance).sum(1).mean()))
        course.entropy.append(float(table.entropy().mean()))
        if course.reward[-1] >= LEVELS[-1]:
            break
        action = table.draw(states, generator)
        reward = torch.bernoulli(chance[states, action], generator=generator)
        learn(watch.method, table, states[:, None], trajectories(action[:, None], reward, states), lr * STATES)
    return course._replace(weight=watch.mean())


class _Watch:
    """A method whose aggregate's weights are added up as it learns: they sum to 1 for a plain mean."""

    def __init__(self, method: Method):
        self.sums: list[float] = []
        part = method.aggregate

        class Watched(type(part)):
            def __call__(inner, rollouts, *rest):  # pyright: ignore[reportSelfClsParameterName]
                weights = part(rollouts, *rest)
                self.sums.append(float(weights.sum()))
                return weights

        self.method = method.but(aggregate=Watched())

    def mean(self) -> float:
        return float(np.mean(self.sums))


def _rows(name: str, found: Sequence[Course]) -> list[dict]:
    rows = [
        over_seeds(f"{name}: entropy at reward {level}", [entropy_at(c.reward, c.entropy, level) for c in found])
        for level in LEVELS
    ]
    jumps = [float(np.quantile(np.abs(np.diff(c.entropy)), 0.99)) for c in found]
    return [
        *rows,
        over_seeds(f"{name}: 99 % quantile of a step's entropy change", jumps),
        over_seeds(f"{name}: mean weight", [c.weight for c in found]),
    ]


def _draw(folder: Path, arms: dict[str, list[Course]]) -> Path:
    """Entropy against reward, every seed."""
    from surefoot.report.figures import COLOURS, canvas, save

    with canvas(6.4, 3.8) as figure:
        axes = figure.subplots()
        for (arm, found), colour in zip(arms.items(), COLOURS, strict=False):
            for i, course in enumerate(found):
                axes.plot(course.reward, course.entropy, color=colour, linewidth=1, label=None if i else arm)
        axes.set(xlabel="mean reward", ylabel="entropy, nats", title="Entropy at equal reward, extreme clip")
        axes.legend(fontsize=8)
        return save(figure, folder / "steer")[0]


CLAIM = Claim(
    slug="steer",
    statement="Weighting tokens down by their predicted entropy change keeps entropy higher at equal reward than the "
    "base method, and than a constant weight of the same mean.",
    refuted_if="under the extreme clip the control of constant weight has the same entropy at equal reward, with the "
    "paper's range of weights and with a strong one (reproduced: higher than control and base with the paper's range)",
    run=run,
    seeds=tuple(range(40)),
)
