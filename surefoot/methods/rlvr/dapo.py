"""DAPO: decoupled clip and dynamic sampling.

Yu et al., "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", arXiv 2503.14476: a higher upper clip
bound (eq. 10), groups without contrast are sampled again (eq. 11), every token counts the same (eq. 12), and a soft
punishment of over-long responses (eq. 13). No KL term.
"""

from surefoot.method import Paper, Update
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.rewards import OverlongPenalty
from surefoot.objective.surrogates import Clip
from surefoot.rollout.strategies import DynamicSampling

DAPO = GRPO.but(
    name="dapo",
    paper=Paper(arxiv="2503.14476", year=2025, title="DAPO: An Open-Source LLM Reinforcement Learning System at Scale"),
    rollout=DynamicSampling(),
    reward=OverlongPenalty(),
    surrogate=Clip(low=0.2, high=0.28),
    regularizers=(),
    aggregate=TokenMean(),
    update=Update(epochs=1, minibatches=4),
)
