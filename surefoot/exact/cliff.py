"""The policy cliff: how far a reward is from a point where its optimal policy jumps, and what stability costs.

"The Policy Cliff: A Theoretical Analysis of Reward-Policy Maps in Large Language Models", arXiv 2507.20150. Values move
smoothly with the reward, policies need not: where actions tie, a change of the reward of any size decides between them.
Names of the paper: Prop. 2.4, 2.5 (the jump), 3.1 (incomplete rewards), 3.2 (tie-breakers), 4.5 (the slope that an
entropy bonus restores). The exact distance, the span form of the slope and its smallest coefficient are consequences.

All norms of rewards are sup norms over (state, action); all distances of policies are total variation in a state.
An MDP has `P` (dense [s, a, s'] or sparse [s * a, s']), `R` [s, a], `gamma` and `mu` [s]. Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse
from scipy.sparse.linalg import splu
from scipy.special import logsumexp

from surefoot.errors import InputError
from surefoot.exact.mdp import (
    MDP,
    evaluate,
    gaps,
    inverse_bellman,
    occupancy,
    optimal_actions,
    performance,
    policy_iteration,
)
from surefoot.exact.operators import GREEDY, Soft, States, Table

TIE = 1e-9
WINDOWS = 5  # places of the sliding window in `stability`; odd, so that one is centred on R


def solve(mdp: MDP, alpha: float = 0.0, reference: Table | None = None) -> Table:
    """`Q*`, with `alpha > 0` the soft-optimal `Q*_alpha` under an entropy bonus, or a KL penalty a step to a reference.

    By policy iteration, to rounding: whether actions tie cannot be read off a value iteration that was stopped.
    """
    return policy_iteration(mdp, Soft(alpha, reference) if alpha > 0 else GREEDY).Q


def soft_policy(q: Table, alpha: float = 0.0, reference: Table | None = None) -> Table:
    """`reference exp(q / alpha) / Z`; at `alpha = 0` the greedy policy, first action in a tie."""
    if alpha > 0:
        return Soft(alpha, reference).policy(q)
    allowed = q if reference is None else np.where(reference > 0, q, -np.inf)
    return np.eye(q.shape[1])[optimal_actions(allowed, TIE).argmax(1)]


def total_variation(first: Table, second: Table) -> States:
    """Total variation between two policies in each state."""
    return 0.5 * np.abs(first - second).sum(1)


# The map from rewards to policies


@dataclass(frozen=True)
class Edge:
    """The nearest reward at which another action becomes as good.

    Attributes:
        distance: how far it is, sup norm; 0 at a tie.
        state, action, rival: where, the action that is best now, and the one that draws level.
        direction: each entry -1, 0 or 1; `R + distance * direction` is the nearest such reward.
    """

    distance: float
    state: int
    action: int
    rival: int
    direction: Table


@dataclass(frozen=True)
class Cliff:
    """What the optimal policy of a reward stands on.

    Attributes:
        q: `Q*`.
        optimal: the optimal actions, up to the tolerance.
        ties: number of optimal actions of each state.
        gap: best value less the best of an action that is not optimal; infinite where there is none.
        height: `(m - 1) / m` with m ties: jump of the uniform-over-optimal policy however small the change (Prop. 2.5).
        decisions: states that some policy can reach from mu, less the ends; only they count below.
        certified: no change of the reward smaller than this changes an optimal action; 0 with a tie.
        contained: no change smaller than this makes an action optimal that is not one now.
        witness: a change of this size is known to change an optimal action, from inverting Bellman's equation.
        edge: the exact nearest change.
    """

    q: Table
    optimal: Bool[np.ndarray, "s a"]
    ties: np.ndarray
    gap: States
    height: States
    decisions: Bool[np.ndarray, "s"]
    certified: float
    contained: float
    witness: float
    edge: Edge | None


def analyse(mdp: MDP, tie_tol: float = TIE) -> Cliff:
    """The optimal actions of an MDP and how near they are to changing.

    `tie_tol` must lie well above the rounding of Q* (about 1e-13 of its size) and well below any change of the reward
    that matters.

    Raises:
        InputError: a tolerance that is negative.
    """
    if tie_tol < 0:
        raise InputError(f"cliff: tie tolerance {tie_tol}; expected 0 or more")
    q = solve(mdp)
    optimal, gap = optimal_actions(q, tie_tol), gaps(q, tie_tol)
    ties = optimal.sum(1)
    counted = decisions(mdp)
    tied = bool((ties[counted] > 1).any())
    contained = (1 - mdp.gamma) * float(gap[counted].min(initial=np.inf)) / 2
    edge = nearest_edge(mdp, q, optimal, counted)
    return Cliff(
        q,
        optimal,
        ties,
        gap,
        (ties - 1) / ties,
        counted,
        0.0 if tied else contained,
        contained,
        0.0 if tied else witness(mdp, q, gap, counted)[0],
        edge,
    )


def decisions(mdp: MDP) -> Bool[np.ndarray, "s"]:
    """States that some policy reaches from mu, without the ends: there every action stays and nothing is earned."""
    return mdp.reachable() & ~(mdp.ends() & (mdp.gamma > 0))


def nearest_edge(mdp: MDP, q: Table, optimal: Bool[np.ndarray, "s a"], counted: Bool[np.ndarray, "s"]) -> Edge | None:
    """The exact distance to the cliff, and its direction; None where no state has a choice.

    While the greedy policy stays optimal each gap is linear in the reward, `gap(s, a) = <c, R>`, so a change of size
    `gap / ||c||_1` along `-sign(c)` closes it and nothing smaller does. `||c||_1 <= 2 / (1 - gamma)`, so pairs are
    taken by rising gap until no later one can be nearer: exact, with few linear solves. An end's reward stays 0.
    """
    policy = q.argmax(1)
    factor = _factor(mdp, np.eye(q.shape[1])[policy])
    behind = q.max(1, keepdims=True) - q
    behind[optimal & (np.arange(q.shape[1]) != policy[:, None])] = 0.0
    behind[np.arange(len(q)), policy] = np.inf
    behind[~counted] = np.inf
    best: Edge | None = None
    for flat in np.argsort(behind, axis=None, kind="stable"):
        s, a = map(int, np.unravel_index(flat, q.shape))
        if np.isinf(behind[s, a]) or (best and behind[s, a] * (1 - mdp.gamma) / 2 >= best.distance):
            break
        c = gap_gradient(mdp, policy, s, a, factor) * counted[:, None]
        distance = float(behind[s, a] / np.abs(c).sum())
        if best is None or distance < best.distance:
            best = Edge(distance, s, int(policy[s]), a, -np.sign(c))
    return best


def gap_gradient(mdp: MDP, policy: np.ndarray, state: int, action: int, factor: Any = None) -> Table:
    """`c`, the gradient of `V*(s) - Q*(s, a)` in the reward while `policy` [s] stays optimal."""
    rows, actions = sparse.csr_matrix(mdp.rows), mdp.actions
    one_hot = np.eye(actions)[policy]
    factor = _factor(mdp, one_hot) if factor is None else factor
    ahead = (rows[state * actions + policy[state]] - rows[state * actions + action]).toarray().ravel()
    visits = mdp.gamma * factor.solve(ahead, trans="T")
    # Rounding leaves specks where visits cancel; their signs would be noise in the worst direction.
    c = one_hot * np.where(np.abs(visits) > 1e-13, visits, 0.0)[:, None]
    c[state, policy[state]] += 1
    c[state, action] -= 1
    return c


def bump(mdp: MDP, state: int, action: int, eps: float, q: Table | None = None) -> Table:
    """The reward under which `Q*` is what it was, raised by `eps` at one place (Prop. 2.4).

    At a tie the action becomes the only optimal one, for any `eps > 0`. The reward moves by at most `eps`: its change
    lies in `[-gamma eps, eps]`.
    """
    raised = np.array(solve(mdp) if q is None else q, float)
    raised[state, action] += eps
    return inverse_bellman(mdp, raised)


def tie_breaker(mdp: MDP, state: int, action: int, eps: float) -> Table:
    """A reward within `eps` that makes a tied action better by exactly `eps / (1 + gamma)` (Prop. 3.2)."""
    return bump(mdp, state, action, eps / (1 + mdp.gamma))


def witness(mdp: MDP, q: Table, gap: States, counted: Bool[np.ndarray, "s"]) -> tuple[float, Table]:
    """A reward that changes an optimal action, at most `(1 + gamma) gap / 2` away: both values meet and just cross.

    Returns:
        its distance, and the reward; infinite, and R itself, where no state has a second action.
    """
    state = int(np.where(counted, gap, np.inf).argmin())
    if not np.isfinite(gap[state]):
        return math.inf, mdp.R
    first, second = np.argsort(-q[state], kind="stable")[:2]
    crossed = q.copy()
    crossed[state, second] += gap[state] / 2 * (1 + 1e-9)
    crossed[state, first] -= gap[state] / 2 * (1 + 1e-9)
    reward = inverse_bellman(mdp, crossed)
    return float(np.abs(reward - mdp.R).max()), reward


# Several rewards


def effective_reward(rewards: Float[np.ndarray, "k s a"], weights: np.ndarray) -> Table:
    """`R_eff(s, a) = sum_k w_k(s) R_k(s, a)` (Sec. 4).

    Args:
        weights: [k], or [k, s] where they depend on the state; not negative, and 1 in sum.

    Raises:
        InputError: weights of another shape, negative, or with another sum.
    """
    rewards, weights = np.asarray(rewards, float), np.asarray(weights, float)
    if weights.shape not in (rewards.shape[:1], rewards.shape[:2]):
        raise InputError(f"weights: shape {weights.shape}; expected {rewards.shape[:1]} or {rewards.shape[:2]}")
    if (weights < 0).any() or not np.allclose(weights.sum(0), 1):
        raise InputError("weights: expected numbers of at least 0 that sum to 1 (in every state)")
    spread = weights.reshape(len(weights), -1, 1)
    return (spread * rewards).sum(0)


def prompt_weights(share: Float[np.ndarray, "k"], prompts: Float[np.ndarray, "k x"]) -> Float[np.ndarray, "k x"]:
    """Weights that make `R_eff` exact on token trees: `w_k(x) = p_k D_k(x) / sum_j p_j D_j(x)`; 0 off all supports."""
    mass = np.asarray(share, float)[:, None] * prompts
    return mass / np.where(mass.sum(0) > 0, mass.sum(0), 1.0)


# The slope that regularisation restores


def linear_bound(eps: float, alpha: float, gamma: float = 0.0) -> float:
    """Prop. 4.5: total variation at most `eps / (2 alpha (1 - gamma))` when every reward moves by at most eps."""
    return eps / (2 * alpha * (1 - gamma)) if alpha > 0 else math.inf


def tanh_bound(span: float | np.ndarray, alpha: float) -> np.ndarray:
    """The sharp form, `tanh(span / (4 alpha))`, span = max - min over actions of the change of Q (of r for sequences).

    >>> round(float(tanh_bound(.02, .1)), 6), round(float(tanh_bound(.02, .02)), 6)
    (0.049958, 0.244919)
    """
    return np.tanh(np.asarray(span, float) / (4 * alpha)) if alpha > 0 else np.where(np.asarray(span) > 0, 1.0, 0.0)


def enough(tv: float, eps: float, gamma: float = 0.0) -> float:
    """The smallest alpha (or beta) that keeps every policy within `tv` when the reward moves by at most `eps`.

    From `tanh(eps / (2 alpha (1 - gamma))) = tv`; no smaller coefficient does it for every reward table.

    Raises:
        InputError: a total variation outside (0, 1], or a negative eps.

    >>> round(enough(.05, .01), 6)
    0.099917
    """
    if not 0 < tv <= 1:
        raise InputError(f"stability {tv}; expected a total variation above 0 and at most 1")
    if eps < 0:
        raise InputError(f"eps {eps}; expected a change of the reward of 0 or more")
    return eps / (2 * (1 - gamma) * math.atanh(tv)) if tv < 1 else 0.0


@dataclass(frozen=True)
class Stability:
    """What one strength of regularisation gives and costs.

    Attributes:
        alpha: the coefficient.
        tv: how far the optimum moves (largest over states) between two rewards `eps` apart on the line through R along
            the worst direction, R between them; the worst of a few places.
        sharp: `tanh(span / (4 alpha))` of the change of Q between these two.
        certified: what no pair of rewards `eps` apart can exceed.
        linear: Prop. 4.5.
        reward: `J` of the regularised optimum, without the bonus.
        price: what it gives up: `J* - J`.
        price_bound: `alpha log A / (1 - gamma)`, or infinity with a reference.
    """

    alpha: float
    tv: float
    sharp: float
    certified: float
    linear: float
    reward: float
    price: float
    price_bound: float


def stability(
    mdp: MDP, edge: Edge, eps: float, alphas: Sequence[float], reference: Table | None = None
) -> list[Stability]:
    """Stability and its price over a grid of coefficients; 0 is the greedy policy."""
    best = performance(mdp, soft_policy(solve(mdp)))
    counted, actions = decisions(mdp), mdp.actions
    rows = []
    for alpha in alphas:
        tv, sharp = _steepest(mdp, edge, eps, alpha, reference, counted)
        reward = performance(mdp, soft_policy(solve(mdp, alpha, reference), alpha, reference))
        rows.append(
            Stability(
                alpha,
                tv,
                sharp,
                float(tanh_bound(2 * eps / (1 - mdp.gamma), alpha)),
                linear_bound(eps, alpha, mdp.gamma),
                reward,
                best - reward,
                alpha * math.log(actions) / (1 - mdp.gamma) if reference is None else math.inf,
            )
        )
    return rows


def _steepest(
    mdp: MDP, edge: Edge, eps: float, alpha: float, reference: Table | None, counted: Bool[np.ndarray, "s"]
) -> tuple[float, float]:
    """The largest move of the policy, and its span bound, over a window of eps sliding across R on the worst line."""
    reward, half = mdp.R, WINDOWS - 1
    line = [
        solve(replace(mdp, R=reward + (i / half - 1) * eps * edge.direction), alpha, reference)
        for i in range(2 * half + 1)
    ]
    policies = [soft_policy(q, alpha, reference) for q in line]
    moves = [float(total_variation(policies[i], policies[i + half])[counted].max()) for i in range(half + 1)]
    at = int(np.argmax(moves))
    return moves[at], float(tanh_bound(np.ptp(line[at + half] - line[at], axis=1), alpha)[counted].max())


@dataclass(frozen=True)
class Stabiliser:
    """The least regularisation for a stability that was asked for.

    Attributes:
        alpha: keeps every pair of rewards `eps` apart within `tv`, whatever the rewards are.
        at_edge: from here to `alpha`, the worst line through this reward stays within `tv`, and just below it does not
            (a scan with bisection; 0 if never). Another direction may need more.
        reward, price: of `alpha`: `J` without the bonus, and `J* - J`.
        price_at_edge: of `at_edge`.
        greedy: whether the greedy policy of this very reward survives every change of size `eps` without any of it.
    """

    alpha: float
    at_edge: float
    reward: float
    price: float
    price_at_edge: float
    greedy: bool


def stabilise(mdp: MDP, edge: Edge | None, tv: float, eps: float, reference: Table | None = None) -> Stabiliser:
    """The smallest coefficient that keeps policies within `tv` when the reward moves by at most `eps`, and its price.

    Raises:
        InputError: a total variation outside (0, 1], or a negative eps.
    """
    alpha = enough(tv, eps, mdp.gamma)
    if edge is None:
        best = performance(mdp, soft_policy(solve(mdp)))
        return Stabiliser(alpha, 0.0, best, 0.0, 0.0, True)

    def within(a: float) -> bool:
        return stability(mdp, edge, eps, [a], reference)[0].tv <= tv

    # The distance need not fall all the way with alpha: scan from above.
    high, low = alpha, 0.0
    for share in np.geomspace(1, 1e-3, 25)[1:]:
        if not within(float(share * alpha)):
            low = float(share * alpha)
            break
        high = float(share * alpha)
    if low == 0 and within(0.0):
        high = 0.0
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if within(middle) else (middle, high)
    full, least = stability(mdp, edge, eps, [alpha, high], reference)
    return Stabiliser(alpha, high, full.reward, full.price, least.price, edge.distance > eps)


def sequence_optimum(
    reward: Float[np.ndarray, "y"], beta: float, base: Float[np.ndarray, "y"]
) -> Float[np.ndarray, "y"]:
    """`base exp(r / beta) / Z` over whole sequences; at beta = 0 `base` conditioned on the best of its support."""
    return soft_policy(*_one_row(reward, beta, base))[0] if beta > 0 else _conditioned(reward, base)


def optimal_continuations(policy_tree: Float[np.ndarray, "a"], gamma: float) -> Float[np.ndarray, "a"]:
    """Shares of tied actions as alpha falls to 0: weights `exp(gamma * maximal entropy of what follows)`.

    Args:
        policy_tree: maximal discounted entropy (nats) of the optimal continuations of each tied action.

    >>> [round(float(x), 6) for x in optimal_continuations(np.log([3., 1.]), .9)]
    [0.728841, 0.271159]
    """
    return np.exp(gamma * policy_tree - logsumexp(gamma * policy_tree))


def price_bound_reference(base: Float[np.ndarray, "y"], reward: Float[np.ndarray, "y"], beta: float) -> float:
    """Most that a reference of strength beta can cost on sequences: `-beta log base(optimal set)`."""
    base, reward = np.asarray(base, float), np.asarray(reward, float)
    return float(-beta * np.log(base[reward >= reward.max()].sum()))


# Rewards that leave something out


@dataclass(frozen=True)
class Slacker:
    """A policy that is optimal for an incomplete reward, and the better one it has no reason to become (Prop. 3.1).

    Attributes:
        advantage: of the other tied action, under the true reward.
        visits: discounted visits to the state under the changed policy.
        gain: true reward gained by the change; equals `visits * advantage`.
        suboptimal: whether the policy is strictly worse than it could be.
    """

    advantage: float
    visits: float
    gain: float
    suboptimal: bool


def incomplete_reward(mdp: MDP, missing: Table, policy: Table, state: int, action: int) -> Slacker:
    """What an incomplete reward hides. `mdp.R` is what was trained on, `missing` what was left out of it.

    Args:
        policy: optimal for `mdp.R`.
        state, action: a place where another action is just as good for `mdp.R`.
    """
    true = replace(mdp, R=mdp.R + missing)
    value = evaluate(true, policy)[0]
    changed = np.array(policy, float)
    changed[state] = np.eye(policy.shape[1])[action]
    advantage = float(true.lookahead(value)[state, action] - value[state])
    visits = float(occupancy(true, changed)[state])
    gain = performance(true, changed) - float(mdp.mu @ value)
    return Slacker(advantage, visits, gain, advantage > 0 and visits > 0)


def _factor(mdp: MDP, policy: Table) -> Any:
    """LU factors of `I - gamma P_pi`, for many right sides."""
    return splu(sparse.csc_matrix(sparse.eye(mdp.states) - mdp.gamma * sparse.csr_matrix(mdp.under(policy))))


def _one_row(reward: np.ndarray, beta: float, base: np.ndarray) -> tuple[Table, float, Table]:
    return np.asarray(reward, float)[None], beta, np.asarray(base, float)[None]


def _conditioned(reward: np.ndarray, base: np.ndarray) -> np.ndarray:
    reward, base = np.asarray(reward, float), np.asarray(base, float)
    best = np.where((base > 0) & (reward >= reward[base > 0].max()), base, 0.0)
    return best / best.sum()
