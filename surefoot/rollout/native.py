"""The native engine: samples from any Hugging Face causal language model on the machine at hand.

One prefill a prompt, shared by its group; a key-value cache; finished rows leave the batch; every row draws from its
own random stream, so that its text does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import InputError
from surefoot.policies import llama


@dataclass(frozen=True)
class Sampling:
    """The sampling distribution: `softmax(logits / temperature)`, then truncated by top-k, top-p and min-p.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: keep the smallest set of tokens with at least this mass; 1 keeps all.
        top_k: keep this many; 0 keeps all.
        min_p: keep tokens with at least this share of the largest probability; 0 keeps all.
        max_new_tokens: length at which a row is cut (`truncated`).
        suppress: tokens that are never sampled.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int = 64
    suppress: tuple[int, ...] = ()

    def __post_init__(self):
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or not 0 <= self.min_p <= 1:
            raise InputError(
                f"sampling: {self}, expected temperature >= 0, 0 < top_p <= 1, top_k >= 0, 0 <= min_p <= 1"
            )
        if self.max_new_tokens < 1:
            raise InputError(f"sampling: max_new_tokens={self.max_new_tokens}, expected at least 1")

    @property
    def truncates(self) -> bool:
        """Whether some tokens have probability zero that the policy gives more."""
        return bool(self.top_p < 1 or self.top_k > 0 or self.min_p > 0 or self.temperature == 0 or self.suppress)


def log_distribution(logits: Float[Tensor, "b v"], sampling: Sampling) -> Float[Tensor, "b v"]:
    """Log-probabilities of the sampling distribution, float32; -inf on the tokens that truncation removed."""
    logits = logits.float()
    if sampling.suppress:
        logits = logits.index_fill(-1, torch.tensor(sampling.suppress, device=logits.device), -torch.inf)
    if sampling.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    logp = (logits / sampling.temperature).log_softmax(-1)
    if not sampling.truncates:
        return logp
    if sampling.top_k:
        kth = logp.topk(min(sampling.top_k, logp.shape[-1]), dim=-1).values[:, -1:]
        logp = logp.masked_fill(logp < kth, -torch.inf).log_softmax(-1)
    if sampling.top_p < 1:
        ordered, index = logp.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # mass ahead of a token: the first is always kept
        ordered = ordered.masked_fill(before >= sampling.top_p, -torch.inf)
        logp = torch.full_like(logp, -torch.inf).scatter(-1, index, ordered).log_softmax(-1)
    if sampling.min_p:
        floor = logp.max(-1, keepdim=True).values + torch.log(torch.tensor(sampling.min_p))
        logp = logp.masked_fill(logp < floor, -torch.inf).log_softmax(-1)
    return logp


def uniforms(seeds: Int[Tensor, "b"], steps: int, offset: int = 0) -> Float[Tensor, "b t"]:
    """One float64 uniform in [0, 1) for each row and step, a function of (seed, step) alone (SplitMix64)."""
    step = torch.arange(offset + 1, offset + steps + 1, device=seeds.device)
    x = _mix(seeds)[:, None] + step * -7046029254386353131  # 0x9E3779B97F4A7C15, the golden ratio, as int64
    return _shift(_mix(x), 11).double() * 2.0**-53


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def draw(logp: Float[Tensor, "b v"], u: Float[Tensor, "b"]) -> Int[Tensor, "b"]:
    """The token at quantile `u` of each row's distribution (inverse of its cumulative distribution)."""
    cdf = logp.double().exp().cumsum(-1)
    token = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True).flatten()
    last = logp.shape[-1] - 1 - (logp.flip(-1) > -torch.inf).int().argmax(-1)  # never past the last possible token
    return torch.minimum(token, last)


@dataclass
class Generation:
    """What the engine returns: tokens and their log-probabilities [n t], which steps exist, which rows were cut."""

    tokens: Int[Tensor, "n t"]
    logp: Float[Tensor, "n t"]
    present: Tensor
    truncated: Tensor


