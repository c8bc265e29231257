"""IQL: the best of what the data contain, without ever asking for an action that they do not.

Kostrikov, Nair, Levine, "Offline Reinforcement Learning with Implicit Q-Learning", arXiv 2110.06169. Transitions
(s, a, r, s', d) of a fixed data set, d only where the environment itself ended; twin critics Q_i with moving averages
Qbar_i, a value V, a policy pi:

    u   = min_i Qbar_i(s, a) - V(s)
    L_V = |tau - 1(u < 0)| u^2                          V is an upper expectile over the actions in the data
    L_Q = sum_i (r + gamma (1 - d) V(s') - Q_i(s, a))^2      the mean over s': luck is not rewarded
    L_pi = -w log pi(a | s),   w = min(e^(beta u), 100)      weighted cloning
    Qbar <- (1 - rho) Qbar + rho Q

Nothing flows through Qbar, through V(s') or through w. tau = 1/2 values the policy that acted; tau -> 1 is value
iteration restricted to what the data contain. `exact_iql` is that on a table.

Defaults: tau .7, beta 3 (AntMaze .9 and 10, Adroit .7 and .5), rho .005, gamma .99, batches of 256, rate 3e-4.
All three losses are taken in one step from the same networks. The authors' code takes them in turn, so that w and the
critics' target see a V that is one step newer, and lowers the actor's rate to 0 along a cosine. A batch of the trainer
is a hundred of IQL's. On the few data of this method's home (60 000 transitions) the return is best after some 2000
updates and falls by two thirds later, d3rlpy's IQL alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from surefoot.exact.mdp import MDP, value_iteration
from surefoot.exact.operators import Expectile, Table
from surefoot.method import Home, Method, Paper, Update
from surefoot.objective.advantages import Reinforce
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.rewards import PerStep
from surefoot.objective.selection import Everything
from surefoot.objective.surrogates import AdvantageWeighted
from surefoot.objective.values import ExpectileValue, TemporalDifference
from surefoot.rollout.prompts import Uniform
from surefoot.rollout.strategies import OnPolicy
from surefoot.rollouts import Rollouts


@dataclass(frozen=True)
class InSampleWeighted(AdvantageWeighted):
    """Weighted cloning with the advantage that the critics give an action of the data now: `min_i Qbar_i - V`.

    `beta` divides, as in AWR: it is one over the paper's.
    """

    beta: float = 1 / 3
    cap: float = 100.0
    reads = ("logp", "value", "target_q", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        gap = rollouts.target_q.amin(-1) - rollouts.value.detach()
        return super().__call__(rollouts.having(advantage=gap.where(rollouts.mask, 0.0)))


def exact_iql(
    model: MDP, behaviour: Table, tau: float, beta: float, cap: float = 100.0, tol: float = 1e-9
) -> tuple[Table, Float[np.ndarray, "s"], Float[np.ndarray, "s a"]]:
    """Policy, V and Q of IQL on a table: Q = R + gamma P V with V the expectile of Q under the behaviour.

    Args:
        model: the empirical model of the data.
        behaviour: mu(a | s), the empirical one; states that the data do not contain may have any, and act by it.
    """
    solved = value_iteration(model, tol, Expectile(tau, behaviour))
    return cloned(solved.Q, solved.V, behaviour, beta, cap), solved.V, solved.Q


def cloned(
    Q: Table, V: Float[np.ndarray, "s"], behaviour: Table, beta: float, cap: float = 100.0
) -> Float[np.ndarray, "s a"]:
    """`mu w / sum mu w`: where weighted cloning ends.

    >>> cloned(np.array([[1.0, 2.0, 0.0]]), np.array([1.25]), np.array([[0.5, 0.25, 0.25]]), 3.0).round(6)
    array([[0.090353, 0.907397, 0.002249]])
    """
    weight = behaviour * np.minimum(np.exp(np.minimum(beta * (Q - V[:, None]), 50.0)), cap)
    return weight / weight.sum(1, keepdims=True)


IQL = Method(
    name="iql",
    paper=Paper(arxiv="2110.06169", year=2021, title="Offline Reinforcement Learning with Implicit Q-Learning"),
    prompts=Uniform(prompts=25600, rollouts=1),
    rollout=OnPolicy(),
    reward=PerStep(),
    advantage=Reinforce(baseline=False),
    select=Everything(),
    surrogate=InSampleWeighted(),
    regularizers=(ExpectileValue(), TemporalDifference()),
    aggregate=TokenMean(),
    update=Update(epochs=1, minibatches=100, max_grad_norm=0.0),
    home=Home(
        policy="gaussian:critics=2,squash=true,activation=relu",
        task="offline:Hopper-v5:quality=mixed",
        train={
            "steps": 20,
            "lr": 3e-4,
            "beta2": 0.999,
            "warmup": 0,
            "eval_problems": 8,
            "final_problems": 32,
            "final_samples": 1,
            "log_rollouts": False,
        },
    ),
)
