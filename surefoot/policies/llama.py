"""Llama-architecture models as a function of packed tokens, with prompts computed once for their whole group.

Hugging Face's forward pays for padding, for one mask a call and for each prompt once per trajectory. Here the dense
layers see packed tokens only, and attention is a callback that knows which tokens belong together: prefill, decoding
and scoring with gradient are three such callbacks. Products go through `objective.products`, what stands between them
through `policies.pieces`. The slow twin is the Hugging Face forward itself (`CausalLM.score` with `fast=False`), and
tests hold the two together in values and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from surefoot import kernels
from surefoot.errors import InputError
from surefoot.objective.products import Frozen, available, outer, product
from surefoot.policies import pieces

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def supported(model: nn.Module) -> bool:
    """Whether `model` is a plain Llama that this file computes (LoRA-wrapped linear layers included)."""
    config = getattr(model, "config", None)
    return (
        getattr(config, "model_type", None) == "llama"
        and getattr(config, "hidden_act", None) == "silu"
        and getattr(config, "attention_dropout", 0) == 0
        and getattr(config, "pretraining_tp", 1) == 1
    )


def backbone(model: Any) -> Any:
    """The decoder under the language-model head, whether or not adapters are wrapped around it."""
    if hasattr(model, "get_base_model"):  # adapters (peft)
        model = model.get_base_model()
    while not hasattr(model, "embed_tokens"):
        model = model.model
    return model


def _inward(module: Any) -> tuple[list[Any], list[Any]]:
    """The linear maps of a layer that read the same rows: queries, keys and values; gate and up."""
    a, m = module.self_attn, module.mlp
    return [a.q_proj, a.k_proj, a.v_proj], [m.gate_proj, m.up_proj]


def _plain(modules: Sequence[Any]) -> bool:
    """Whether the maps are only their weights: no adapters, no hooks."""
    return all(type(m) is nn.Linear and not m._forward_hooks and not m._forward_pre_hooks for m in modules)


def join(model: Any) -> Any:
    """Lay weights that read the same rows one after another in memory, so that `joined` need not copy them.

    Parameters stay what they are (names, shapes, identity); only where their numbers lie changes.
    """
    for module in backbone(model).layers:
        for maps in _inward(module):
            if _plain(maps) and len({m.weight.dtype for m in maps}) == 1:
                whole = torch.cat([m.weight.detach() for m in maps])
                for m, rows in zip(maps, whole.split([m.out_features for m in maps]), strict=True):
                    m.weight.data = rows
    return model


def joined(weights: Sequence[Tensor]) -> Tensor:
    """The weights below each other: a view where they lie so already (`join`), else a copy; without gradient."""
    first = weights[0]
    here, at = first.untyped_storage().data_ptr(), first.storage_offset()
    for w in weights:
        if w.untyped_storage().data_ptr() != here or w.storage_offset() != at or not w.is_contiguous():
            return torch.cat([w.detach() for w in weights])
        at += w.numel()
    return first.detach().as_strided((sum(map(len, weights)), first.shape[1]), first.stride())


class _Project(torch.autograd.Function):
    """Several products with the same rows as one."""

    @staticmethod
    def forward(ctx, x, *weights):
        ctx.save_for_backward(x, *weights)
        return product(x, joined(weights))

    @staticmethod
    def backward(ctx, grad):
        x, *weights = ctx.saved_tensors
        for_x, *for_weights = ctx.needs_input_grad
        dx = product(grad, joined(weights).t()) if for_x else None
        if not any(for_weights):
            return dx, *[None] * len(weights)
        return dx, *outer(grad, x).split([len(w) for w in weights])


def project(x: Float[Tensor, "s d"], maps: Sequence[Any]) -> Float[Tensor, "s k"]:
    """The maps' outputs beside each other, through the modules themselves where they are more than weights."""
    if not _plain(maps):
        return torch.cat([m(x) for m in maps], -1)
    y = _Project.apply(x, *(m.weight for m in maps)) if len(maps) > 1 else product(x, maps[0].weight)
    bias = _bias_of(maps)
    return y if bias is None else y + bias


