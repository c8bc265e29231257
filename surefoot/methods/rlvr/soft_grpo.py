"""SofT-GRPO: GRPO over soft thoughts, reinforced through the Gumbel noise that mixed them.

"SofT-GRPO: Surpassing Discrete-Token LLM Reinforcement Learning via Gumbel-Reparameterized Soft-Thinking Policy
Optimization", arXiv 2511.06411. A thinking step keeps the likeliest tokens I_t, of renormalised probabilities p, and
feeds back a mixture of their embeddings:

    g_i = log p_i + eps_i, eps Gumbel,     y = softmax(g / tau),     e = sum_i y_i E[i]

The perturbed g is the action, and its density under the current policy the step's likelihood, in an ordinary ratio:

    log pi(g) = sum_i -u_i - exp(-u_i),    u_i = g_i - log p_i(theta)          over the slots that were kept
    L = -mean_t min(rho A, clip(rho, 1 - eps, 1 + eps) A) + beta KL_k3,         dual clip 3

The method is GRPO; what is soft is the policy (`policies.soft_thinking`) and its density (`objective.soft`). Answers
are tokens. On policy the score of a slot has mean 0 and variance 1; given the largest slot its mean is the discrete
score, so that the gradient is the discrete one and noise: unbiased, and of larger variance.

The noise law is a switch of the policy: `--policy soft-thinking:law=gaussian` is the prior work, Gaussian noise on the
mixture itself, e = sum_i y_i E[i] + sigma eps, whose density N(e; mixture, sigma^2 I) stands in the same ratio.

OUR READING: `sum` over slots is the joint density; the released code takes the mean over slots with log p > -3, and
holds u in [-1.5, 3] (`--policy soft-thinking:reduction=mean,released=true`), for which E[rho] is not 1. The KL is one
between Gumbel laws. The paper's batch is 64 prompts and two minibatches; here it is GRPO's 16 and one.
"""

from surefoot.method import Home, Paper
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.advantages import GroupNormalized
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.divergences import KL, k3
from surefoot.objective.surrogates import Clip

SOFT_GRPO = GRPO.but(
    name="soft-grpo",
    paper=Paper(
        arxiv="2511.06411",
        year=2025,
        title="SofT-GRPO: Surpassing Discrete-Token LLM Reinforcement Learning via Gumbel-Reparameterized "
        "Soft-Thinking Policy Optimization",
    ),
    home=Home(policy="soft-thinking", train={"lr": 5e-4, "steps": 12, "final_problems": 256, "final_samples": 4}),
    advantage=GroupNormalized(eps=1e-6),
    surrogate=Clip(0.2, dual=3.0),
    regularizers=(KL(k3, 1e-3),),
    aggregate=TokenMean(),
)
