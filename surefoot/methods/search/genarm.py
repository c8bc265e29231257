"""GenARM: a language model as a reward of the next token, which guides another one when it samples.

"GenARM: Reward Guided Generation with Autoregressive Reward Model for Test-time Alignment", arXiv 2410.08193.

    r(x, y)  = beta_r sum_t log pi_r(y_t | x, y_<t)               pi_r a normalised language model
    training   L = -E log sigma( beta_r (log pi_r(y_w) - log pi_r(y_l)) )           DPO without a reference
    decoding   pi(y_t | .) ~ base(y_t | .) prod_i pi_r,i(y_t | .)^w_i               w free at inference

In units of the trained reward the KL-regularised optimum with weight beta has w = beta_r / beta. Any optimum of that
kind can be decoded so: with `pi_r(. | prefix)` the softmax of the soft values, `beta log E_base[exp(r / beta) | prefix,
token]`, the product is `base exp(r / beta) / Z` exactly. Pairs pin the reward of whole responses only, and of the many
pi_r with that reward, the one that `pi_r ~ e^r` gives decodes an approximation.

    surefoot train --method genarm --out arm                  on pairs of pebble's samples
    surefoot eval pebble --guide arm=1 --guide other=0.5      (`search.guided`)
"""

from surefoot.method import Paper
from surefoot.methods.preference.dpo import DPO
from surefoot.objective.preferences import Logistic, LogRatio, Preference

GENARM = DPO.but(
    name="genarm",
    paper=Paper(
        arxiv="2410.08193",
        year=2024,
        title="GenARM: Reward Guided Generation with Autoregressive Reward Model for Test-time Alignment",
    ),
    surrogate=Preference(LogRatio(anchors=(), weights=()), Logistic(beta=0.05)),
)
