"""PPO for control: a Gaussian policy, a value network, episodes that are cut and bootstrapped.

Schulman et al., arXiv 1707.06347, eq. 7, with generalised advantages (arXiv 1506.02438): `ppo` with rewards at every
step and a critic of its own. Rewards are scaled for the critic by `reward.weights`; the advantages are whitened, so the
policy does not see the scale. A minibatch holds whole episodes.

The home is MuJoCo's arm that reaches (Reacher-v5, 50 steps an episode): returns on 64 held-out starts go from -12.4 to
-4.27 in 60 batches of 64 episodes (three seeds: -4.32, -4.24, -4.24), in some 20 seconds of one core. Of the classical
tasks, `--task gym:Pendulum-v1 --set prompts.prompts=16` is learnt in 15.
"""

from surefoot.method import Home, Paper, Update
from surefoot.methods.rlvr.ppo import PPO
from surefoot.objective.credit import EpisodeGAE
from surefoot.objective.rewards import PerStep
from surefoot.objective.values import ValueLoss
from surefoot.rollout.prompts import Uniform

CONTINUOUS_PPO = PPO.but(
    name="continuous-ppo",
    paper=Paper(arxiv="1707.06347", year=2017, title="Proximal Policy Optimization Algorithms"),
    prompts=Uniform(prompts=64, rollouts=1),
    reward=PerStep({"return": 0.1}),
    advantage=EpisodeGAE(gamma=0.95),
    regularizers=(ValueLoss(coef=0.5, clip=None),),
    update=Update(epochs=10, minibatches=8, max_grad_norm=0.5),
    home=Home(
        policy="gaussian",
        task="gym:Reacher-v5",
        train={
            "steps": 60,
            "lr": 1e-3,
            "beta2": 0.999,
            "warmup": 0,
            "eval_problems": 16,
            "final_problems": 64,
            "final_samples": 1,
            "log_rollouts": False,
        },
    ),
)