class Sequences(NamedTuple):
    """Which packed tokens belong together, for attention in compiled loops; see `kernels.Packed`."""

    start: Int[Tensor, "k"]
    length: Int[Tensor, "k"]
    first: Int[Tensor, "m+1"]
    member: Int[Tensor, "n"]


@dataclass
class Stack:
    """The decoder of a Llama as `tokens, positions, attend -> hidden`."""

    model: Any

    def __post_init__(self):
        self.net = backbone(self.model)
        config = self.net.config
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.scale = self.width**-0.5
        self.eps = config.rms_norm_eps

    def logits(self, hidden: Float[Tensor, "b d"]) -> Float[Tensor, "b v"]:
        """Of the next token."""
        return self.model.get_output_embeddings()(hidden)

    def maps(self) -> Iterator[tuple[int, Callable[[Tensor], Tensor]]]:
        """Every product of the layers in turn, with the width that it reads."""
        for layer in self.net.layers:
            qkv, up = _inward(layer)
            for maps in (qkv, [layer.self_attn.o_proj], up, [layer.mlp.down_proj]):
                yield maps[0].in_features, partial(project, maps=maps)

    def __call__(
        self, tokens: Int[Tensor, "s"], positions: Int[Tensor, "s"], attend: Attend | Sequences
    ) -> Float[Tensor, "s d"]:
        """Last hidden states of packed `tokens`; `attend(layer, q, k, v)` maps [s h w] heads to [s h*w]."""
        x, more = self.net.embed_tokens(tokens), None
        cos, sin = (c[0] for c in self.net.rotary_emb(x, positions[None]))
        if isinstance(attend, Sequences):
            packed = kernels.Packed(*attend, cos.contiguous(), sin.contiguous(), self.heads, self.kv_heads, self.scale)
        for i, layer in enumerate(self.net.layers):
            qkv, up = _inward(layer)
            x, h = pieces.add_norm(x, more, layer.input_layernorm.weight, self.eps)
            y = project(h, qkv)
            if isinstance(attend, Sequences):
                seen = pieces.attention(y, packed)
            else:
                seen = attend(i, *pieces.heads(y, cos, sin, self.heads, self.kv_heads))
            x, h = pieces.add_norm(
                x, project(seen, [layer.self_attn.o_proj]), layer.post_attention_layernorm.weight, self.eps
            )
            more = project(pieces.swiglu(project(h, up)), [layer.mlp.down_proj])
        return pieces.add_norm(x, more, self.net.norm.weight, self.eps)[1]


STEADY = ("default", "linear", "llama3")  # rotary embeddings whose angle is a function of the position alone


