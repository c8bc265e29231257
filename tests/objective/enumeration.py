"""Exact expectations over a tiny tree of tokens, so that a gradient estimator can be compared with the gradient.

A `Tree` is a tabular softmax policy in float64: one row of logits for each prefix. Every sequence is enumerated (an
`end` token cuts it short), and so is every group of G independent samples, so an expectation is a finite sum and the
comparison is good to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from surefoot.rollouts import Rollouts


@dataclass(frozen=True)
class Tree:
    """A tabular policy and all its sequences.

    Attributes:
        logits: [states, vocab], a leaf; one row for each prefix that can be continued.
        tokens: [s, t] every sequence, 0 after its end.
        mask: [s, t] steps that exist.
        state: [s, t] the row of `logits` that each step is drawn from (0 after the end).
    """

    logits: Tensor
    tokens: Tensor
    mask: Tensor
    state: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def logp(self) -> Tensor:
        """[s, t] log-probability of every step, with gradient; 0 after the end."""
        rows = self.logits.log_softmax(-1)[self.state]
        return rows.gather(-1, self.tokens[..., None]).squeeze(-1).where(self.mask, 0.0)

    def probability(self) -> Tensor:
        """[s] probability of every sequence, with gradient; sums to 1."""
        return self.logp().sum(1).exp()

    def gradient(self, objective: Tensor) -> Tensor:
        """Gradient of a scalar by the logits."""
        return torch.autograd.grad(objective, self.logits)[0]

    def true_gradient(self, reward: Tensor) -> Tensor:
        """Gradient of the expected reward, [states, vocab]."""
        return self.gradient((self.probability() * reward).sum())

    def values(self, reward: Tensor) -> Tensor:
        """[s, t] expected reward from the state before each step (the true value function); 0 after the end."""
        p = self.probability().detach()
        out = torch.zeros_like(self.mask, dtype=p.dtype)
        for state in range(len(self.logits)):
            here = (self.state == state) & self.mask
            through = here.any(1)
            out[here] = (p * reward)[through].sum() / p[through].sum()
        return out


def tree(vocab: int = 2, depth: int = 2, end: int | None = None, seed: int = 0, spread: float = 1.0) -> Tree:
    """A policy with random logits over sequences of `depth` tokens, or fewer where `end` is drawn."""
    sequences: list[tuple[int, ...]] = []
    states: dict[tuple[int, ...], int] = {}

    def grow(prefix: tuple[int, ...]) -> None:
        if len(prefix) == depth or (prefix and prefix[-1] == end):
            sequences.append(prefix)
            return
        states[prefix] = len(states)
        for token in range(vocab):
            grow((*prefix, token))

    grow(())
    tokens = torch.zeros(len(sequences), depth, dtype=torch.long)
    state, mask = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    for i, sequence in enumerate(sequences):
        for t, token in enumerate(sequence):
            tokens[i, t], state[i, t], mask[i, t] = token, states[sequence[:t]], True
    logits = torch.randn(len(states), vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Tree((spread * logits).requires_grad_(), tokens, mask, state)


def every_group(policy: Tree, size: int) -> tuple[Tensor, Tensor]:
    """All ordered groups of `size` independent samples: sequence indices [m, size] and probabilities [m]."""
    index = torch.tensor(list(itertools.product(range(len(policy)), repeat=size)))
    return index, policy.probability().detach()[index].prod(1)


def as_rollouts(policy: Tree, reward: Tensor, index: Tensor, **columns: Tensor) -> Rollouts:
    """Groups of sequences [m, size] as one table; `columns` are given for each sequence of the tree."""
    rows = index.flatten()
    group = torch.arange(len(index)).repeat_interleave(index.shape[1])
    extra = {name: column[rows] for name, column in columns.items()}
    return Rollouts(
        {
            "tokens": policy.tokens[rows],
            "mask": policy.mask[rows],
            "present": policy.mask[rows],
            "turn": policy.mask[rows].long() - 1,
            "group": group,
            "reward": reward[rows],
        }
        | extra,
        rewards={"task": reward[rows]},
    )


def expected_gradient(
    policy: Tree,
    reward: Tensor,
    advantage: Callable[[Rollouts], Tensor | dict[str, Tensor]],
    size: int,
    batchwise: bool = False,
    **columns: Tensor,
) -> Tensor:
    """Exact expectation of `(1/G) sum_i sum_t A_it grad log pi(a_it)` over groups of `size` samples.

    Args:
        batchwise: the advantage mixes groups, so each group is its own batch (else all go in one table).
    """
    index, weight = every_group(policy, size)
    batches = list(index.split(1)) if batchwise else [index]
    credit = []
    for batch in batches:
        found = advantage(as_rollouts(policy, reward, batch, **columns))
        credit.append(found["advantage"] if isinstance(found, dict) else found)
    credit = torch.cat(credit).view(*index.shape, -1)
    score = (credit * policy.logp()[index]).sum((1, 2)) / size
    return policy.gradient((weight * score).sum())


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two gradients."""
    return float((a * b).sum() / (a.norm() * b.norm()))
