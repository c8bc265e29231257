"""Token log-probabilities and entropies straight from hidden states, never holding [N, T, V].

Logits of `chunk` tokens at a time are made, used, and made again in the backward pass. Peak memory beyond the inputs
is `chunk * V`, whatever N and T.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

CELLS = 1 << 24  # logits held at a time: 64 MB of float32


def token_logp_plain(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    tokens: Int[Tensor, "n"],
    *,
    bias: Float[Tensor, "v"] | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
):
    """The slow twin: all logits at once. Same arguments and results as `token_logp`."""
    logp = (F.linear(hidden, weight, bias).float() / temperature).log_softmax(-1)
    chosen = logp.gather(-1, tokens[:, None])[:, 0]
    return (chosen, -(logp.exp() * logp).sum(-1)) if entropy else chosen


def token_logp(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    tokens: Int[Tensor, "n"],
    *,
    bias: Float[Tensor, "v"] | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int | None = None,
):
    """`log softmax((h W^T + b) / temperature)[token]` of every row, and the entropy (nats) if asked for.

    Softmax is taken in float32 whatever the dtype of `hidden`. Differentiable in hidden, weight and bias.

    Args:
        chunk: rows at a time; by default as many as fit `CELLS` logits. If all fit, the plain twin is used.

    Returns:
        logp [n], or (logp [n], entropy [n]).
    """
    rows = chunk or max(1, CELLS // len(weight))
    if len(hidden) <= rows:
        return token_logp_plain(hidden, weight, tokens, bias=bias, temperature=temperature, entropy=entropy)
    logp, uncertainty = _Chunked.apply(hidden, weight, bias, tokens, temperature, rows, entropy)
    return (logp, uncertainty) if entropy else logp


class _Chunked(torch.autograd.Function):
    """Forward keeps one log-partition a row; backward makes each chunk's logits again."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, tokens, temperature, rows, entropy):
        logp = hidden.new_empty(len(hidden), dtype=torch.float32)
        uncertainty = torch.zeros_like(logp)
        partition = torch.empty_like(logp)
        for piece in _slices(len(hidden), rows):
            logits = F.linear(hidden[piece], weight, bias).float().div_(temperature)
            partition[piece] = logits.logsumexp(-1)
            logp[piece] = logits.gather(-1, tokens[piece, None])[:, 0] - partition[piece]
            if entropy:  # H = log Z - E[logit]
                p = (logits - partition[piece, None]).exp_()
                uncertainty[piece] = partition[piece] - (p * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, tokens, partition, uncertainty)
        ctx.temperature, ctx.rows, ctx.entropy = temperature, rows, entropy
        return logp, uncertainty

    @staticmethod
    def backward(ctx, grad_logp, grad_entropy):
        hidden, weight, bias, tokens, partition, uncertainty = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = (
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and ctx.needs_input_grad[2] else None
        )
        for piece in _slices(len(hidden), ctx.rows):
            logp = F.linear(hidden[piece], weight, bias).float().div_(ctx.temperature).sub_(partition[piece, None])
            p = logp.exp()
            if ctx.entropy:  # dH/dlogit = -p (log p + H)
                g = -p * (logp + uncertainty[piece, None]) * grad_entropy[piece, None]
                g.addcmul_(p, grad_logp[piece, None], value=-1)
            else:
                g = p.mul_(-grad_logp[piece, None])
            g.scatter_add_(1, tokens[piece, None], grad_logp[piece, None].to(g.dtype))
            g.div_(ctx.temperature)
            if grad_hidden is not None:
                grad_hidden[piece] = (g.to(weight.dtype) @ weight).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight.addmm_(g.t(), hidden[piece].float())
            if grad_bias is not None:
                grad_bias += g.sum(0)
        cast = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, cast, None if grad_bias is None else grad_bias.to(weight.dtype), None, None, None, None


def _slices(total: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]
