"""VIMPO: the policy and its reference imply values, and those give each token its credit; no critic.

"VIMPO: Value-Implicit Policy Optimization for LLMs", arXiv 2606.20008. With, of each step,

    rho_t = beta log(pi(a_t|s_t) / ref(a_t|s_t)),     kappa_t = beta KL(pi(.|s_t) || ref(.|s_t)), exact

the optimum of reward - beta KL, a step at a time, has `rho_t - kappa_t = r_t + V(s_{t+1}) - V(s_t)`, and V is 0 after
the last step. So the sum over a trajectory is its reward less the value of its prompt, for which stands the mean
of the group:

    L_V = mean_i 1/2 [sum_t (rho_t - sg kappa_t) - (R_i - mean R)]^2         a regression; not a policy gradient
    A_t = sum_l (gamma lam)^l d_{t+l},   d_t = rho_t - kappa_t               detached, whitened over the batch
    L   = L_V + c_A mean_t clip(A_t)                                         clip .2 / .28, dual 10

The reward enters by L_V alone. At the reference all d are 0: the first step is REINFORCE with the group's mean as
baseline, times beta. Later a group of equal rewards still teaches: it pulls its sums to 0. beta = 5e-4 goes with
thousands of tokens. A sampled KL would not do: with k1, rho - kappa is 0.

Claim: better credit than one advantage a trajectory, and less harm from wrong rewards.

OUR READING: the actor's advantages are those of the policy as the batch found it; L_V follows the policy between
minibatches. Not taken over: the Huber loss, the cap on the group's mean, the adaptive c_A of the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.method import Paper
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.advantages import group_centred, spread, whiten
from surefoot.objective.aggregation import SequenceMean, TokenMean
from surefoot.objective.credit import reward_to_go
from surefoot.objective.groups import group_std
from surefoot.objective.surrogates import Clip
from surefoot.objective.terms import Term
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def implied_td(
    logp: Float[Tensor, "n t"],
    ref: Float[Tensor, "n t"],
    kl: Float[Tensor, "n t"],
    mask: Bool[Tensor, "n t"],
    beta: float,
) -> Float[Tensor, "n t"]:
    """`rho - kappa`: the temporal difference of the implied value, 0 off the mask; its mean over actions is 0.

    >>> half = torch.tensor([[0.5]]).log()
    >>> implied_td(torch.tensor([[0.9]]).log(), half, torch.tensor([[0.3681]]), torch.ones(1, 1).bool(), beta=0.5)
    tensor([[0.1098]])
    """
    return beta * ((logp - ref).where(mask, 0.0) - kl.where(mask, 0.0))


def floored_std(x: Float[Tensor, "n"], group: Int[Tensor, "n"], member: Bool[Tensor, "n"] | None = None) -> Tensor:
    """`sqrt(var + 1e-8)`: rounding at the reference is not blown up to unit deviation."""
    return (group_std(x, group, member).square() + 1e-8).sqrt()


@dataclass(frozen=True)
class ImpliedCredit(Part):
    """The advantages A_t of the implied value, and the regression's target `R - mean R` as `returns`.

    Attributes:
        beta: as in the value loss.
        gamma, lam: discount, and decay of what comes after; lam 0 takes single terms.
        whitened: zero mean and unit deviation over the batch's steps.
    """

    beta: float = 5e-4
    gamma: float = 1.0
    lam: float = 1.0
    whitened: bool = True
    reads = ("reward", "group", "old_logp", "ref_logp", "old_kl", "mask")
    adds = ("returns",)

    def __call__(self, rollouts: Rollouts) -> dict[str, Tensor]:
        r, mask = rollouts, rollouts.mask
        td = implied_td(r.old_logp, r.ref_logp, r.old_kl, mask, self.beta)
        credit = reward_to_go(td, mask, self.gamma * self.lam)
        target = spread(group_centred(r.reward, r.group), mask)
        return {"advantage": whiten(credit, mask, 0.0, floored_std) if self.whitened else credit, "returns": target}


@dataclass(frozen=True)
class ImpliedValueLoss(Part):
    """`1/2 [sum_t (rho_t - sg kappa_t) - target]^2` of each trajectory: its gradient is the same on all its tokens.

    Attributes:
        beta: reward per nat; that of `ImpliedCredit` should be the same.
    """

    beta: float = 5e-4
    reads = ("logp", "ref_logp", "now_kl", "returns", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"]:
        r, mask = rollouts, rollouts.mask
        target = r.returns.where(mask, 0.0).sum(1) / mask.sum(1).clamp_min(1)
        return 0.5 * (implied_td(r.logp, r.ref_logp, r.now_kl, mask, self.beta).sum(1) - target).square()


VIMPO = GRPO.but(
    name="vimpo",
    paper=Paper(arxiv="2606.20008", year=2026, title="VIMPO: Value-Implicit Policy Optimization for LLMs"),
    advantage=ImpliedCredit(),
    surrogate=ImpliedValueLoss(),
    regularizers=(Term(Clip(low=0.2, high=0.28, dual=10.0), 5e-3, TokenMean()),),
    aggregate=SequenceMean(),
)
