"""Matrix products in float32 on a CPU, through oneDNN where this torch has it.

torch gives float32 products to MKL, which on AMD's processors does without AVX-512: oneDNN, which torch carries for
other purposes, is then more than twice as fast with the same float32 numbers and sums. On other devices and in other
types, and for a few rows, the product is torch's own (the plain twin, `F.linear`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FEW = 12  # rows from which oneDNN's product is worth its longer call
SMALL = 1 << 18  # numbers in a weight that the caches hold, so that a call's own cost is what counts


def _op(name: str) -> Any:
    space = torch.ops.mkldnn
    return getattr(space, name) if torch.backends.mkldnn.is_available() and hasattr(space, name) else None


_linear, _reorder = _op("_linear_pointwise"), _op("_reorder_linear_weight")


def available(x: Tensor) -> bool:
    """Whether oneDNN can make products with `x`.

    >>> available(torch.zeros(2, 3, dtype=torch.float64))
    False
    """
    return _linear is not None and x.dtype == torch.float32 and x.device.type == "cpu" and x.ndim == 2


def product(
    x: Float[Tensor, "s k"], weight: Float[Tensor, "n k"], bias: Float[Tensor, "n"] | None = None
) -> Float[Tensor, "s n"]:
    """`x W^T + b`, differentiable any number of times. The plain twin is `F.linear`.

    >>> product(torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.tensor([0.5, 0.0]))
    tensor([[1.5000, 2.0000]])
    """
    if not available(x) or weight.dtype != x.dtype or _few(len(x), weight):
        return F.linear(x, weight, bias)
    return _Product.apply(x, weight, bias)


def _call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN takes the numbers as they lie, so they must lie densely (x it copies itself)."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()
    return _linear(x, weight, None if bias is None else bias.contiguous(), "none", [], "")


def _few(rows: int, weight: Tensor) -> bool:
    return rows == 0 or rows < FEW and weight.numel() <= SMALL


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _call(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if for_x else None,
            outer(grad, x) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


def outer(grad: Float[Tensor, "s n"], x: Float[Tensor, "s k"]) -> Float[Tensor, "n k"]:
    """`grad^T x`, a weight's gradient. oneDNN copies its first operand if it lies the other way: the narrower one.

    >>> outer(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0], [5.0]]))
    tensor([[ 3.],
            [11.]])
    """
    if grad.shape[1] <= x.shape[1]:
        return product(grad.t(), x.t())
    return product(x.t(), grad.t()).t().contiguous()


class Frozen:
    """A weight that many products without gradient are made with: laid out for them once.

    Args:
        rows: about how many rows the products will have.
        dtype: of the products' operands (bfloat16 halves what is read); the results are in the weight's own.
    """

    def __init__(
        self,
        weight: Float[Tensor, "n k"],
        bias: Float[Tensor, "n"] | None = None,
        rows: int = 64,
        dtype: torch.dtype = torch.float32,
    ):
        self.width, self.dtype = weight.shape[1], dtype
        self.bias = None if bias is None else bias.to(dtype).contiguous()
        self.plain, self.packed = weight, None
        if available(weight) and _reorder is not None:
            self.packed = _reorder(weight.to(dtype), rows)
            if weight.numel() > SMALL or dtype != weight.dtype:
                self.plain = None

    def __call__(self, x: Float[Tensor, "s k"]) -> Float[Tensor, "s n"]:
        """`x W^T + b`."""
        if self.packed is None or self.plain is not None and len(x) < FEW:
            return F.linear(x, self.plain, self.bias)  # pyright: ignore[reportArgumentType]
        return _linear(x.to(self.dtype), self.packed, self.bias, "none", [], "").to(x.dtype)
