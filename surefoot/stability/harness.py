"""Does a small change of the reward change the trained policy? Train on R, on R', and again on R with other seeds.

Tabular learners on a token tree (a bandit is a tree of depth 1), all runs of an experiment side by side in one batch.
"The Policy Cliff" (arXiv 2507.20150) speaks of optima; a trained policy may be elsewhere, so each distance is set
beside the distance between the optima and beside what the seed alone does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Runs = Float[np.ndarray, "runs leaves"]


@dataclass(frozen=True)
class Tree:
    """All texts of `depth` tokens over `tokens` symbols, as leaves; first token most significant in a leaf's number.

    A policy is one row of logits a prefix: a list over depths of arrays [runs, prefixes, tokens].
    """

    tokens: int
    depth: int

    @property
    def leaves(self) -> int:
        return self.tokens**self.depth

    def start(self, runs: int) -> list[np.ndarray]:
        """Zero logits: the uniform policy."""
        return [np.zeros((runs, self.tokens**d, self.tokens)) for d in range(self.depth)]

    def log_leaves(self, logits: list[np.ndarray]) -> Runs:
        """Log probability of each leaf."""
        log_p = np.zeros((len(logits[0]), 1))
        for z in logits:
            log_p = (log_p[:, :, None] + log_softmax(z)).reshape(len(z), -1)
        return log_p

    def score(self, logits: list[np.ndarray], weight: Runs) -> list[np.ndarray]:
        """`sum_y weight(y) grad log pi(y)` in every logit: what passes an edge, less the policy's share of it."""
        grads = []
        for z in reversed(logits):
            through = weight.reshape(z.shape)
            weight = through.sum(-1)
            grads.append(through - np.exp(log_softmax(z)) * weight[..., None])
        return grads[::-1]


@dataclass(frozen=True)
class Objective:
    """`E[reward] - beta KL(policy || reference)`, one row a run.

    Attributes:
        reward: of each leaf.
        beta: of each run.
        log_reference: of each leaf; zeros make `beta` the coefficient of an entropy bonus.
    """

    reward: Runs
    beta: Float[np.ndarray, "runs"]
    log_reference: Float[np.ndarray, "leaves"]

    def payoff(self, log_p: Runs) -> Runs:
        """`r - beta log(pi / reference)` of each leaf."""
        return self.reward - self.beta[:, None] * (log_p - self.log_reference)

    def optimum(self) -> Runs:
        """`reference exp(r / beta) / Z`; at beta = 0 the reference conditioned on the best leaves."""
        best = self.reward >= self.reward.max(1, keepdims=True)
        beta = self.beta[:, None]
        tilt = np.where(beta > 0, self.reward / np.where(beta > 0, beta, 1.0), np.where(best, 0.0, -np.inf))
        return np.exp(log_softmax(self.log_reference + tilt))


def train_exact(tree: Tree, objective: Objective, step: float, steps: int) -> Runs:
    """Leaf probabilities after exact gradient ascent on the logits, from the uniform policy.

    For a bandit this is `z += step * pi * (u - pi . u)`, u the payoff (its own gradient has mean zero).
    """
    logits = tree.start(len(objective.reward))
    for _ in range(steps):
        log_p = tree.log_leaves(logits)
        for z, g in zip(logits, tree.score(logits, np.exp(log_p) * objective.payoff(log_p)), strict=True):
            z += step * g
    return np.exp(tree.log_leaves(logits))


def train_sampled(
    tree: Tree, objective: Objective, step: float, steps: int, group: int, rng: np.random.Generator
) -> Runs:
    """Leaf probabilities after group policy gradient: `logits += step / G sum_i (u_i - mean u) grad log pi(y_i)`."""
    runs = len(objective.reward)
    logits = tree.start(runs)
    row = np.arange(runs)[:, None]
    for _ in range(steps):
        log_p = tree.log_leaves(logits)
        leaf = sample(np.exp(log_p), group, rng)
        payoff = objective.payoff(log_p)[row, leaf]
        weight = np.zeros((runs, tree.leaves))
        np.add.at(weight, (row, leaf), payoff - payoff.mean(1, keepdims=True))
        for z, g in zip(logits, tree.score(logits, weight), strict=True):
            z += step / group * g
    return np.exp(tree.log_leaves(logits))


def sample(p: Runs, n: int, rng: np.random.Generator) -> np.ndarray:
    """n draws from each row of p, by inverting its cumulative sum."""
    cumulative = np.cumsum(p, 1)
    draws = rng.random((len(p), n)) * cumulative[:, -1:]
    rows = [np.searchsorted(c, u, side="right") for c, u in zip(cumulative, draws, strict=True)]
    return np.minimum(np.stack(rows), p.shape[1] - 1)


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Half the L1 distance, over the last axis."""
    return 0.5 * np.abs(p - q).sum(-1)


def pairwise(first: Runs, second: Runs) -> Float[np.ndarray, "a b"]:
    """Total variation between every run of one set and every run of another."""
    return np.stack([total_variation(p[None], second) for p in first])


@dataclass(frozen=True)
class Control:
    """What a change of the reward does beside what the seed does.

    Attributes:
        same: mean distance between runs on the same reward with different seeds.
        changed: mean distance between runs on R and runs on R', with different seeds.
        averaged: distance between the two average policies: the seed averaged out.
        to_optimum: mean distance of a run on R from the optimum of R.
    """

    same: float
    changed: float
    averaged: float
    to_optimum: float


def control(on_r: Runs, on_changed: Runs, optimum: Float[np.ndarray, "leaves"]) -> Control:
    """Compare runs trained on R with runs trained on R'; run i of one is not compared with run i of the other."""
    other = ~np.eye(len(on_r), len(on_changed), dtype=bool)
    return Control(
        same=float(pairwise(on_r, on_r)[~np.eye(len(on_r), dtype=bool)].mean()),
        changed=float(pairwise(on_r, on_changed)[other].mean()),
        averaged=float(total_variation(on_r.mean(0), on_changed.mean(0))),
        to_optimum=float(total_variation(on_r, optimum[None]).mean()),
    )


def log_softmax(z: np.ndarray) -> np.ndarray:
    """Over the last axis; rows may hold -inf."""
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))