class FrozenStack(Stack):
    """The same without gradient, for many short calls: every weight is laid out for its products once, with what can
    be folded into it: the norm before it, the scale of attention, and an order of the rotary pairs that makes a turn
    one complex product. The weights are copied, so it does not see later updates.

    Args:
        rows: about how many rows its calls will have.
        dtype: of the products' operands; what stands between products is in the model's own.
    """

    @torch.no_grad()
    def __init__(self, model: Any, rows: int, dtype: torch.dtype = torch.float32):
        super().__init__(model)
        width, q, k = self.width, self.heads * self.width, self.kv_heads * self.width
        pairs = torch.arange(width).unflatten(0, (2, width // 2)).t().flatten()
        order = torch.cat([(torch.arange(0, q + k, width)[:, None] + pairs).flatten(), torch.arange(q + k, q + 2 * k)])
        factor = torch.ones(q + 2 * k, 1)
        factor[:q], self.scale = self.scale, 1.0

        def lay(maps: Sequence[Any], norm: Any = None, order: Any = None, factor: Any = 1.0) -> Frozen:
            weight, bias = joined([m.weight for m in maps]), _bias_of(maps)
            weight = weight if norm is None else weight * norm.weight
            if order is not None:
                weight = weight[order] * factor
                bias = None if bias is None else bias[order] * factor[:, 0]
            return Frozen(weight, bias, rows, dtype)

        self.layers = []
        for layer in self.net.layers:
            qkv, up = _inward(layer)
            self.layers.append(
                (
                    lay(qkv, layer.input_layernorm, order, factor),
                    lay([layer.self_attn.o_proj]),
                    lay(up, layer.post_attention_layernorm),
                    lay([layer.mlp.down_proj]),
                )
            )
        self.head = lay([model.get_output_embeddings()], self.net.norm)

        self.steady = getattr(self.net.rotary_emb, "rope_type", "") in STEADY

    def turns(self, positions: int) -> Float[Tensor, "p w"]:
        """Cosine and sine, beside each other, of each rotary pair at positions 0, 1, ..."""
        places = torch.arange(positions, device=self.net.embed_tokens.weight.device)[None]
        cos, sin = (c[0, :, : self.width // 2] for c in self.net.rotary_emb(self.net.embed_tokens.weight, places))
        return torch.stack([cos, sin], -1).flatten(1)

    def logits(self, hidden: Float[Tensor, "b d"]) -> Float[Tensor, "b v"]:
        return self.head(hidden)

    def maps(self) -> Iterator[tuple[int, Callable[[Tensor], Tensor]]]:
        for layer in self.layers:
            yield from ((m.width, m) for m in layer)

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "s"], positions: Int[Tensor, "s"], attend: Attend) -> Float[Tensor, "s d"]:
        x = self.net.embed_tokens(tokens)
        cos, sin = (c[0, :, None, : self.width // 2] for c in self.net.rotary_emb(x, positions[None]))
        turn = torch.complex(cos, sin)
        size = x.shape[-1:]
        for i, (qkv, out, up, down) in enumerate(self.layers):
            y = qkv(F.rms_norm(x, size, None, self.eps)).unflatten(-1, (-1, self.width))
            q, k, v = y.split([self.heads, self.kv_heads, self.kv_heads], 1)
            torch.view_as_complex(y[:, : self.heads + self.kv_heads].unflatten(-1, (-1, 2))).mul_(turn)
            x += out(attend(i, q, k, v))
            gate, y = up(F.rms_norm(x, size, None, self.eps)).chunk(2, -1)
            x += down(F.silu(gate).mul_(y))
        return F.rms_norm(x, size, None, self.eps)


def frozen(model: Any, rows: int, dtype: torch.dtype | None = None) -> Stack:
    """The fastest stack without gradient for calls of about `rows` rows.

    Raises:
        InputError: products of another type (`dtype`) than the model's, where they are not to be had.
    """
    layers, head = backbone(model).layers, model.get_output_embeddings()
    every = [m for layer in layers for m in (*sum(_inward(layer), []), layer.self_attn.o_proj, layer.mlp.down_proj)]
    if available(head.weight) and _plain([*every, head]):
        return FrozenStack(model, rows, dtype or torch.float32)
    if dtype not in (None, head.weight.dtype):
        raise InputError(
            f"engine in {dtype}: expected a Llama of plain float32 weights on a CPU, and torch with oneDNN"
        )
    return Stack(model)


def _bias_of(maps: Sequence[Any]) -> Tensor | None:
    """The maps' biases one after another; zero where one has none."""
    if all(m.bias is None for m in maps):
        return None
    return torch.cat([m.weight.new_zeros(m.out_features) if m.bias is None else m.bias for m in maps])


class Grid:
    """Moves packed tokens to a padded [b l] grid and back, in row-major order; a full grid is only a view."""

    def __init__(self, valid: Bool[Tensor, "b l"]):
        self.shape = valid.shape
        self.cells = valid.flatten().nonzero().flatten()
        self.full = len(self.cells) == valid.numel()

    def spread(self, x: Float[Tensor, "s h w"]) -> Float[Tensor, "b h l w"]:
        if not self.full:
            x = pieces.put(x, self.cells, self.shape.numel())
        return x.unflatten(0, self.shape).transpose(1, 2)

    def gather(self, x: Float[Tensor, "b h l w"]) -> Float[Tensor, "s k"]:
        x = x.transpose(1, 2).flatten(2).flatten(0, 1)
        return x if self.full else pieces.take(x, self.cells)


def attention(
    q: Float[Tensor, "b h t w"],
    k: Float[Tensor, "b g l w"],
    v: Float[Tensor, "b g l w"],
    bias: Float[Tensor, "b 1 t l"],
    scale: float | None = None,
) -> Float[Tensor, "b h t w"]:
    """Attention with `bias` on its scores; each of the g key heads serves h/g query heads, as more queries."""
    crowd = q.shape[1] // k.shape[1]
    if crowd == 1:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    many = q.unflatten(1, (k.shape[1], crowd)).flatten(2, 3)
    out = F.scaled_dot_product_attention(many, k, v, attn_mask=bias.repeat(1, 1, crowd, 1), scale=scale)
    return out.unflatten(2, (crowd, q.shape[2])).flatten(1, 2)


def prompt_bias(valid: Bool[Tensor, "m p"], dtype: torch.dtype) -> Float[Tensor, "m 1 p p"]:
    """Causal attention among the tokens of each prompt; padding looks at itself, so that no row is empty."""
    size = valid.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=valid.device).tril()
    return _bias((causal & valid[:, None]) | torch.eye(size, dtype=torch.bool, device=valid.device), dtype)


def _bias(seen: Bool[Tensor, "b t l"], dtype: torch.dtype) -> Float[Tensor, "b 1 t l"]:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)[:, None]


def prefill(
    stack: Stack, tokens: Int[Tensor, "m p"], valid: Bool[Tensor, "m p"]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Last hidden state of each prompt [m d], and every layer's keys and values [m g p w]."""
    grid, bias = Grid(valid), prompt_bias(valid, stack.net.embed_tokens.weight.dtype)
    keys, values = [], []

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = grid.spread(k), grid.spread(v)
        keys.append(k)
        values.append(v)
        return grid.gather(attention(grid.spread(q), k, v, bias, stack.scale))

    positions = (valid.cumsum(1) - 1)[valid]
    hidden = stack(tokens[valid], positions, attend)
    last = valid.sum(1).cumsum(0) - 1  # prompts are padded on the left: each one's last token closes its run
    return hidden[last], keys, values


ALIKE = 0.6  # rows at least this long, as a share of the longest, share its grid of attention
WHOLE = 32  # many packed tokens are a multiple of it: oneDNN compiles a kernel for each size that it meets


def buckets(lengths: Int[Tensor, "n"]) -> list[Int[Tensor, "b"]]:
    """Rows of about the same length together, longest first; rows of length 0 are left out.

    >>> [b.tolist() for b in buckets(torch.tensor([10, 3, 9, 0, 4]))]
    [[0, 2], [4, 1]]
    """
    order = lengths.argsort(descending=True, stable=True)
    ordered = lengths[order].tolist()
    found, start = [], 0
    for i in range(len(ordered) + 1):
        if i == len(ordered) or ordered[i] < ALIKE * ordered[start]:
            if i > start and ordered[start]:
                found.append(order[start:i])
            start = i
    return found


def hidden_before_steps(
    stack: Stack,
    prompts: Int[Tensor, "m p"],
    prompt_valid: Bool[Tensor, "m p"],
    steps: Int[Tensor, "n t"],
    present: Bool[Tensor, "n t"],
    group: Int[Tensor, "n"],
) -> Float[Tensor, "k d"]:
    """Hidden state before each present step (row-major order), with gradient; a prompt is computed once a group.

    The dense layers run on `sum(prompt_valid) + sum(present)` tokens instead of n * (p + t); attention runs on packed
    sequences in compiled loops, or on grids of rows of about the same length.
    """
    device, weight = steps.device, stack.net.embed_tokens.weight
    fed = present.clone()  # a step is fed if another one follows it
    fed[:, :-1] &= present[:, 1:]
    fed[:, -1:] = False
    pack = _sequences if kernels.applies(weight) else _grids
    row, column, attend = pack(prompt_valid, fed, group, weight.dtype)
    lengths, cut = prompt_valid.sum(1), int(prompt_valid.sum())
    spare = steps.new_zeros(_spare(cut + len(row)))
    tokens = torch.cat([prompts[prompt_valid], steps[row, column], spare])
    positions = torch.cat([(prompt_valid.cumsum(1) - 1)[prompt_valid], lengths[group[row]] + column, spare])
    hidden = stack(tokens, positions, attend)
    before = torch.full(present.shape, -1, device=device)  # the row of `hidden` before each step but the first
    before[row, column + 1] = torch.arange(cut, cut + len(row), device=device)
    # The prompt's last token stands before its rows' first steps, and is there once: copies of it come first.
    first = present[:, 0].nonzero().flatten()
    ends = pieces.take(hidden, lengths.cumsum(0) - 1)
    every = torch.cat([pieces.repeat(ends, group[first]), hidden])
    before += len(first)
    before[first, 0] = torch.arange(len(first), device=device)
    return pieces.take(every, before[present])


def _spare(tokens: int) -> int:
    """Tokens of nothing that make many of them a multiple of `WHOLE`."""
    return -tokens % WHOLE if tokens >= 16 * WHOLE else 0


def _sequences(
    prompt_valid: Bool[Tensor, "m p"], fed: Bool[Tensor, "n t"], group: Int[Tensor, "n"], _: torch.dtype
) -> tuple[Tensor, Tensor, Sequences]:
    """Row and column of each fed step, in the order that they are packed behind the prompts, and their attention."""
    row, column = fed.nonzero(as_tuple=True)
    length = torch.cat([prompt_valid.sum(1), fed.sum(1)])
    first = F.pad(torch.bincount(group, minlength=len(prompt_valid)).cumsum(0), (1, 0))
    member = group.argsort(stable=True) + len(prompt_valid)
    return row, column, Sequences(length.cumsum(0) - length, length, first, member)


def _grids(
    prompt_valid: Bool[Tensor, "m p"], fed: Bool[Tensor, "n t"], group: Int[Tensor, "n"], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Attend]:
    """The same by torch's own attention, on grids of rows of about the same length."""
    device = fed.device
    among_prompts, prompt_grid = prompt_bias(prompt_valid, dtype), Grid(prompt_valid)
    parts, places, sizes = [], [fed.new_zeros(2, 0, dtype=torch.long)], [int(prompt_valid.sum())]
    for rows in buckets((fed * torch.arange(1, fed.shape[1] + 1, device=device)).amax(1)):
        valid = fed[rows]
        size = int(valid.any(0).nonzero()[-1]) + 1
        valid, own = valid[:, :size], group[rows]
        causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
        among = (causal & valid[:, None]) | torch.eye(size, dtype=torch.bool, device=device)
        shared = prompt_valid[own][:, None].expand(-1, size, -1)
        parts.append((Grid(valid), own, _bias(torch.cat([shared, among], 2), dtype)))
        row, column = valid.nonzero(as_tuple=True)
        places.append(torch.stack([rows[row], column]))
        sizes.append(len(row))
    sizes.append(_spare(sum(sizes)))

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (q0, *qs), (k0, *ks), (v0, *vs) = (x.split(sizes)[:-1] for x in (q, k, v))
        k0, v0 = prompt_grid.spread(k0), prompt_grid.spread(v0)
        out = [prompt_grid.gather(attention(prompt_grid.spread(q0), k0, v0, among_prompts))]
        for (grid, own, bias), qi, ki, vi in zip(parts, qs, ks, vs, strict=True):
            ki = torch.cat([pieces.repeat(k0, own), grid.spread(ki)], 2)
            vi = torch.cat([pieces.repeat(v0, own), grid.spread(vi)], 2)
            out.append(grid.gather(attention(grid.spread(qi), ki, vi, bias)))
        return torch.cat([*out, out[0].new_zeros(sizes[-1], out[0].shape[1])])

    row, column = torch.cat(places, 1)
    return row, column, attend
