"""Autoregressive policies over all sequences of fixed length: every leaf can be counted, so every answer is exact.

A tree of V tokens and depth D has `V^D` leaves (sequences) and `N = (V^D - 1) / (V - 1)` nodes (prefixes), numbered
breadth first: the root is 0 and the child of node n by token a is `n V + a + 1`. A leaf's index is its tokens read as
a base-V number, the first token most significant. Node tables are [N, V], leaf vectors [L].

Sources: arXiv 2205.11275 for the posterior `ref exp(r / beta) / Z` and its gradient; arXiv 2507.20150 for the claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import sparse

from surefoot.errors import InputError
from surefoot.exact.mdp import MDP
from surefoot.exact.operators import log_mean_exp, log_or_minus_inf, log_ratio, softmax

Nodes = Float[np.ndarray, "n v"]
Leaves = Float[np.ndarray, "l"]


@dataclass(frozen=True, eq=False)
class TokenTree:
    """Sequences of `depth` tokens, a reward for each, and a reference policy.

    Attributes:
        leaf_reward: [V^D].
        reference: distribution over leaves [V^D]; None is uniform.

    Raises:
        InputError: shapes that do not fit, or a reference that is no distribution.

    >>> tree = TokenTree(2, 2, np.array([1., 0, 0, 1]), np.array([.4, .3, .2, .1]))
    >>> tree.optimum(.5).round(6)
    array([0.704638, 0.071522, 0.047681, 0.176159])
    """

    vocab: int
    depth: int
    leaf_reward: Leaves
    reference: Leaves = None  # pyright: ignore[reportAssignmentType]  (filled in below)

    def __post_init__(self):
        if self.vocab < 1 or self.depth < 1:
            raise InputError(f"tree: vocab {self.vocab}, depth {self.depth}; expected at least 1 of each")
        uniform = np.full(self.leaves, 1 / self.leaves)
        object.__setattr__(self, "leaf_reward", np.asarray(self.leaf_reward, float))
        object.__setattr__(self, "reference", uniform if self.reference is None else np.asarray(self.reference, float))
        for name, leaves in (("leaf_reward", self.leaf_reward), ("reference", self.reference)):
            if leaves.shape != (self.leaves,):
                raise InputError(f"tree: {name} has shape {leaves.shape}; expected {(self.leaves,)}")
        if not ((self.reference >= 0).all() and abs(self.reference.sum() - 1) < 1e-8):
            raise InputError(f"tree: reference sums to {self.reference.sum():.6g}; expected a distribution over leaves")

    @property
    def leaves(self) -> int:
        return self.vocab**self.depth

    @property
    def nodes(self) -> int:
        return sum(self.vocab**d for d in range(self.depth))

    def level(self, depth: int) -> slice:
        """The nodes whose prefix has `depth` tokens."""
        before = sum(self.vocab**d for d in range(depth))
        return slice(before, before + self.vocab**depth)

    def tokens(self, leaf: int) -> tuple[int, ...]:
        """The tokens of a leaf."""
        return tuple(int(leaf) // self.vocab**d % self.vocab for d in reversed(range(self.depth)))

    def leaf(self, tokens: Sequence[int]) -> int:
        """The index of a sequence: `leaf((0, 0, 1, 1)) == 5` with four tokens."""
        index = 0
        for token in tokens:
            index = index * self.vocab + token
        return index

    def zeros(self) -> Nodes:
        """Logits of the uniform policy."""
        return np.zeros((self.nodes, self.vocab))

    def log_leaves(self, logits: Nodes) -> Leaves:
        """Log-probability of every leaf; logits may be log-probabilities."""
        log_p = logits - log_mean_exp(logits, 1.0)[:, None]
        total = np.zeros(1)
        for d in range(self.depth):
            total = (total[:, None] + log_p[self.level(d)]).ravel()
        return total

    def node_sums(self, leaves: Leaves) -> Nodes:
        """Sum of a leaf vector below every (node, token) edge: of probabilities, the chance to pass there."""
        sums = np.empty((self.nodes, self.vocab))
        for d in reversed(range(self.depth)):
            sums[self.level(d)] = leaves.reshape(-1, self.vocab)
            leaves = leaves.reshape(-1, self.vocab).sum(1)
        return sums

    def node_policy(self, leaves: Leaves) -> Nodes:
        """Token-level policy of a distribution over leaves; uniform at nodes that it never meets."""
        passed = self.node_sums(leaves)
        total = passed.sum(1, keepdims=True)
        return np.where(total > 0, passed / np.where(total > 0, total, 1.0), 1 / self.vocab)

    # The optimum of E[r] - beta KL(policy | reference), over sequences and token by token

    def optimum(self, beta: float) -> Leaves:
        """`ref exp(r / beta) / Z` over leaves, any beta > 0 (arXiv 2205.11275, eq. 3)."""
        return softmax(log_or_minus_inf(self.reference) + self.leaf_reward / beta)

    def soft_values(self, beta: float) -> tuple[Float[np.ndarray, "n"], Nodes]:
        """`V(prefix) = beta log E_ref[exp(r / beta) | prefix]` [N], and `Q(prefix, token)` [N, V].

        Q of a token is V of the longer prefix, at the last token the reward itself; `V(root) = beta log Z`.
        """
        log_ref = log_or_minus_inf(self.node_policy(self.reference))
        V, Q = np.empty(self.nodes), np.empty((self.nodes, self.vocab))
        following = self.leaf_reward
        for d in reversed(range(self.depth)):
            at = self.level(d)
            Q[at] = following.reshape(-1, self.vocab)
            V[at] = following = log_mean_exp(Q[at], beta, log_ref[at])
        return V, Q

    def soft_policy(self, beta: float) -> Nodes:
        """The optimum token by token: `ref(a | n) exp((Q(n, a) - V(n)) / beta)`."""
        V, Q = self.soft_values(beta)
        return self.node_policy(self.reference) * np.exp((Q - V[:, None]) / beta)

    # A learner's objective and its gradient

    def expected_reward(self, logits: Nodes) -> float:
        return float(np.exp(self.log_leaves(logits)) @ self.leaf_reward)

    def objective(self, logits: Nodes, beta: float = 0.0) -> float:
        """`E[r] - beta KL(policy | reference)` over sequences."""
        log_p = self.log_leaves(logits)
        return float(np.exp(log_p) @ self._payoff(log_p, beta))

    def gradient(self, logits: Nodes, beta: float = 0.0) -> Nodes:
        """Exact gradient of `objective` [N, V]: chance to meet the node, times `pi(a | n) (Q_u(n, a) - V_u(n))`.

        `u = r - beta log(pi / ref)` of whole leaves stands for the reward (arXiv 2205.11275, eq. 7).
        """
        log_p = self.log_leaves(logits)
        sums = self.node_sums(np.exp(log_p) * self._payoff(log_p, beta))
        return sums - softmax(logits) * sums.sum(1, keepdims=True)

    def natural_gradient(self, logits: Nodes, beta: float = 0.0) -> Nodes:
        """The same step in the Fisher metric: `Q_u(n, a) - V_u(n)` less its mean over tokens (Kakade 2001).

        As the metric weighs a node by the chance to meet it, that chance cancels; nodes never met get 0.
        """
        log_p = self.log_leaves(logits)
        p = np.exp(log_p)
        passed, sums = self.node_sums(p), self.node_sums(p * self._payoff(log_p, beta))
        Q = np.where(passed > 0, sums / np.where(passed > 0, passed, 1.0), 0.0)
        return Q - Q.mean(1, keepdims=True)

    def _payoff(self, log_p: Leaves, beta: float) -> Leaves:
        if beta == 0:
            return self.leaf_reward
        return self.leaf_reward - beta * log_ratio(np.exp(log_p), log_or_minus_inf(self.reference))

    def as_mdp(self, gamma: float = 1.0) -> MDP:
        """Prefixes as states, tokens as actions, and one end, the last state; the reward comes with the last token."""
        last = self.level(self.depth - 1)
        edges = np.arange(self.nodes * self.vocab)
        target = np.minimum(edges + 1, self.nodes)
        rows = np.arange((self.nodes + 1) * self.vocab)
        target = np.concatenate([target, np.full(self.vocab, self.nodes)])
        P = sparse.csr_matrix((np.ones(len(rows)), (rows, target)), (len(rows), self.nodes + 1))
        R = np.zeros((self.nodes + 1, self.vocab))
        R[last] = self.leaf_reward.reshape(-1, self.vocab)
        return MDP(P, R, gamma, np.eye(1, self.nodes + 1)[0])
