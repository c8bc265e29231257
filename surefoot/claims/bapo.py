"""BAPO: on stale data, clip bounds that balance right and wrong learn faster, at higher entropy (arXiv 2510.18927).

8 prompts x 64 answers (1 to 5 right), 16 trajectories a prompt, 8 updates on each batch. A wrong answer is followed by
four filler tokens that carry its advantage, so that wrong tokens outweigh right ones: with answers of equal length
centred advantages balance by themselves and the search never moves. Beside PPO stand the two controls that decide, the
bounds where BAPO's search starts and ends, fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._tabular import (
    Table,
    draw_speed_and_entropy,
    entropy_at,
    learn,
    mean_and_spread,
    over_seeds,
    runs,
    trajectories,
)
from surefoot.method import Method, Update
from surefoot.methods.rlvr.bapo import BAPO, BalancedClip
from surefoot.objective.advantages import Relative
from surefoot.objective.groups import group_mean, group_population_std
from surefoot.objective.surrogates import Clip

PROMPTS, ANSWERS, GROUP, FILLERS, REUSE, LR, EARLY = 8, 64, 16, 4, 8, 1.0, 20
LEVELS = (0.5, 0.8)
PPO, JUDGED = "PPO (.8, 1.2)", "BAPO .4"
CONTROLS = ("fixed (.6, 1.2)", "fixed (.9, 3)")
ARMS = {
    PPO: Clip(0.2),
    "clip-higher (.8, 1.28)": Clip(0.2, 0.28),
    CONTROLS[0]: Clip(0.4, 0.2),
    CONTROLS[1]: Clip(0.1, 2.0),
    JUDGED: BalancedClip(),
    "BAPO .2": BalancedClip(target=0.2),
    "BAPO .4, by gradient": BalancedClip(measure="gradient"),
    "BAPO .4, unweighted": BalancedClip(weighted=False),
    "BAPO .2, unweighted": BalancedClip(target=0.2, weighted=False),
}


class Course(NamedTuple):
    """Success and answer entropy before every batch; the bounds of its last update, and whether their search failed."""

    success: list[float]
    entropy: list[float]
    bounds: list[tuple[float, float, float]]


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """Forty batches of each arm; `full` takes a hundred."""
    batches = 40 if size == "quick" else 100
    found = {name: runs(lambda s, p=part: course(p, s, batches), seeds) for name, part in ARMS.items()}
    measured = [row for name, courses in found.items() for row in _rows(name, courses)]
    ahead = {name: _gap(found, name, lambda c: c.success[EARLY]) for name in CONTROLS}
    entropy = {level: _gap(found, PPO, lambda c, x=level: entropy_at(c.success, c.entropy, x)) for level in LEVELS}
    for name, gap in ahead.items():
        measured.append(over_seeds(f"{JUDGED}: success after {EARLY} batches less that of {name}", gap))
    for level, gap in entropy.items():
        measured.append(over_seeds(f"{JUDGED}: entropy at success {level} less PPO's", gap))
    pictures = (
        [draw_speed_and_entropy(report / "bapo", found, "batches, eight updates each", "answer entropy, nats")]
        if report
        else []
    )
    return Outcome(verdict(list(ahead.values()), list(entropy.values())), measured, pictures, NOTES)


NOTES = (
    "Gaps are paired by seed. Entropy is of the answers, without the fillers. BAPO learns faster than PPO and than the "
    "bounds where its search starts, and no faster than the wide bounds where it ends: what helps is the wider upper "
    "bound. At equal success its entropy is below PPO's."
)


def verdict(ahead: Sequence[Sequence[float]], entropy: Sequence[Sequence[float]]) -> Verdict:
    """From BAPO's lead over each fixed control and its entropy above PPO's at each level, over seeds."""
    faster = all(mean > 2 * error for mean, error in map(mean_and_spread, ahead))
    if not faster or any(mean <= 0 for mean, _ in map(mean_and_spread, entropy)):
        return "refuted"
    clear = all(mean > 2 * error for mean, error in map(mean_and_spread, entropy))
    return "reproduced" if clear else "not reproduced"


def _gap(found: dict[str, list[Course]], other: str, of) -> list[float]:
    return [of(a) - of(b) for a, b in zip(found[JUDGED], found[other], strict=True)]


def course(surrogate: Clip | BalancedClip, seed: int, batches: int) -> Course:
    """Learn from `batches` batches, each used for `REUSE` updates."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(PROMPTS, ANSWERS, generator=generator).argsort(1)
    right = right < torch.randint(1, 6, (PROMPTS, 1), generator=generator)
    logits = torch.zeros(PROMPTS * (1 + FILLERS), ANSWERS)
    logits[PROMPTS:, 4:] = -torch.inf  # fillers: four tokens
    table, found = Table(logits), Course([], [], [])
    prompt = torch.arange(PROMPTS).repeat_interleave(GROUP)
    filler = PROMPTS + prompt[:, None] * FILLERS + torch.arange(FILLERS)
    states = torch.cat([prompt[:, None], filler], 1)

    method = _method(surrogate).fresh()
    for _ in range(batches):
        found.success.append(float((table.policy()[:PROMPTS] * right).sum(1).mean()))
        found.entropy.append(float(table.entropy()[:PROMPTS].mean()))
        actions = torch.stack([table.draw(column, generator) for column in states.T], 1)
        reward = right[prompt, actions[:, 0]].float()
        mask = torch.cat([torch.ones(len(prompt), 1).bool(), (reward == 0)[:, None].expand(-1, FILLERS)], 1)
        learn(method, table, states, trajectories(actions, reward, prompt, mask), LR * 32)
        if method.surrogate.memory:
            found.bounds.append(tuple(method.surrogate.memory[name] for name in ("low", "high", "exhausted")))
    return found


def _method(surrogate: Clip | BalancedClip) -> Method:
    advantage = Relative(group_mean, group_population_std, eps=0.0)
    return BAPO.but(advantage=advantage, surrogate=surrogate, update=Update(epochs=REUSE))


def _rows(name: str, found: Sequence[Course]) -> list[dict]:
    rows = [over_seeds(f"{name}: success after {EARLY} batches", [c.success[EARLY] for c in found])]
    for level in LEVELS:
        at = [entropy_at(c.success, c.entropy, level) for c in found]
        rows.append(over_seeds(f"{name}: entropy at success {level}", at))
    if found[0].bounds:
        means = np.array([np.mean(c.bounds, axis=0) for c in found]).T
        labels = ("lower bound, last update", "upper bound, last update", "searches that ended short")
        rows += [over_seeds(f"{name}: {label}", m) for label, m in zip(labels, means, strict=True)]
    return rows


CLAIM = Claim(
    slug="bapo",
    statement="On stale data, clip bounds searched before every update learn faster than fixed bounds, and at higher "
    "entropy at equal success than PPO's.",
    refuted_if="a fixed pair of bounds, where the search starts (.6, 1.2) or where it ends (.9, 3), is as successful "
    "after 20 batches, or entropy at success .5 or .8 is not above PPO's",
    run=run,
    seeds=tuple(range(10)),
)
