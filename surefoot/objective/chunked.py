"""Token log-probabilities and entropies straight from hidden states, never holding [N, T, V].

Logits of `chunk` tokens at a time are made, used, and made again in the backward pass. Peak memory beyond the inputs
and their gradients is a few times `chunk * V` numbers, whatever N and T; by default that product is a constant.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from surefoot.objective.entropy import entropy as shannon
from surefoot.objective.groups import working
from surefoot.objective.products import product

CELLS = 1 << 24  # logits held at a time: 64 MB of float32
FORBIDDEN = -1e4  # stands for a log-probability of -inf, whose product with its probability would be nan


def token_logp_plain(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    tokens: Int[Tensor, "n"],
    *,
    bias: Float[Tensor, "v"] | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
) -> Float[Tensor, "n"] | tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """The plain twin: all logits at once. Same arguments and results as `token_logp`.

    >>> token_logp_plain(torch.eye(2), torch.eye(2), torch.tensor([0, 0]))
    tensor([-0.3133, -1.3133])
    """
    logits = working(product(hidden, weight, bias))
    logp = (logits if temperature == 1 else logits / temperature).log_softmax(-1)
    chosen = logp.gather(-1, tokens[:, None])[:, 0]
    return (chosen, shannon(logp)) if entropy else chosen


def token_logp(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    tokens: Int[Tensor, "n"],
    *,
    bias: Float[Tensor, "v"] | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int | None = None,
) -> Float[Tensor, "n"] | tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """`log softmax((h W^T + b) / temperature)[token]` of every row, and the entropy (nats) if asked for.

    The product h W^T is made in the dtype of `hidden`, as a model's own head makes it; the softmax is taken in
    float32 (float64 for float64), and gradients of weight and bias are summed over chunks in that. Differentiable
    once in hidden, weight and bias. A bias of -inf forbids a candidate: it counts nothing and gets no gradient.

    Args:
        chunk: rows at a time; by default as many as fit `CELLS` logits. If all fit, the plain twin is used: there
            is nothing to save then, and its backward pass need not make the logits again.

    Returns:
        logp [n], or (logp [n], entropy [n]).

    >>> h, w = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    >>> token_logp(h, w, torch.tensor([0, 0]), entropy=True)
    (tensor([-0.5514, -1.5514]), tensor([0.9753, 0.9753]))
    """
    rows = chunk or max(1, CELLS // len(weight))
    if len(hidden) <= rows:
        return token_logp_plain(hidden, weight, tokens, bias=bias, temperature=temperature, entropy=entropy)
    logp, uncertainty = _Chunked.apply(hidden, weight, bias, tokens, temperature, rows, entropy)
    return (logp, uncertainty) if entropy else logp


@torch.no_grad()
def log_collision(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    *,
    bias: Float[Tensor, "v"] | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Float[Tensor, "n"]:
    """`log sum_v pi(v)^2`, the chance that two draws agree, without gradient; a chunk of logits at a time.

    Args:
        chunk: rows at a time; by default as many as fit `CELLS` logits.

    >>> log_collision(torch.zeros(1, 2), torch.eye(4)[:, :2]).exp()
    tensor([0.2500])
    """
    out = working(hidden.new_empty(len(hidden)))
    for piece in _slices(len(hidden), chunk or max(1, CELLS // len(weight))):
        logits = working(product(hidden[piece], weight, bias)) / temperature
        out[piece] = (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)
    return out


class _Chunked(torch.autograd.Function):
    """Forward keeps one log-partition (and entropy) a row; backward makes each chunk's logits again.

    With p = softmax(z): d log p_a / dz = onehot(a) - p and dH / dz = -p (log p + H).
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, tokens, temperature, rows, entropy):
        partition = working(hidden.new_empty(len(hidden)))
        logp, uncertainty = torch.empty_like(partition), torch.zeros_like(partition)
        for piece in _slices(len(hidden), rows):
            logits = _logits(hidden[piece], weight, bias, temperature)
            partition[piece] = logits.logsumexp(-1)
            logp[piece] = logits.gather(-1, tokens[piece, None])[:, 0] - partition[piece]
            if entropy:
                every = logits.sub_(partition[piece, None]).clamp_(min=FORBIDDEN)
                uncertainty[piece] = -torch.linalg.vecdot(every.exp(), every)
        ctx.save_for_backward(hidden, weight, bias, tokens, partition, uncertainty)
        ctx.temperature, ctx.rows, ctx.entropy = temperature, rows, entropy
        return logp, uncertainty

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logp, grad_entropy):
        hidden, weight, bias, tokens, partition, uncertainty = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=partition.dtype) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=partition.dtype) if for_bias else None
        for piece in _slices(len(hidden), ctx.rows):
            every = _logits(hidden[piece], weight, bias, ctx.temperature).sub_(partition[piece, None])
            up = grad_logp[piece, None] / ctx.temperature
            if ctx.entropy:  # -p (up + slope (log p + H)), and 0 where p is
                slope = grad_entropy[piece, None] / ctx.temperature
                p = every.clamp_(min=FORBIDDEN).exp()
                grad = every.mul_(-slope).sub_(up + slope * uncertainty[piece, None]).mul_(p)
            else:
                grad = every.exp_().mul_(-up)
            grad.scatter_add_(1, tokens[piece, None], up)
            if grad_hidden is not None:
                grad_hidden[piece] = product(grad.to(weight.dtype), weight.t())
            if grad_weight is not None:
                grad_weight += product(grad.t(), hidden[piece].to(grad.dtype).t())
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """`(h W^T + b) / temperature` in float32, or float64 for float64; a tensor of its own, to be changed in place."""
    logits = working(product(hidden, weight, bias))
    return logits if temperature == 1 else logits.div_(temperature)


def _slices(total: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, total)) for i in range(0, total, size)]
