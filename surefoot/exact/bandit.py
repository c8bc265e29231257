"""Contextual bandits: the optimum, the regularised optimum, and the softmax gradient with its variance, all exact.

Rewards, logits and policies are [X, A] (contexts, arms), `mu` [X] the chance of each context.
Sources: Williams (1992) for the estimator; Greensmith, Bartlett and Baxter (2004) for the least-variance baseline;
arXiv 2205.11275 for the KL-regularised objective. Other divergences: `divergence.f_regularised_optimum`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from surefoot.exact.mdp import MDP
from surefoot.exact.operators import Soft, States, Table, softmax


def as_mdp(reward: Table, mu: States) -> MDP:
    """The bandit as an MDP of discount 0."""
    X, A = reward.shape
    return MDP(np.repeat(np.eye(X), A, 0).reshape(X, A, X), reward, 0.0, mu)


def optimum(reward: Table, mu: States) -> float:
    """`sum_x mu(x) max_a r(x, a)`."""
    return float(mu @ reward.max(1))


def soft_optimum(reward: Table, alpha: float, reference: Table | None = None) -> Table:
    """`reference exp(r / alpha) / Z`, the best of `E[r] - alpha KL(pi | reference)`, or of `E[r] + alpha H(pi)`.

    >>> soft_optimum(np.array([[1., 0, 1, 1]]), .01, np.array([[.5, .3, .15, .05]])).round(6)
    array([[0.714286, 0.      , 0.214286, 0.071429]])
    """
    return Soft(alpha, reference).policy(np.asarray(reward, float))


def payoff(policy: Table, reward: Table, alpha: float = 0.0, reference: Table | None = None) -> Table:
    """`u = r - alpha log(pi / reference)`: what each arm is worth to the objective. The same for all at its optimum."""
    return reward + Soft(alpha, reference).bonus(policy) if alpha > 0 else np.asarray(reward, float)


def objective(logits: Table, reward: Table, mu: States, alpha: float = 0.0, reference: Table | None = None) -> float:
    """`E[r] - alpha KL(pi | reference)`; with no reference `E[r] + alpha H(pi)`.

    Worked (arXiv 2205.11275's card): reference `(.5, .3, .2)`, `r = (0, 1, 2)`, alpha .5, policy `(.2, .3, .5)`:
    1.1625564, gradient `(-.1408822, -.0487669, .1896491)`.
    """
    policy = softmax(logits)
    return float(mu @ (policy * payoff(policy, reward, alpha, reference)).sum(1))


def policy_gradient(
    logits: Table, reward: Table, mu: States, alpha: float = 0.0, reference: Table | None = None
) -> Table:
    """Gradient of `objective` in the logits [X, A]: `mu pi (u - pi . u)`."""
    policy = softmax(logits)
    u = payoff(policy, reward, alpha, reference)
    return mu[:, None] * policy * (u - (policy * u).sum(1, keepdims=True))


def natural_gradient(
    logits: Table, reward: Table, mu: States, alpha: float = 0.0, reference: Table | None = None
) -> Table:
    """The gradient in the Fisher metric [X, A]: u less its mean over arms; 0 in contexts that never come."""
    u = payoff(softmax(logits), reward, alpha, reference)
    return np.where(mu[:, None] > 0, u - u.mean(1, keepdims=True), 0.0)


def gradient_variance(
    logits: Table,
    reward: Table,
    mu: States,
    baseline: States | float = 0.0,
    alpha: float = 0.0,
    reference: Table | None = None,
) -> float:
    """Trace of the covariance of one draw of `(u(x, a) - baseline(x)) grad log pi(a | x)`; n draws have 1 / n of it.

    `E[(u - b)^2 |e_a - pi|^2] - |gradient|^2`.

    >>> gradient_variance(np.zeros((1, 2)), np.array([[1., 0.]]), np.ones(1), .5)
    0.0
    """
    policy = softmax(logits)
    u = payoff(policy, reward, alpha, reference) - np.reshape(baseline, (-1, 1))
    second = mu @ (policy * u**2 * _score_norm(policy)).sum(1)
    return float(second - (policy_gradient(logits, reward, mu, alpha, reference) ** 2).sum())


def best_baseline(logits: Table, reward: Table, alpha: float = 0.0, reference: Table | None = None) -> States:
    """The baseline of least variance [X]: u averaged with weights `pi |e_a - pi|^2`. With two arms, of no variance."""
    policy = softmax(logits)
    weight = policy * _score_norm(policy)
    return (weight * payoff(policy, reward, alpha, reference)).sum(1) / weight.sum(1)


def reward_variance(policy: Table, reward: Table, mu: States) -> float:
    """Variance of the reward of one draw, contexts included."""
    mean = mu @ (policy * reward).sum(1)
    return float(mu @ (policy * (reward - mean) ** 2).sum(1))


def _score_norm(policy: Table) -> Float[np.ndarray, "x a"]:
    """`|grad log pi(a | x)|^2 = |e_a - pi|^2`."""
    return 1 - 2 * policy + (policy**2).sum(1, keepdims=True)
