"""RM ensembles: PPO against several reward models at once, so that what they disagree about is not attractive.

"Reward Model Ensembles Help Mitigate Overoptimization", arXiv 2310.02743. k models, same pairs, other seeds:

    mean  R = 1/k sum R_i        WCO  R = min_i R_i        UWO  R = mean_i R_i - lambda Var_i R_i
    r_t   = -beta log(pi / ref)_t,  plus R at the last token                    all R_i frozen

All three are one part, `Ensemble(temperature, penalty)`: the soft minimum `-tau log mean exp(-R_i / tau)` is the mean
at tau = infinity and WCO at 0, and near the mean it is UWO with lambda = 1 / (2 tau). Here UWO with the authors' 0.1
and unbiased variance (their best-of-n has .5 and divides by k), and a KL of 0.01. WCO: `--set reward.temperature=0
--set reward.penalty=0`. Members must share a scale: the task `scored` standardises each on samples of the reference.

    surefoot train --method reward-model --task prefs:flipped=0.25,make=rg:... --seed 1 --out rm1         (and 2, 3 ...)
    surefoot train --method rm-ensembles --task scored:by=rm1+rm2+rm3,rg:...

`evaluation.overoptimization` has the best-of-n curve of proxy and gold.
"""

from surefoot.method import Paper, Update
from surefoot.methods.rlvr.ppo import PPO
from surefoot.objective.credit import GAE
from surefoot.objective.rewards import Ensemble

RM_ENSEMBLES = PPO.but(
    name="rm-ensembles",
    paper=Paper(arxiv="2310.02743", year=2023, title="Reward Model Ensembles Help Mitigate Overoptimization"),
    reward=Ensemble(penalty=0.1, ddof=1, coef=0.01),
    advantage=GAE(stepwise=True),
    update=Update(epochs=4, minibatches=4),
)
