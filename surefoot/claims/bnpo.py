"""BNPO: a fitted Beta density gives the gradient the least variance (arXiv 2506.02864).

A. Exact: the theorem's variance functional, for success rates p ~ Beta(a, b), against REINFORCE and GRPO.
B. Sampled: 32 prompts x 16 rollouts, score R - p; variance over squared mean of the gradient, the fit made per batch.
C. Learning: a linear-softmax contextual bandit, each method at its best of the same learning rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.special import betaln

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._tabular import Table, learn, mean_and_spread, over_seeds, runs, trajectories
from surefoot.methods.rlvr.bnpo import BNPO, inverse_density, normaliser
from surefoot.methods.rlvr.dr_grpo import DR_GRPO
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.aggregation import SequenceMean

MIXES = ((0.5, 0.5), (1.0, 1.0), (5.0, 1.0), (2.0, 3.0))
JUDGED = MIXES[:2]
ARMS = {m.name: m.but(regularizers=(), aggregate=SequenceMean()) for m in (DR_GRPO.but(name="reinforce"), GRPO, BNPO)}
PROMPTS, GROUP = 32, 16


def variance_functional(a: float, b: float, alpha: float, beta: float) -> float:
    """`E[p (1 - p) / f(p; alpha, beta)^2]` for p ~ Beta(a, b), scaled by 1 / E[...]: the theorem's gradient variance.

    In closed form `B(alpha, beta)^2 B(x, y) / B(a, b)`; infinite where the integral does not converge.
    """
    x, y = a + 3 - 2 * alpha, b + 3 - 2 * beta
    return float(np.exp(2 * betaln(alpha, beta) + betaln(x, y) - betaln(a, b))) if min(x, y) > 0 else np.inf


def signal_to_noise(a: float, b: float, alpha: float, beta: float) -> float:
    """`E[w p (1 - p)]^2 / E[w^2 p (1 - p)]` for w = 1 / f, over that of w = 1: the theorem's noise, beside its signal.

    At most 1 (Cauchy-Schwarz): under the theorem's own noise model no normaliser beats REINFORCE.
    """
    signal = np.exp(betaln(alpha, beta) + betaln(a + 2 - alpha, b + 2 - beta) - betaln(a, b))
    return float(signal**2 / variance_functional(a, b, alpha, beta) / variance_functional(a, b, 1, 1))


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """A, B and C; `full` takes more batches, learning rates and steps."""
    quick = size == "quick"
    track = functional_track()
    noise = {mix: runs(lambda s, m=mix: relative_variance(m, 1000 if quick else 4000, s), seeds) for mix in MIXES}
    lrs, steps = ((0.7, 2.0), 150) if quick else ((0.3, 0.7, 1.5, 2.0), 300)
    learnt = {name: {lr: runs(lambda s, n=name, r=lr: bandit(n, r, steps, s), seeds) for lr in lrs} for name in ARMS}
    tuned = {name: max(by.values(), key=lambda found: np.mean([f[0] for f in found])) for name, by in learnt.items()}
    measured = [
        {"name": "A: largest J(BNPO) / J(best baseline) over the track", "value": float(track[3].max()), "bound": 1.0}
    ]
    for mix, found in noise.items():
        for i, name in enumerate(ARMS):
            measured.append(over_seeds(f"B: p ~ Beta{mix}: relative variance, {name}", [f[i] for f in found]))
    for name, found in tuned.items():
        measured.append(over_seeds(f"C: area under the accuracy curve, {name}, best lr", [f[0] for f in found]))
        measured.append(over_seeds(f"C: relative variance at the end, {name}", [f[1] for f in found]))
    gaps = [mean_and_spread([f[2] - f[1] for f in noise[mix]]) for mix in JUDGED]
    pictures = [_draw(report, track, noise)] if report else []
    return Outcome(verdict(bool(track[3].max() <= 1 + 1e-12), gaps), measured, pictures, NOTES)


def verdict(theorem: bool, gaps: Sequence[tuple[float, float]]) -> Verdict:
    """From the theorem's check and, for each mix, BNPO's relative variance less GRPO's: mean and standard error."""
    if not theorem or any(mean > 2 * error for mean, error in gaps):
        return "refuted"
    return "reproduced" if all(mean < -2 * error for mean, error in gaps) else "not reproduced"


NOTES = (
    "The theorem (A) holds: it compares absolute variance among densities of integral 1. Relative to the signal (B), "
    "which normaliser is best depends on how scores go with rewards, and GRPO's is as good or better where most "
    "prompts are nearly always or nearly never solved. In C every method does best at the largest rate, where GRPO's "
    "larger weights are a larger step: the accuracies rank the step sizes."
)


