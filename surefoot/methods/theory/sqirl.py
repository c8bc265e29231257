"""Shallow Q-iteration: explore at random, look k steps ahead, fix one time step after the other.

"The Effective Horizon Explains Deep RL Performance in Stochastic Environments", arXiv 2312.08369.

Many problems are solved by acting greedily on the RANDOM policy's Q after only k - 1 Bellman backups:

    Q^1_t = Q^random_t,   Q^i+1_t(s, a) = R_t(s, a) + E[max_a' Q^i_t+1(s', a')]
    k-solvable      every policy that is greedy for Q^k, whatever its tie-breaks, is optimal where it goes
    min_k           the smallest such k; the planning window is the same from Q^1 = R
    gap_k           the least max Q^k less best other, over states that some greedy policy meets
    H_k             k + log_A(1 / gap_k^2);  the effective horizon is the least over the k that solve

SQIRL, for t = 0 .. T - 1: play m episodes, greedy before t and random from t on; keep what happened from t on; regress

    y_1 = return-to-go,   y_i = r + (1 - done) max_a' Q_i-1(s', a'),   i = 2 .. k

and act at t by argmax_a Q_k from now on. `Tables` and the authors' network, `Heads`, are two regressions. The network
does not see the time; the theory, and a table a step, do.

Our reading: H_k and the count of about `A^H / eps` episodes are taken from the description of the result, and what was
never tried is worth 0, where a table starts.
Claim: SQIRL fails for k < min_k however many episodes it has, and the episodes it needs grow with the horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import sparse
from torch import Tensor, nn

from surefoot.errors import InputError
from surefoot.exact.episodes import Counts, episodes
from surefoot.exact.mdp import (
    MDP,
    FiniteHorizon,
    backward_induction,
    evaluate_finite,
    gaps,
    occupancy_finite,
    optimal_actions,
    uniform_policy,
)

SLUG = "sqirl"
ARXIV = "2312.08369"

Table = Float[np.ndarray, "t s a"]
TIE = 1e-9


def random_policy(problem: FiniteHorizon) -> Table:
    """Every action as likely, at every step."""
    return np.stack([uniform_policy(np.ones(m.R.shape, bool)) for m in problem.stages])


# What is known when the problem is: Q^k, and how far one has to look


def iterates(problem: FiniteHorizon, Q: Table) -> Iterator[Table]:
    """`Q^1 = Q`, then a backup for each next one, without end."""
    while True:
        yield Q
        V = np.concatenate([Q[1:].max(-1), np.zeros((1, Q.shape[1]))])
        Q = np.stack([m.lookahead(v) for m, v in zip(problem.stages, V, strict=True)])


def met(problem: FiniteHorizon, Q: Table) -> Bool[np.ndarray, "t s"]:
    """States that some greedy policy meets, whatever its tie-breaks."""
    return occupancy_finite(problem, uniform_policy(optimal_actions(Q, TIE))) > 0


def solves(problem: FiniteHorizon, Q: Table) -> bool:
    """Whether every greedy policy of Q is optimal where it goes."""
    best = backward_induction(problem)[1]
    wrong = optimal_actions(Q, TIE) & ~optimal_actions(best, TIE)
    return not (wrong.any(-1) & met(problem, Q)).any()


def gap(problem: FiniteHorizon, Q: Table) -> float:
    """The least distance from a best action to one that is not, over the states that are met; infinite without one."""
    return float(gaps(Q, TIE)[met(problem, Q)].min())


@dataclass(frozen=True)
class Horizon:
    """How far a problem makes one look.

    Attributes:
        min_k: the smallest k for which acting greedily on Q^k is optimal.
        window: the same with Q^1 = R, the effective planning window.
        solving: k -> `H_k = k + log_A(1 / gap_k^2)`, for the k up to T that solve it.
    """

    min_k: int
    window: int
    solving: dict[int, float]

    @property
    def effective(self) -> float:
        """The least `H_k`."""
        return min(self.solving.values())


def analyse(problem: FiniteHorizon) -> Horizon:
    """The exact answers, from the model.

    >>> from surefoot.exact.generators import lock
    >>> from surefoot.exact.mdp import finite_horizon
    >>> analyse(finite_horizon(lock(3), 3))
    Horizon(min_k=1, window=3, solving={1: 5.0, 2: 4.0, 3: 3.0})
    """
    T, A = problem.horizon, problem.stages[0].actions
    randomly = evaluate_finite(problem, random_policy(problem))[1]
    rewards = np.stack([m.R for m in problem.stages])
    solving = {
        k: k - 2 * float(np.log(gap(problem, Q)) / np.log(A))
        for k, Q in zip(range(1, T + 1), iterates(problem, randomly), strict=False)
        if solves(problem, Q)
    }
    window = next(k for k, Q in zip(range(1, T + 1), iterates(problem, rewards), strict=False) if solves(problem, Q))
    return Horizon(min(solving), window, solving)


# What is learnt when it is not


Regression = Callable[[Counts], Table]


@dataclass(frozen=True)
class Tables:
    """Q_k on tables: means of the returns, then k - 1 backups on the means of what was seen. The last step is an end.

    Attributes:
        k: 1 is the random policy's Q, the horizon the optimal one.
        shared: one table for all steps, as for a network that does not see the time.
    """

    k: int
    gamma: float = 1.0
    shared: bool = False

    def __post_init__(self):
        if self.k < 1:
            raise InputError(f"sqirl: k {self.k}; expected at least 1")

    def __call__(self, counts: Counts) -> Table:
        def total(x: Table) -> Table:
            return np.broadcast_to(x.sum(0), x.shape) if self.shared else x

        n = np.maximum(total(counts.pairs), 1)
        Q = total(counts.earned) / n
        for _ in range(self.k - 1):
            V = np.concatenate([Q[1:].max(-1), np.zeros((1, Q.shape[1]))])
            Q = total(counts.paid + self.gamma * np.einsum("tsan,tn->tsa", counts.visits, V)) / n
        return Q


class Heads:
    """The authors' regression: one network of states with k heads, trained on from one step to the next.

    Loss: mean over i of `(Q_i(s, a) - y_i)^2 / running mean of it`, targets detached. As only expectations matter, a
    sample's return is the mean one of its (step, state, action). Where nothing is random the losses go to 0, their
    scaled gradients do not, and values keep to about 30 rates of the truth: the rate is the precision.

    Args:
        features: of every state [S, d].
        ends: states in which an episode has ended [S]; nothing is learnt of them, and they are worth 0.
    """

    def __init__(
        self,
        features: Float[np.ndarray, "s d"],
        actions: int,
        k: int,
        ends: Bool[np.ndarray, "s"],
        seed: int = 0,
        gamma: float = 1.0,
        epochs: int = 10,
        batch: int = 128,
        rate: float = 1e-4,
        decay: float = 0.99,
    ):
        self.x, self.ends = torch.as_tensor(features, dtype=torch.float32), torch.as_tensor(ends)
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = nn.Linear(self.x.shape[1], 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, k * actions)
            self.network = nn.Sequential(*layers, nn.Unflatten(-1, (k, actions)))
        self.optimizer = torch.optim.Adam(self.network.parameters(), rate)
        self.gamma, self.epochs, self.batch, self.decay = gamma, epochs, batch, decay
        self.running, self.seen = torch.zeros(k), 0

    def __call__(self, counts: Counts) -> Table:
        visits = torch.as_tensor(counts.visits, dtype=torch.float32)
        visits[:, self.ends] = 0
        t, s, a, after = torch.nonzero(visits, as_tuple=True)
        weights, pairs = visits[t, s, a, after], torch.as_tensor(np.maximum(counts.pairs, 1))
        returns = (torch.as_tensor(counts.earned) / pairs)[t, s, a].float()
        rewards = (torch.as_tensor(counts.paid) / pairs)[t, s, a].float()
        goes_on = ~(self.ends[after] | (t == len(visits) - 1))
        for _ in range(self.epochs * int(weights.sum()) // self.batch):
            i = torch.multinomial(weights, self.batch, replacement=True, generator=self.generator)
            with torch.no_grad():
                ahead = self.network(self.x[after[i]]).amax(-1)[:, :-1] * goes_on[i, None]
                targets = torch.cat([returns[i, None], rewards[i, None] + self.gamma * ahead], 1)
            self._step(self.network(self.x[s[i]])[torch.arange(self.batch), :, a[i]], targets)
        with torch.no_grad():
            Q = self.network(self.x)[:, -1].double().numpy()
        return np.broadcast_to(Q, counts.paid.shape)

    def _step(self, values: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]) -> None:
        losses = (values - targets).square().mean(0)
        self.seen += 1
        self.running = self.decay * self.running + (1 - self.decay) * losses.detach()
        scale = self.running / (1 - self.decay**self.seen)
        self.optimizer.zero_grad()
        (losses / scale.clamp(min=1e-12)).mean().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        self.optimizer.step()


def sqirl(
    problem: FiniteHorizon, regression: Regression, m: int, rng: np.random.Generator, gamma: float = 1.0
) -> Table:
    """The greedy policy of every step, from m episodes a step; ties are broken at random.

    Args:
        regression: `Tables(k)`, or `Heads` for a network.
    """
    policy = random_policy(problem)
    counts = Counts.none(*policy.shape)
    for t in range(problem.horizon):
        counts = counts.add(episodes(problem, policy, m, rng), since=t, gamma=gamma)
        Q = regression(counts)[t]
        tied = optimal_actions(Q, TIE) * (1 + rng.random(Q.shape))
        policy[t] = np.eye(Q.shape[1])[tied.argmax(-1)]
    return policy


def dense(mdp: MDP) -> Float[np.ndarray, "s a s"]:
    """P as an array, which is faster to sample where there are few states."""
    return sparse.csr_matrix(mdp.rows).toarray().reshape(mdp.states, mdp.actions, mdp.states)


def sticky(mdp: MDP, chance: float = 0.25) -> MDP:
    """The previous action is repeated with this chance, but not at the start: BRIDGE's way to make a game stochastic.

    States are `s (A + 1) + previous action`, A where there is none yet.
    """
    S, A = mdp.R.shape
    P, R = np.zeros((S, A + 1, A, S, A + 1)), np.zeros((S, A + 1, A))
    moves = dense(mdp)
    for before in range(A + 1):
        repeats = chance if before < A else 0.0
        for a in range(A):
            for played, p in ((a, 1 - repeats), (before, repeats)):
                if p:
                    P[:, before, a, :, played] += p * moves[:, played]
                    R[:, before, a] += p * mdp.R[:, played]
    n = S * (A + 1)
    mu = np.zeros((S, A + 1))
    mu[:, A] = mdp.mu
    return MDP(P.reshape(n, A, n), R.reshape(n, A), mdp.gamma, mu.ravel())
