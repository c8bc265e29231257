"""GoRL: PPO on a Gaussian latent whose decoder, a flow, is refitted between stages to what the whole policy did.

"GoRL: An Algorithm-Agnostic Framework for Online RL with Generative Policies", arXiv 2512.02581. The decoder g is a
piece of the environment (`policies.latent`), so the ratio is that of Gaussians; in action space it is the same for any
g that can be inverted, as the Jacobian cancels:

    z ~ pi_theta(z | s) = N(mu, diag sigma^2),   a = g(s, z);   r = pi_theta(z | s) / pi_old(z | s)
    L = L_clip(r) + L_V - c H + w (mean_d mu^2 + mean_d sigma^2)                         the decoder gets no gradient
    g:  x <- x - v(s, x, t) / K from x = z, t = 1, to x = a, t = 0                           v = 0 in the first stage
    refit:  min |v(s, t e + (1 - t) a, t) - (e - a)|^2,   e ~ N(0, I) fresh, not the z that made a

After a refit N(0, I) acts as the policy did, and the encoder starts again there (`rollout.stages`). Stage one clips at
.15, with w = .0005 and gradient norm .5; the others at .3, with .001 and 1.

What an exact refit cannot do: it maps Gaussians to Gaussians, stage after stage. Modes come from `rollout.keep` < 1
(the refit sees trajectories of high return alone; off, as in the released runs), from clipped actions, or from errors
of the fit that states share. See `surefoot reproduce gorl`.

OUR READING: the value network lives on over stages, as the start of a stage behaves as the end of the last one; the
last encoder of a stage is taken, not the one that evaluates best; a refit is 2000 steps along a cosine, not 50 epochs
with the best validation loss. The stages of the home, 20, 20, 10 and 10 batches of 64 episodes, have the proportions of
the paper's (60, 60, 30 and 30 million steps); c is ours.

At home (MuJoCo's Reacher-v5, 64 held-out starts, three seeds) returns go from -12.4 to -6.5 in the Gaussian stage, to
-4.50 in the first with a flow, and then fall to -4.81 and -5.01: later refits cost what their stages do not win back.
`continuous-ppo` is at -4.21 after as many steps of the environment, on every seed above GoRL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.method import Home, Paper, Update
from surefoot.methods.control.continuous_ppo import CONTINUOUS_PPO
from surefoot.objective.controllers import Phases
from surefoot.objective.entropy import EntropyBonus
from surefoot.objective.surrogates import Clip
from surefoot.objective.values import ValueLoss
from surefoot.parts import Part
from surefoot.rollout.stages import Stages
from surefoot.rollouts import Rollouts


@dataclass(frozen=True)
class LatentNorm(Part):
    """`coef (mean_d mu^2 + mean_d sigma^2)`: the decoder is fitted on N(0, I) and knows nothing far from it."""

    coef: float = 0.0005
    reads = ("mean", "deviation", "actions", "mask")

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"]:
        norm = rollouts.mean.square().mean(-1) + rollouts.deviation.square().mean(-1)
        return self.coef * norm.where(rollouts.mask, 0.0)

    def metrics(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """Root mean square of the latents that were drawn: 1 is the prior."""
        if not rollouts.mask.any():
            return {"latent": torch.zeros(())}
        return {"latent": rollouts.actions[rollouts.mask].square().mean().sqrt()}


def staged(stages: Stages, later: Mapping[str, float]) -> dict[str, Any]:
    """The slots of a training in stages, with the fields that take another value from the second stage on.

    >>> staged(Stages(starts=(41, 81)), {"surrogate.low": 0.3})["controllers"]
    (Phases(field='surrogate.low', starts=(41,), values=(0.3,)),)
    """
    changes = tuple(Phases(field, stages.starts[:1], (value,)) for field, value in later.items())
    return {"rollout": stages, "controllers": changes}


GORL = CONTINUOUS_PPO.but(
    name="gorl",
    paper=Paper(
        arxiv="2512.02581",
        year=2025,
        title="GoRL: An Algorithm-Agnostic Framework for Online RL with Generative Policies",
    ),
    surrogate=Clip(0.15),
    regularizers=(ValueLoss(coef=0.5, clip=None), EntropyBonus(0.001), LatentNorm()),
    update=Update(epochs=10, minibatches=8, max_grad_norm=0.5),
    **staged(
        Stages(starts=(21, 41, 51), collect=10),
        {"surrogate.low": 0.3, "regularizers.latentnorm.coef": 0.001, "update.max_grad_norm": 1.0},
    ),
    home=Home(policy="latent", task=CONTINUOUS_PPO.home.task, train={**CONTINUOUS_PPO.home.train, "steps": 60}),
)
