"""Demonstration-regularised RL: clone the expert, then maximise reward less beta times the KL to the clone.

"Demonstration-Regularized RL", arXiv 2310.17303 (its lambda is beta here).

    clone       pi_h(a | s) = (N_h(s, a) + 1) / (N_h(s) + A)                 maximum likelihood, smoothed; never 0
    KL_traj     KL_traj(pi | pi') = E_pi[sum_h KL(pi_h | pi'_h)]             of expert to clone: O~(S A H / N)
    optimum     Q = r + P V,  V = beta log sum_a clone e^(Q / beta),  pi ~ clone e^(Q / beta)
    sandwich    V* - V^pi <= eps_expert + beta KL_traj(expert | clone) + eps_rl
                where  eps_rl >= V*_beta - V^pi_beta                         beta ~ eps / KL_traj ~ eps N / (S A H)

A soft maximum is 1 / beta smooth, so an error of Q counts squared: eps_rl ~ 1 / (beta n) after n episodes, and in all
about `1 / (eps^2 N)` of them.

Our reading. Online (`online`): upper and lower values with the bonus `c H sqrt(log / n)`, c to be tuned, as the paper's
constants were not available; play the upper values' policy, once an episode the action known least; stop when
`E_pi[sum_h max_a (upper - lower)^2] / (2 beta)` on the empirical model is at most eps_rl. Preferences
(`bradley_terry`): rewards of (step, state, action) by maximum likelihood from pairs of the clone's episodes.
Claim: the clone leads exploration, and the more demonstrations there are the fewer episodes it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse
from scipy.optimize import minimize

from surefoot.errors import InputError
from surefoot.exact.divergence import KL
from surefoot.exact.episodes import Counts, Episodes, episodes
from surefoot.exact.mdp import FiniteHorizon, backward_induction, occupancy_finite
from surefoot.exact.operators import Soft

SLUG = "demo-regularized-rl"
ARXIV = "2310.17303"

Table = Float[np.ndarray, "h s a"]


def clone(counts: Table, smoothing: float = 1.0) -> Table:
    """`(N(s, a) + 1) / (N(s) + A)`: the most likely policy under a uniform Dirichlet prior; uniform without data.

    >>> clone(np.array([[[3., 1, 0]]]))[0, 0].round(4)
    array([0.5714, 0.2857, 0.1429])
    """
    if not smoothing > 0:
        raise InputError(f"clone: smoothing {smoothing}; expected above 0 (at 0 the KL to the clone can be infinite)")
    smoothed = counts + smoothing
    return smoothed / smoothed.sum(-1, keepdims=True)


def trajectory_kl(problem: FiniteHorizon, policy: Table, reference: Table) -> float:
    """`KL_traj(policy | reference)`: how much less likely the reference makes the policy's episodes, in nats."""
    return float((occupancy_finite(problem, policy) * KL(policy, reference)).sum())


def towards(reference: Table, beta: float) -> list[Soft]:
    """The choice of every step: best reward less beta times the KL to the reference."""
    return [Soft(beta, r) for r in reference]


def optimum(problem: FiniteHorizon, reference: Table, beta: float) -> tuple[Float[np.ndarray, "h+1 s"], Table]:
    """`V*_beta` [H + 1, S] and the policy [H, S, A] that has it.

    >>> from surefoot.exact.mdp import MDP, finite_horizon
    >>> arms = finite_horizon(MDP(np.ones((1, 3, 1)), np.array([[1, .5, 0]]), 1., np.ones(1)), 1)
    >>> V, pi = optimum(arms, np.array([[[4, 2, 1]]]) / 7, .3)
    >>> round(float(V[0, 0]), 6), pi[0, 0].round(6)
    (0.861622, array([0.906326, 0.085591, 0.008083]))
    """
    choices = towards(reference, beta)
    V, Q = backward_induction(problem, choices)
    return V, np.stack([c.policy(q) for c, q in zip(choices, Q, strict=True)])


def offline(model: FiniteHorizon, reference: Table, beta: float) -> Table:
    """The regularised optimum of an empirical model (`episodes.empirical`), without the end that it adds."""
    H, S, A = reference.shape
    padded = np.concatenate([reference, np.full((H, 1, A), 1 / A)], 1)
    return optimum(model, padded, beta)[1][:, :S]


# Online: optimism, and a gap that is quadratic in what is not known


