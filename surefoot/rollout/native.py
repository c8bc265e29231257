"""The native engine: samples from any Hugging Face causal language model on the machine at hand.

One prefill a prompt, shared by its group; a key-value cache; finished rows leave the batch; every row draws from its
own random stream, so that its text does not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot import kernels
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

    @cached_property
    def suppressed(self) -> Int[Tensor, "k"]:
        """`suppress`, for every step's indexing."""
        return torch.tensor(self.suppress, dtype=torch.long)

    @property
    def truncates(self) -> bool:
        """Whether some tokens have probability zero that the policy gives more."""
        return bool(self.top_p < 1 or self.top_k > 0 or self.min_p > 0 or self.temperature == 0 or self.suppress)


def log_distribution(logits: Float[Tensor, "b v"], sampling: Sampling) -> Float[Tensor, "b v"]:
    """Log-probabilities of the sampling distribution, float32; -inf on the tokens that truncation removed."""
    logits = logits.float()
    if sampling.suppress:
        logits = logits.index_fill(-1, sampling.suppressed.to(logits.device), -torch.inf)
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


def uniforms(seeds: Int[Tensor, "b"], steps: int, offset: int | Int[Tensor, "b"] = 0) -> Float[Tensor, "b t"]:
    """One float64 uniform in [0, 1) for each row and step from `offset` on, by (seed, step) alone (SplitMix64)."""
    first = torch.as_tensor(offset, device=seeds.device).reshape(-1, 1)
    step = first + torch.arange(1, steps + 1, device=seeds.device)
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
    cdf = logp.exp().cumsum(-1, dtype=torch.float64)
    # A shade less than u, so that the quantile never rounds up to the whole mass, past the last possible token.
    return torch.searchsorted(cdf, cdf[:, -1:] * (u * (1 - 2**-40))[:, None], right=True).flatten()


def sampled(
    logits: Float[Tensor, "b v"], u: Float[Tensor, "b"], sampling: Sampling
) -> tuple[Int[Tensor, "b"], Float[Tensor, "b"]]:
    """The token at quantile `u` (float64) of each row's sampling distribution, and its log-probability there."""
    whole = sampling.temperature > 0 and not (sampling.top_p < 1 or sampling.top_k or sampling.min_p)
    if whole and kernels.applies(logits):
        if sampling.suppress:
            logits = logits.index_fill(-1, sampling.suppressed, -torch.inf)
        return kernels.draw(logits, u, sampling.temperature)
    logp = log_distribution(logits, sampling)
    token = draw(logp, u)
    return token, logp.gather(1, token[:, None])[:, 0]


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
    engine: Any,
    seeds: Int[Tensor, "n"],
    sampling: Sampling,
    stop: Sequence[int],
    pad: int = 0,
    offset: int | Int[Tensor, "n"] = 0,
) -> Generation:
    """Draw from the rows of an engine (`first`, `step`, `keep`: see `decoder`) until they end.

    `offset` is where each row's random stream stands: the steps that it has already.
    """
    logits = engine.first()
    device, count, limit = logits.device, len(seeds), sampling.max_new_tokens
    out_tokens = torch.full((limit, count), pad, device=device)
    out_logp = torch.zeros(limit, count, device=device)
    length = torch.full((count,), limit, device=device)
    stops = torch.zeros(logits.shape[-1], dtype=torch.bool, device=device)
    stops[list(stop)] = True
    u = uniforms(seeds.to(device), limit, offset).t().contiguous()
    rows = torch.arange(count, device=device)  # of the table, behind each row of the decoder
    done = torch.zeros(count, dtype=torch.bool, device=device)
    for t in range(limit):
        whole = len(rows) == count  # no row has left yet: nothing to look up
        token, logp = sampled(logits, u[t] if whole else u[t].index_select(0, rows), sampling)
        if whole:
            out_tokens[t], out_logp[t] = token, logp
        else:
            out_tokens[t].index_copy_(0, rows, token)
            out_logp[t].index_copy_(0, rows, logp)
        ended = stops.index_select(0, token)
        if ended.any():
            length[rows[ended & ~done]] = t + 1
            done |= ended
            alive = int((~done).sum())
            if alive == 0:
                break
            kept = _seats(done, alive)
            if len(kept) < len(rows):
                engine.keep(kept)
                rows, token, done = rows[kept], token[kept], done[kept]
        if t < limit - 1:
            logits = engine.step(token)
    longest = int(length.max()) if count else 0
    present = torch.arange(longest, device=device) < length[:, None]
    out_tokens = out_tokens[:longest].t().where(present, pad)
    out_logp = out_logp[:longest].t().where(present, 0.0)
    last = out_tokens.gather(1, (length - 1)[:, None])[:, 0]
    return Generation(out_tokens.cpu(), out_logp.cpu(), present.cpu(), ~stops[last].cpu())


