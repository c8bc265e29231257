"""Lp-Reg: rare but plausible tokens of failed answers are held up by what the policy itself thought of them.

"Low-probability Tokens Sustain Exploration in Reinforcement Learning with Verifiable Reward", arXiv 2510.03222. The
proxy is the policy that sampled, without its implausible tokens:

    proxy(v) = pi_old(v) / Z  if pi_old(v) >= kappa max pi_old,  else 0                 min-p, kappa = .02
    S        = of the n steps with A < 0 the floor(rho n) least likely ones under pi (none for a single one),
               of those the ones with pi(o) < proxy(o); so never one that was filtered out
    L_t      = -A r + beta (x - log x - 1),   x = proxy(o) / pi(o)        on S: no clip, and k3, valued at most 10
    L_t      = max(-A r, -A clip(r, 1 - low, 1 + high))                   elsewhere;  token mean over both

So it is a selection, two terms on it, and a clip off it. One update a batch: then x = 1 / Z on S, and a token rises
only if Z < beta / (beta + |A|). Rare tokens are ranked over the whole minibatch (the authors' code: a microbatch).

Claim: sparks (rare, sensible, unrewarded so far) survive, and noise does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.method import Method, Paper
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.aggregation import On, TokenMean
from surefoot.objective.divergences import KL, k3
from surefoot.objective.selection import Not
from surefoot.objective.surrogates import Clip
from surefoot.objective.terms import Term
from surefoot.parts import Part
from surefoot.rollout.native import Sampling, log_distribution
from surefoot.rollouts import Rollouts

FILTERED = -1e4  # log-probability of what the filter removed: finite, as in the authors' code


def bounded_k3(logp: Tensor, ref: Tensor) -> Tensor:
    """`k3`, at most 10: no gradient where the reference is more than 13.6 times as likely."""
    return k3(logp, ref).clamp(max=10)


@dataclass(frozen=True)
class MinP(Part):
    """Log-probability of the taken step under the distribution filtered by min-p (`log_distribution`).

    >>> logp = torch.tensor([3.0, 2.0, 0.0, -1.0, -4.0]).log_softmax(0)
    >>> MinP(0.02)(logp.expand(2, 5), torch.tensor([2, 3])) - logp[[2, 3]]
    tensor([ 1.3472e-02, -9.9956e+03])
    """

    kappa: float = 0.02

    def __call__(self, logp: Float[Tensor, "*s v"], taken: Int[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        kept = log_distribution(logp, Sampling(min_p=self.kappa))
        return kept.gather(-1, taken[..., None])[..., 0].clamp_min(FILTERED)


@dataclass(frozen=True)
class Sparks(Part):
    """S: the least likely share of the steps with negative advantage, where the policy is below the proxy.

    Attributes:
        share: rho, of the steps with negative advantage; ties with the last one chosen are chosen too.
        kappa: of the proxy.
    """

    share: float = 0.01
    kappa: float = 0.02
    reads = ("now_logp", "proxy_logp", "advantage", "mask")

    @property
    def statistics(self) -> dict[str, Part]:
        return {"proxy_logp": MinP(self.kappa)}

    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n t"]:
        logp, failed = rollouts.now_logp, rollouts.mask & (rollouts.advantage < 0)
        count = int(self.share * failed.sum())
        if count < 2:
            return failed & False
        rare = logp <= logp[failed].topk(count, largest=False).values[-1]
        return failed & rare & (logp < rollouts.proxy_logp)


def lp_reg(share: float = 0.01, kappa: float = 0.02, beta: float = 1.0, low: float = 1.0, high: float = 9.0) -> Method:
    """The composition; the defaults are the authors' script's, with nearly no clip."""
    sparks = Sparks(share, kappa)
    on_sparks = On(TokenMean(), sparks)
    return GRPO.but(
        name="lp-reg",
        paper=Paper(
            arxiv="2510.03222",
            year=2025,
            title="Low-probability Tokens Sustain Exploration in Reinforcement Learning with Verifiable Reward",
        ),
        surrogate=Clip(low, high),
        aggregate=On(TokenMean(), Not(sparks)),
        regularizers=(
            Term(Clip(math.inf, math.inf), 1.0, on_sparks),
            Term(KL(bounded_k3, beta, "proxy_logp"), 1.0, on_sparks),
        ),
    )


LP_REG = lp_reg()
