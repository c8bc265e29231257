"""RLOO: REINFORCE whose baseline is the mean reward of the group's other trajectories.

Ahmadian et al., "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
arXiv 2402.14740, eq. 8. The baseline does not depend on the trajectory, so the gradient is unbiased.

    A_i = R_i - (1 / (G - 1)) sum_{j != i} R_j
"""

from surefoot.method import Paper
from surefoot.methods.rlvr.reinforce import REINFORCE
from surefoot.objective.advantages import LeaveOneOut
from surefoot.rollout.prompts import Uniform

RLOO = REINFORCE.but(
    name="rloo",
    paper=Paper(
        arxiv="2402.14740",
        year=2024,
        title="Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
    ),
    prompts=Uniform(prompts=16, rollouts=8),
    advantage=LeaveOneOut(),
)
