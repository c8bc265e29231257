"""A reward model: the value head on a policy's own trunk, trained on comparisons.

Christiano et al., "Deep reinforcement learning from human preferences", arXiv 1706.03741; as in InstructGPT
(arXiv 2203.02155, eq. 1):

    L = -E log sigma( R(x, y_w) - R(x, y_l) )       R: the value head before the response's end token

The trunk trains with the head, so the policy that comes out is a judge and no longer a speaker: `policies.load(RUN)`
gives it with its head, and a task of the kind `scored` takes it as a reward.
"""

from surefoot.method import Home, Paper
from surefoot.methods.preference.dpo import DPO, PAIRS
from surefoot.objective.preferences import BRADLEY_TERRY

REWARD_MODEL = DPO.but(
    name="reward-model",
    paper=Paper(arxiv="1706.03741", year=2017, title="Deep reinforcement learning from human preferences"),
    surrogate=BRADLEY_TERRY,
    home=Home(task=PAIRS, train={"lr": 3e-4, "final_samples": 0, "eval_every": 0}),
)
