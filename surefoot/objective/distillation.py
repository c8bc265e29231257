"""Distillation: pulling the policy (student) towards a teacher, token by token.

Two questions name a method. Which divergence: forward KL(teacher || student) covers, reverse KL(student || teacher)
seeks a mode, Jensen-Shannon lies between. And on whose prefixes: the rollout part decides who sampled the batch.

    teacher's prefixes   any divergence, mostly forward KL: `Distillation` (supervised)
                         only the sampled token: `SequenceKD`
    student's prefixes   any divergence: `Distillation` (on-policy: GKD, arXiv 2306.13649)
                         only the sampled token: `LogRatioAdvantage` with any policy-gradient surrogate, or the
                         regularizer `KL(k2, coef, "teacher_logp")`, which has the same gradient

On the student's own prefixes a divergence treats the prefixes as given. That is not the gradient of the
divergence between whole sequences, which also counts how a token changes what comes after: `LogRatioAdvantage` with
`gamma=1` has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from surefoot.objective.credit import reward_to_go
from surefoot.objective.divergences import FORWARD_KL, REVERSE_KL, FDivergence, FullDivergence, SkewedJS
from surefoot.objective.groups import working
from surefoot.objective.ratios import anchored
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def generalized_js(beta: float) -> FDivergence:
    """GKD's `beta KL(teacher || m) + (1 - beta) KL(student || m)`, m = beta teacher + (1 - beta) student.

    (arXiv 2306.13649, eq. 1.) The student is p, the teacher q of the generator. Divided by beta it goes to the forward
    KL as beta -> 0, divided by 1 - beta to the reverse KL as beta -> 1. At 0 and 1 these limits are returned, as GKD
    does; the undivided function would be 0 there.

    >>> generalized_js(0.0) is FORWARD_KL, generalized_js(0.25)
    (True, SkewedJS(weight=0.75))
    """
    if beta == 0:
        return FORWARD_KL
    return REVERSE_KL if beta == 1 else SkewedJS(1 - beta)


def log_ratio_advantage(
    towards: Float[Tensor, "n t"],
    away: Float[Tensor, "n t"],
    mask: Bool[Tensor, "n t"],
    scale: float = 1.0,
    clip: float | None = None,
    gamma: float = 0.0,
) -> Float[Tensor, "n t"]:
    """`scale * (log pi_A - log pi_B)` of the taken tokens, detached: a reward per token, as an advantage.

    With A the teacher, B the student itself and the student's own samples, the policy gradient is that of
    -KL(student || teacher): of each step's own if `gamma` is 0, of whole sequences if 1 (reward to go).

    Args:
        clip: bound on the magnitude of each token's scaled log-ratio; none for no bound.
        gamma: discount of what comes after.

    >>> a, b = torch.tensor([[0.7, 0.2]]).log(), torch.tensor([[0.4, 0.4]]).log()
    >>> log_ratio_advantage(a, b, torch.ones(1, 2, dtype=torch.bool))
    tensor([[ 0.5596, -0.6931]])
    >>> log_ratio_advantage(a, b, torch.ones(1, 2, dtype=torch.bool), clip=0.6, gamma=1.0)
    tensor([[-0.0404, -0.6000]])
    """
    gap = scale * (working(towards).detach() - working(away).detach()).where(mask, 0.0)
    if clip is not None:
        gap = gap.clamp(-clip, clip)
    return reward_to_go(gap, mask, gamma)


@dataclass(frozen=True)
class LogRatioAdvantage(Part):
    """`log_ratio_advantage` between weighted anchors: sum_k w_k log A_k, less the policy's own log-probability.

    One anchor, the teacher: on-policy distillation. `towards=("teacher_logp", "ref_logp")`, `weights=(l, 1 - l)`:
    G-OPD (arXiv 2602.12125), which extrapolates beyond the teacher for l > 1; the reference then matters.

    Attributes:
        towards, weights: columns and their weights; weights that sum to 1 make a (tempered) product of policies.
        away: the policy's own log-probabilities when it sampled.
        scale, clip, gamma: as in the function.
    """

    towards: tuple[str, ...] = ("teacher_logp",)
    weights: tuple[float, ...] = (1.0,)
    away: str = "old_logp"
    scale: float = 1.0
    clip: float | None = None
    gamma: float = 0.0

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.towards, self.away, "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        towards = anchored([working(rollouts[name]) for name in self.towards], self.weights)
        return log_ratio_advantage(towards, rollouts[self.away], rollouts.mask, self.scale, self.clip, self.gamma)


@dataclass(frozen=True)
class SequenceKD(Part):
    """`-coef log pi` of the teacher's own samples (arXiv 1606.07947, eq. 5): likelihood of whole teacher sequences.

    On samples of the teacher it is, up to a constant, an unbiased estimate of the forward KL(teacher || student) of
    whole sequences, value and gradient.
    """

    coef: float = 1.0

    @property
    def reads(self) -> tuple[str, ...]:
        return ("logp", "mask") if self.coef else ()

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        if not self.coef:
            return torch.zeros_like(rollouts.mask, dtype=torch.float32)
        return -self.coef * working(rollouts.logp).where(rollouts.mask, 0.0)


@dataclass(frozen=True)
class Distillation(FullDivergence):
    """`FullDivergence` from a teacher, with the supervised default: forward KL at full weight."""

    generator: FDivergence = FORWARD_KL
    coef: float = 1.0
    reference: str = "teacher_logits"
