"""DPO: the policy is its own reward model.

Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", arXiv 2305.18290,
eq. 7. The optimum of `E[r] - beta KL(pi || ref)` gives `r = beta log pi/ref + Z(x)`, which goes into Bradley-Terry's
likelihood of a pair, where Z cancels:

    L = -E log sigma( beta log pi/ref (y_w) - beta log pi/ref (y_l) )      log-ratios summed over the response

Pairs are logged (`--task prefs:...`) or, with any other task, two fresh responses a prompt, of which the one of higher
reward is chosen (pairs of equal reward count 0).
"""

from surefoot.method import Home, Method, Paper
from surefoot.objective import preferences
from surefoot.objective.advantages import Reinforce
from surefoot.objective.aggregation import SequenceMean
from surefoot.objective.rewards import Sum
from surefoot.objective.selection import Everything
from surefoot.rollout.prompts import Uniform
from surefoot.rollout.strategies import OnPolicy

PAIRS = "prefs:make=rg:chain_sum:min_terms=2,max_terms=4,min_digits=2,max_digits=2"

DPO = Method(
    name="dpo",
    paper=Paper(
        arxiv="2305.18290",
        year=2023,
        title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    ),
    prompts=Uniform(prompts=32, rollouts=2),
    rollout=OnPolicy(),
    reward=Sum(),
    advantage=Reinforce(baseline=False),
    select=Everything(),
    surrogate=preferences.DPO,
    aggregate=SequenceMean(),
    home=Home(task=PAIRS, train={"lr": 3e-4}),
)