def generate(
    model: Any,
    prompts: Int[Tensor, "m p"],
    valid: Tensor,
    group: Int[Tensor, "n"],
    seeds: Int[Tensor, "n"],
    sampling: Sampling,
    stop: Sequence[int],
    pad: int = 0,
    fast: bool = True,
) -> Generation:
    """Continue prompt `group[i]` for each row i until a stop token (kept, as the row's last step) or the limit.

    Args:
        prompts: token ids padded on the left; `valid` [m p] is false on padding.
        seeds: of each row's random stream.
        stop: token ids that end a row.
        fast: use the packed Llama decoder where it applies; else the Hugging Face forward (the slow twin).
    """
    with torch.no_grad():
        return continued(decoder(model, prompts, valid, group, fast), seeds, sampling, stop, pad)


@torch.no_grad()
def continued(
    engine: Any, seeds: Int[Tensor, "n"], sampling: Sampling, stop: Sequence[int], pad: int = 0
) -> Generation:
    """Draw from the rows of an engine (`first`, `step`, `keep`: see `decoder`) until they end."""
    rows, limit = len(seeds), sampling.max_new_tokens
    out_tokens = torch.full((rows, limit), pad)
    out_logp = torch.zeros(rows, limit)
    length = torch.zeros(rows, dtype=torch.long)
    stops = torch.tensor(list(stop))
    u = uniforms(seeds, limit)
    alive = torch.arange(rows)  # row of the table behind each row of the decoder
    done = torch.zeros(rows, dtype=torch.bool)  # along the decoder's rows
    logits = engine.first()
    for t in range(limit):
        logp = log_distribution(logits.cpu(), sampling)
        token = draw(logp, u[alive, t])
        live = alive[~done]
        out_tokens[live, t] = token[~done]
        out_logp[live, t] = logp.gather(1, token[:, None]).flatten()[~done]
        length[live] = t + 1
        done |= torch.isin(token, stops)
        remaining = int((~done).sum())
        if remaining == 0 or t == limit - 1:
            break
        if remaining <= 0.85 * len(done):  # a copy of the cache is paid only when it saves enough
            keep = (~done).nonzero().flatten()
            engine.keep(keep)
            alive, token, done = alive[keep], token[keep], done[keep]
        logits = engine.step(token)
    ended = torch.isin(out_tokens[torch.arange(rows), length - 1], stops)
    longest = int(length.max()) if rows else 0
    present = torch.arange(longest) < length[:, None]
    return Generation(out_tokens[:, :longest], out_logp[:, :longest], present, ~ended)


def decoder(
    model: Any, prompts: Int[Tensor, "m p"], valid: Tensor, group: Int[Tensor, "n"], fast: bool = True, block: int = 64
) -> _PackedDecoder | _HuggingFaceDecoder:
    """Rows that continue prompt `group[i]` a token at a time: `first` and `step` give logits [n v], `keep` takes rows.

    `keep` may repeat a row, so that a prefix branches; it copies the cache, which grows by `block` steps at a time.
    """
    if fast and llama.supported(model):
        return _PackedDecoder(model, prompts, valid, group, block)
    return _HuggingFaceDecoder(model, prompts, valid, group)


