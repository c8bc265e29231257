"""Optimizers side by side on pebble's own pre-training: each tuned over the same rates, then run on fresh seeds.

>>> found = compare(OPTIMIZERS, rates=(3e-3, 1e-2, 3e-2), seeds=range(3), steps=200, tokens=2048)  # doctest: +SKIP
>>> found["aro"].lr, found["aro"].losses  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from surefoot.parts import Part
from surefoot.pretraining.pretrain import by, heldout_loss, new_model, train
from surefoot.pretraining.tokenizer import build

TUNING_SEED = 1000  # of the runs that choose a rate; their losses are not reported


@dataclass(frozen=True)
class Tuned:
    """What one optimizer did.

    Attributes:
        by_rate: held-out loss of the tuning run at each rate.
        losses: held-out losses at the best rate, by seed.
    """

    by_rate: dict[float, float]
    losses: list[float]

    @property
    def lr(self) -> float:
        return min(self.by_rate, key=self.by_rate.__getitem__)

    @property
    def inside(self) -> bool:
        """The best rate has a higher and a lower one beside it: the grid was wide enough."""
        return min(self.by_rate) < self.lr < max(self.by_rate)


def compare(
    parts: Mapping[str, Part],
    rates: Sequence[float],
    seeds: Sequence[int],
    steps: int,
    tokens: int,
    heldout: int = 8,
) -> dict[str, Tuned]:
    """Every optimizer on the same models, data and schedule: `steps` batches of `tokens` tokens.

    Args:
        heldout: batches of the held-out exam that the loss at the end is taken over (`heldout_loss`).
    """
    found = {}
    for name, part in parts.items():
        by_rate = {lr: end(part, lr, TUNING_SEED, steps, tokens, heldout) for lr in rates}
        best = min(by_rate, key=by_rate.__getitem__)
        found[name] = Tuned(by_rate, [end(part, best, seed, steps, tokens, heldout) for seed in seeds])
    return found


def end(part: Part, lr: float, seed: int, steps: int, tokens: int, heldout: int = 8) -> float:
    """Held-out loss after a pre-training from nothing; the seed is that of the weights and of the data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(-(-len(build()) // 8) * 8)
    train(model, steps, seed, tokens, make=by(part, lr))
    return heldout_loss(model, heldout)
