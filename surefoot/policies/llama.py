"""Llama-architecture models as a function of packed tokens, with prompts computed once for their whole group.

Hugging Face's forward pays for padding, for one mask a call and for each prompt once per trajectory. Here the dense
layers see packed tokens only, and attention is a callback that knows which tokens belong together; prefill, decoding
and scoring with gradient are three such callbacks. The slow twin is the Hugging Face forward itself
(`CausalLM.score` with `fast=False`), and tests hold the two together in values and gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

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


class Layer:
    """One decoder layer as three dense maps, through the modules themselves (adapters and hooks included)."""

    def __init__(self, module: Any):
        self.m = module

    def qkv(self, h: Float[Tensor, "s d"]) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.m.self_attn
        return attention.q_proj(h), attention.k_proj(h), attention.v_proj(h)

    def out(self, h: Float[Tensor, "s d"]) -> Float[Tensor, "s d"]:
        return self.m.self_attn.o_proj(h)

    def mlp(self, h: Float[Tensor, "s d"]) -> Float[Tensor, "s d"]:
        mlp = self.m.mlp
        return mlp.down_proj(F.silu(mlp.gate_proj(h)) * mlp.up_proj(h))


class FusedLayer(Layer):
    """The same maps with projections joined: fewer, larger products, for decoding without gradient."""

    def __init__(self, module: Any):
        super().__init__(module)
        attention, mlp = module.self_attn, module.mlp
        self.sizes = [p.out_features for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        self.wqkv, self.bqkv = _join(attention.q_proj, attention.k_proj, attention.v_proj)
        self.wup, self.bup = _join(mlp.gate_proj, mlp.up_proj)

    def qkv(self, h: Float[Tensor, "s d"]) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = F.linear(h, self.wqkv, self.bqkv).split(self.sizes, dim=-1)
        return q, k, v

    def mlp(self, h: Float[Tensor, "s d"]) -> Float[Tensor, "s d"]:
        gate, up = F.linear(h, self.wup, self.bup).chunk(2, dim=-1)
        return self.m.mlp.down_proj(F.silu(gate) * up)


def _join(*linears: Any) -> tuple[Tensor, Tensor | None]:
    weight = torch.cat([p.weight for p in linears])
    return weight, None if linears[0].bias is None else torch.cat([p.bias for p in linears])


@dataclass
class Stack:
    """The decoder of a Llama as `tokens, positions, attend -> hidden`; `fused` joins projections (no gradient)."""

    model: Any
    fused: bool = False

    def __post_init__(self):
        self.net = backbone(self.model)
        plain = all(
            type(p) is nn.Linear
            for layer in self.net.layers
            for p in (
                layer.self_attn.q_proj,
                layer.self_attn.k_proj,
                layer.self_attn.v_proj,
                layer.mlp.gate_proj,
                layer.mlp.up_proj,
            )
        )
        self.layers = [(FusedLayer if self.fused and plain else Layer)(m) for m in self.net.layers]
        config = self.net.config
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps

    def norm(self, module: Any, x: Float[Tensor, "s d"]) -> Float[Tensor, "s d"]:
        return F.rms_norm(x, x.shape[-1:], module.weight, self.eps)

    def __call__(self, tokens: Int[Tensor, "s"], positions: Int[Tensor, "s"], attend: Attend) -> Float[Tensor, "s d"]:
        """Last hidden states of packed `tokens`; `attend(layer, q, k, v)` maps [s h w] heads to [s h*w]."""
        x = self.net.embed_tokens(tokens)
        cos, sin = self.net.rotary_emb(x, positions[None])
        cos, sin = cos[0, :, None], sin[0, :, None]
        for i, layer in enumerate(self.layers):
            q, k, v = layer.qkv(self.norm(layer.m.input_layernorm, x))
            q = _rotate(q.unflatten(-1, (self.heads, self.width)), cos, sin)
            k = _rotate(k.unflatten(-1, (self.kv_heads, self.width)), cos, sin)
            x = x + layer.out(attend(i, q, k, v.unflatten(-1, (self.kv_heads, self.width))))
            x = x + layer.mlp(self.norm(layer.m.post_attention_layernorm, x))
        return self.norm(self.net.norm, x)


def _rotate(x: Float[Tensor, "s h w"], cos: Tensor, sin: Tensor) -> Float[Tensor, "s h w"]:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def attention(
    q: Float[Tensor, "b h t w"], k: Float[Tensor, "b g l w"], v: Float[Tensor, "b g l w"], mask: Bool[Tensor, "b 1 t l"]
) -> Float[Tensor, "b h t w"]:
    """Masked attention; each of the g key heads serves h/g query heads."""
    if q.shape[1] != k.shape[1]:
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Padded:
    """Moves packed tokens to a padded [b l] grid and back; `flat` are the grid cells that are not padding."""

    def __init__(self, valid: Bool[Tensor, "b l"]):
        self.shape = valid.shape
        self.flat = valid.flatten().nonzero().flatten()
        self.full = len(self.flat) == valid.numel()

    def spread(self, x: Float[Tensor, "s h w"]) -> Float[Tensor, "b h l w"]:
        if not self.full:
            x = x.new_zeros(self.shape.numel(), *x.shape[1:]).index_copy(0, self.flat, x)
        return x.unflatten(0, self.shape).transpose(1, 2)

    def gather(self, x: Float[Tensor, "b h l w"]) -> Float[Tensor, "s k"]:
        x = x.transpose(1, 2).flatten(2).flatten(0, 1)
        return x if self.full else x.index_select(0, self.flat)


def prompt_mask(valid: Bool[Tensor, "m p"]) -> Bool[Tensor, "m 1 p p"]:
    """Causal attention among the tokens of each prompt; padding looks at itself, so that no row is empty."""
    size = valid.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=valid.device).tril()
    return ((causal & valid[:, None]) | torch.eye(size, dtype=torch.bool, device=valid.device))[:, None]


def prefill(
    stack: Stack, tokens: Int[Tensor, "m p"], valid: Bool[Tensor, "m p"]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Last hidden state of each prompt [m d], and every layer's keys and values [m g p w]."""
    grid, mask = Padded(valid), prompt_mask(valid)
    keys, values = [], []

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = grid.spread(k), grid.spread(v)
        keys.append(k)
        values.append(v)
        return grid.gather(attention(grid.spread(q), k, v, mask))

    positions = (valid.cumsum(1) - 1)[valid]
    hidden = stack(tokens[valid], positions, attend)
    last = valid.sum(1).cumsum(0) - 1  # prompts are padded on the left: each one's last token closes its run
    return hidden[last], keys, values


