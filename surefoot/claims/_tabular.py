"""Tabular policies that learn by a method's own parts: the trainer's loop, on logits that are a table, with plain SGD.

For claims about an algorithm: no language model in between, exact distributions at hand, milliseconds a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.method import UPDATE_SLOTS, Method
from surefoot.objective.divergences import REVERSE_KL, f_divergence
from surefoot.objective.entropy import entropy
from surefoot.rollouts import LIVE, Rollouts

_READ_BY = {"kl": {"old_kl", "now_kl"}, "entropy": {"old_entropy", "now_entropy", "entropy"}, "logits": {"logits"}}


@dataclass
class Table:
    """A softmax policy over A actions in each of S states.

    Attributes:
        weights: [S, A], or [F, A] with features.
        features: [S, F]; logits are `features @ weights`. None: the weights are the logits.
        reference: the log-probabilities it started with [S, A].
    """

    weights: Float[Tensor, "f a"]
    features: Float[Tensor, "s f"] | None = None
    reference: Float[Tensor, "s a"] = field(init=False)

    def __post_init__(self):
        self.weights = self.weights.clone().requires_grad_()
        self.reference = self.log_policy().detach()

    def log_policy(self, states: Int[Tensor, "n t"] | None = None) -> Tensor:
        """Log-probabilities of all actions, in the given states or in all."""
        if self.features is None:
            rows = self.weights if states is None else self.weights[states]
            return rows.log_softmax(-1)
        return ((self.features if states is None else self.features[states]) @ self.weights).log_softmax(-1)

    @torch.no_grad()
    def policy(self) -> Float[Tensor, "s a"]:
        return self.log_policy().exp()

    @torch.no_grad()
    def entropy(self) -> Float[Tensor, "s"]:
        return entropy(self.log_policy())

    @torch.no_grad()
    def draw(self, states: Int[Tensor, "n"], generator: torch.Generator) -> Int[Tensor, "n"]:
        """One action in each of the states."""
        return torch.multinomial(self.log_policy(states).exp(), 1, generator=generator)[:, 0]

    def columns(self, states: Int[Tensor, "n t"], actions: Int[Tensor, "n t"], want: set[str]) -> dict[str, Tensor]:
        """`logp`, and `entropy`, `kl` and `logits` where they are wanted."""
        log_policy = self.log_policy(states)
        out = {"logp": log_policy.gather(-1, actions[..., None])[..., 0]}
        made = {
            "entropy": lambda: entropy(log_policy),
            "kl": lambda: f_divergence(log_policy, self.reference[states], REVERSE_KL),
            "logits": lambda: log_policy,
        }
        return out | {name: made[name]() for name in want}


def trajectories(
    actions: Int[Tensor, "n t"],
    reward: Float[Tensor, "n"],
    group: Int[Tensor, "n"],
    mask: Bool[Tensor, "n t"] | None = None,
) -> Rollouts:
    """The judged table of these trajectories, one turn a step; `mask` says which steps there are (all by default)."""
    n, t = actions.shape
    mask = torch.ones(n, t, dtype=torch.bool) if mask is None else mask
    return Rollouts(
        {
            "tokens": actions,
            "mask": mask,
            "present": mask,
            "turn": torch.arange(t).expand(n, t),
            "group": group,
            "reward": reward,
            "correct": reward > 0.5,
            "truncated": torch.zeros(n, dtype=torch.bool),
        },
        rewards={"accuracy": reward},
    )


def learn(method: Method, table: Table, states: Int[Tensor, "n t"], batch: Rollouts, lr: float) -> None:
    """One batch: credit, then `method.update.epochs` steps of SGD on the method's loss over the whole batch."""
    actions, reads = batch.tokens, set(method.readers())
    want = {name for name, columns in _READ_BY.items() if columns & reads}

    @torch.no_grad()
    def fixed(prefix: str) -> dict[str, Tensor]:
        found = table.columns(states, actions, want - {"logits"})
        return {f"{prefix}_{k}": v for k, v in found.items()}

    with torch.no_grad():
        ref = table.reference[states].gather(-1, actions[..., None])[..., 0]
        old, log_policy = fixed("old"), table.log_policy(states)
        old |= {column: make(log_policy, actions) for column, make in method.statistics().items()}
        batch = batch.having(None, None, ref_logp=ref, rollout_logp=old["old_logp"], **old)
        for slot in ("reward", "advantage"):
            made = getattr(method, slot)(batch)
            batch = batch.having(**(made if isinstance(made, dict) else {slot: made}))
        for _, part in method.parts():
            if hasattr(part, "observe"):
                part.observe(batch)  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(method.update.epochs):
        if any(column.startswith("now_") for column in reads):
            batch = batch.having(None, None, **fixed("now"))
        for _, part in method.parts():
            if hasattr(part, "prepare"):
                part.prepare(batch)  # pyright: ignore[reportAttributeAccessIssue]
        (gradient,) = torch.autograd.grad(loss(method, table, states, batch, want), table.weights)
        with torch.no_grad():
            table.weights -= lr * gradient


