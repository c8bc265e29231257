"""No silent NaN: the first number that is not finite is named, with its step, its column and its row."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from surefoot.errors import GuardStop
from surefoot.rollouts import Rollouts


def check_column(rollouts: Rollouts, name: str, step: int) -> None:
    """Stop where a column is not finite on a step that trains."""
    values = rollouts[name]
    bad = ~values.isfinite()
    if values.ndim == 2 and "mask" in rollouts:
        bad = bad & rollouts.mask
    if bad.any():
        where = bad.nonzero()[0].tolist()
        place = f"trajectory {where[0]}" + (f", step {where[1]}" if len(where) > 1 else "")
        raise GuardStop(f"step {step}: {name} is {values[tuple(where)].item()} at {place}; expected a finite number")


def check_loss(loss: Tensor, per_step: Tensor, weights: Tensor, rollouts: Rollouts, step: int) -> None:
    """Stop where the loss is not finite, naming the live column it came from."""
    if torch.isfinite(loss):
        return
    for name in ("logp", "entropy", "value", "old_logp", "ref_logp", "advantage"):
        if name in rollouts:
            check_column(rollouts, name, step)
    bad = (~per_step.isfinite()).nonzero()
    place = f", first at {bad[0].tolist()}" if len(bad) else ""
    raise GuardStop(f"step {step}: the loss is {loss.item()}{place}; expected a finite number")


def check_gradient(norm: Tensor, parameters: Iterable[nn.Parameter], names: Iterable[str], step: int) -> None:
    """Stop where the gradient is not finite, naming the first parameter that has such an entry."""
    if torch.isfinite(norm):
        return
    for name, parameter in zip(names, parameters, strict=False):
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise GuardStop(f"step {step}: the gradient of {name} is not finite; the weights are left as they were")
    raise GuardStop(f"step {step}: the gradient's norm is {norm.item()}; the weights are left as they were")