class _PackedDecoder:
    """The packed Llama of `policies.llama` over two caches: prompts, kept once a group, and each row's own steps.

    At every step the queries of a group meet their prompt's keys in one product, so that decoding reads a prompt once
    a group and not once a row. Rows live in the cells of a [group, member] grid; after rows have left, the grid is as
    wide as the largest group left.
    """

    def __init__(self, model: Any, prompts: Tensor, valid: Tensor, group: Tensor, block: int = 64):
        self.model, self.stack, self.block = model, llama.Stack(model, fused=True), block
        self.device = next(model.parameters()).device
        prompts, valid, group = (x.to(self.device) for x in (prompts, valid, group))
        hidden, self.prompt_keys, self.prompt_values = llama.prefill(self.stack, prompts, valid)
        self.hidden, self.position = hidden[group], valid.sum(1)[group]
        self.bias = torch.zeros(valid.shape, dtype=hidden.dtype, device=self.device).masked_fill(~valid, -torch.inf)
        self.used = 0
        empty = hidden.new_empty(len(group), self.stack.kv_heads, 0, self.stack.width)
        self.keys, self.values = [empty] * len(self.stack.layers), [empty] * len(self.stack.layers)
        self._seat(group)

    def _seat(self, group: Tensor) -> None:
        """Give each row its cell of the grid, and forget prompts that no row needs."""
        used, self.group = group.unique(return_inverse=True)
        if len(used) < len(self.bias):
            self.prompt_keys = [k.index_select(0, used) for k in self.prompt_keys]
            self.prompt_values = [v.index_select(0, used) for v in self.prompt_values]
            self.bias = self.bias[used]
        sizes = torch.bincount(self.group)
        self.members = int(sizes.max())
        order = self.group.argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[self.group[order]]
        cell = self.group * self.members + rank
        whole = len(cell) == len(used) * self.members and torch.equal(cell, torch.arange(len(cell), device=cell.device))
        self.cell = None if whole else cell

    def first(self) -> Tensor:
        return self._logits(self.hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)

    def keep(self, rows: Tensor) -> None:
        rows = rows.to(self.device)
        self.keys = [k.index_select(0, rows) for k in self.keys]
        self.values = [v.index_select(0, rows) for v in self.values]
        self.position = self.position[rows]
        self._seat(self.group[rows])

    def _to_grid(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "m g ..."]:
        groups = len(self.bias)
        if self.cell is not None:
            x = x.new_zeros(groups * self.members, *x.shape[1:]).index_copy_(0, self.cell, x)
        return x.unflatten(0, (groups, self.members))

    def _from_grid(self, x: Float[Tensor, "m g ..."]) -> Float[Tensor, "b ..."]:
        x = x.flatten(0, 1)
        return x if self.cell is None else x.index_select(0, self.cell)

    def step(self, tokens: Tensor) -> Tensor:
        slot, self.used = self.used, self.used + 1
        if self.used > self.keys[0].shape[2]:
            self.keys = [_room(k, self.block) for k in self.keys]
            self.values = [_room(v, self.block) for v in self.values]
        kv, width = self.stack.kv_heads, self.stack.width
        repeats = self.stack.heads // kv

        def attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.keys[i][:, :, slot], self.values[i][:, :, slot] = k, v
            q = q.view(-1, kv, repeats, width) * width**-0.5
            crowd = self._to_grid(q).transpose(1, 2).flatten(2, 3)  # [m kv g*r w]: a group's queries side by side
            of_prompt = crowd @ self.prompt_keys[i].transpose(-1, -2) + self.bias[:, None, None]
            of_prompt = self._from_grid(of_prompt.unflatten(2, (self.members, repeats)).transpose(1, 2))
            own = q @ self.keys[i][:, :, : self.used].transpose(-1, -2)
            share = torch.cat([of_prompt, own], -1).softmax(-1)
            size = of_prompt.shape[-1]
            crowd = self._to_grid(share[..., :size]).transpose(1, 2).flatten(2, 3) @ self.prompt_values[i]
            of_prompt = self._from_grid(crowd.unflatten(2, (self.members, repeats)).transpose(1, 2))
            return (of_prompt + share[..., size:] @ self.values[i][:, :, : self.used]).flatten(1)

        hidden = self.stack(tokens.to(self.device), self.position, attend)
        self.position = self.position + 1
        return self._logits(hidden)


def _room(x: Float[Tensor, "b h l w"], steps: int) -> Float[Tensor, "b h k w"]:
    return torch.cat([x, x.new_zeros(*x.shape[:2], steps, x.shape[3])], dim=2)


class _HuggingFaceDecoder:
    """Any causal language model, through its own forward and `DynamicCache`."""

    def __init__(self, model: Any, prompts: Tensor, valid: Tensor, group: Tensor):
        self.model = model
        self.device = next(model.parameters()).device
        prompts, valid, group = (x.to(self.device) for x in (prompts, valid, group))
        positions = (valid.long().cumsum(1) - 1).clamp_min(0)
        out = model(input_ids=prompts, attention_mask=valid.long(), position_ids=positions, use_cache=True)
        self.cache = out.past_key_values
        self.cache.batch_select_indices(group)
        self.logits, self.mask, self.position = out.logits[:, -1][group], valid[group].long(), valid.sum(1)[group]

    def first(self) -> Tensor:
        return self.logits

    def keep(self, rows: Tensor) -> None:
        rows = rows.to(self.device)
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]

    def step(self, tokens: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        out = self.model(
            input_ids=tokens.to(self.device)[:, None],
            attention_mask=self.mask,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position = self.position + 1
        return out.logits[:, -1]
