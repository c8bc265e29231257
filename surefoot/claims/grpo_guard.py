"""GRPO-Guard: clips of denoising steps are lopsided in Flow-GRPO and fair after RatioNorm (arXiv 2510.22319).

A 64-dimensional flow of eight clusters, pre-trained, then trained on a proxy that was fitted to 40 points of the true
reward; six steps on a shifted time grid, 25 batches of 64, four epochs each. Arms: Flow-GRPO, RatioNorm, and both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from surefoot.claims import Claim, Outcome, Size, Verdict
from surefoot.claims._tabular import mean_and_spread, over_seeds
from surefoot.methods.flow.grpo_guard import GRPO_GUARD
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.ratios import CentredRatio, TokenRatio
from surefoot.objective.rewards import Sum
from surefoot.objective.surrogates import Clip
from surefoot.policies.flow import Flow
from surefoot.rollout.prompts import Uniform
from surefoot.rollouts import Rollouts
from surefoot.tasks.base import Problem
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer

D, CLUSTERS, BATCH, EPOCHS, UPDATES = 64, 8, 64, 4, 25
PROXIES = (0.4, 0.5, 0.6)


@dataclass(frozen=True)
class Watched(Clip):
    """A clip that counts the ratios above its upper and below its lower bound."""

    def metrics(self, rollouts: Rollouts) -> dict[str, float]:
        ratio = self.ratio.of(rollouts)[rollouts.mask]
        return {
            "above": float((ratio > 1 + self.low).float().mean()),
            "below": float((ratio < 1 - self.low).float().mean()),
        }


_TOY = GRPO_GUARD.but(
    prompts=Uniform(prompts=1, rollouts=BATCH),
    reward=Sum({"gold": 0.0}),
    surrogate=Watched(0.003, ratio=CentredRatio()),
)
ARMS = {
    "Flow-GRPO": _TOY.but(surrogate=Watched(0.01, ratio=TokenRatio()), aggregate=TokenMean()),
    "RatioNorm": _TOY.but(aggregate=TokenMean()),
    "GRPO-Guard": _TOY,
}


class Clusters:
    """The toy as a task: one prompt, a proxy and the true reward."""

    name, max_new_tokens = "clusters", 100

    def __init__(self, seed: int):
        g = torch.Generator().manual_seed(seed)
        self.centres = 6 * torch.linalg.qr(torch.randn(D, CLUSTERS, generator=g))[0].T
        self.train: Sequence[Problem] = [Problem("a sample")]
        self.heldout: Sequence[Problem] = self.train
        self.data = self.draw(2000, g)
        x = self.draw(40, g)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.proxy = nn.Sequential(nn.Linear(D, 32), nn.Tanh(), nn.Linear(32, 1))
            optimizer = torch.optim.Adam(self.proxy.parameters(), 1e-2)
            for _ in range(300):
                optimizer.zero_grad()
                (self.proxy(x)[:, 0] - self.gold(x)).square().mean().backward()
                optimizer.step()

    def draw(self, n: int, g: torch.Generator) -> Float[Tensor, "n d"]:
        which = torch.randint(CLUSTERS, (n,), generator=g)
        return self.centres[which] + 0.3 * torch.randn(n, D, generator=g)

    def gold(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        return (-(x - self.centres[0]).square().sum(-1) / D).exp()

    def rollout(self, policy: Any, problems: Any, group: Tensor, seeds: Tensor, sampling: Any) -> Rollouts:
        columns = policy.denoise(group, seeds)
        return Rollouts(columns | dict(present=torch.ones_like(columns["mask"]), group=group, seed=seeds))

    @torch.no_grad()
    def judge(self, problems: Any, rollouts: Rollouts) -> Rollouts:
        x = rollouts.actions[:, -1]
        return rollouts.having(rewards={"proxy": self.proxy(x)[:, 0], "gold": self.gold(x)})


def learn(seed: int, updates: int) -> dict[str, dict[str, np.ndarray]]:
    """Of each arm, update by update: proxy, gold, and the shares above and below the bounds in epochs 2 to 4."""
    task = Clusters(seed)
    torch.manual_seed(seed)
    start = Flow(D, width=64, steps=6, noise=0.7, shift=3.0)
    start.fit(task.data, torch.zeros(len(task.data), dtype=torch.long), 800, seed)
    found = {}
    for name, method in ARMS.items():
        policy = start.reference()
        policy.model.requires_grad_(True)
        trainer = Trainer(policy, task, method, Settings(lr=1e-3, warmup=0, beta2=0.999, seed=seed))
        rows = [trainer.train_step().metrics for _ in range(updates)]
        later = EPOCHS / (EPOCHS - 1)  # in the first epoch all ratios are 1
        found[name] = {k: np.array([r["rewards"][k] for r in rows]) for k in ("proxy", "gold")}
        found[name] |= {k: later * np.array([r[k] for r in rows]) for k in ("above", "below")}
    return found


def at_proxy(curves: dict[str, np.ndarray], level: float) -> float:
    """The gold when the proxy first passes the level; NaN where it does not."""
    passed = curves["proxy"] >= level
    return float(curves["gold"][passed.argmax()]) if passed.any() else float("nan")


def lopsided(curves: dict[str, np.ndarray]) -> float:
    """Share below the lower bound over that above the upper one."""
    return float(curves["below"].mean() / curves["above"].mean())


def run(size: Size, seeds: Sequence[int], report: Path | None) -> Outcome:
    """`full` goes on for 60 updates."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [learn(s, UPDATES if size == "quick" else 60) for s in seeds]
    finally:
        torch.set_num_threads(threads)
    measured = []
    for name in ARMS:
        for share in ("above", "below"):
            measured.append(over_seeds(f"share {share} the bound, {name}", [f[name][share].mean() for f in found]))
        measured.append(over_seeds(f"below / above, {name}", [lopsided(f[name]) for f in found]))
    for level in PROXIES:
        measured.append(over_seeds(f"gold at proxy {level}, GRPO-Guard - Flow-GRPO", gains(found, level)))
    for name in ARMS:
        measured.append(over_seeds(f"gold at the end, {name}", [f[name]["gold"][-1] for f in found]))
    return Outcome(
        verdict(found),
        [m for m in measured if m["seeds"]],
        [_draw(report, found)] if report else [],
        f"Mechanism (fair clips): {'holds' if mechanism(found) else 'refuted'}. Benefit (gold at equal proxy, in most "
        f"seeds at proxy {PROXIES[1]}): {'holds' if benefit(found) else 'does not hold'}. Bounds are .01 for raw "
        "ratios and .003 for centred ones, which are smaller by the factor s; shares are of all ratios, whatever their "
        "advantage.",
    )


