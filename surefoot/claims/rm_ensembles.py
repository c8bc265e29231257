"""RM ensembles: judged by the worst of five, best-of-n does not fall for one model's errors (arXiv 2310.02743).

The synthetic testbed (`evaluation.overoptimization.synthetic`): 12 500 answers, five proxies, each of which overrates
one answer in a hundred of its own. Best-of-n by one proxy, by the mean, by the worst (WCO) and by the mean less half
the variance (UWO), gold by the unbiased estimator. Control: all proxies overrate the same answers.

Full size adds pebble: three reward models and a gold one trained here, best-of-n of its samples by each rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._tabular import over_seeds
from surefoot.evaluation.overoptimization import Curve, best_of_n_curve, by_rule, synthetic

ANSWERS, MEMBERS, SIZES = 12_500, 5, (1, 4, 16, 64, 256, 1024, 4096)
JUDGED = (1, 16, 256, 4096)
CARD = {"single": (0.0, 1.41, 0.97, 0.31), "mean": (0.0, 1.55, 1.90, 1.46), "WCO": (0.0, 1.62, 2.59, 3.41)}
CARD |= {"UWO": (0.0, 1.64, 2.64, 3.44), "oracle": (0.0, 1.77, 2.83, 3.66)}


def curves(seeds: Sequence[int], correlated: bool) -> dict[str, Curve]:
    draws = [synthetic(ANSWERS, MEMBERS, np.random.default_rng([s, 31]), correlated=correlated) for s in seeds]
    gold, members = np.stack([g for g, _ in draws]), np.stack([m for _, m in draws], 1)
    return {rule: best_of_n_curve(score, gold, SIZES) for rule, score in (by_rule(members) | {"oracle": gold}).items()}


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    own, shared = curves(seeds, correlated=False), curves(seeds, correlated=True)
    at = [SIZES.index(n) for n in JUDGED]
    rows: list[dict[str, Any]] = []
    for rule, curve in own.items():
        for n, i, expected in zip(JUDGED, at, CARD[rule], strict=True):
            rows.append(over_seeds(f"{rule}: gold of the best of {n}", curve.gold[:, i].tolist(), expected=expected))
        rows.append(over_seeds(f"{rule}: peak less final gold", curve.gap.tolist()))
    for rule, curve in shared.items():
        rows.append(over_seeds(f"control, {rule}: gold of the best of 4096", curve.final.tolist()))
    gold = {rule: curve.gold.mean(0)[at] for rule, curve in own.items()}
    falls = any((np.diff(gold[rule]) < 0).any() for rule in ("WCO", "UWO"))
    nothing = gold["single"][-1] >= gold["single"][1]
    verdict: Verdict = "refuted" if falls or nothing else "reproduced"
    real = pebble(seeds[:3]) if size == "full" else {}
    for rule, curve in real.items():
        rows.append(over_seeds(f"pebble, {rule}: gold of the best of {PEBBLE[-1]}", curve.final.tolist()))
        rows.append(over_seeds(f"pebble, {rule}: peak less final gold", curve.gap.tolist()))
    pictures = [_draw(report, own, shared, real)] if report else []
    notes = "Ensembles do nothing about errors that the members share: in the control every rule collapses."
    return Outcome(verdict, rows, pictures, notes)


# pebble: models of its own samples, trained here

PEBBLE, PROMPTS, DRAWS = (1, 4, 16, 64, 256), 24, 512


def pebble(seeds: Sequence[int]) -> dict[str, Curve]:
    """Best-of-n of pebble's samples by three proxies (160 pairs, a quarter flipped), gold a model of 1024 clean pairs.

    One row a seed, the mean over prompts. `verifier` is best-of-n by the mean of the proxies, gold the verifier's word.
    """
    from surefoot import policies, tasks
    from surefoot.rollout.native import Sampling
    from surefoot.tasks.play import act
    from surefoot.tasks.scored import RewardModel

    base, speaker = tasks.load(tasks.DEFAULT), policies.load("pebble")
    problems = [base.heldout[i] for i in range(PROMPTS)]
    group = torch.arange(PROMPTS).repeat_interleave(DRAWS)
    sampling = Sampling(max_new_tokens=base.max_new_tokens)
    batch = act(speaker, base, problems, group, torch.arange(len(group)), sampling)
    right = judged(base, problems, torch.arange(PROMPTS), batch).correct.double().view(PROMPTS, DRAWS).numpy()
    questions, said = [problems[g].question for g in group.tolist()], batch.notes["completion"]

    def scores(pairs: int, flipped: float, steps: int, seed: int, order: int) -> np.ndarray:
        model = RewardModel(reward_model(base, pairs, flipped, steps, seed, order))
        value = model(questions, said).double()
        return ((value - value.mean()) / value.std()).view(PROMPTS, DRAWS).numpy()

    gold = scores(1024, 0.0, 120, 1000, 0)
    found: dict[str, list[Curve]] = {}
    for seed in seeds:
        members = np.stack([scores(160, 0.25, 40, seed, order) for order in range(3)])
        for rule, score in by_rule(members).items():
            found.setdefault(rule, []).append(best_of_n_curve(score, gold, PEBBLE))
        found.setdefault("verifier", []).append(best_of_n_curve(members.mean(0), right, PEBBLE))
    return {
        rule: Curve(c[0].distance, np.stack([x.proxy.mean(0) for x in c]), np.stack([x.gold.mean(0) for x in c]))
        for rule, c in found.items()
    }


def reward_model(base: Any, pairs: int, flipped: float, steps: int, seed: int, order: int) -> Any:
    """A reward model on pebble's trunk: the pairs depend on `seed`, the order they come in on `order`."""
    from surefoot import methods, policies
    from surefoot.tasks.base import Problem
    from surefoot.tasks.prefs import Preferences, make_pairs
    from surefoot.training.settings import Settings
    from surefoot.training.trainer import Trainer

    policy = policies.load("pebble")
    rows = make_pairs(policy, base, pairs, seed=seed, flipped=flipped)
    data = [{"responses": (r["chosen"], r["rejected"]), "scores": (1.0, 0.0)} for r in rows]
    train = [Problem(r["prompt"], None, d) for r, d in zip(rows, data, strict=True)]
    settings = Settings(steps=steps, seed=order, lr=3e-4)
    trainer = Trainer(policy, Preferences("pairs", train, base.heldout, base), methods.find("reward-model"), settings)
    for _ in range(steps):
        trainer.train_step()
    return policy


