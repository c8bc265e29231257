"""SALSA: the mean of two fine-tunings' weights is a better anchor of a KL penalty than one of them (arXiv 2411.01798).

Exact, for softmax policies whose logits are the weights. Fine-tunings of base logits b ~ N(0, 1) are b + k r + s e_i,
e_i ~ N(0, 1) each by itself, r ~ N(0, 1) rescaled to [0, 1]: k is what they learnt of the reward, s their noise. The
optimum from an anchor is pi_anchor exp(r / beta) / Z, worth J* = beta log Z.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._tabular import mean_and_spread, over_seeds, runs
from surefoot.objective.divergences import REVERSE_KL, f_divergence

BETA = 0.2
SETTINGS = ((10, 1.0, 0.0), (10, 1.0, 2.0), (50, 2.0, 0.0), (50, 2.0, 2.0))  # actions, s, k
CARD = (0.0076, 0.0104, 0.0107, 0.0163)


class Found(NamedTuple):
    """Means over draws of one seed.

    Attributes:
        gain: J* from the soup, less J* from the first fine-tuning.
        share: of the draws in which it is above 0.
        own: mean reward of the soup itself, less that of the first fine-tuning.
        farther: KL to the base of the policy that gets the reward of the first one's optimum, each anchor with the
            beta that gets it there: from the soup, less from the first fine-tuning; below 0 the soup's frontier is
            the better one.
        away: the same with the KL to the first fine-tuning; never below 0, as its own optima are the least.
    """

    gain: float
    share: float
    own: float
    farther: float
    away: float


def optimum(anchor: Tensor, reward: Tensor, strength: Tensor | float) -> Tensor:
    """Log-probabilities of `anchor exp(strength * reward) / Z`; strength is 1 / beta."""
    return (anchor + strength * reward).log_softmax(-1)


def worth(anchor: Tensor, reward: Tensor, beta: float) -> Tensor:
    """J* = beta log sum_y anchor(y) exp(r(y) / beta)."""
    return beta * (anchor + reward / beta).logsumexp(-1)


def expected(policy: Tensor, reward: Tensor) -> Tensor:
    """Mean reward of log-probabilities."""
    return (policy.exp() * reward).sum(-1)


def matched(anchor: Tensor, reward: Tensor, target: Tensor) -> Tensor:
    """The optimum from the anchor whose mean reward is `target`, by bisection on its strength (of either sign)."""
    low, high = torch.full_like(target, -100.0), torch.full_like(target, 100.0)
    for _ in range(40):
        middle = (low + high) / 2
        short = expected(optimum(anchor, reward, middle[:, None]), reward) < target
        low, high = middle.where(short, low), high.where(short, middle)
    return optimum(anchor, reward, high[:, None])


def compare(setting: tuple[int, float, float], draws: int, seed: int) -> Found:
    """Soup against the first fine-tuning, on `draws` draws."""
    n, s, k = setting
    g = torch.Generator().manual_seed(seed)
    base, raw, one, two = (torch.randn(draws, n, generator=g, dtype=torch.float64) for _ in range(4))
    reward = (raw - raw.amin(1, keepdim=True)) / (raw.amax(1, keepdim=True) - raw.amin(1, keepdim=True))
    first, second = base + k * reward + s * one, base + k * reward + s * two
    soup, first, base = (x.log_softmax(-1) for x in ((first + second) / 2, first, base))
    gain = worth(soup, reward, BETA) - worth(first, reward, BETA)
    best = optimum(first, reward, 1 / BETA)
    rival = matched(soup, reward, expected(best, reward))
    apart = {
        name: f_divergence(rival, at, REVERSE_KL) - f_divergence(best, at, REVERSE_KL)
        for name, at in (("farther", base), ("away", first))
    }
    return Found(
        float(gain.mean()),
        float((gain > 0).double().mean()),
        float((expected(soup, reward) - expected(first, reward)).mean()),
        float(apart["farther"].mean()),
        float(apart["away"].mean()),
    )


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """20000 draws of each setting; `full` takes 200000."""
    draws = 20_000 if size == "quick" else 200_000
    found = {s: runs(lambda seed, s=s: compare(s, draws, seed), seeds) for s in SETTINGS}
    measured = []
    for (setting, by), card in zip(found.items(), CARD, strict=True):
        n, s, k = setting
        for name, what in LABELS.items():
            more = {"expected": card} if name == "gain" else {}
            values = [getattr(f, name) for f in by]
            measured.append(over_seeds(f"{n} actions, s={s:g}, k={k:g}: {what}", values, **more))
    judged = [([f.gain for f in by], [f.farther for f in by]) for by in found.values()]
    return Outcome(verdict(judged), measured, [_draw(report)] if report else [], NOTES)


LABELS = {
    "gain": "J* gained by the soup",
    "share": "share of draws with a gain",
    "own": "mean reward gained by the soup itself",
    "farther": "KL to the base at equal reward, soup less first",
    "away": "KL to the first at equal reward, soup less first",
}
NOTES = (
    "The gain is small and no law: in about two draws of five the soup is the worse anchor. Where fine-tuning learnt "
    "nothing of the reward (k = 0) the gain is spread of support alone. Measured by the KL to the first fine-tuning "
    "itself nothing can beat that anchor, so the comparison at equal reward is by the KL to the common base. Language "
    "models, where a soup may also generalise better than its parts, are not tested here."
)


def verdict(judged: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Verdict:
    """From each setting's gain in J*, and its difference of KL to the base at equal reward."""
    clear = [(mean_and_spread(gain), mean_and_spread(farther)) for gain, farther in judged]
    if any(mean <= 2 * error for (mean, error), _ in clear):
        return "refuted"
    return "reproduced" if all(mean < -2 * error for _, (mean, error) in clear) else "not reproduced"


def _draw(folder: Path) -> Path:
    """Reward against KL to the base as beta falls, for both anchors, averaged over draws."""
    from surefoot.report.figures import COLOURS, canvas, save

    g = torch.Generator().manual_seed(0)
    base, raw, one, two = (torch.randn(4000, 10, generator=g, dtype=torch.float64) for _ in range(4))
    reward = (raw - raw.amin(1, keepdim=True)) / (raw.amax(1, keepdim=True) - raw.amin(1, keepdim=True))
    anchors = {"one fine-tuning": base + one, "soup": base + (one + two) / 2}
    with canvas(6.0, 3.8) as figure:
        axes = figure.subplots()
        for (label, anchor), colour in zip(anchors.items(), COLOURS, strict=False):
            optima = [optimum(anchor.log_softmax(-1), reward, t) for t in np.linspace(0, 12, 25)]
            kl = [float(f_divergence(p, base.log_softmax(-1), REVERSE_KL).mean()) for p in optima]
            axes.plot(kl, [float(expected(p, reward).mean()) for p in optima], color=colour, label=label)
        axes.set(xlabel="KL to the common base, nats", ylabel="mean reward", title="10 actions, s = 1, k = 0")
        axes.legend()
        return save(figure, folder / "salsa")[0]


CLAIM = Claim(
    slug="salsa",
    statement="A KL penalty to the mean of two fine-tunings' weights has a better optimum than one to either of them.",
    refuted_if="the optimum's value J* from the soup is not above that from one fine-tuning, on average over draws, by "
    "two standard errors over seeds, in any setting (reproduced: in all settings also nearer to the common base at "
    "equal reward, so that it is not a matter of beta)",
    run=run,
)
