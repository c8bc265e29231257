"""One random batch in float64 for all comparisons, and how Surefoot turns parts into a scalar loss and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from surefoot.objective.aggregation import here
from surefoot.parts import Part
from surefoot.rollouts import Rollouts


def make(seed: int = 0, n: int = 8, t: int = 7, size: int = 4, spread: float = 0.3, holes: bool = True) -> Rollouts:
    """`n` trajectories in groups of `size`, with policies `spread` apart and finite garbage off the mask."""
    g = torch.Generator().manual_seed(seed)
    logp = -torch.rand(n, t, generator=g, dtype=torch.float64) * 3 - 0.05
    length = torch.randint(2, t + 1, (n,), generator=g)
    mask = torch.arange(t) < length[:, None]
    if holes:  # tool output amid the response
        mask = mask & (torch.rand(n, t, generator=g) > 0.2)
        mask[:, 0] = True
    near = [(logp + spread * torch.randn(n, t, generator=g, dtype=torch.float64)).clamp(max=-0.01) for _ in range(2)]
    advantage = torch.randn(n, 1, generator=g, dtype=torch.float64).expand(n, t)
    return Rollouts(
        {
            "logp": logp,
            "old_logp": near[0],
            "ref_logp": near[1],
            "mask": mask,
            "group": torch.arange(n) // size,
            "reward": torch.randint(0, 3, (n,), generator=g).double() + 0.25 * torch.arange(n).double() % 1,
            "advantage": advantage * mask,
            "value": torch.randn(n, t, generator=g, dtype=torch.float64),
            "old_value": torch.randn(n, t, generator=g, dtype=torch.float64),
            "returns": torch.randn(n, t, generator=g, dtype=torch.float64),
        }
    )


def ours(table: Rollouts, aggregate: Part, *parts: Part, live: str = "logp", total=here) -> tuple[Tensor, Tensor]:
    """The trainer's scalar loss of the parts, and its gradient in the live column."""
    leaf = table[live].clone().requires_grad_()
    table = table.having(**{live: leaf})
    common = aggregate(table, total)
    loss = table[live].new_zeros(())
    for part in parts:
        term, own = part(table), getattr(part, "aggregate", None)
        weights = own(table, total) if own else common
        loss = loss + (weights * term.where(weights != 0, 0.0) if term.ndim == 2 else weights.sum(1) * term).sum()
    loss.backward()
    return loss.detach(), leaf.grad


def theirs(table: Rollouts, loss_of, live: str = "logp") -> tuple[Tensor, Tensor]:
    """A peer's scalar loss `loss_of(live column)`, and its gradient."""
    leaf = table[live].clone().requires_grad_()
    loss = loss_of(leaf)
    loss.backward()
    return loss.detach(), leaf.grad


def agree(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], rtol: float = 1e-6) -> None:
    """Losses and gradients agree; aggregation weights are float32, hence 1e-6 and not 1e-12."""
    assert b[1].abs().max() > 0
    torch.testing.assert_close(a[0].double(), b[0].double(), rtol=rtol, atol=1e-9)
    torch.testing.assert_close(a[1], b[1], rtol=rtol, atol=1e-9)