def loss(method: Method, table: Table, states: Int[Tensor, "n t"], batch: Rollouts, want: set[str]) -> Tensor:
    """The method's loss of a batch that has its fixed columns."""
    live = table.columns(states, batch.tokens, want)
    batch = batch.having(None, None, **{k: v for k, v in live.items() if k in LIVE})
    common, total = method.aggregate(batch), torch.zeros(())
    for path, part in method.parts():
        if path.split(".")[0] in UPDATE_SLOTS and path != "aggregate":
            own: Any = getattr(part, "aggregate", None)
            weights, term = own(batch) if own else common, part(batch)
            total = total + (weights * term if term.ndim == 2 else weights.sum(1) * term).sum()
    return total


def control(method: Method) -> Method:
    """The method after its controllers have moved its fields, as after every step of training."""
    for path, part in list(method.parts()):
        if path.startswith("controllers."):
            for target, value in part({}).items():
                method = method.set(target, value)
    return method


def entropy_at(reward: Sequence[float], nats: Sequence[float], level: float) -> float:
    """Entropy when the mean reward first passes `level`; NaN where it never does."""
    passed = np.asarray(reward) >= level
    return float(np.asarray(nats)[passed.argmax()]) if passed.any() else float("nan")


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error."""
    x = np.asarray(values, float)
    return float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0


def over_seeds(name: str, values: Sequence[float], **more: Any) -> dict[str, Any]:
    """A measured row: the mean over seeds with its 95 % half width (two standard errors)."""
    mean, error = mean_and_spread(values)
    return {"name": name, "value": mean, "spread": [mean - 2 * error, mean + 2 * error], "seeds": len(values), **more}


def runs(run: Callable[[int], Any], seeds: Sequence[int]) -> list[Any]:
    """`run(seed)` of every seed, on one thread (tables are too small to share out)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [run(seed) for seed in seeds]
    finally:
        torch.set_num_threads(threads)


def draw_speed_and_entropy(stem: Path, found: Mapping[str, Sequence[Any]], batches: str, nats: str) -> Path:
    """Success by batch, and entropy by success, of courses that have both; means over seeds. `stem` has no suffix."""
    from surefoot.report.figures import COLOURS, canvas, save

    with canvas(9.2, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        for (name, courses), colour in zip(found.items(), COLOURS, strict=False):
            success = np.mean([c.success for c in courses], axis=0)
            left.plot(success, color=colour, label=name)
            right.plot(success, np.mean([c.entropy for c in courses], axis=0), color=colour)
        left.set(xlabel=batches, ylabel="success", title="Speed")
        right.set(xlabel="success", ylabel=nats, title="Entropy at equal success")
        left.legend(fontsize=7)
        return save(figure, stem)[0]
