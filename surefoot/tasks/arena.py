"""Answers that are preferred to others, and no reward: a committee compares two answers at a time.

    arena:[opponent=pebble,answers=4,...,]TASK      (`arena:rg:chain_sum`)

TASK poses the problems. Each member of the committee looks at one thing (is it right, is it short, does it show work),
and P(y > y') is the share of the members that find y better, a tie counting half. Such preferences can go in circles
(Condorcet 1785), so no reward need agree with them.

Training answers of a problem play a knock-out tournament among themselves, comparisons drawn by P: the reward `rank` is
1 for the best, -1 for the worst, between them for the others. Held-out answers meet those of an opponent: `win_rate` is
the chance to be preferred to it, 1/2 where nothing was learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import InputError
from surefoot.rollout.native import Sampling, uniforms
from surefoot.rollouts import Rollouts
from surefoot.specs import call, leading_options
from surefoot.tasks.base import Problem, Task, answered
from surefoot.tasks.play import act

Member = Callable[[str, bool], float]


def shows_work(text: str, right: bool) -> float:
    """1 where something stands before the answer."""
    return float(bool(text.split("<answer>")[0].strip()))


COMMITTEE: Mapping[str, Member] = {
    "right": lambda text, right: float(right),
    "short": lambda text, right: -float(len(text)),
    "shows work": shows_work,
}


def load(rest: str) -> Arena:
    """The task `arena:<rest>`: options, then the specification of the task that poses the problems."""
    from surefoot import tasks

    where = f"task 'arena:{rest}'"
    options, base = leading_options(rest, where)
    if not base:
        raise InputError(f"{where}: expected arena:[key=value,...,]TASK")
    return call(Arena, options, where, f"arena:{rest}", tasks.load(base))


class Arena:
    """Problems of `base`, whose answers are compared.

    Args:
        base: poses the problems and says what is right.
        opponent: the policy whose answers the held-out ones meet.
        answers: of the opponent to each held-out problem.
    """

    def __init__(self, name: str, base: Task, opponent: str = "pebble", answers: int = 4):
        self.name, self.base, self.max_new_tokens = name, base, base.max_new_tokens
        self.opponent, self.answers = opponent, answers
        self.train = base.train
        self.heldout = _Opposed(self)

    def demonstrations(self, rng: np.random.Generator, count: int) -> list[list[tuple[str, bool]]]:
        """Training questions with their answers."""
        return answered(self.name, self.train, rng, count)

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts:
        """`rank` of training answers within their groups, or `win_rate` of held-out ones; `accuracy` beside them."""
        looked = self.looked_at(problems, rollouts)
        right = looked[:, 0]
        if "opponents" in problems[0].data:
            rates = [
                preference(mine[None], p.data["opponents"]).mean() for mine, p in zip(looked, problems, strict=True)
            ]
            return rollouts.having(rewards={"win_rate": torch.stack(rates), "accuracy": right})
        rank = torch.zeros(len(rollouts))
        for g in rollouts.group.unique():
            rows = (rollouts.group == g).nonzero().flatten()
            rank[rows] = tournament(preference(looked[rows], looked[rows]), uniforms(rollouts.seed[rows], 16, 1 << 20))
        return rollouts.having(rewards={"rank": rank})

    def looked_at(self, problems: Sequence[Problem], rollouts: Rollouts) -> Float[Tensor, "n c"]:
        """What each member of the committee sees in each answer."""
        correct = self.base.judge(problems, rollouts).correct.tolist()
        said = rollouts.notes["completion"]
        return torch.tensor([[m(t, c) for m in COMMITTEE.values()] for t, c in zip(said, correct, strict=True)])

    def opposed(self, index: Sequence[int]) -> list[Problem]:
        """Held-out problems with what the committee sees in the opponent's answers, which depend on the index alone."""
        problems, k = [self.base.heldout[i] for i in index], self.answers
        group = torch.arange(len(index)).repeat_interleave(k)
        seeds = torch.tensor([1_000_003 * (i + 1) + j for i in index for j in range(k)])
        sampling = Sampling(max_new_tokens=self.max_new_tokens)
        batch = act(_opponent(self.opponent), self.base, problems, group, seeds, sampling)
        seen = self.looked_at([problems[g] for g in group.tolist()], batch).view(len(index), k, -1)
        return [replace(p, data={**p.data, "opponents": s}) for p, s in zip(problems, seen, strict=True)]


@lru_cache(maxsize=2)
def _opponent(name: str):
    from surefoot import policies

    return policies.load(name)


class _Opposed(Sequence):
    """The held-out problems with their opponents' answers, made a block at a time when they are asked for."""

    def __init__(self, arena: Arena, block: int = 64):
        self.arena, self.size = arena, block
        self.block = lru_cache(maxsize=None)(self._block)

    def _block(self, b: int) -> list[Problem]:
        return self.arena.opposed(range(b * self.size, min((b + 1) * self.size, len(self))))

    def __len__(self) -> int:
        return len(self.arena.base.heldout)

    def __getitem__(self, i: int) -> Problem:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.block(i // self.size)[i % self.size]


def preference(mine: Float[Tensor, "*b n c"], other: Float[Tensor, "*b m c"]) -> Float[Tensor, "*b n m"]:
    """P(mine > other): the share of the members who see more in mine; ties count half.

    >>> cycle = torch.tensor([[3.0, 1, 2], [2, 3, 1], [1, 2, 3]])
    >>> preference(cycle, cycle)
    tensor([[0.5000, 0.6667, 0.3333],
            [0.3333, 0.5000, 0.6667],
            [0.6667, 0.3333, 0.5000]])
    """
    return ((mine[..., :, None, :] - other[..., None, :, :]).sign().mean(-1) + 1) / 2


def tournament(P: Float[Tensor, "k k"], u: Float[Tensor, "k r"]) -> Float[Tensor, "k"]:
    """Rank in [-1, 1] after a knock-out: winners meet winners, losers losers (INPO, arXiv 2407.00617, section 5).

    Best and worst meet once more; where the worst wins, all ranks are 0, and the pair is none.

    Args:
        P: chance that the row is preferred to the column; k is a power of 2.
        u: uniform draws of each row, one a round and one for the last comparison; the first row of a match decides it.
    """
    k, rank = len(P), torch.zeros(len(P))
    if k < 2 or k & (k - 1):
        raise InputError(f"tournament of {k} answers; expected a power of two (--set rollout.of=8)")

    def won(i: Int[Tensor, "m"], j: Int[Tensor, "m"], at: int) -> Tensor:
        return u[i, at] < P[i, j]

    top = bottom = torch.arange(k)
    rounds = k.bit_length() - 1
    for at in range(rounds):
        i, j = top[::2], top[1::2]
        first = won(i, j, at)
        up, down = i.where(first, j), j.where(first, i)
        if at == 0:
            top, bottom = up, down
        else:
            x, y = bottom[::2], bottom[1::2]
            top, bottom = up, y.where(won(x, y, at), x)
        rank[top] += 1 / rounds
        rank[bottom] -= 1 / rounds
    return rank if k == 2 or won(top, bottom, rounds) else torch.zeros(k)
