"""G-OPD: on-policy distillation that may go beyond its teacher.

Yang et al., "Learning beyond Teacher: Generalized On-Policy Distillation with Reward Extrapolation", arXiv 2602.12125.
On-policy distillation is KL-regularised RL whose reward is log T / ref, with both terms of weight one, so that the
reference cancels. G-OPD scales the reward by lambda:

    J     = E_{y ~ pi} [ lambda log T(y|x) / ref(y|x) ] - KL(pi || ref),      optimum   pi* ~ ref (T / ref)^lambda
    A_t   = lambda (log T - log ref) - (log pi - log ref)                     of the sampled token, detached
    L     = - mean_t A_t log pi

lambda = 1 is plain distillation, whatever the reference; below it lies between reference and teacher; above it (ExOPD;
the paper takes 1.25) it goes on in the direction that the teacher's own training took from the reference. That asks for
a reference that is what the teacher was trained from ("reward correction", at home `--set reference.of=pebble`); by
default it is the student as it starts.

OUR READING: the authors' advantage counts each token's own term alone (`gamma=0`), whose fixed point is
ref (T / ref)^lambda token by token; that of J, over whole sequences, needs what comes after (`gamma=1`), and differs
for lambda != 1. Log-ratios are not bounded in the paper; `clip` bounds them. Eq. 12 lacks its normaliser, eq. 14 prints
the advantage with the sign of a cost.

At home a pebble of three layers, pruned and healed here, learns from the whole pebble after 8 steps of GRPO (58.3 % of
512 held-out problems). In 40 updates, three seeds: pass@1 from 8.0 % to 24.2 % with lambda = 1, 23.7 % with 1.25, and
22.0 % with 1.25 and `--set reference=Fixed --set reference.of=pebble`: a student this far below its teacher gains
nothing by going beyond it. One of the teacher's own size does (`--policy pebble --set train.lr=3e-4`): 60.7 % with
lambda = 1, 63.0 % with 1.25, 63.2 % with 1.5; 1.25 less 1, paired over seeds, +2.4 +- .3 points (one standard error).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from surefoot.method import Home, Paper
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.distillation import LogRatioAdvantage
from surefoot.objective.references import Fixed
from surefoot.objective.surrogates import EngineCorrected, PolicyGradient
from surefoot.parts import Part
from surefoot.rollout.prompts import Uniform
from surefoot.rollouts import Rollouts


@dataclass(frozen=True)
class Extrapolated(Part):
    """`LogRatioAdvantage` towards `ref (T / ref)^lam`; at `lam = 1` no reference is read.

    Attributes:
        lam: 0 is the reference, 1 the teacher, more is beyond it.
        clip: bound on a token's advantage; none for no bound.
        gamma: discount of what comes after.
    """

    lam: float = 1.25
    clip: float | None = None
    gamma: float = 0.0

    @property
    def towards(self) -> LogRatioAdvantage:
        """The same advantage by its anchors."""
        anchors = {"teacher_logp": self.lam, "ref_logp": 1 - self.lam}
        kept = {name: weight for name, weight in anchors.items() if weight}
        return LogRatioAdvantage(tuple(kept), tuple(kept.values()), clip=self.clip, gamma=self.gamma)

    @property
    def reads(self) -> tuple[str, ...]:
        return self.towards.reads

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        return self.towards(rollouts)


G_OPD = GRPO.but(
    name="g-opd",
    paper=Paper(
        arxiv="2602.12125",
        year=2026,
        title="Learning beyond Teacher: Generalized On-Policy Distillation with Reward Extrapolation",
    ),
    home=Home(
        policy="pruned:layers=3",
        teacher="trained:method=grpo,steps=8",
        train={"lr": 1e-3, "steps": 40, "eval_every": 10},
    ),
    prompts=Uniform(prompts=128, rollouts=1),
    advantage=Extrapolated(),
    surrogate=EngineCorrected(PolicyGradient(), cap=5.0),
    regularizers=(),
    aggregate=TokenMean(),
    reference=Fixed(),
)
