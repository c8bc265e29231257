"""Lp-Reg: rare sensible tokens survive, and noise does not (arXiv 2510.03222).

8 states, 100 actions: one dominant (p = .58, rewarded one time in five), three sparks (p = .04 each, no reward yet),
and 96 of junk (.3 together, each too rare for the filter). 64 updates on each batch of 64 samples a state (with 16,
the paper's share of the failed steps would be a single one, which is none). What counts is a spark's mass over that of
the junk: does the method keep sparks, or everything?
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._tabular import Table, learn, mean_and_spread, over_seeds, runs, trajectories
from surefoot.method import Method, Update
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.methods.rlvr.lp_reg import lp_reg
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.entropy import EntropyBonus
from surefoot.objective.surrogates import Clip

STATES, ACTIONS, SPARKS, GROUP, REUSE, LR, JUDGED_AT = 8, 100, 3, 64, 64, 0.5, 5
NO_CLIP = GRPO.but(surrogate=Clip(1.0, 9.0), regularizers=(), aggregate=TokenMean())
BASE, PAPERS = "GRPO without lower clip", "Lp-Reg, share .01"
BONUSES = {f"{BASE}, entropy bonus {c:g}": NO_CLIP.but(regularizers=(EntropyBonus(c),)) for c in (0.01, 0.03)}
OURS = {PAPERS: lp_reg(0.01), "Lp-Reg, share .1": lp_reg(0.1), "Lp-Reg, share .5": lp_reg(0.5)}
ARMS = {BASE: NO_CLIP, "GRPO, clip .2/.28": NO_CLIP.but(surrogate=Clip(0.2, 0.28))} | OURS | BONUSES


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """Five batches; `full` takes twenty, and one update a batch beside the 64."""
    batches = JUDGED_AT if size == "quick" else 20
    found = {name: np.array(runs(lambda s, m=m: retention(m, s, batches), seeds)) for name, m in ARMS.items()}
    measured = [row for name, course in found.items() for row in _rows(name, course)]
    if size == "full":
        for name in (BASE, *OURS):
            once = np.array(runs(lambda s, m=ARMS[name]: retention(m, s, 100, epochs=1), seeds))
            measured.append(over_seeds(f"{name}, one update: ratio after 100 batches", list(_ratio(once)[:, -1])))
    ratio = {name: _ratio(course)[:, JUDGED_AT] for name, course in found.items()}
    gaps = {name: [list(ratio[name] - ratio[other]) for other in (BASE, *BONUSES)] for name in OURS}
    for name, by_other in gaps.items():
        for other, gap in zip((BASE, *BONUSES), by_other, strict=True):
            measured.append(over_seeds(f"{name}: ratio less that of {other}", gap))
    return Outcome(verdict(list(gaps.values())), measured, [_draw(report, found)] if report else [], NOTES)


NOTES = (
    "The ratio is of one spark's mass to that of all junk, averaged over states; gaps are paired by seed. The rarest "
    "of the failed steps are junk, which the filter drops from the selection: a small share chooses hardly any spark."
)


def verdict(gaps: Sequence[Sequence[Sequence[float]]]) -> Verdict:
    """From each share's ratio above that of GRPO and of the bonuses; the paper's share comes first."""
    above = [all(mean > 2 * error for mean, error in map(mean_and_spread, by_other)) for by_other in gaps]
    return "reproduced" if above[0] else "not reproduced" if any(above) else "refuted"


def retention(method: Method, seed: int, batches: int, epochs: int = REUSE) -> list[tuple[float, float]]:
    """Mass of one spark and of all junk before every batch and at the end, averaged over states."""
    generator = torch.Generator().manual_seed(seed)
    chance = torch.full((STATES, ACTIONS), 0.3 / (ACTIONS - SPARKS - 1))
    chance[:, 0], chance[:, 1 : 1 + SPARKS] = 0.58, 0.04
    table, method = Table(chance.log()), method.but(update=Update(epochs=epochs)).fresh()
    states, found = torch.arange(STATES).repeat_interleave(GROUP), []
    for _ in range(batches):
        found.append(_masses(table))
        action = table.draw(states, generator)
        reward = torch.bernoulli(0.2 * (action == 0), generator=generator)
        learn(method, table, states[:, None], trajectories(action[:, None], reward, states), LR * STATES)
    return [*found, _masses(table)]


def _masses(table: Table) -> tuple[float, float]:
    policy = table.policy()
    return float(policy[:, 1 : 1 + SPARKS].mean()), float(policy[:, 1 + SPARKS :].sum(1).mean())


def _ratio(course: np.ndarray) -> np.ndarray:
    return course[..., 0] / course[..., 1]


def _rows(name: str, course: np.ndarray) -> list[dict]:
    rows = []
    for at in (n for n in (1, 5, 20) if n < course.shape[1]):
        rows.append(over_seeds(f"{name}: ratio after {at} batches", list(_ratio(course)[:, at])))
    spark, junk = course[:, JUDGED_AT].T
    return [
        *rows,
        over_seeds(f"{name}: a spark's mass after {JUDGED_AT} batches", spark),
        over_seeds(f"{name}: the junk's mass after {JUDGED_AT} batches", junk),
    ]


def _draw(folder: Path, found: dict[str, np.ndarray]) -> Path:
    """Spark against junk, batch by batch; means over seeds."""
    from surefoot.report.figures import COLOURS, canvas, save

    with canvas(6.4, 4.0) as figure:
        axes = figure.subplots()
        for (name, course), colour in zip(found.items(), COLOURS, strict=False):
            spark, junk = course.mean(0).T
            axes.loglog(junk, spark, color=colour, marker="o", markersize=3, label=name)
        axes.set(xlabel="mass of all junk", ylabel="mass of a spark", title="What is kept")
        axes.legend(fontsize=7)
        return save(figure, folder / "lp-reg")[0]


CLAIM = Claim(
    slug="lp-reg",
    statement="Holding up rare tokens that pass a min-p filter keeps sensible rare tokens and lets noise go: a larger "
    "ratio of the two than any clip or entropy bonus has.",
    refuted_if="after five batches the ratio of spark to junk is with no share (.01, .1, .5) above GRPO's, or an "
    "entropy bonus reaches the same ratio (reproduced: above both with the paper's share, .01)",
    run=run,
    seeds=tuple(range(5)),
)
