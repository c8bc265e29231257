"""INPO: towards the policy that no policy is preferred to, by self-play and mirror descent; no reward is assumed.

"Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning", arXiv 2407.00617.
Preferences P(y > y') may go in circles. The game and a step of mirror descent against the current policy pi_t:

    J(pi1, pi2) = E[P(y1 > y2)] - tau KL(pi1 || ref) + tau KL(pi2 || ref)
    pi_t+1 ~ exp(P(y > pi_t) / eta) ref^(tau/eta) pi_t^(1 - tau/eta)          (`exact.games.preference_step`)

P(y > pi_t) is not known, but differences of it are what win labels of pairs from pi_t x pi_t average to:

    h_t(y, y') = log pi(y)/pi(y') - tau/eta log ref(y)/ref(y') - (1 - tau/eta) log pi_t(y)/pi_t(y')
    L = E ( h_t(y_w, y_l) - 1 / (2 eta) )^2             log-ratios summed over the response; ref and pi_t frozen

So it is IPO's square with two anchors, the reference and the policy that made the batch (`old_logp`). eta multiplies
the KL: 1/eta is the learning rate. `shape.tau` is eta; the anchors' weights are tau/eta and 1 - tau/eta. A round is a
batch. As in the paper, the pair is the best and the worst of 8; the equivalence with mirror descent is that of pairs
drawn from pi_t, which is `--set rollout=surefoot.rollout.strategies:OnPolicy`.
"""

from surefoot.method import Home, Paper, Update
from surefoot.methods.preference.dpo import DPO
from surefoot.objective.preferences import LogRatio, Preference, Square
from surefoot.rollout.strategies import BestAndWorst

ETA, TAU = 0.005, 0.005 / 3


def nash_square(tau: float, eta: float) -> Preference:
    """INPO's loss of a pair."""
    return Preference(LogRatio(("ref_logp", "old_logp"), (tau / eta, 1 - tau / eta)), Square(tau=eta))


INPO = DPO.but(
    name="inpo",
    paper=Paper(
        arxiv="2407.00617",
        year=2024,
        title="Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning",
    ),
    rollout=BestAndWorst(of=8),
    surrogate=nash_square(TAU, ETA),
    update=Update(epochs=2, minibatches=2),
    home=Home(task="arena:rg:chain_sum:min_terms=2,max_terms=4,min_digits=2,max_digits=2", train={"lr": 3e-4}),
)
