"""A Gaussian over actions in a continuous space, with value networks as its columns where a method reads them.

`gaussian[:key=value,...]`; sizes and the scale of the states come from the task. The mean of the law may be held in
[-1, 1] by a tanh (no Jacobian: the Gaussian itself is not squashed); its log-deviation does not depend on the state.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surefoot.errors import InputError, nearest
from surefoot.policies.base import ModulePolicy
from surefoot.rollouts import Rollouts
from surefoot.specs import call

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}
LOG_ROOT = 0.5 * math.log(2 * math.pi)


def mlp(sizes: tuple[int, ...], activation: str = "tanh", last: float | None = None) -> nn.Sequential:
    """Linear layers of these sizes with an activation between them; orthogonal, the last one of gain `last`.

    `last=None` leaves PyTorch's own initialisation.
    """
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layer = nn.Linear(a, b)
        if last is not None:
            nn.init.orthogonal_(layer.weight, last if i == len(sizes) - 2 else math.sqrt(2))
            nn.init.zeros_(layer.bias)
        layers += [layer, ACTIVATIONS[activation]()] if i < len(sizes) - 2 else [layer]
    return nn.Sequential(*layers)


class Gaussian(ModulePolicy):
    """`N(mean(s), diag(e^log_std)^2)`; V(s) is added when a part first reads a value.

    Live columns: `logp`, `entropy`, `mean`, `deviation`; `value` and `next_value` (V, once there); `q` and `target_q`
    of `critics` action-value networks and of their moving averages `target <- (1 - rho) target + rho online`, taken
    after every optimizer step.

    Args:
        observations, actions: sizes of the vectors.
        hidden: widths of every network's layers.
        squash: tanh on the mean.
        log_std: its start; it never falls below `floor`.
        critics: number of action-value networks; 0 for none.
    """

    kind, unit = "gaussian", "actions"
    live: tuple[str, ...]  # pyright: ignore[reportIncompatibleVariableOverride]  (it depends on the networks)
    model: Any  # a ModuleDict, whose entries are found by name

    def __init__(
        self,
        observations: int,
        actions: int,
        hidden: tuple[int, ...] = (64, 64),
        activation: str = "tanh",
        squash: bool = False,
        log_std: float = -0.5,
        floor: float = -5.0,
        critics: int = 0,
        rho: float = 0.005,
        value: bool = False,
        lr: float = 3e-4,
    ):
        if activation not in ACTIVATIONS:
            raise InputError(f"policy gaussian: activation {activation!r}{nearest(activation, ACTIVATIONS)}")
        options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        hidden = tuple(hidden)
        nets: Any = nn.ModuleDict({"mean": mlp((observations, *hidden, actions), activation, 0.01)})
        for name in [f"{kind}{i}" for kind in ("q", "target_q") for i in range(critics)]:
            nets[name] = mlp((observations + actions, *hidden, 1), activation)
        for i in range(critics):
            nets[f"target_q{i}"].load_state_dict(nets[f"q{i}"].state_dict())
            nets[f"target_q{i}"].requires_grad_(False)
        nets["spread"] = nn.ParameterDict({"log_std": torch.full((actions,), float(log_std))})
        nets.register_buffer("centre", torch.zeros(observations))
        nets.register_buffer("scale", torch.ones(observations))
        super().__init__(nets, options, lr=lr)
        self.width, self.critics, self.rho, self.squash, self.floor = actions, critics, rho, squash, floor
        of_critics = ("q", "target_q") if critics else ()
        self.live = ("logp", "entropy", "mean", "deviation", "value", "next_value", *of_critics)
        if value:
            self.critic()

    def critic(self) -> None:
        """Make V, once."""
        if "value" not in self.model:
            o = self.options
            self.model["value"] = mlp((o["observations"], *o["hidden"], 1), o["activation"], 1.0)
            self.options["value"] = True

    def seen(self, states: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """States in units of the task's scale, within +-10."""
        return ((states - self.model.centre) / self.model.scale).clamp(-10, 10)

    def law(self, seen: Float[Tensor, "... d"]) -> tuple[Tensor, Tensor]:
        """Mean and log-deviation of the action."""
        mean = self.model["mean"](seen)
        log_std = self.model["spread"]["log_std"].clamp_min(self.floor).expand_as(mean)
        return mean.tanh() if self.squash else mean, log_std

    @torch.no_grad()
    def act(self, states: Float[Tensor, "n d"], noise: Float[Tensor, "n a"]) -> tuple[Tensor, Tensor, Tensor]:
        """The action that the noise makes (its own mean where it is 0), its log-probability, and what is done."""
        mean, log_std = self.law(self.seen(states))
        actions = mean + log_std.exp() * noise
        return actions, log_density(actions, mean, log_std), self.executed(states, actions)

    def executed(self, states: Float[Tensor, "n d"], actions: Float[Tensor, "n a"]) -> Float[Tensor, "n a"]:
        """What the environment gets for an action: the action itself."""
        return actions

    def columns(self, rollouts: Rollouts, want: set[str], temperature: float) -> dict[str, Tensor]:
        seen, out = self.seen(rollouts.states), {}
        if want & {"logp", "entropy", "mean", "deviation"}:
            mean, log_std = self.law(seen)
            out |= {"mean": mean, "deviation": log_std.exp()}
            out["logp"] = log_density(rollouts.actions, mean, log_std)
            out["entropy"] = (log_std + LOG_ROOT + 0.5).sum(-1)
        if "value" in want:
            out["value"] = self.model["value"](seen)[..., 0]
        if "next_value" in want:
            with torch.no_grad():
                out["next_value"] = self.model["value"](self.seen(rollouts.next_states))[..., 0]
        if want & {"q", "target_q"}:
            pair = torch.cat([seen, rollouts.actions], -1)
            out["q"] = self._critics("q", pair)
            with torch.no_grad():
                out["target_q"] = self._critics("target_q", pair)
        return {name: out[name] for name in want}

    def _critics(self, kind: str, pair: Float[Tensor, "n t da"]) -> Float[Tensor, "n t k"]:
        return torch.cat([self.model[f"{kind}{i}"](pair) for i in range(self.critics)], -1)

    @torch.no_grad()
    def stepped(self) -> None:
        """The target critics follow."""
        for i in range(self.critics):
            pairs = zip(self.model[f"target_q{i}"].parameters(), self.model[f"q{i}"].parameters(), strict=True)
            for target, online in pairs:
                target.lerp_(online, self.rho)


def log_density(x: Float[Tensor, "... a"], mean: Tensor, log_std: Tensor) -> Float[Tensor, "..."]:
    """Log-density of independent Gaussians, summed over the action's entries."""
    return -(0.5 * ((x - mean) * (-log_std).exp()).square() + log_std + LOG_ROOT).sum(-1)


def for_task(kind: type[Gaussian], task: Any, options: dict[str, Any]) -> Any:
    """A policy of this kind with the sizes of the task's vectors, which sees states on the task's scale."""
    where = f"policy {kind.kind!r}"
    if task is None:
        return call(kind, options, where)
    for what in ("observations", "actions", "scale"):
        if not hasattr(task, what):
            raise InputError(f"{where} needs a task of vectors (gym:..., offline:...), not {task.name!r}")
    policy = call(kind, options, where, task.observations, task.actions)
    policy.model.centre, policy.model.scale = task.scale()
    return policy


def load(task: Any, **options: Any) -> Gaussian:
    """The policy of `gaussian:key=value,...` for a task of vectors."""
    return for_task(Gaussian, task, options)
