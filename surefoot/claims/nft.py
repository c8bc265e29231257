"""NFT: the likelihood of wrong answers under the implied negative policy makes up for RL (arXiv 2505.18116).

8 prompts x 64 answers (1 to 20 right), 16 samples a prompt, 16 updates on each batch. Rejection fine-tuning stands
beside NFT twice: as it is (weight 1), and at NFT's own weight of a prompt, 1 - p, so that only the negative branch
differs. An exact part: with one update a batch NFT and GRPO without a clip are the same algorithm, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

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
from surefoot.methods.rlvr.nft import NFT, NegativeAware, Rated
from surefoot.objective.advantages import Relative, even, inverse_deviation, spread
from surefoot.objective.aggregation import SequenceMean
from surefoot.objective.groups import group_mean, group_population_std
from surefoot.objective.surrogates import Clip, PolicyGradient
from surefoot.parts import Part
from surefoot.rollouts import Rollouts

PROMPTS, ANSWERS, GROUP, REUSE, LR = 8, 64, 16, 16, 1.0
LEVELS = (0.5, 0.8)


@dataclass(frozen=True)
class OnlyRight(Part):
    """Rejection fine-tuning: right answers weigh `weight(p)`, wrong ones nothing."""

    weight: Callable[[Tensor], Tensor] = even
    reads = ("reward", "group", "mask")

    def __call__(self, rollouts: Rollouts) -> Tensor:
        return spread(rollouts.reward * self.weight(group_mean(rollouts.reward, rollouts.group)), rollouts.mask)


def failure_rate(p: Tensor) -> Tensor:
    """`1 - p`."""
    return 1 - p


BASE = NFT.but(aggregate=SequenceMean(), update=Update(epochs=REUSE))
GRPO_CREDIT = Relative(group_mean, group_population_std, eps=0.0)
FAIR, GRPO_ARM = "RFT, weight 1 - p", "GRPO, clip .2/.28"
ARMS = {
    "NFT": BASE,
    FAIR: BASE.but(surrogate=PolicyGradient(), advantage=OnlyRight(failure_rate)),
    "RFT, weight 1": BASE.but(surrogate=PolicyGradient(), advantage=OnlyRight()),
    GRPO_ARM: BASE.but(surrogate=Clip(0.2, 0.28), advantage=GRPO_CREDIT),
    "Dr. GRPO, clip .2/.28": BASE.but(surrogate=Clip(0.2, 0.28)),
    "NFT, eps .1": BASE.but(surrogate=NegativeAware(eps=0.1)),
    "NFT, eps .01": BASE.but(surrogate=NegativeAware(eps=0.01)),
}


class Course(NamedTuple):
    """Success and entropy before every batch; the weights at the end."""

    success: list[float]
    entropy: list[float]
    weights: Tensor

    def area(self) -> float:
        """Success, averaged over the batches."""
        return float(np.mean(self.success))


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """Thirty batches of each arm; `full` takes 150."""
    batches = 30 if size == "quick" else 150
    found = {name: runs(lambda s, m=method: course(m, s, batches), seeds) for name, method in ARMS.items()}
    apart = max(runs(_twins_apart, seeds[:3]))
    measured = [{"name": "NFT and unclipped GRPO, one update a batch: largest gap of logits", "value": apart}]
    measured += [row for name, courses in found.items() for row in _rows(name, courses)]
    ahead = {name: _gap(found, name, Course.area) for name in (FAIR, GRPO_ARM)}
    entropy = {level: _gap(found, FAIR, lambda c, x=level: entropy_at(c.success, c.entropy, x)) for level in LEVELS}
    measured += [over_seeds(f"NFT: mean success less that of {name}", gap) for name, gap in ahead.items()]
    measured += [over_seeds(f"NFT: entropy at success {x} less that of {FAIR}", gap) for x, gap in entropy.items()]
    pictures = (
        [draw_speed_and_entropy(report / "nft", found, "batches, sixteen updates each", "entropy, nats")]
        if report
        else []
    )
    return Outcome(verdict(apart, ahead[FAIR], ahead[GRPO_ARM], list(entropy.values())), measured, pictures, NOTES)


NOTES = (
    "Mean success is over all batches; gaps are paired by seed. Entropy is compared where success first passes. At "
    "equal weight the negative branch pays in success; its entropy is not above that of rejection fine-tuning, which "
    "at weight 1, a larger step, is the fastest here. The floor eps never binds on states that share no parameters."
)


def verdict(
    apart: float, to_rft: Sequence[float], to_grpo: Sequence[float], entropy: Sequence[Sequence[float]]
) -> Verdict:
    """From the exact part, NFT's lead over RFT at the same weight and over GRPO, and its entropy above RFT's."""
    faster, richer = _above(to_rft), all(_above(gap) for gap in entropy)
    if apart > 1e-10 or not faster and not richer:
        return "refuted"
    level = not _above([-x for x in to_grpo])
    return "reproduced" if faster and richer and level else "not reproduced"


def _above(gap: Sequence[float]) -> bool:
    mean, error = mean_and_spread(gap)
    return mean > 2 * error


def _gap(found: dict[str, list[Course]], other: str, of: Callable[[Course], float]) -> list[float]:
    return [of(a) - of(b) for a, b in zip(found["NFT"], found[other], strict=True)]


def course(method: Method, seed: int, batches: int, dtype: torch.dtype = torch.float32) -> Course:
    """Learn from `batches` batches."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(PROMPTS, ANSWERS, generator=generator).argsort(1)
    right = right < torch.randint(1, 21, (PROMPTS, 1), generator=generator)
    table, method = Table(torch.zeros(PROMPTS, ANSWERS, dtype=dtype)), method.fresh()
    prompt = torch.arange(PROMPTS).repeat_interleave(GROUP)
    found = Course([], [], table.weights.data)
    for _ in range(batches):
        found.success.append(float((table.policy() * right).sum(1).mean()))
        found.entropy.append(float(table.entropy().mean()))
        action = table.draw(prompt, generator)
        batch = trajectories(action[:, None], right[prompt, action].to(dtype), prompt)
        learn(method, table, prompt[:, None], batch, LR * PROMPTS)  # each prompt's loss is a mean over its samples
    return found


def _twins_apart(seed: int) -> float:
    """NFT at GRPO's weight and GRPO without a clip, one update a batch, in float64."""
    once = BASE.but(update=Update())
    twins = (
        once.but(advantage=Rated(inverse_deviation)),
        once.but(advantage=GRPO_CREDIT, surrogate=Clip(1.0, float("inf"))),
    )
    a, b = (course(method, seed, 50, torch.float64).weights for method in twins)
    return float((a - b).abs().max())


def _rows(name: str, found: Sequence[Course]) -> list[dict]:
    rows = [
        over_seeds(f"{name}: mean success", [c.area() for c in found]),
        over_seeds(f"{name}: success at the end", [c.success[-1] for c in found]),
    ]
    for level in LEVELS:
        at = [entropy_at(c.success, c.entropy, level) for c in found]
        if np.isfinite(at).all():
            rows.append(over_seeds(f"{name}: entropy at success {level}", at))
    return rows


CLAIM = Claim(
    slug="nft",
    statement="Learning from wrong answers by the likelihood of the implied negative policy is on a level with GRPO, "
    "and above rejection fine-tuning, whose entropy falls more; with one update a batch it is GRPO.",
    refuted_if="with one update a batch the logits of NFT and of unclipped GRPO part by more than 1e-10, or rejection "
    "fine-tuning at the same prompt weight matches NFT in mean success and in entropy at equal success",
    run=run,
    seeds=tuple(range(8)),
)