def hidden_before_steps(
    stack: Stack,
    prompts: Int[Tensor, "m p"],
    prompt_valid: Bool[Tensor, "m p"],
    steps: Int[Tensor, "n t"],
    present: Bool[Tensor, "n t"],
    group: Int[Tensor, "n"],
) -> Float[Tensor, "k d"]:
    """Hidden state before each present step (row-major order), with gradient; a prompt is computed once a group.

    The dense layers run on `sum(prompt_valid) + sum(present)` tokens instead of n * (p + t).
    """
    m, n, t = len(prompts), *steps.shape
    fed = present.clone()  # a step is fed if another one follows it
    fed[:, :-1] &= present[:, 1:]
    fed[:, -1] = False
    prompt_grid, step_grid = Padded(prompt_valid), Padded(fed)
    causal = torch.ones(t, t, dtype=torch.bool, device=steps.device).tril()
    own = (causal & fed[:, None]) | torch.eye(t, dtype=torch.bool, device=steps.device)
    shared = prompt_valid[group][:, None].expand(n, t, prompt_valid.shape[1])
    among_prompts, of_steps = prompt_mask(prompt_valid), torch.cat([shared, own], dim=2)[:, None]
    cut = int(prompt_valid.sum())

    def attend(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kp, vp = prompt_grid.spread(k[:cut]), prompt_grid.spread(v[:cut])
        first = prompt_grid.gather(attention(prompt_grid.spread(q[:cut]), kp, vp, among_prompts))
        ks = torch.cat([kp.index_select(0, group), step_grid.spread(k[cut:])], dim=2)
        vs = torch.cat([vp.index_select(0, group), step_grid.spread(v[cut:])], dim=2)
        return torch.cat([first, step_grid.gather(attention(step_grid.spread(q[cut:]), ks, vs, of_steps))])

    lengths = prompt_valid.sum(1)
    step_positions = lengths[group][:, None] + torch.arange(t, device=steps.device)
    tokens = torch.cat([prompts[prompt_valid], steps[fed]])
    positions = torch.cat([(prompt_valid.cumsum(1) - 1)[prompt_valid], step_positions[fed]])
    hidden = stack(tokens, positions, attend)
    # Row of `hidden` that stands before each present step: the prompt's last token, then the steps themselves.
    before = torch.full((n, t), -1, device=steps.device)
    before[:, 0] = (lengths.cumsum(0) - 1)[group]
    row = torch.full((n, t), -1, device=steps.device)
    row[fed] = cut + torch.arange(int(fed.sum()), device=steps.device)
    before[:, 1:] = row[:, :-1]
    assert m == len(lengths)
    return hidden.index_select(0, before[present])
