"""Dr. GRPO: GRPO without its two biases, the division by the group's deviation and by the response's length.

Liu et al., "Understanding R1-Zero-Like Training: A Critical Perspective", arXiv 2503.20783, section 3. The paper drops
the KL term as well.

    A_i = R_i - mean(R)
    L   = -(1/G) sum_i (1/L_max) sum_t min(rho A, clip(rho, 1 - eps, 1 + eps) A)
"""

from surefoot.method import Paper
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.advantages import GroupCentred
from surefoot.objective.aggregation import ConstantLength

DR_GRPO = GRPO.but(
    name="dr-grpo",
    paper=Paper(arxiv="2503.20783", year=2025, title="Understanding R1-Zero-Like Training: A Critical Perspective"),
    advantage=GroupCentred(),
    aggregate=ConstantLength(),
    regularizers=(),
)
