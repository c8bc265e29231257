"""GSPO: one ratio for the whole sequence, its length-normalised likelihood ratio.

Zheng et al., "Group Sequence Policy Optimization", arXiv 2507.18071, eq. 5-7; clip range from its section 5.1.

    s_i = (pi(y_i|x) / pi_old(y_i|x))^(1/|y_i|),   L = -(1/G) sum_i min(s_i A_i, clip(s_i, 1 - l, 1 + h) A_i)
"""

from surefoot.method import Paper, Update
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.ratios import SequenceRatio
from surefoot.objective.surrogates import Clip

GSPO = GRPO.but(
    name="gspo",
    paper=Paper(arxiv="2507.18071", year=2025, title="Group Sequence Policy Optimization"),
    surrogate=Clip(low=3e-4, high=4e-4, ratio=SequenceRatio()),
    regularizers=(),
    update=Update(epochs=1, minibatches=4),
)
