"""A Gaussian over latents, and a flow that turns them into actions: `latent[:key=value,...]` (GoRL, arXiv 2512.02581).

    z ~ N(mu(s), diag sigma^2),   a = g(s, z): Euler's steps of dx/dt = v(x, s, t) from x = z at t = 1 to t = 0

Methods see z as the action: its likelihood is exact, and the decoder is a piece of the environment, without gradient.
The decoder starts with all parameters 0, so that v = 0 and g(s, z) = z: a plain Gaussian policy. `absorb` fits it by
flow matching to what the whole policy did, from fresh N(0, I) noise, and starts the encoder again near N(0, I).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surefoot.policies.base import generator
from surefoot.policies.flow import Velocity, euler, fit
from surefoot.policies.gaussian import Gaussian, for_task, mlp


class Latent(Gaussian):
    """The encoder is `Gaussian`, with all its columns; the latent has the action's size.

    Args:
        width, depth: of the decoder's hidden layers.
        denoise: Euler's steps from latent to action. Few of them shrink what a refit passes on: with 10, N(.7, .3)
            comes out 13% narrower, and again at the next refit.
        updates, rows, decoder_lr: steps of a refit, pairs (noise, action) in each, and the rate it starts from.
    """

    kind = "latent"

    def __init__(
        self,
        observations: int,
        actions: int,
        hidden: tuple[int, ...] = (64, 64),
        activation: str = "tanh",
        log_std: float = 0.0,
        width: int = 64,
        depth: int = 4,
        denoise: int = 10,
        updates: int = 2000,
        rows: int = 1024,
        decoder_lr: float = 1e-3,
        value: bool = False,
        lr: float = 3e-4,
    ):
        options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(observations, actions, hidden, activation, log_std=log_std, lr=lr)
        self.options = options
        self.denoise, self.updates, self.rows, self.decoder_lr = denoise, updates, rows, decoder_lr
        self.model["decoder"] = Velocity(actions, observations, width, depth).requires_grad_(False)
        for p in self.model["decoder"].parameters():
            nn.init.zeros_(p)
        if value:
            self.critic()

    @torch.no_grad()
    def executed(self, states: Float[Tensor, "n d"], actions: Float[Tensor, "n a"]) -> Float[Tensor, "n a"]:
        """The action that a latent stands for; the environment squashes it."""
        return euler(self.model["decoder"], actions, self.seen(states), self.denoise)

    def absorb(self, states: Float[Tensor, "n d"], done: Float[Tensor, "n a"], seed: int) -> dict[str, float]:
        """A new decoder, fitted to what was done in these states; a new encoder near N(0, I). V stays as it is.

        Everything is written in place, so that an optimizer's parameters are still the policy's.
        """
        o, seen = self.options, self.seen(states)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            decoder = Velocity(o["actions"], o["observations"], o["width"], o["depth"])
            losses = fit(decoder, done, seen, self.updates, generator(seed), self.rows, self.decoder_lr)
            sizes = (o["observations"], *o["hidden"], o["actions"])
            encoder = mlp(sizes, o["activation"], 0.01)
        self.model["decoder"].load_state_dict(decoder.state_dict())
        self.model["mean"].load_state_dict(encoder.state_dict())
        nn.init.zeros_(self.model["spread"]["log_std"])
        late = losses[-max(1, len(losses) // 10) :]
        return {"decoder_loss": sum(late) / len(late)}


def load(task: Any, **options: Any) -> Gaussian:
    """The policy of `latent:key=value,...` for a task of vectors."""
    return for_task(Latent, task, options)