def gains(found: Sequence[dict], level: float) -> list[float]:
    """Gold at equal proxy, Guard's less Flow-GRPO's, on the seeds where both pass it."""
    both = [at_proxy(f["GRPO-Guard"], level) - at_proxy(f["Flow-GRPO"], level) for f in found]
    return [x for x in both if np.isfinite(x)]


def mechanism(found: Sequence[dict]) -> bool:
    raw = np.mean([lopsided(f["Flow-GRPO"]) < 1.5 for f in found])
    guard = np.mean([abs(lopsided(f["GRPO-Guard"]) - 1) > 0.15 for f in found])
    return bool(raw < 2 / 3 and guard < 2 / 3)


def benefit(found: Sequence[dict]) -> bool:
    paired = gains(found, PROXIES[1])
    return bool(paired) and sum(x > 0 for x in paired) > len(paired) / 2 and mean_and_spread(paired)[0] > 0


def verdict(found: Sequence[dict]) -> Verdict:
    if not mechanism(found):
        return "refuted"
    return "reproduced" if benefit(found) else "not reproduced"


def _draw(folder: Path, found: Sequence[dict]) -> Path:
    from surefoot.report.figures import canvas, save

    with canvas(7.2, 3.2) as figure:
        left, right = figure.subplots(1, 2)
        for i, name in enumerate(ARMS):
            for share, style in (("above", "-"), ("below", "--")):
                left.plot(np.mean([f[name][share] for f in found], 0), style, color=f"C{i}", label=f"{name}, {share}")
            right.plot(
                np.mean([f[name]["proxy"] for f in found], 0), np.mean([f[name]["gold"] for f in found], 0), label=name
            )
        left.set(xlabel="update", ylabel="share outside the bound", title="Clips")
        right.set(xlabel="proxy", ylabel="gold", title="Over-optimization")
        left.legend(fontsize=6)
        right.legend(fontsize=6)
        return save(figure, folder / "grpo_guard")[0]


CLAIM = Claim(
    slug="grpo-guard",
    statement="In Flow-GRPO far more ratios pass the lower bound than the upper one; centred and scaled, they pass "
    "both alike, and the true reward at equal proxy is higher.",
    refuted_if="on two thirds of the seeds or more Flow-GRPO's share below over above is under 1.5, or GRPO-Guard's is "
    "more than 15 percent from 1 (the mechanism); gold at equal proxy is reported apart",
    run=run,
)
