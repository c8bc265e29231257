"""GRPO: the group of a prompt's trajectories is the critic.

Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models", arXiv 2402.03300,
eq. 3 (the objective), eq. 4 (the k3 estimator of the KL divergence to the reference).

    A_i = (R_i - mean(R)) / std(R)                       within the group of one prompt
    L   = -(1/G) sum_i (1/|o_i|) sum_t [ min(rho A, clip(rho, 1 - eps, 1 + eps) A) - beta KL_k3 ]
"""

from surefoot.method import Method, Paper
from surefoot.objective.advantages import GroupNormalized
from surefoot.objective.aggregation import SequenceMean
from surefoot.objective.divergences import KL, k3
from surefoot.objective.rewards import Sum
from surefoot.objective.selection import Everything
from surefoot.objective.surrogates import Clip
from surefoot.rollout.prompts import Uniform
from surefoot.rollout.strategies import OnPolicy

GRPO = Method(
    name="grpo",
    paper=Paper(
        arxiv="2402.03300",
        year=2024,
        title="DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    ),
    prompts=Uniform(prompts=16, rollouts=8),
    rollout=OnPolicy(),
    reward=Sum(),
    advantage=GroupNormalized(),
    select=Everything(),
    surrogate=Clip(0.2),
    regularizers=(KL(k3, 0.04),),
    aggregate=SequenceMean(),
)