def _draw(folder: Path, own: dict[str, Curve], shared: dict[str, Curve], real: dict[str, Curve]) -> Path:
    """Gold by KL: own errors, shared errors, and pebble where it was run; the proxies dashed."""
    from surefoot.report.figures import COLOURS, canvas, save

    panels = {"Each model its own errors": own, "Control: shared errors": shared}
    panels |= {"pebble, gold a reward model": {k: c for k, c in real.items() if k != "verifier"}} if real else {}
    with canvas(4.2 * len(panels), 3.6) as figure:
        for axes, (title, found) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            for colour, (rule, curve) in zip(COLOURS, found.items(), strict=False):
                curve.draw(axes, colour, rule, proxy=rule == "single")
            axes.set(xlabel="KL from the base, nats (best of n)", ylabel="gold", title=title)
            axes.set_ylim(
                min(c.gold.min() for c in found.values()) - 0.1, 1.1 * max(c.gold.max() for c in found.values())
            )
            axes.legend(fontsize=8)
        return save(figure, folder / "rm-ensembles")[0]


CLAIM = Claim(
    slug="rm-ensembles",
    statement="The worst of an ensemble of reward models (WCO), or its mean less a variance penalty (UWO), keeps "
    "best-of-n from over-optimising: gold goes on rising where it collapses under a single model.",
    refuted_if="in the first setting the seed-mean gold of WCO or UWO falls anywhere on n = 1, 16, 256, 4096, or a "
    "single model's does not fall from 16 to 4096 (then nothing was over-optimised)",
    run=run,
    seeds=tuple(range(20)),
)
