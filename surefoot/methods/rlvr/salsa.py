"""SALSA: PPO whose KL penalty holds on to a soup, the mean of the weights of two fine-tuned policies.

Chegini et al., "SALSA: Soup-based Alignment Learning for Stronger Adaptation in RLHF", arXiv 2411.01798.

    theta_soup = a theta_1 + (1 - a) theta_2               two fine-tunings of one pretrained model, a = 1/2
    maximise     E_pi[ r(x, y) ] - beta KL(pi || pi_soup)  the soup is frozen
    r_t        = 1[t = T] r(x, y) - beta (log pi - log pi_soup)    values, GAE and clipping as in PPO

The optimum is pi_soup exp(r / beta) / Z, worth J* = beta log Z. Where logits are linear in the weights, the soup is the
normalised geometric mean of the two policies. a = 1, or two equal policies, is PPO.

OUR READING (the abstract is what is public): equal weights; training starts from theta_1, so that the anchor alone
changes; beta = .05. The paper's two policies are supervised fine-tunings with different seeds; unless
`--set reference.of=FOLDER` names theta_2, it is theta_1 after 8 steps of GRPO on the task, made once and kept in the
cache, so that the anchor has seen more rewards than theta_1. `reference.share` is a.

Claim: the soup is the better anchor: the same penalty leaves room for a higher reward.
"""

from surefoot.method import Paper
from surefoot.methods.rlvr.ppo import PPO
from surefoot.objective.credit import GAE
from surefoot.objective.references import Soup
from surefoot.objective.rewards import KLInReward

SALSA = PPO.but(
    name="salsa",
    paper=Paper(
        arxiv="2411.01798",
        year=2024,
        title="SALSA: Soup-based Alignment Learning for Stronger Adaptation in RLHF",
    ),
    reward=KLInReward(coef=0.05),
    advantage=GAE(stepwise=True),
    reference=Soup(of=("trained:steps=8",)),
)
