"""NFT: maximum likelihood of right answers under the policy, of wrong ones under the negative policy that it implies.

"Bridging Supervised Learning and Reinforcement Learning in Math Reasoning" (negative-aware fine-tuning), arXiv
2505.18116. The policy that sampled is a mixture of its right and its wrong part, `pi_old = p pi+ + (1 - p) pi-`, p a
prompt's success rate. With the trained policy in the place of pi+, pi- is known too, and both have a likelihood. With
R = pi / pi_old of each token and a weight w(p) of the prompt,

    right   L = -w log R
    wrong   L = -w log maxv((1 - p R) / (1 - p), eps),    maxv(x, eps) = x + sg(max(x, eps) - x)

At R = 1 the gradient is that of the policy gradient with advantage w'(p) (r - p), w' = w / (1 - p): the default
w = 1 - p is Dr. GRPO, w = sqrt((1 - p) / p) GRPO. So the weight is an advantage (`SuccessWeighted`), and the rest a
surrogate: it differs from the policy gradient away from R = 1 only, and there only where the advantage is negative.
Right answers have no trust region. The implicit policy of single tokens is a heuristic: p is a rate of whole answers.

Claim: on a level with GRPO, and above rejection fine-tuning, which only has the first line.

OUR READING for rewards between 0 and 1: an answer above its group's mean is right, one below it wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from surefoot.method import Paper, Update
from surefoot.methods.rlvr.dr_grpo import DR_GRPO
from surefoot.objective.advantages import SuccessWeighted, even
from surefoot.objective.groups import group_mean
from surefoot.objective.ratios import log_ratio
from surefoot.parts import Part
from surefoot.rollout.strategies import DynamicSampling
from surefoot.rollouts import Rollouts


def log_maxv(x: Tensor, eps: float) -> Tensor:
    """`log maxv(x, eps)`: the value of `log max(x, eps)`, with the gradient `dx / max(x, eps)` also where x < eps.

    >>> x = torch.tensor([0.5, -2.0], requires_grad=True)
    >>> log_maxv(x, 0.1), *torch.autograd.grad(log_maxv(x, 0.1).sum(), x)
    (tensor([-0.6931, -2.3026], grad_fn=<AddBackward0>), tensor([ 2., 10.]))
    """
    held = x.detach().clamp_min(eps)
    return held.log() + (x - x.detach()) / held


@dataclass(frozen=True)
class Rated(SuccessWeighted):
    """`SuccessWeighted`, and the success rates themselves.

    Attributes:
        weight: `even` is the paper's w = 1 - p (Dr. GRPO), `inverse_deviation` its GRPO-like weight.
    """

    weight: Callable[[Tensor], Tensor] = even
    adds = ("success_rate",)

    def __call__(self, rollouts: Rollouts) -> dict[str, Tensor]:
        return {
            "advantage": super().__call__(rollouts),
            "success_rate": group_mean(rollouts.reward, rollouts.group),
        }


@dataclass(frozen=True)
class NegativeAware(Part):
    """The two likelihoods.

    Attributes:
        eps: floor of the implicit negative policy's ratio, in value; 1 keeps a wrong token's weight from growing faster
            than its ratio.
        margin: success rates are held within [margin, 1 - margin].
        cap: of log R.
    """

    eps: float = 1.0
    margin: float = 0.02
    cap: float = 10.0
    reads = ("logp", "old_logp", "advantage", "success_rate", "mask")
    vanishes_with_advantage = True

    def implied(self, rollouts: Rollouts) -> tuple[Float[Tensor, "n t"], Float[Tensor, "n 1"]]:
        """`(1 - p R) / (1 - p)`, the ratio of the implicit negative policy, and p."""
        ratio = self._log(rollouts).clamp(max=self.cap).exp()
        p = rollouts.success_rate.clamp(self.margin, 1 - self.margin)[:, None]
        return (1 - p * ratio) / (1 - p), p

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        advantage, (negative, p) = rollouts.advantage, self.implied(rollouts)
        wrong = advantage * (1 - p) / p * log_maxv(negative, self.eps)
        return (-advantage * self._log(rollouts)).where(advantage >= 0, wrong)

    def _log(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return log_ratio(rollouts.logp, rollouts.old_logp, rollouts.mask)

    def metrics(self, rollouts: Rollouts) -> dict[str, float]:
        """Share of the steps whose implicit negative ratio is below the floor."""
        below = (self.implied(rollouts)[0] < self.eps) & (rollouts.advantage < 0) & rollouts.mask
        return {"floored": float(below.sum() / rollouts.mask.sum().clamp_min(1))}


NFT = DR_GRPO.but(
    name="nft",
    paper=Paper(
        arxiv="2505.18116",
        year=2025,
        title="Bridging Supervised Learning and Reinforcement Learning in Math Reasoning",
    ),
    rollout=DynamicSampling(),
    advantage=Rated(),
    surrogate=NegativeAware(),
    update=Update(epochs=1, minibatches=4),
)
