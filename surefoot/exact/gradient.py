"""Exact policy gradients of tabular softmax policies, `pi(a | s) = softmax(logits[s])`, with entropy or KL in them.

Sources: Sutton et al. (2000), the policy gradient theorem; Kakade (2001), the natural gradient; Agarwal et al. (2021,
arXiv 1908.00261) and Cen et al. (2022, arXiv 2007.06558) for softmax tables.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from surefoot.exact.mdp import MDP, evaluate, occupancy, performance
from surefoot.exact.operators import GREEDY, Choice, Table, softmax


def objective(mdp: MDP, logits: Table, under: Choice = GREEDY) -> float:
    """`J = sum_s mu(s) V^pi(s)`; with `Soft(alpha, reference)` the bonus is in it."""
    return performance(mdp, softmax(logits), under)


def advantages(mdp: MDP, policy: Table, under: Choice = GREEDY) -> Table:
    """`Q + bonus - V` [S, A], bonus `-alpha log(pi / reference)`; its mean under the policy is 0 in every state."""
    V, Q = evaluate(mdp, policy, under)
    return Q + under.bonus(policy) - V[:, None]


def policy_gradient(mdp: MDP, logits: Table, under: Choice = GREEDY) -> Table:
    """Gradient of `objective` [S, A]: `d(s) pi(a | s) A(s, a)`, d the discounted visits, not normalised.

    The bonus acts as a reward that is not differentiated: its own gradient has mean 0.

    >>> arms = MDP(np.ones((1, 2, 1)), np.array([[1., 0.]]), 0., np.ones(1))
    >>> policy_gradient(arms, np.zeros((1, 2)))
    array([[ 0.25, -0.25]])
    """
    policy = softmax(logits)
    return occupancy(mdp, policy)[:, None] * policy * advantages(mdp, policy, under)


def natural_policy_gradient(mdp: MDP, logits: Table, under: Choice = GREEDY) -> Table:
    """`pinv(Fisher) gradient` [S, A]: the advantage less its mean over actions; 0 in states that are never met.

    A step of size eta makes the policy `pi exp(eta A) / Z`. The Fisher matrix is that of `fisher`.
    """
    policy = softmax(logits)
    A = advantages(mdp, policy, under)
    return np.where(occupancy(mdp, policy)[:, None] > 0, A - A.mean(1, keepdims=True), 0.0)


def fisher(mdp: MDP, logits: Table) -> Float[np.ndarray, "sa sa"]:
    """`sum_s d(s) (diag pi - pi pi^T)`, blocks on the diagonal, d as in `policy_gradient`."""
    policy, (S, A) = softmax(logits), logits.shape
    blocks = policy[:, :, None] * np.eye(A) - policy[:, :, None] * policy[:, None, :]
    F = np.zeros((S, A, S, A))
    F[np.arange(S), :, np.arange(S), :] = occupancy(mdp, policy)[:, None, None] * blocks
    return F.reshape(S * A, S * A)
