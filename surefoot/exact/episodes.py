"""Episodes of a finite-horizon problem, and what can be counted in them: the sampled side of the exact answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from surefoot.exact.mdp import MDP, FiniteHorizon


@dataclass(frozen=True, eq=False)
class Episodes:
    """n episodes of H steps. Rewards are the expected ones of each (state, action).

    Attributes:
        states: [n, H + 1], the last is where the episode stopped.
        actions: [n, H].
        rewards: [n, H].
    """

    states: Int[np.ndarray, "n h+1"]
    actions: Int[np.ndarray, "n h"]
    rewards: Float[np.ndarray, "n h"]

    def __len__(self) -> int:
        return len(self.states)

    @property
    def horizon(self) -> int:
        return self.actions.shape[1]

    def returns_to_go(self, gamma: float = 1.0) -> Float[np.ndarray, "n h"]:
        """`G_t = sum_{u >= t} gamma^(u - t) r_u`."""
        G = self.rewards.copy()
        for t in reversed(range(self.horizon - 1)):
            G[:, t] += gamma * G[:, t + 1]
        return G


def draw(chances: Float[np.ndarray, "n k"], rng: np.random.Generator) -> Int[np.ndarray, "n"]:
    """One index a row, by inversion; what has no chance is never drawn."""
    cumulative = chances.cumsum(1)
    # A uniform number is below 1, and so below the last sum once that is made 1 by scaling.
    return (rng.random((len(chances), 1)) * cumulative[:, -1:] >= cumulative).sum(1)


def episodes(problem: FiniteHorizon, policy: Float[np.ndarray, "h s a"], n: int, rng: np.random.Generator) -> Episodes:
    """n independent episodes of a policy a step."""
    H = problem.horizon
    states, actions = np.empty((n, H + 1), int), np.empty((n, H), int)
    rewards = np.empty((n, H))
    states[:, 0] = draw(np.broadcast_to(problem.mu, (n, len(problem.mu))), rng)
    for t, mdp in enumerate(problem.stages):
        here = states[:, t]
        actions[:, t] = draw(policy[t][here], rng)
        rewards[:, t] = mdp.R[here, actions[:, t]]
        states[:, t + 1] = next_states(mdp, here, actions[:, t], rng)
    return Episodes(states, actions, rewards)


def next_states(
    mdp: MDP, states: Int[np.ndarray, "n"], actions: Int[np.ndarray, "n"], rng: np.random.Generator
) -> Int[np.ndarray, "n"]:
    """One next state for each (state, action)."""
    rows = mdp.rows[states * mdp.actions + actions]
    return draw(rows if isinstance(rows, np.ndarray) else rows.toarray(), rng)


@dataclass(frozen=True, eq=False)
class Counts:
    """What was seen: visits of (step, state, action, next state), and sums of rewards and of returns-to-go.

    Attributes:
        visits: [H, S, A, S].
        paid: sums of rewards [H, S, A].
        earned: sums of returns-to-go [H, S, A].
    """

    visits: Float[np.ndarray, "h s a s"]
    paid: Float[np.ndarray, "h s a"]
    earned: Float[np.ndarray, "h s a"]

    @classmethod
    def none(cls, horizon: int, states: int, actions: int) -> Counts:
        shape = (horizon, states, actions)
        return cls(np.zeros((*shape, states)), np.zeros(shape), np.zeros(shape))

    @property
    def pairs(self) -> Float[np.ndarray, "h s a"]:
        """Visits of (step, state, action)."""
        return self.visits.sum(-1)

    def add(self, seen: Episodes, since: int = 0, gamma: float = 1.0) -> Counts:
        """With the transitions of `seen` at steps `since` and later."""
        H, S, A = self.paid.shape
        step = np.broadcast_to(np.arange(since, H), (len(seen), H - since))
        pair = ((step * S + seen.states[:, since:-1]) * A + seen.actions[:, since:]).ravel()
        triple = pair * S + seen.states[:, since + 1 :].ravel()

        def total(index: np.ndarray, shape: tuple[int, ...], weights: np.ndarray | None = None) -> np.ndarray:
            return np.bincount(index, weights, int(np.prod(shape))).reshape(shape)

        return Counts(
            self.visits + total(triple, self.visits.shape),
            self.paid + total(pair, self.paid.shape, seen.rewards[:, since:].ravel()),
            self.earned + total(pair, self.earned.shape, seen.returns_to_go(gamma)[:, since:].ravel()),
        )


def empirical(counts: Counts, mu: Float[np.ndarray, "s"], gamma: float = 1.0) -> FiniteHorizon:
    """The model of what was seen; (state, action) never seen pay 0 and lead to an end, one more state, the last.

    With rewards of at least 0 that is pessimistic: what was not tried is worth nothing.
    """
    H, S, A = counts.paid.shape
    pairs = counts.pairs
    seen, n = pairs > 0, np.maximum(pairs, 1)
    P = np.zeros((H, S + 1, A, S + 1))
    P[:, :S, :, :S] = counts.visits / n[..., None]
    P[:, :S, :, S] = ~seen
    P[:, S, :, S] = 1
    R = np.zeros((H, S + 1, A))
    R[:, :S] = counts.paid / n
    start = np.append(mu, 0.0)
    return FiniteHorizon(tuple(MDP(p, r, gamma, start) for p, r in zip(P, R, strict=True)), start)
