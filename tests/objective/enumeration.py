"""A tabular softmax policy on a token tree small enough to enumerate: expectations without sampling, in float64."""

from __future__ import annotations

import itertools

import torch

from surefoot.rollouts import Rollouts

V, T = 3, 2
SEQUENCES = torch.tensor(list(itertools.product(range(V), repeat=T)))


class Tree:
    """Node logits of a depth-2, 3-ary tree, with gradient."""

    def __init__(self, seed: int = 0, scale: float = 0.7):
        g = torch.Generator().manual_seed(seed)
        self.root = (scale * torch.randn(V, generator=g, dtype=torch.float64)).requires_grad_()
        self.next = (scale * torch.randn(V, V, generator=g, dtype=torch.float64)).requires_grad_()

    @property
    def parameters(self):
        return [self.root, self.next]

    def logp(self, tokens=SEQUENCES):
        first = self.root.log_softmax(-1)[tokens[:, 0]]
        second = self.next.log_softmax(-1)[tokens[:, 0], tokens[:, 1]]
        return torch.stack([first, second], 1)

    def probabilities(self):
        return self.logp().sum(1).exp()

    def gradient(self, value):
        grads = torch.autograd.grad(value, self.parameters, allow_unused=True, retain_graph=True)
        return torch.cat(
            [
                torch.zeros_like(p).flatten() if g is None else g.flatten()
                for g, p in zip(grads, self.parameters, strict=True)
            ]
        )

    def policy_gradient(self, reward):
        """The true gradient of E[reward]."""
        return self.gradient((self.probabilities() * reward).sum())


def groups(tree: Tree, reward: torch.Tensor, size: int) -> tuple[Rollouts, torch.Tensor]:
    """All groups of `size` sequences as one table, and the probability of each row's group."""
    combos = torch.tensor(list(itertools.product(range(len(SEQUENCES)), repeat=size)))
    rows = combos.flatten()
    weight = tree.probabilities().detach()[combos].prod(1).repeat_interleave(size)
    mask = torch.ones(len(rows), T, dtype=torch.bool)
    logp = tree.logp(SEQUENCES[rows])
    table = Rollouts(
        dict(
            tokens=SEQUENCES[rows],
            mask=mask,
            present=mask,
            turn=torch.zeros(len(rows), T, dtype=torch.long),
            group=torch.arange(len(combos)).repeat_interleave(size),
            reward=reward[rows],
            logp=logp,
            old_logp=logp.detach(),
            truncated=torch.zeros(len(rows), dtype=torch.bool),
        ),
        rewards={"accuracy": reward[rows]},
    )
    return table, weight


def expected_gradient(tree: Tree, reward: torch.Tensor, size: int, advantage, surrogate) -> torch.Tensor:
    """Gradient of the expected mean-over-the-group loss, negated: what an ascent step follows on average."""
    table, weight = groups(tree, reward, size)
    table = table.having(advantage=advantage(table))
    return -tree.gradient((weight[:, None] * surrogate(table)).sum() / size)
