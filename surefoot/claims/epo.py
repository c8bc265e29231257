"""EPO: a band around each turn's entropy history steadies the entropy at no cost in success (arXiv 2509.22576).

A chain of 20 turns, 4 actions, logits linear in 7 features that turns share; each turn has a target action that the
features can tell. One Bernoulli reward at the end, of mean .7 m^2 + .3 [action 0 in at least 40 % of the turns], m the
share of targets hit: the second term is the easy local optimum. 16 episodes a step, GRPO's advantage; the learning rate
is 1 for the sum over an episode's turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._tabular import Table, control, learn, mean_and_spread, over_seeds, runs, trajectories
from surefoot.method import Method
from surefoot.methods.rlvr.epo import EPO, EntropyBand
from surefoot.objective.entropy import EntropyBonus

TURNS, ACTIONS, EPISODES, STEPS = 20, 4, 16, 300
BANDS = {"soft": EntropyBand(weight=0.0), "soft, alpha 5": EntropyBand(weight=0.0, alpha=5.0)}


Arms = dict[str, list["Course"]]


class Course(NamedTuple):
    """A run.

    Attributes:
        unsteady: deviation of a turn's entropy over the last half of training, mean over turns.
        hits: expected share of targets at the end.
        nats: mean entropy after every step.
    """

    unsteady: float
    hits: float
    nats: list[float]


def features() -> Tensor:
    """Six Gaussian bumps, two turns wide, and a one [turns, 7]."""
    turn, centres = torch.arange(TURNS)[:, None], torch.linspace(0, TURNS - 1, 6)
    return torch.cat([(-0.5 * ((turn - centres) / 2).square()).exp(), torch.ones(TURNS, 1)], 1)


def chain(method: Method, seed: int, trained: bool = False, steps: int = STEPS) -> Course:
    """Train on the chain; `trained` starts from a policy that hits nearly all targets."""
    g, shared = torch.Generator().manual_seed(seed), features()
    teacher = torch.randn(7, ACTIONS, generator=g)
    target = (shared @ teacher).argmax(1)
    table, method = Table(5 * teacher if trained else torch.zeros(7, ACTIONS), shared), method.fresh()
    states, group = torch.arange(TURNS).expand(EPISODES, TURNS), torch.zeros(EPISODES, dtype=torch.long)
    nats = []
    for _ in range(steps):
        actions = table.draw(states.flatten(), g).view(EPISODES, TURNS)
        share = (actions == target).float().mean(1)
        easy = (actions == 0).float().mean(1) >= 0.4
        reward = torch.bernoulli(0.7 * share.square() + 0.3 * easy, generator=g)
        learn(method, table, states, trajectories(actions, reward, group), lr=TURNS)
        method = control(method)
        nats.append(table.entropy())
    late = torch.stack(nats[steps // 2 :])
    hits = float(table.policy()[torch.arange(TURNS), target].mean())
    return Course(float(late.std(0, correction=0).mean()), hits, [float(x.mean()) for x in nats])


def arms(coefficient: float, seeds: Sequence[int], bands: Sequence[str], trained: bool = False) -> Arms:
    """The bonus alone and the bands, with this coefficient."""
    bonus = EPO.but(regularizers=(EntropyBonus(coefficient),), controllers=())
    made = {
        name: EPO.but(regularizers=(band.having(coef=coefficient),)) for name, band in BANDS.items() if name in bands
    }
    return {name: runs(lambda s, m=m: chain(m, s, trained), seeds) for name, m in ({"bonus": bonus} | made).items()}


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """From scratch with two coefficients, and from a trained policy with one that blows up.

    `full` takes all the card's coefficients, a stronger band, and no bonus.
    """
    quick = size == "quick"
    coefficients, bands = ((0.01, 0.05), ("soft",)) if quick else ((0.01, 0.05, 0.1, 0.2), tuple(BANDS))
    none = [] if quick else runs(lambda s: chain(EPO.but(regularizers=(), controllers=()), s), seeds)
    scratch = {c: arms(c, seeds, bands) for c in coefficients}
    late = arms(0.2, seeds, bands, trained=True)
    released = EPO.but(regularizers=(EntropyBand(coef=coefficients[0], soft=False),), controllers=())
    gap = np.abs(np.subtract(chain(released, seeds[0]).nats, scratch[coefficients[0]]["bonus"][0].nats)).max()
    measured = [
        {"name": "released code: largest gap of its entropy curve to the bonus alone", "value": gap, "bound": 1e-6}
    ]
    settings = ({"no bonus": {"none": none}} if none else {}) | {f"c={c:g}": by for c, by in scratch.items()}
    for setting, by in (settings | {"c=0.2 from a trained policy": late}).items():
        for arm, found in by.items():
            for name, what in LABELS.items():
                measured.append(over_seeds(f"{setting}, {arm}: {what}", [getattr(f, name) for f in found]))
    gaps = {f"c={c:g}": (_gap(by, "unsteady"), _gap(by, "hits")) for c, by in scratch.items()}
    late_gaps = {"c=0.2 from a trained policy": (_gap(late, "unsteady"), _gap(late, "hits"))}
    for setting, pair in (gaps | late_gaps).items():
        for what, gap in zip(LABELS.values(), pair, strict=True):
            measured.append(over_seeds(f"{setting}: {what}, soft less bonus", gap))
    return Outcome(verdict(list(gaps.values())), measured, [_draw(report, scratch, late)] if report else [], NOTES)


LABELS = {"unsteady": "deviation of entropy, last half", "hits": "targets hit"}
NOTES = (
    "The verdict is by the soft band from scratch, on fresh seeds: of those used while this was built ten said "
    "reproduced and twelve refuted, so few seeds say nothing here. Late chaos is another matter: from a trained "
    "policy, with a bonus large enough to undo it, the band keeps entropy steadier and more of the success, in all "
    "three sets of seeds. The released code's penalty has no gradient: its curve is the bonus's."
)


def verdict(gaps: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Verdict:
    """From each coefficient's gaps, soft less bonus: in the entropy's deviation, and in targets hit."""
    found = [(mean_and_spread(unsteady), mean_and_spread(hits)) for unsteady, hits in gaps]
    if any(u < -2 * ue and h > -2 * he for (u, ue), (h, he) in found):
        return "reproduced"
    return "refuted" if all(u >= 0 or h < 0 for (u, _), (h, _) in found) else "not reproduced"


def _gap(by: Arms, name: str) -> list[float]:
    return [getattr(s, name) - getattr(b, name) for s, b in zip(by["soft"], by["bonus"], strict=True)]


def _draw(folder: Path, scratch: dict[float, Arms], late: Arms) -> Path:
    """Entropy against the step, every seed: from scratch with the largest coefficient, and from a trained policy."""
    from surefoot.report.figures import COLOURS, canvas, save

    c = max(scratch)
    panels = {f"From scratch, c = {c:g}": scratch[c], "From a trained policy, c = 0.2": late}
    with canvas(9.2, 3.6) as figure:
        for axes, (title, by) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            for (arm, found), colour in zip(by.items(), COLOURS, strict=False):
                for i, course in enumerate(found):
                    axes.plot(course.nats, color=colour, linewidth=1, label=None if i else arm)
            axes.set(xlabel="step", ylabel="entropy, nats", title=title)
        axes.legend(fontsize=8)
        return save(figure, folder / "epo")[0]


CLAIM = Claim(
    slug="epo",
    statement="A penalty on entropy that leaves a band around its turn's history steadies entropy, at no cost in "
    "success.",
    refuted_if="from scratch, at every coefficient of the bonus, the soft band either does not lower the deviation of "
    "per-turn entropy over the last half of training, or hits fewer targets, than the bonus alone (reproduced: at some "
    "coefficient it is steadier by two standard errors over seeds, and hits no fewer by as much)",
    run=run,
    seeds=tuple(range(22, 42)),
)