def functional_track(total: float = 4.0) -> np.ndarray:
    """Mean of p from .1 to .9 against J of REINFORCE, GRPO and the ratio of BNPO's to the better one [4, points]."""
    means = np.linspace(0.1, 0.9, 33)
    rows = []
    for m in means:
        a, b = total * m, total * (1 - m)
        reinforce, grpo = variance_functional(a, b, 1, 1), variance_functional(a, b, 1.5, 1.5)
        rows.append((m, reinforce, grpo, variance_functional(a, b, 1 + a / 3, 1 + b / 3) / min(reinforce, grpo)))
    return np.array(rows).T


def relative_variance(mix: tuple[float, float], batches: int, seed: int) -> tuple[float, float, float]:
    """Variance over squared mean of the gradient under REINFORCE, GRPO and BNPO; the scores are R - p.

    A group's gradient `mean_i w (R_i - p_hat)(R_i - p)` is `w p_hat (1 - p_hat)`, whatever p is.
    """
    rng = np.random.default_rng([seed, 7])
    p = torch.from_numpy(rng.binomial(GROUP, rng.beta(*mix, (batches, PROMPTS))) / GROUP)
    signal = p * (1 - p)
    alpha, beta = normaliser(p.mean(1, keepdim=True), p.var(1, keepdim=True))
    weights = (1.0, signal.clamp_min(1e-12).rsqrt(), inverse_density(p, alpha, beta))
    gradients = [(w * signal).mean(1) for w in weights]
    reinforce, grpo, bnpo = (float(g.var() / g.mean() ** 2) for g in gradients)
    return reinforce, grpo, bnpo


def bandit(arm: str, lr: float, steps: int, seed: int) -> tuple[float, float]:
    """Area under the curve of exact accuracy, and relative variance of the gradient at the end, over 32 batches."""
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.randn(512, 8, generator=generator)
    best = (contexts @ torch.randn(8, 10, generator=generator)).argmax(1)
    table, method, accuracy = Table(torch.zeros(8, 10), contexts), ARMS[arm].fresh(), []

    def step(rate: float) -> None:
        context = torch.randperm(512, generator=generator)[:PROMPTS].repeat_interleave(GROUP)
        action = table.draw(context, generator)
        group = torch.arange(PROMPTS).repeat_interleave(GROUP)
        batch = trajectories(action[:, None], (action == best[context]).float(), group)
        learn(method, table, context[:, None], batch, rate)

    for _ in range(steps):
        step(lr)
        accuracy.append(float(table.policy()[torch.arange(512), best].mean()))
    found, end = [], table.weights.detach().clone()
    for _ in range(32):
        step(1.0)
        found.append((table.weights.detach() - end).flatten())
        table.weights.data.copy_(end)
    gradients = torch.stack(found)
    return float(np.mean(accuracy)), float(gradients.var(0).sum() / gradients.mean(0).square().sum())


def _draw(folder: Path, track: np.ndarray, noise: dict) -> Path:
    """Left: the functional; right: relative variances."""
    from surefoot.report.figures import COLOURS, canvas, save

    with canvas(9.2, 3.4) as figure:
        left, right = figure.subplots(1, 2)
        m, reinforce, grpo, ratio = track
        curves = (reinforce, grpo, ratio * np.minimum(reinforce, grpo))
        for label, J, colour in zip(ARMS, curves, COLOURS, strict=False):
            left.plot(m, J, color=colour, label=label)
        left.set(xlabel="mean success rate", ylabel="variance functional J", title="The theorem: J is least")
        left.legend()
        for i, (label, colour) in enumerate(zip(ARMS, COLOURS, strict=False)):
            heights = [np.mean([f[i] for f in noise[mix]]) for mix in MIXES]
            right.bar(np.arange(len(MIXES)) + 0.26 * (i - 1), heights, 0.24, color=colour, label=label)
        right.set_xticks(range(len(MIXES)), [f"Beta({a:g}, {b:g})" for a, b in MIXES])
        right.set(ylabel="variance / mean²", title="The same, relative to the signal")
        return save(figure, folder / "bnpo")[0]


CLAIM = Claim(
    slug="bnpo",
    statement="Dividing by the Beta density fitted to the batch's success rates gives the policy gradient less "
    "variance than GRPO's division by the group's deviation, and so steadier training.",
    refuted_if="the variance functional is above a baseline's anywhere, or with mixed prompts (p ~ Beta(.5, .5), "
    "Beta(1, 1)) the relative variance of the gradient is above GRPO's by more than two standard errors over seeds",
    run=run,
)
