"""The pieces of a Llama layer between its matrix products, each with a backward pass of its own.

Autograd's own chain for any of these is right, and is the plain twin in the tests; these make fewer passes over
memory and keep less of it, fewest where the loops of `kernels` are to be had. They are differentiable once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from surefoot import kernels


def rms_norm(x: Float[Tensor, "s d"], weight: Float[Tensor, "d"], eps: float) -> Float[Tensor, "s d"]:
    """`x / sqrt(mean(x^2) + eps) * weight`, each row by itself."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return F.rms_norm(x, x.shape[-1:], weight, eps)  # in one kernel, and in float32 inside
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        unit = x * scale
        slope = grad * unit
        share = (slope @ weight).div_(x.shape[-1])  # mean over d of weight * grad * unit
        for_x = (grad * weight).addcmul_(unit, share[:, None], value=-1).mul_(scale)
        return for_x, slope.sum(0) if ctx.needs_input_grad[1] else None, None


def add_norm(
    x: Float[Tensor, "s d"], delta: Float[Tensor, "s d"] | None, weight: Float[Tensor, "d"], eps: float
) -> tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]]:
    """`x + delta` (x without one), and its `rms_norm`: what stands between two products of a residual stream."""
    if kernels.applies(x) and (delta is None or kernels.applies(delta)) and kernels.applies(weight):
        return _AddNorm.apply(x, delta, weight, eps)
    x = x if delta is None else x + delta
    return x, rms_norm(x, weight, eps)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, delta, weight, eps):
        total, out, scale = kernels.norm_forward(x, delta, weight, eps)
        ctx.save_for_backward(total, weight, scale)
        ctx.set_materialize_grads(False)
        ctx.alone = delta is None
        return total.view_as(total) if ctx.alone else total, out

    @staticmethod
    @once_differentiable
    def backward(ctx, for_total, for_out):
        total, weight, scale = ctx.saved_tensors
        if for_out is None:
            return for_total, None if ctx.alone else for_total, None, None
        for_total = None if for_total is None else for_total.contiguous()
        for_x, for_weight = kernels.norm_backward(for_total, for_out.contiguous(), total, weight, scale)
        return for_x, None if ctx.alone else for_x, for_weight if ctx.needs_input_grad[2] else None, None


def attention(y: Float[Tensor, "s (h+2g)*w"], packed: kernels.Packed) -> Float[Tensor, "s h*w"]:
    """Causal attention of packed sequences, from rows that hold queries, keys and values not yet turned."""
    return _Attention.apply(y, packed)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, packed):
        out, lse = packed.attention(y)
        ctx.save_for_backward(y, out, lse)
        ctx.packed = packed
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        y, out, lse = ctx.saved_tensors
        return ctx.packed.attention_backward(y, out, lse, grad.contiguous()), None


def swiglu(y: Float[Tensor, "s f2"]) -> Float[Tensor, "s f"]:
    """`silu(gate) * up` of a row that holds the gate and then up."""
    return _SwiGLU.apply(y)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        if kernels.applies(y):
            return kernels.gated(y)
        gate, up = y.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        if kernels.applies(y):
            return kernels.gated_backward(y, grad.contiguous())
        gate, up = y.chunk(2, -1)
        out = torch.empty_like(y)
        for_gate, for_up = out.chunk(2, -1)
        torch.mul(F.silu(gate), grad, out=for_up)
        for_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
        return out


def heads(
    qkv: Float[Tensor, "s k"], cos: Float[Tensor, "s w"], sin: Float[Tensor, "s w"], queries: int, keys: int
) -> tuple[Float[Tensor, "s h w"], Float[Tensor, "s g w"], Float[Tensor, "s g w"]]:
    """Queries and keys, turned by their positions, and values, of rows that hold them in this order."""
    return _Heads.apply(qkv, cos, sin, queries, keys)


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cos, sin, queries, keys):
        ctx.save_for_backward(cos, sin)
        x = qkv.unflatten(-1, (queries + 2 * keys, -1))
        turned = torch.empty_like(x[:, : queries + keys])
        _turn(x[:, : queries + keys], cos, sin, turned)
        return turned[:, :queries], turned[:, queries:], x[:, queries + keys :].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, for_q, for_k, for_v):
        cos, sin = ctx.saved_tensors
        queries, keys = for_q.shape[1], for_k.shape[1]
        out = for_q.new_empty(len(for_q), queries + 2 * keys, for_q.shape[2])
        _turn(for_q, cos, -sin, out[:, :queries])
        _turn(for_k, cos, -sin, out[:, queries : queries + keys])
        out[:, queries + keys :] = for_v
        return out.flatten(1), None, None, None, None


def _turn(x: Float[Tensor, "s h w"], cos: Float[Tensor, "s w"], sin: Float[Tensor, "s w"], out: Tensor) -> None:
    """Rotary embedding: `x cos + (-second half, first half) sin`, into `out`."""
    half = x.shape[-1] // 2
    cos, sin = cos[:, None], sin[:, None]
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])


def take(x: Float[Tensor, "s *k"], rows: Int[Tensor, "r"]) -> Float[Tensor, "r *k"]:
    """Different rows of x (an index that occurs twice would lose a gradient)."""
    return _Rows.apply(x, rows, True)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows, different):
        ctx.save_for_backward(rows)
        ctx.shape, ctx.different = x.shape, different
        return x.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        out = grad.new_zeros(ctx.shape)
        gather = out.index_copy_ if ctx.different else out.index_add_
        return gather(0, *ctx.saved_tensors, grad), None, None


def put(x: Float[Tensor, "r *k"], rows: Int[Tensor, "r"], size: int) -> Float[Tensor, "s *k"]:
    """Rows of x at their places among `size` rows that are zero otherwise (autograd's own backward is good)."""
    return x.new_zeros(size, *x.shape[1:]).index_copy(0, rows, x)


def repeat(x: Float[Tensor, "m *k"], rows: Int[Tensor, "n"]) -> Float[Tensor, "n *k"]:
    """Rows of x, any of them any number of times; x is few large rows."""
    return _Rows.apply(x, rows, False)
