"""PPO: clipped ratios, several epochs a batch, and a learnt critic with generalised advantage estimation.

Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347, eq. 7; advantages from arXiv 1506.02438,
eq. 16. The critic is a value head on the policy's own trunk; the clipped value loss is that of the authors' code.
"""

from surefoot.method import Paper, Update
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.credit import GAE
from surefoot.objective.values import ValueLoss
from surefoot.rollout.prompts import Uniform

PPO = GRPO.but(
    name="ppo",
    paper=Paper(arxiv="1707.06347", year=2017, title="Proximal Policy Optimization Algorithms"),
    prompts=Uniform(prompts=128, rollouts=1),
    advantage=GAE(),
    regularizers=(ValueLoss(),),
    aggregate=TokenMean(),
    update=Update(epochs=2, minibatches=4),
)