@dataclass(frozen=True, eq=False)
class Plan:
    """What the counts allow to say.

    Attributes:
        policy: the regularised optimum of the upper values.
        width: upper less lower action value.
        gap: bound on the regularised regret of the policy from each first state [S].
    """

    policy: Table
    width: Table
    gap: Float[np.ndarray, "s"]


def plan(counts: Counts, reference: Table, beta: float, bonus: float = 0.1, delta: float = 0.1) -> Plan:
    """Regularised value iteration above and below the truth; rewards in [0, 1], so values in [0, steps left]."""
    H, S, A = reference.shape
    pairs = counts.pairs
    n = np.maximum(pairs, 1)
    P, R = counts.visits / n[..., None], counts.paid / n
    log = np.log(S * A * H * n / delta)
    above, below, gap = np.zeros((3, S))
    policy, width = np.zeros((2, H, S, A))
    for h in reversed(range(H)):
        most, choice = H - h, Soft(beta, reference[h])
        unsure = np.where(pairs[h] > 0, bonus * most * np.sqrt(log[h] / n[h]), most)
        upper = np.minimum(R[h] + P[h] @ above + unsure, most)
        lower = np.maximum(R[h] + P[h] @ below - unsure, 0.0)
        policy[h], width[h] = choice.policy(upper), upper - lower
        above, below = choice.value(upper), choice.value(lower)
        gap = np.minimum((width[h] ** 2).max(-1) / (2 * beta) + (policy[h] * (P[h] @ gap)).sum(-1), most)
    return Plan(policy, width, gap)


def curious(made: Plan) -> Iterator[Table]:
    """The plan's policy, and for each step a variant that there takes the action whose value is known least."""
    yield made.policy
    for h in range(len(made.policy)):
        varied = made.policy.copy()
        varied[h] = np.eye(varied.shape[-1])[made.width[h].argmax(-1)]
        yield varied


def online(
    problem: FiniteHorizon,
    reference: Table,
    beta: float,
    eps: float,
    rng: np.random.Generator,
    bonus: float = 0.1,
    growth: float = 0.1,
    most: int = 1_000_000,
) -> tuple[Table, int]:
    """The policy whose regularised regret is bounded by eps, and how many episodes it took.

    Args:
        bonus: c; a smaller one stops earlier, and at some point wrongly.
        growth: episodes between plans, as a share of those so far.

    Raises:
        InputError: more than `most` episodes.
    """
    counts, n = Counts.none(*reference.shape), 0
    while True:
        made = plan(counts, reference, beta, bonus)
        if problem.mu @ made.gap <= eps:
            return made.policy, n
        if n > most:
            raise InputError(f"online: gap {problem.mu @ made.gap:.3g} after {n} episodes; expected {eps} by {most}")
        batch = 1 + int(growth * n / (problem.horizon + 1))
        for policy in curious(made):
            counts = counts.add(episodes(problem, policy, batch, rng))
            n += batch


# Preferences instead of rewards


def bradley_terry(
    first: Episodes, second: Episodes, preferred: Bool[np.ndarray, "n"], states: int, actions: int, ridge: float = 1e-2
) -> Table:
    """Rewards [H, S, A] under which `P(first preferred) = sigmoid(return of first - return of second)` is most likely.

    Only differences of returns are known: the ridge picks the smallest rewards, 0 where nothing was compared.
    """
    H = first.horizon
    x = _visits(first, states, actions) - _visits(second, states, actions)
    x = sparse.diags(np.where(preferred, 1.0, -1.0)) @ x

    def loss(r: np.ndarray) -> tuple[float, np.ndarray]:
        margin = x @ r
        value = np.logaddexp(0, -margin).sum() + ridge / 2 * (r @ r)
        return float(value), ridge * r - x.T @ np.exp(-np.logaddexp(0, margin))

    found = minimize(loss, np.zeros(H * states * actions), jac=True, method="L-BFGS-B")
    return found.x.reshape(H, states, actions)


def _visits(seen: Episodes, states: int, actions: int) -> sparse.csr_matrix:
    """One row an episode, 1 at each (step, state, action) that it passed."""
    n, H = seen.actions.shape
    index = (np.arange(H) * states + seen.states[:, :-1]) * actions + seen.actions
    shape = (n, H * states * actions)
    return sparse.csr_matrix((np.ones(n * H), index.ravel(), np.arange(n + 1) * H), shape)
