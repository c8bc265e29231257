"""Twins that count: every deterministic policy, every trajectory, every finite difference."""

import itertools

import numpy as np


def deterministic_policies(states, actions):
    for choice in itertools.product(range(actions), repeat=states):
        yield np.eye(actions)[list(choice)]


def value(P, R, gamma, policy):
    """`V^pi` from the series `sum_t gamma^t P_pi^t r_pi`."""
    moves, pays = np.einsum("sa,sat->st", policy, P), (policy * R).sum(1)
    V, term = np.zeros(len(R)), pays
    for _ in range(20_000):
        V, term = V + term, gamma * moves @ term
        if np.abs(term).max() < 1e-17:
            break
    return V


def trajectories(P, R, horizon, policy, mu):
    """Chance, states, actions and undiscounted return of every trajectory; `policy` [h, s, a]."""
    S, A = R.shape
    for states in itertools.product(range(S), repeat=horizon):
        for actions in itertools.product(range(A), repeat=horizon):
            chance, total = mu[states[0]], 0.0
            for t, (s, a) in enumerate(zip(states, actions, strict=True)):
                chance *= policy[t, s, a] * (P[s, a, states[t + 1]] if t + 1 < horizon else 1)
                total += R[s, a]
            if chance:
                yield chance, states, actions, total


def finite_difference(f, x, h=1e-6):
    """Central differences of a scalar function."""
    g = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += h
        down[place] -= h
        g[place] = (f(up) - f(down)) / (2 * h)
    return g
