"""REINFORCE: the score function weighted by the return above a running batch mean.

R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992, with
the batch's mean reward as baseline.

    grad J = E[ sum_t grad log pi(a_t | s_t) * (R - mean R) ]
"""

from surefoot.method import Method, Paper
from surefoot.objective.advantages import Reinforce
from surefoot.objective.aggregation import SequenceMean
from surefoot.objective.rewards import Sum
from surefoot.objective.selection import Everything
from surefoot.objective.surrogates import PolicyGradient
from surefoot.rollout.prompts import Uniform
from surefoot.rollout.strategies import OnPolicy

REINFORCE = Method(
    name="reinforce",
    paper=Paper(
        year=1992, title="Simple statistical gradient-following algorithms for connectionist reinforcement learning"
    ),
    prompts=Uniform(prompts=128, rollouts=1),
    rollout=OnPolicy(),
    reward=Sum(),
    advantage=Reinforce(),
    select=Everything(),
    surrogate=PolicyGradient(),
    aggregate=SequenceMean(),
)
