"""chi-PO: what a reward learned from little data overrates cannot be made much of (arXiv 2407.13399).

A bandit of three actions, reference `((1 - 1/n)/2, (1 - 1/n)/2, 1/n)`, true rewards `(1/2, 1/2 - D, 0)`: the third
action is in the data about once, and may be overrated.

A. Exact: learned rewards `(1/2, 1/2 - D, 1)`, what a box [0, 1] leaves of an action that won its only comparison.
B. Sampled: n Bradley-Terry pairs, rewards fitted in the box; then the same optima of both regularisers.
C. (full size) pebble on few pairs of its own samples with flipped labels, by DPO and by chi-PO, for many epochs.

A and B measure the regret of the regularised optimum at the worst D, at the best beta that does not know D.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._rates import Rate, log_log_slope
from surefoot.exact.divergence import CHI2_KL, KL, Divergence, f_regularised_optimum

SIZES = (10**2, 10**3, 10**4, 10**5, 10**6)
SAMPLED = SIZES[:4]
BETAS, GAPS = np.geomspace(3e-4, 3, 81), np.geomspace(1e-3, 0.5, 61)
KINDS: dict[str, Divergence] = {"KL": KL, "chi-squared": CHI2_KL}
CARD = {"KL": (0.114, 0.063, 0.040, 0.027, 0.020), "chi-squared": (0.0681, 0.0219, 0.0070, 0.0023, 0.00072)}
FIXED = {(0.05, 10**2): (0.499, 0.064), (0.05, 10**4): (0.407, 0.018), (0.05, 10**6): (0.024, 0.017)}


def reference(n: int) -> Float[np.ndarray, "3"]:
    return np.array([(1 - 1 / n) / 2, (1 - 1 / n) / 2, 1 / n])


def rewards(gap: float | np.ndarray) -> Float[np.ndarray, "*d 3"]:
    """True rewards `(1/2, 1/2 - D, 0)`."""
    gap = np.asarray(gap, float)
    return np.stack([np.full(gap.shape, 0.5), 0.5 - gap, np.zeros(gap.shape)], -1)


def regret(n: int, beta: np.ndarray, learned: np.ndarray, true: np.ndarray, kind: Divergence) -> np.ndarray:
    """`1/2 - E_pi[r]` of the optimum for the learned rewards; beta keeps a last axis of 1."""
    pi = f_regularised_optimum(reference(n), learned, beta, kind)
    return 0.5 - (pi * true).sum(-1)


def minimax(n: int, kind: Divergence) -> float:
    """Least over beta of the worst over D, the third action overrated."""
    true = rewards(GAPS)
    learned = np.where(np.arange(3) == 2, 1.0, true)
    return float(regret(n, BETAS[:, None, None], learned, true, kind).max(1).min())


def fitted(wins: Float[np.ndarray, "*b 3 3"], ridge: float = 1e-3, sweeps: int = 300) -> Float[np.ndarray, "*b 3"]:
    """Bradley-Terry rewards of greatest likelihood in the box [0, 1], by Newton's method, a coordinate at a time.

    Args:
        wins: how often each action beat each other one.
        ridge: of `(r - 1/2)^2`, which decides where the data say nothing.
    """
    games, r = wins + np.swapaxes(wins, -1, -2), np.full(wins.shape[:-1], 0.5)
    for _ in range(sweeps):
        for i in range(3):
            p = expit(r[..., i, None] - r)
            slope = (games[..., i, :] * p - wins[..., i, :]).sum(-1) + 2 * ridge * (r[..., i] - 0.5)
            curve = (games[..., i, :] * p * (1 - p)).sum(-1) + 2 * ridge
            r[..., i] = np.clip(r[..., i] - slope / curve, 0, 1)
        shift = 0.5 - r.mean(-1)  # along which the likelihood is flat
        r += np.clip(shift, -r.min(-1), 1 - r.max(-1))[..., None]
    return r


def sampled(seeds: Sequence[int], n: int) -> dict[str, Float[np.ndarray, "s"]]:
    """Minimax regret of each seed when rewards come from n pairs of the reference."""
    gaps = GAPS[::6]
    true, wins = rewards(gaps), np.zeros((len(seeds), len(gaps), 3, 3))
    for s, seed in enumerate(seeds):
        rng = np.random.default_rng([seed, n])
        pair = np.outer(reference(n), reference(n))
        np.fill_diagonal(pair, 0.0)
        for d in range(len(gaps)):
            count = rng.multinomial(n, np.append(pair.ravel(), 1 - pair.sum()))[:9].reshape(3, 3)
            won = rng.binomial(count, expit(true[d][:, None] - true[d]))
            wins[s, d] = won + (count - won).T
    learned = fitted(wins)
    beta = BETAS[:, None, None, None]
    return {k: regret(n, beta, learned, true, kind).max(-1).min(0) for k, kind in KINDS.items()}


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    exact = {k: [minimax(n, kind) for n in SIZES] for k, kind in KINDS.items()}
    slope = {k: log_log_slope(SIZES, v) for k, v in exact.items()}
    rows: list[dict[str, Any]] = []
    for k, values in exact.items():
        rows.append({"name": f"A {k}: slope of minimax regret in n", "value": slope[k], "bound": -0.4})
        for n, value, expected in zip(SIZES, values, CARD[k], strict=True):
            rows.append({"name": f"A {k}: minimax regret, n={n:.0e}", "value": value, "expected": expected})
    for (beta, n), expected in FIXED.items():
        true = rewards(0.2)
        learned = np.where(np.arange(3) == 2, 1.0, true)
        for (k, kind), value in zip(KINDS.items(), expected, strict=True):
            found = float(regret(n, np.array([beta]), learned, true, kind))
            rows.append({"name": f"A {k}: beta={beta}, D=.2, n={n:.0e}", "value": found, "expected": value})
    draws = [sampled(seeds, n) for n in SAMPLED]
    rates = [Rate(f"B {k}: minimax regret", SAMPLED, np.array([d[k] for d in draws]), None) for k in KINDS]
    rows += [rate.row() | {"seeds": len(seeds)} for rate in rates]
    curves = pebble(seeds[:3]) if size == "full" else {}
    for name, scores in curves.items():
        peak, last = scores.max(1), scores[:, -1]
        rows.append({"name": f"C {name}: peak pass@1", "value": peak.mean(), "seeds": len(peak)})
        rows.append({"name": f"C {name}: last pass@1", "value": last.mean(), "spread": last.std(ddof=1)})
    wrong = slope["KL"] <= -0.4 or slope["chi-squared"] > -0.4
    verdict: Verdict = "refuted" if wrong else "reproduced"
    pictures = [_draw(report, exact, rates, curves)] if report else []
    return Outcome(verdict, rows, pictures, "The verdict is that of A, which has no chance in it.")


def pebble(seeds: Sequence[int], steps: int = 160, every: int = 20) -> dict[str, Float[np.ndarray, "s e"]]:
    """Held-out pass@1 along training on 192 pairs, a quarter of them flipped: 32 pairs a step, so 26 epochs."""
    from surefoot import methods, policies, tasks
    from surefoot.evaluation.evaluate import quick_score
    from surefoot.rollout.native import Sampling
    from surefoot.tasks.base import Problem
    from surefoot.tasks.prefs import Preferences, make_pairs
    from surefoot.training.settings import Settings
    from surefoot.training.trainer import Trainer

    base, curves = tasks.load(tasks.DEFAULT), {}
    for slug in ("dpo", "chi-po"):
        for beta in (0.05, 0.005):
            for seed in seeds:
                policy = policies.load("pebble")
                rows = make_pairs(policy, base, 192, seed=seed, flipped=0.25)
                data = [((r["chosen"], r["rejected"]), r["prompt"]) for r in rows]
                train = [Problem(q, pair[0], {"responses": pair, "scores": (1.0, 0.0)}) for pair, q in data]
                method = methods.find(slug).set("surrogate.shape.beta", beta)
                settings = Settings(steps=steps, seed=seed, lr=3e-4, engine_logp=False)
                trainer = Trainer(policy, Preferences("pairs", train, base.heldout, base), method, settings)
                scores = []
                for step in range(steps):
                    trainer.train_step()
                    if (step + 1) % every == 0:
                        sampling = Sampling(max_new_tokens=base.max_new_tokens)
                        scores.append(quick_score(policy, base, 384, seed, sampling)[1])
                curves.setdefault(f"{slug} beta={beta}", []).append(scores)
    return {k: np.array(v) for k, v in curves.items()}


def _draw(folder: Path, exact: dict, rates: Sequence[Rate], curves: dict) -> Path:
    """Regret by n, exact and sampled; pebble's curves where they were made."""
    from surefoot.report.figures import COLOURS, canvas, save

    with canvas(11.0 if curves else 5.2, 3.6) as figure:
        panels = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
        for colour, (k, values), rate in zip(COLOURS, exact.items(), rates, strict=False):
            panels[0].loglog(SIZES, values, "o-", color=colour, markersize=4, label=f"{k}, exact")
            panels[0].loglog(rate.sizes, rate.mean, "s:", color=colour, markersize=3, label=f"{k}, sampled")
        panels[0].set(xlabel="pairs n", ylabel="regret at the best beta", title="Worst case over D")
        panels[0].legend(fontsize=8)
        for i, (name, scores) in enumerate(curves.items()):
            at = 20 * np.arange(1, scores.shape[1] + 1)
            panels[1].plot(at, scores.mean(0), "-" if i < 2 else "--", color=COLOURS[i % 2 + 2 * (i > 1)], label=name)
        if curves:
            panels[1].set(xlabel="steps", ylabel="held-out pass@1", title="pebble, 192 pairs, 25 % flipped")
            panels[1].legend(fontsize=8)
        return save(figure, folder / "chi-po")[0]


CLAIM = Claim(
    slug="chi-po",
    statement="Regularised by chi-squared (and KL), the optimum for rewards learned from n pairs has a worst-case "
    "regret of order n^-1/2 at a beta that does not know the problem; by KL (DPO) it falls far more slowly.",
    refuted_if="the log-log slope of KL's minimax regret in n reaches -0.4, or chi-squared's is above -0.4",
    run=run,
    seeds=tuple(range(20)),
)
