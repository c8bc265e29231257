"""CISPO: the importance weight is clipped and detached, so that every token keeps a gradient.

MiniMax, "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention", arXiv 2506.13585, eq. 4-5.
"""

from surefoot.method import Paper, Update
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.surrogates import CISPO as Surrogate

CISPO = GRPO.but(
    name="cispo",
    paper=Paper(
        arxiv="2506.13585",
        year=2025,
        title="MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention",
    ),
    surrogate=Surrogate(),
    regularizers=(),
    aggregate=TokenMean(),
    update=Update(epochs=1, minibatches=4),
)