SEATS = 8  # rows of the decoder come in multiples of it, so that its products have few different sizes


def _seats(done: Bool[Tensor, "b"], alive: int) -> Int[Tensor, "k"]:
    """Which rows go on: the last of those alive take the places of those that are done, and the others stay."""
    size = alive if alive < SEATS else min(len(done), -(-alive // SEATS) * SEATS)
    if size == len(done):
        return torch.arange(size, device=done.device)
    kept = torch.arange(size, device=done.device)
    free = done[:size].nonzero().flatten()
    late = (~done[size:]).nonzero().flatten() + size
    kept[free[: len(late)]] = late
    return kept


def decoder(
    model: Any,
    prompts: Int[Tensor, "m p"],
    valid: Tensor,
    group: Int[Tensor, "n"],
    fast: bool = True,
    block: int = 32,
    dtype: torch.dtype | None = None,
) -> _CompiledDecoder | _PackedDecoder | _HuggingFaceDecoder:
    """Rows that continue prompt `group[i]` a token at a time: `first` and `step` give logits [n v], `keep` takes rows.

    `keep` may repeat a row, so that a prefix branches. The cache grows by `block` steps at a time. `dtype` is that of
    the products' operands, where it is not to be the model's own.

    Raises:
        InputError: a dtype that this model, or this machine, has no fast products for.
    """
    if fast and llama.supported(model):
        stack = llama.frozen(model, len(group), dtype)
        loops = isinstance(stack, llama.FrozenStack) and stack.steady and kernels.applies(stack.net.embed_tokens.weight)
        kind: Any = _CompiledDecoder if loops else _PackedDecoder
        return kind(stack, prompts, valid, group, block)
    if dtype not in (None, next(model.parameters()).dtype):
        raise InputError(f"engine in {dtype}: expected a Llama on the fast path")
    return _HuggingFaceDecoder(model, prompts, valid, group)


COPIES = 1 << 23  # bytes of prompts' keys and values that may stand there once a row: more would leave the caches


class _PackedDecoder:
    """The packed Llama of `policies.llama` over a cache of [layer][key or value, row, head, step, width].

    A prompt is kept once for its group, and at every step the queries of the group meet it in one product: rows live in
    the cells of a [group, member] grid, which after rows have left is as wide as the largest group left. Once copies of
    the prompts for all rows left take no more than `COPIES` bytes, they stand in the rows' own cache instead.
    """

    def __init__(self, stack: llama.Stack, prompts: Tensor, valid: Tensor, group: Tensor, block: int):
        self.stack, self.block = stack, block
        self.device = stack.net.embed_tokens.weight.device
        prompts, valid, group = (x.to(self.device) for x in (prompts, valid, group))
        hidden, keys, values = llama.prefill(self.stack, prompts, valid)
        self.opening = self.stack.logits(hidden).index_select(0, group)
        self.position, self.size = valid.sum(1)[group], len(group)
        bias = torch.zeros(valid.shape, dtype=hidden.dtype, device=self.device).masked_fill(~valid, -torch.inf)
        bias = bias[:, None, None] if not valid.all() else None
        self.prompts, self.bias, self.used = list(zip(keys, values, strict=True)), bias, 0
        empty = hidden.new_empty(2, len(group), self.stack.kv_heads, block, self.stack.width)
        self.cache, self.shared = [empty.clone() for _ in keys], True
        self._seat(group)

    def first(self) -> Float[Tensor, "n v"]:
        return self.opening

    def keep(self, rows: Int[Tensor, "k"]) -> None:
        rows = rows.to(self.device)
        moved = (rows != torch.arange(len(rows), device=self.device)).nonzero().flatten()
        if len(rows) <= self.size:  # only the rows that change places are copied
            sources = rows[moved]
            for cache in self.cache:
                cache[:, moved] = cache[:, sources]
            self.cache = [cache[:, : len(rows)] for cache in self.cache]
        else:
            self.cache = [cache.index_select(1, rows) for cache in self.cache]
        self.position, self.size = self.position[rows], len(rows)
        if self.shared:
            self._seat(self.group[rows])
        elif self.bias is not None:
            self.bias = self.bias[rows]

    def _seat(self, group: Int[Tensor, "n"]) -> None:
        """Give each row its cell of the grid, and forget prompts that no row needs."""
        keys = self.prompts[0][0]
        if len(group) * keys[0].numel() * 2 * len(self.prompts) * keys.element_size() <= COPIES:
            self._own(group)
            return
        used, self.group = group.unique(return_inverse=True)
        if len(used) < len(keys):
            self.prompts = [(k.index_select(0, used), v.index_select(0, used)) for k, v in self.prompts]
            self.bias = None if self.bias is None else self.bias[used]
        sizes = torch.bincount(self.group)
        self.grid = (len(used), int(sizes.max()))
        order = self.group.argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[self.group[order]]
        cell = self.group * self.grid[1] + rank
        whole = len(cell) == self.grid[0] * self.grid[1] and bool((cell == torch.arange(len(cell)).to(cell)).all())
        self.cell = None if whole else cell

    def _own(self, group: Int[Tensor, "n"]) -> None:
        """Give each row a copy of its prompt, before its own steps."""
        self.shared, self.used = False, self.used + self.prompts[0][0].shape[2]
        prompts = (torch.stack(pair).index_select(1, group) for pair in self.prompts)
        self.cache = [torch.cat(pair, 3) for pair in zip(prompts, self.cache, strict=True)]
        self.prompts = []
        if self.bias is not None:
            self.bias = F.pad(self.bias.index_select(0, group), (0, self.cache[0].shape[3] - self.bias.shape[-1]))

    def _to_grid(self, x: Float[Tensor, "b h r k"]) -> Float[Tensor, "m h gr k"]:
        """Heads of all rows of a group side by side."""
        if self.cell is not None:
            x = x.new_zeros(self.grid[0] * self.grid[1], *x.shape[1:]).index_copy_(0, self.cell, x)
        return x.unflatten(0, self.grid).transpose(1, 2).flatten(2, 3)

    def _from_grid(self, x: Float[Tensor, "m h gr k"], repeats: int) -> Float[Tensor, "b h r k"]:
        x = x.unflatten(2, (self.grid[1], repeats)).transpose(1, 2).flatten(0, 1)
        return x if self.cell is None else x.index_select(0, self.cell)

    def step(self, tokens: Int[Tensor, "n"]) -> Float[Tensor, "n v"]:
        """The next token's logits after each row has said its token."""
        slot, self.used = self.used, self.used + 1
        if self.used > self.cache[0].shape[3]:
            self.cache = [_room(c, self.block) for c in self.cache]
            if not self.shared and self.bias is not None:
                self.bias = F.pad(self.bias, (0, self.block))
        attend = self._attend_shared if self.shared else self._attend_own

        def write_and_attend(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.cache[i][0, :, :, slot], self.cache[i][1, :, :, slot] = k, v
            q = q.unflatten(1, (self.stack.kv_heads, -1))
            return attend(i, q if self.stack.scale == 1 else q * self.stack.scale).flatten(1)

        hidden = self.stack(tokens.to(self.device), self.position, write_and_attend)
        self.position = self.position + 1
        return self.stack.logits(hidden)

    def _attend_own(self, i: int, q: Float[Tensor, "n g r w"]) -> Float[Tensor, "n g r w"]:
        keys, values = self.cache[i][:, :, :, : self.used]
        scores = q @ keys.transpose(-1, -2)
        if self.bias is not None:
            scores += self.bias[..., : self.used]
        return scores.softmax(-1) @ values

    def _attend_shared(self, i: int, q: Float[Tensor, "n g r w"]) -> Float[Tensor, "n g r w"]:
        keys, values = self.cache[i][:, :, :, : self.used]
        prompt_keys, prompt_values = self.prompts[i]
        of_prompt = self._to_grid(q) @ prompt_keys.transpose(-1, -2)
        if self.bias is not None:
            of_prompt += self.bias
        of_prompt = self._from_grid(of_prompt, q.shape[2])
        size = of_prompt.shape[-1]
        share = torch.cat([of_prompt, q @ keys.transpose(-1, -2)], -1).softmax(-1)
        of_prompt = self._from_grid(self._to_grid(share[..., :size]) @ prompt_values, q.shape[2])
        return of_prompt + share[..., size:] @ values


def _room(cache: Float[Tensor, "2 n h l w"], steps: int) -> Float[Tensor, "2 n h k w"]:
    """The cache with room for more steps."""
    return F.pad(cache, (0, 0, 0, steps))


class _CompiledDecoder:
    """The same rows with what stands between the products in compiled loops (`kernels`).

    A prompt is read where it lies by every row of its group; keys lie with their steps side by side, as lanes.
    """

    def __init__(self, stack: llama.FrozenStack, prompts: Tensor, valid: Tensor, group: Tensor, block: int):
        self.stack, self.block = stack, -(-block // kernels.LANES) * kernels.LANES
        hidden, keys, values = llama.prefill(stack, prompts, valid)
        self.opening = stack.logits(hidden).index_select(0, group)
        lengths, more = valid.sum(1), -prompts.shape[1] % kernels.LANES
        self.position, self.group, self.used, self.room = lengths[group], group.contiguous(), 0, self.block
        self.padding = prompts.shape[1] + more - lengths
        self.prompts = [
            (F.pad(k, (0, 0, more, 0)).transpose(-1, -2).contiguous(), F.pad(v, (0, 0, more, 0)).contiguous())
            for k, v in zip(keys, values, strict=True)
        ]
        n, kv, w = len(group), stack.kv_heads, stack.width
        self.cache = [(hidden.new_zeros(n, kv, w, self.room), hidden.new_zeros(n, kv, self.room, w)) for _ in keys]
        self.longest = int(lengths.max())
        self.turns = stack.turns(self.longest + self.room)

    def first(self) -> Float[Tensor, "n v"]:
        return self.opening

    def keep(self, rows: Int[Tensor, "k"]) -> None:
        here = torch.arange(len(self.group))
        if len(rows) <= len(here):  # only the rows that change places are copied
            moved = (rows != here[: len(rows)]).nonzero().flatten()
            sources = rows[moved]
            for pair in self.cache if len(moved) else ():
                for c in pair:
                    c[moved] = c[sources]
            self.cache = [(k[: len(rows)], v[: len(rows)]) for k, v in self.cache]
        else:
            self.cache = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in self.cache]
        self.position, self.group = self.position[rows], self.group[rows]

    def step(self, tokens: Int[Tensor, "n"]) -> Float[Tensor, "n v"]:
        """The next token's logits after each row has said its token."""
        stack, slot, self.used = self.stack, self.used, self.used + 1
        if self.used > self.room:
            self.room += self.block
            self.cache = [(F.pad(k, (0, self.block)), F.pad(v, (0, 0, 0, self.block))) for k, v in self.cache]
            self.turns = stack.turns(self.longest + self.room)
        x = stack.net.embed_tokens(tokens)
        normal, heads = torch.empty_like(x), x.new_empty(len(x), stack.heads * stack.width)
        delta = None
        for (qkv, out, up, down), prompts, own in zip(stack.layers, self.prompts, self.cache, strict=True):
            kernels.add_norm(x, delta, normal, stack.eps)
            where = (self.turns, self.position, self.group, self.padding)
            kernels.attend(qkv(normal), *where, *prompts, *own, heads, slot)
            kernels.add_norm(x, out(heads), normal, stack.eps)
            delta = down(kernels.gated(up(normal)))
        kernels.add_norm(x, delta, normal, stack.eps)
        self.position = self.position + 1
        return stack.logits(normal)


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
        """Logits after these token ids [n], or embeddings [n d]."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        fed = "inputs_embeds" if tokens.is_floating_point() else "input_ids"
        out = self.model(
            **{fed: tokens.to(self.device)[:, None]},
            attention_mask=self.mask,
            position_ids=self.position[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position = self.position + 1
        return out.logits[:, -1]
