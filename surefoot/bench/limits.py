"""What the arithmetic of a step allows: operations counted from shapes, over rates measured on the machine at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surefoot.policies.llama import FusedLayer, Stack
from surefoot.rollouts import Rollouts


@dataclass(frozen=True)
class Work:
    """Tokens that a pass over a batch must put through the model, with each prompt once for its group.

    Attributes:
        fed: tokens through the layers: prompts, and completions but for their last tokens.
        scored: positions whose next token is scored: all tokens of the completions.
        pairs: (query, key) pairs of attention.
    """

    fed: int
    scored: int
    pairs: int


def work(prompts: Tensor, lengths: Tensor, group: Tensor) -> Work:
    """Of prompts [m] long and completions [n] long; `group` [n] says which prompt is whose.

    >>> work(torch.tensor([3]), torch.tensor([2, 1]), torch.tensor([0, 0]))  # pairs: 1+2+3 of the prompt, 4 of a step
    Work(fed=4, scored=3, pairs=10)
    """
    fed = lengths - 1
    pairs = int((prompts * (prompts + 1) // 2).sum() + (fed * prompts[group] + fed * (fed + 1) // 2).sum())
    return Work(int(prompts.sum() + fed.sum()), int(lengths.sum()), pairs)


def forward_flops(config: Any, w: Work) -> int:
    """Operations of one forward pass; a multiplication and its addition are two. Norms and softmax are left out."""
    d, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or d // heads
    q, kv = heads * width, config.num_key_value_heads * width
    dense = 2 * (2 * d * q + 2 * d * kv + 3 * d * config.intermediate_size)
    return config.num_hidden_layers * (dense * w.fed + 4 * q * w.pairs) + 2 * d * config.vocab_size * w.scored


def work_of(batch: Rollouts) -> Work:
    """The work of a batch."""
    return work(batch.prompt_mask.sum(1), batch.present.sum(1), batch.group)


def step_flops(config: Any, batch: Rollouts) -> dict[str, int]:
    """Operations of a step by phase: generation 1, the reference 1, the update 3 forward passes' worth."""
    forward = forward_flops(config, work_of(batch))
    reference = forward if "ref_logp" in batch else 0
    return {
        "generation": forward,
        "reference": reference,
        "update": 3 * forward,
        "step": 4 * forward + reference,
    }


def median_seconds(run: Callable[[], Any], repeats: int, device: str = "cpu") -> float:
    """Median time of `run`, after one run that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def matmul_rate(device: str = "cpu", size: int = 0, dtype: torch.dtype = torch.float32) -> float:
    """Operations a second of a large square matrix product."""
    size = size or (1536 if device == "cpu" else 8192)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    return 2 * size**3 / median_seconds(lambda: a @ b, 5, device)


@torch.no_grad()
def decode_seconds(model: Any, batch: Rollouts) -> float:
    """Least time to generate the batch: the model's own matrix products, and nothing else, for the rows alive at each
    step (prompts once a group first). Two runs; the faster one counts.
    """
    stack = Stack(model, fused=True)
    head = model.get_output_embeddings().weight
    counts = batch.present.sum(0).tolist()

    def products(tokens: int, scored: int) -> None:
        x = torch.ones(tokens, stack.net.config.hidden_size, device=head.device, dtype=head.dtype)
        for layer in stack.layers:
            q = layer.qkv(x)[0]
            layer.out(q)
            if isinstance(layer, FusedLayer):
                up = torch.nn.functional.linear(x, layer.wup)
                layer.m.mlp.down_proj(up[:, : up.shape[1] // 2])
            else:
                layer.mlp(x)
        torch.nn.functional.linear(x[:scored], head)

    def run() -> float:
        started = time.perf_counter()
        products(int(batch.prompt_mask.sum()), len(batch))
        for alive in counts[1:]:
            products(alive, alive)
        if head.device.type != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return min(run(), run())
