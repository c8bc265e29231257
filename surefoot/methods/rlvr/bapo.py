"""BAPO: clip bounds found anew before every update, so that what went right supplies its share of the surrogate.

"BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy Optimization with Adaptive Clipping",
arXiv 2510.18927. With r = pi / pi_rollout, of each token and of a policy that may be several updates old,

    s(c_low, c_high) = min(r A, clip(r, c_low, c_high) A)                    L = -mean s
    share            = P / (P + N),   P = sum_{A > 0} pi_rollout |s|,   N = sum_{A < 0} pi_rollout |s|        eq. 8
    the bounds start at (0.6, 1.2); while share < 0.4: raise c_high by .05 up to 3, then c_low by .02 up to .9

over the whole minibatch, without gradient. P depends on c_high alone and N on c_low alone, so the search is the first
point of a fixed path of two grids. On fresh data (r = 1) no bound binds, and the search changes nothing.

The denominator of eq. 8 is printed as the absolute value of a sum; we read the sum of absolute values. Raising c_low
removes negative tokens' gradients but makes their values larger, so that by value the second half of the path moves the
share the wrong way: `measure="gradient"` counts only tokens that the clip leaves. The authors' code differs from their
paper: `weighted=False, low_first=True`, a target t of P / N, which is the share t / (1 + t), and a dual clip of 3.

Claim: on stale data, learning is faster than with fixed bounds, at higher entropy. OUR CHOICE of stale data: half of
each batch is replayed, at most four batches old (`Replay`); partial rollouts are `Partial` in its place. Temperature 1,
as everywhere here (theirs: 0.6).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.method import Paper, Update
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.ratios import log_ratio
from surefoot.objective.surrogates import clipped
from surefoot.parts import Part
from surefoot.rollout.store import Replay
from surefoot.rollouts import Rollouts


def contributions(
    ratio: Float[Tensor, "k"],
    advantage: Float[Tensor, "k"],
    weight: Float[Tensor, "k"],
    lows: Float[Tensor, "i"],
    highs: Float[Tensor, "j"],
    gradient: bool = False,
) -> tuple[Float[Tensor, "j"], Float[Tensor, "i"]]:
    """P at each upper bound and N at each lower one: `sum weight |s|`, of value or of gradient.

    >>> r, A = torch.tensor([2.5, 1.0, 0.4, 0.7, 1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])
    >>> contributions(r, A, torch.tensor([0.1, 0.6, 0.1, 0.3, 0.5]), torch.tensor([0.6]), torch.tensor([1.2]))
    (tensor([0.7200]), tensor([0.7700]))
    """
    up, down = advantage > 0, advantage < 0
    mass = weight * advantage.abs()

    def total(rows: Tensor, bounds: Tensor, held: Tensor, inside: Tensor) -> Tensor:
        kept = ratio[rows] * inside if gradient else held
        return kept @ mass[rows] if len(bounds) else bounds

    high, low = highs[:, None], lows[:, None]
    positive = total(up, highs, ratio[up].clamp(max=high), ratio[up] <= high)
    return positive, total(down, lows, ratio[down].clamp(min=low), ratio[down] >= low)


def walk(lows: int, highs: int, low_first: bool = False) -> list[tuple[int, int]]:
    """The search's path over both grids (index of the lower bound, of the upper one): one to its end, then the other.

    >>> walk(2, 3)
    [(0, 0), (0, 1), (0, 2), (1, 2)]
    """
    if low_first:
        return [(i, 0) for i in range(lows)] + [(lows - 1, j) for j in range(1, highs)]
    return [(0, j) for j in range(highs)] + [(i, highs - 1) for i in range(1, lows)]


@dataclass(frozen=True)
class BalancedClip(Part):
    """PPO's clip with absolute bounds on the ratio that are searched before every update.

    Attributes:
        target: share of the surrogate that tokens of positive advantage should supply.
        low, high: first and last lower bound; first and last upper bound.
        low_step, high_step: of the two grids.
        weighted: tokens count by the probability with which they were sampled.
        low_first: raise the lower bound first.
        measure: `value` (as published) or `gradient`.
    """

    target: float = 0.4
    low: tuple[float, float] = (0.6, 0.9)
    high: tuple[float, float] = (1.2, 3.0)
    low_step: float = 0.02
    high_step: float = 0.05
    weighted: bool = True
    low_first: bool = False
    measure: str = "value"
    reads = ("logp", "now_logp", "rollout_logp", "advantage", "mask")
    vanishes_with_advantage = True

    def prepare(self, minibatch: Rollouts) -> None:
        """Find the bounds of this update."""
        mask = minibatch.mask
        ratio = log_ratio(minibatch.now_logp, minibatch.rollout_logp, mask).exp()
        weight = minibatch.rollout_logp.where(mask, 0.0).exp() if self.weighted else torch.ones_like(ratio)
        self.memory.update(self.search(*(x[mask].double() for x in (ratio, minibatch.advantage, weight))))

    def search(self, ratio: Float[Tensor, "k"], advantage: Float[Tensor, "k"], weight: Float[Tensor, "k"]) -> dict:
        """The bounds, the share there, how many steps the search took and whether it ended short of the target."""
        lows, highs = grid(*self.low, self.low_step), grid(*self.high, self.high_step)
        P, N = contributions(ratio, advantage, weight, lows, highs, self.measure == "gradient")
        path = walk(len(lows), len(highs), self.low_first)
        i, j = torch.tensor(path).T
        share = (P[j] / (P[j] + N[i])).nan_to_num(1.0)  # nothing to balance
        enough = share >= self.target
        at = int(enough.int().argmax()) if enough.any() else len(path) - 1
        low, high = float(lows[i[at]]), float(highs[j[at]])
        return {"low": low, "high": high, "share": float(share[at]), "steps": at, "exhausted": float(not enough.any())}

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        low, high = self.memory.get("low", self.low[0]), self.memory.get("high", self.high[0])
        ratio = log_ratio(rollouts.logp, rollouts.rollout_logp, rollouts.mask).exp()
        return clipped(ratio, rollouts.advantage, 1 - low, high - 1)

    def metrics(self, rollouts: Rollouts) -> dict[str, float]:
        """The bounds of this update, the share of positive tokens there, and whether the search was exhausted."""
        named = {"clip_low": "low", "clip_high": "high", "positive_share": "share", "clip_exhausted": "exhausted"}
        return {metric: self.memory[name] for metric, name in named.items() if name in self.memory}


def grid(first: float, last: float, step: float) -> Float[Tensor, "i"]:
    """`first, first + step, ...` up to `last`, counted in whole steps.

    >>> grid(0.6, 0.9, 0.1)
    tensor([0.6000, 0.7000, 0.8000, 0.9000], dtype=torch.float64)
    """
    return first + step * torch.arange(int((last - first) / step + 1e-6) + 1, dtype=torch.float64)


BAPO = GRPO.but(
    name="bapo",
    paper=Paper(arxiv="2510.18927", year=2025, title="BAPO: Balanced Policy Optimization with Adaptive Clipping"),
    rollout=Replay(replayed=0.5, max_age=4),
    surrogate=BalancedClip(),
    regularizers=(),
    aggregate=TokenMean(),
    update=Update(epochs=1, minibatches=4),
)
