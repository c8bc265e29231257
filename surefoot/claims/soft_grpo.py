"""SofT-GRPO: reinforcing soft thoughts keeps more of pass@16 than reinforcing discrete ones.

A language model of 0.1 million parameters learnt a lookup in two hops (`tasks.two_hop`) from demonstrations until about
a third of its answers were right. From the same weights, with the same method, rates, batches (16 prompts of 8) and
number of updates: (a) discrete thoughts, (b) soft ones, tau .1, (c) soft ones whose noise is Gaussian, on the mixed
embedding (prior work), (d) those of (b) and (c) thought without noise; and tau .5 in the full size. Beside them the
variance of the gradient at the start, of (b) and (c) over that of (a): the mathematics says that it is above 1 for (b).

Departs from the card: the questions held out are 134, all that this task has, where the card has 256; the seeds are
three. `LR` was chosen on arm (a) alone, with a seed that is not one of the claim's, after a first run at another rate
(`NOTES`); the Gaussian law stands at the values of `objective.soft`, which nobody tuned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._tabular import mean_and_spread, over_seeds, runs
from surefoot.evaluation.evaluate import evaluate
from surefoot.methods.rlvr.soft_grpo import SOFT_GRPO
from surefoot.objective.soft import GaussianNoise, GumbelNoise, NoiseLaw
from surefoot.policies import apprentice
from surefoot.policies.soft_thinking import SoftThinking
from surefoot.rollout.native import Sampling
from surefoot.tasks.play import act, judged
from surefoot.tasks.two_hop import TwoHop
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer

UPDATES, LR, K = 60, 3e-4, 16
ARMS: dict[str, NoiseLaw | None] = {
    "discrete": None,
    "soft, tau 0.1": GumbelNoise(tau=0.1),
    "Gaussian": GaussianNoise(),
}
LEARNT = 140  # supervised steps of the policy that all arms start from


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """All arms; `full` adds tau .5, and has five times the updates."""
    arms = ARMS | ({"soft, tau 0.5": GumbelNoise(tau=0.5)} if size == "full" else {})
    updates = UPDATES if size == "quick" else 5 * UPDATES
    found = {name: runs(lambda s, law=law: train(law, updates, s), seeds) for name, law in arms.items()}
    spread = {name: runs(lambda s, law=law: variance(law, s), seeds) for name, law in ARMS.items()}
    measured: list[dict[str, Any]] = []
    for name, each in found.items():
        for key in each[0]:
            measured.append(over_seeds(f"{name}: {key}", [f[key] for f in each]))
    soft, hard = found["soft, tau 0.1"], found["discrete"]
    for key in ("pass@1 after", "pass@16 after"):
        for name, other in (("soft", soft), ("Gaussian", found["Gaussian"])):
            measured.append(over_seeds(f"{name} less discrete, paired: {key}", _gain(hard, other, key)))
    for name in ("soft, tau 0.1", "Gaussian"):
        ratio = [a / b for a, b in zip(spread[name], spread["discrete"], strict=True)]
        measured.append(over_seeds(f"variance of the gradient at the start, {name} over discrete", ratio))
    learnt = [f["pass@1 after"] - f["pass@1 before"] for f in soft]
    return Outcome(verdict(_gain(hard, soft, "pass@16 after"), learnt), measured, [], NOTES)


def _gain(a: Sequence[dict[str, float]], b: Sequence[dict[str, float]], key: str) -> list[float]:
    """What arm b has more of than arm a, by seed."""
    return [after[key] - before[key] for before, after in zip(a, b, strict=True)]


def verdict(gain: Sequence[float], learnt: Sequence[float]) -> Verdict:
    """From pass@16 of soft less discrete, paired by seed, and what soft thoughts gained in pass@1."""
    mean, error = mean_and_spread(gain)
    if mean < -error or np.mean(learnt) <= 0:
        return "refuted"
    return "reproduced" if mean >= 0 else "not reproduced"


NOTES = (
    "One thought of one letter, 134 held-out questions. At tau = 0.1 the mixture is nearly one token, and the method "
    "is discrete GRPO with a noisier gradient: a difference in pass@16 would be luck or exploration by noise. A first "
    "run of the quick size, at a rate of 1e-3, was refuted: soft pass@1 .311 -> .269, pass@16 of soft less discrete "
    "+.002 [-.086, .091], gradient variance 1.81 times; discrete GRPO did not improve either, so that it told "
    "nothing. The rate is now 3e-4, chosen on the discrete arm alone, on a seed outside the claim (.318 -> .368); the "
    "rule of the verdict is unchanged. Quick (60 updates): not reproduced, pass@16 of soft less discrete -.020 "
    "[-.082, .042], pass@1 .370 discrete, .355 soft, .365 Gaussian. Full (300 updates, run in pieces on a shared "
    "machine; the seconds are of the processor): all arms learn, and pass@16 falls a little or stays in all of them. "
    "Soft less discrete is -.002 in pass@16, a null as the card foresees, and tau = .5 does no more than tau = .1. "
    "The Gaussian arm (c) is the worst in pass@1, by a tenth: its gradient has 25 times the variance of the discrete "
    "one, under the same rate and norm. With three times its noise (sigma 1) the variance falls to 4 times, but "
    "thoughts suffer (.215 -> .377): no rate or sigma of that arm was tuned. Before any update pass@16 of soft and "
    "discrete differ by more than after: 16 answers to 134 questions do not tell the arms apart. On pebble's home "
    "task, 12 updates at the method's home settings, three seeds: soft pass@1 .288 [.271, .305] -> .550 [.514, .587], "
    "pass@4 .68 -> .86; discrete GRPO at the same settings .274 [.267, .281] -> .607 [.594, .621], pass@4 .66 -> .87; "
    "Gaussian .134 [.126, .142] -> .442 [.417, .466], pass@4 .29 -> .76: discrete thoughts learn fastest here. A run "
    "resumed in the middle ends at the same weights, bit for bit, under both laws."
)


def policy_of(law: NoiseLaw | None, task: TwoHop) -> Any:
    """The policy that all arms start from, thinking discretely or softly."""
    start = apprentice.load(task, steps=LEARNT)
    return start if law is None else SoftThinking(start, law=law)


def train(law: NoiseLaw | None, updates: int, seed: int) -> dict[str, float]:
    """One arm: pass@1 and pass@16 before and after."""
    task = TwoHop()
    policy = policy_of(law, task)
    out = _evaluated(policy, task, "before")
    trainer = Trainer(policy, task, SOFT_GRPO, Settings(lr=LR, seed=seed, steps=updates))
    for _ in range(updates):
        trainer.train_step()
    out |= _evaluated(policy, task, "after")
    if law is not None:
        policy.noise = 0.0
        out |= _evaluated(policy, task, "after, no noise")
    return out


def _evaluated(policy: Any, task: TwoHop, when: str) -> dict[str, float]:
    record = evaluate(policy, task, len(task.heldout), K, sampling=Sampling(max_new_tokens=task.max_new_tokens))
    return {f"{key} {when}": record[key] for key in ("pass@1", f"pass@{K}")}


def variance(law: NoiseLaw | None, seed: int, batches: int = 8) -> float:
    """Summed variance over batches of the policy gradient at the start."""
    task = TwoHop()
    policy = policy_of(law, task)
    found = torch.stack([_gradient(policy, task, [seed, i]) for i in range(batches)])
    return float(found.var(0).sum())


def _gradient(policy: Any, task: TwoHop, seed: list[int]) -> Tensor:
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(task.train), 16, replace=False)
    problems, group = [task.train[int(i)] for i in drawn], torch.arange(16).repeat_interleave(8)
    seeds = torch.from_numpy(rng.integers(0, 2**62, len(group)))
    batch = act(policy, task, problems, group, seeds, Sampling(max_new_tokens=task.max_new_tokens))
    batch = judged(task, problems, torch.from_numpy(drawn), batch)
    batch = batch.having(reward=SOFT_GRPO.reward(batch))
    credit = SOFT_GRPO.advantage(batch)
    logp = policy.score(batch, {"logp"})["logp"]
    loss = -(SOFT_GRPO.aggregate(batch) * credit * logp).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.parameters())])


CLAIM = Claim(
    slug="soft-grpo",
    statement="GRPO over soft thoughts reaches the pass@1 of GRPO over discrete ones, and a pass@16 that is at least "
    "as high.",
    refuted_if="pass@16 of soft thoughts is below that of discrete ones by more than one standard error of the paired "
    "difference over seeds, or soft thoughts do not improve over the start",
    run=run,
    seeds=(0, 1, 2),
)
