"""How a gradient becomes a step: optimizers as parts (`update.optimizer`), and the pure update functions behind them.

    AdamW   every parameter by itself
    Muon    the momentum of a matrix, replaced by its orthogonal polar factor (Jordan et al. 2024)
    Aro     normalised in a rotated frame that is learnt (arXiv 2602.09006)

Muon and Aro move the matrices inside a network; embeddings, heads, norms and biases go by AdamW. All work on the last
two axes of [... m n] in float32, and every step has the root mean square that AdamW's has (`matched`), so that one
learning rate serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.parts import Part

Matrix = Float[Tensor, "... m n"]
OUTSIDE = ("embed", "lm_head", "value_head")  # matrices that are no map between hidden states


def row_norm(x: Matrix, eps: float = 1e-8) -> Matrix:
    """Each row scaled to root mean square 1: `sqrt(n) X_i / ||X_i||`.

    >>> row_norm(torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
    tensor([[1.3416, 0.4472],
            [0.0000, 1.4142]])
    """
    return x * (x.shape[-1] ** 0.5 / (x.norm(dim=-1, keepdim=True) + eps))


def sign(x: Matrix) -> Matrix:
    """The sign of each entry.

    >>> sign(torch.tensor([[3.0, -1.0, 0.0]]))
    tensor([[ 1., -1.,  0.]])
    """
    return x.sign()


def sinkhorn(x: Matrix, rounds: int = 5, eps: float = 1e-8) -> Matrix:
    """Rows, then columns, scaled to length 1, and so on: `rounds` times (SinkGD).

    >>> sinkhorn(torch.tensor([[4.0, 0.0], [3.0, 2.0]]), rounds=1)
    tensor([[0.7687, 0.0000],
            [0.6396, 1.0000]])
    """
    for _ in range(rounds):
        x = x / (x.norm(dim=-1, keepdim=True) + eps)
        x = x / (x.norm(dim=-2, keepdim=True) + eps)
    return x


def polar(x: Matrix, steps: int = 5) -> Matrix:
    """Nearly `U V^T` of the singular value decomposition, by Newton-Schulz (Muon's: values of about .7 to 1.2).

    >>> polar(torch.tensor([[2.0, 0.0], [0.0, 1.0]])).round(decimals=2)
    tensor([[0.6900, 0.0000],
            [0.0000, 1.1100]])
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    flip = x.shape[-2] > x.shape[-1]
    x = x.mT if flip else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if flip else x


def gain(rotation: Float[Tensor, "... m m"], momentum: Matrix, base: Callable[[Tensor], Tensor]) -> Tensor:
    """`J(R) = <M, R f(R^T M)>`: by how much the loss falls to first order (ARO's objective).

    >>> gain(torch.eye(2), torch.tensor([[3.0, -1.0], [0.0, 2.0]]), sign)
    tensor(6.)
    """
    return (momentum * (rotation @ base(rotation.mT @ momentum))).sum((-2, -1))


def rotated(
    momentum: Matrix, rotation: Float[Tensor, "... m m"], base: Callable[[Tensor], Tensor]
) -> tuple[Matrix, Float[Tensor, "... m m"]]:
    """ARO's step and new rotation: `R' = Q of QR(M f(R^T M)^T)`, `U = R' f(R'^T M)`.

    The signs of R's columns are QR's and change nothing, as f commutes with flips of rows. For n < m transpose first:
    `M f^T` would not have full rank, and some columns of R would be arbitrary.

    >>> u, r = rotated(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.eye(2), row_norm)
    >>> u
    tensor([[ 1.3444,  0.3233],
            [-0.1872,  1.4329]])
    """
    new = torch.linalg.qr(momentum @ base(rotation.mT @ momentum).mT)[0]
    return new @ base(new.mT @ momentum), new


def matched(update: Matrix, rms: float = 0.2, eps: float = 1e-12) -> Matrix:
    """The update scaled to a root mean square over the matrix: 0.2 is what AdamW's steps have in practice.

    >>> matched(torch.tensor([[3.0, -3.0]]))
    tensor([[ 0.2000, -0.2000]])
    """
    return update * (rms / update.square().mean((-2, -1), keepdim=True).sqrt().clamp_min(eps))


class Matrices(torch.optim.Optimizer):
    """Steps matrices by `rule(momentum, state) -> direction`, and the groups with `matrix: False` by AdamW.

    `M = beta M + (1 - beta) G` for matrices; decay is decoupled: `W <- (1 - lr decay) W - lr U`.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], rule: Callable[[Tensor, dict], Tensor], **defaults: Any):
        super().__init__([dict(g) for g in groups], defaults)
        self.rule = rule

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, grad = self.state[p], p.grad.float()
                step = self._matrix(grad, state, group) if group["matrix"] else _adam(grad, state, group)
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step.to(p.dtype), alpha=-group["lr"])

    def _matrix(self, grad: Tensor, state: dict[str, Tensor], group: Mapping[str, Any]) -> Tensor:
        momentum = state.setdefault("momentum", torch.zeros_like(grad))
        momentum.lerp_(grad, 1 - group["momentum"])
        flip = grad.shape[0] > grad.shape[1]
        update = self.rule(momentum.mT if flip else momentum, state)
        return matched(update.mT if flip else update)


def _adam(grad: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:
    """AdamW's step, bias-corrected (arXiv 1711.05101)."""
    count = state["count"] = state.get("count", 0) + 1
    (b1, b2), eps = group["betas"], 1e-8
    mean = state.setdefault("mean", torch.zeros_like(grad)).lerp_(grad, 1 - b1)
    square = state.setdefault("square", torch.zeros_like(grad)).lerp_(grad.square(), 1 - b2)
    return mean / (1 - b1**count) / ((square / (1 - b2**count)).sqrt() + eps)


@dataclass(frozen=True)
class AdamW(Part):
    """AdamW; rate, betas and decay are the trainer's settings."""

    def __call__(
        self, groups: Sequence[Mapping[str, Any]], names: Mapping[int, str], **settings: Any
    ) -> torch.optim.Optimizer:
        """The optimizer of these parameter groups.

        Args:
            names: name of each parameter, by its `id`.
            settings: `lr`, `betas`, `weight_decay`.
        """
        return torch.optim.AdamW([dict(g) for g in groups], fused=True, **settings)


@dataclass(frozen=True)
class _ByMatrix(Part):
    momentum: float = field(default=0.95, kw_only=True)

    def direction(self, momentum: Tensor, state: dict[str, Tensor]) -> Tensor:
        """From the momentum of one matrix, the smaller side first, to its update, of any scale."""
        raise NotImplementedError

    def __call__(
        self, groups: Sequence[Mapping[str, Any]], names: Mapping[int, str], **settings: Any
    ) -> torch.optim.Optimizer:
        """As `AdamW`; the matrices inside the network by `direction`."""
        split = []
        for group in groups:
            inner = [p for p in group["params"] if is_inner(p, names.get(id(p), ""))]
            kept = {id(p) for p in inner}
            outer = [p for p in group["params"] if id(p) not in kept]
            split += [dict(group) | {"params": ps, "matrix": m} for ps, m in ((inner, True), (outer, False)) if ps]
        return Matrices(split, self.direction, momentum=self.momentum, **settings)


def is_inner(parameter: Tensor, name: str) -> bool:
    """A matrix between hidden states, by its shape and its name.

    >>> [is_inner(torch.zeros(4, 4), name) for name in ("layers.0.mlp.up_proj", "model.embed_tokens")]
    [True, False]
    """
    return parameter.ndim == 2 and min(parameter.shape) > 1 and not any(word in name for word in OUTSIDE)


@dataclass(frozen=True)
class Muon(_ByMatrix):
    """The momentum's polar factor (`polar`).

    Attributes:
        steps: of Newton-Schulz.
    """

    steps: int = 5

    def direction(self, momentum: Tensor, state: dict[str, Tensor]) -> Tensor:
        return polar(momentum, self.steps)


@dataclass(frozen=True)
class Aro(_ByMatrix):
    """ARO (arXiv 2602.09006): `base` in a rotated frame that one QR a step refreshes (`rotated`).

    Attributes:
        base: `row_norm`, `sign` or `sinkhorn`; all must commute with flips of rows.
        rotate: false leaves the frame alone, which is plain normalised descent.
    """

    base: Callable[[Tensor], Tensor] = row_norm
    rotate: bool = True

    def direction(self, momentum: Tensor, state: dict[str, Tensor]) -> Tensor:
        if not self.rotate:
            return self.base(momentum)
        before = state.get("rotation")
        if before is None:
            before = torch.eye(momentum.shape[-2], dtype=momentum.dtype, device=momentum.device)
        update, state["rotation"] = rotated(momentum, before, self.base)
        return update
