"""What the arithmetic of a step allows: operations counted from shapes, over rates measured on the machine at hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surefoot.objective.products import product
from surefoot.policies.llama import frozen
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


def least_seconds(run: Callable[[], Any], repeats: int, device: str = "cpu") -> float:
    """Least time of `run`, after one run that is not counted: a limit is what the machine can do, left in peace."""
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def matmul_rates(device: str = "cpu", size: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Operations a second of a large square matrix product: torch's own, and the faster of it and ours."""
    size = size or (1536 if device == "cpu" else 8192)
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    plain, ours = (2 * size**3 / least_seconds(f, 5, device) for f in (lambda: a @ b, lambda: product(a, b)))
    return {"torch": plain, "best": max(plain, ours)}


def bandwidth(device: str = "cpu", size: int = 1 << 25) -> float:
    """Bytes a second that a copy of `size` numbers reads and writes."""
    a = torch.zeros(size, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() * a.element_size() / least_seconds(lambda: b.copy_(a), 5, device)


def decode_bytes(model: Any, batch: Rollouts) -> int:
    """Bytes of weights that generation must read: all of them (tied ones once) at every step."""
    return batch.steps * sum(p.numel() * p.element_size() for p in model.parameters())


@torch.no_grad()
def decode_seconds(model: Any, batch: Rollouts) -> float:
    """Least time to generate the batch: the engine's own matrix products, and nothing else, for the rows alive at each
    step (prompts once a group first). Three runs; the fastest counts.
    """
    stack, counts = frozen(model, len(batch)), batch.present.sum(0).tolist()
    weight = model.get_output_embeddings().weight
    maps = list(stack.maps())
    rows = {width: weight.new_ones(int(batch.prompt_mask.sum()) + len(batch), width) for width, _ in maps}

    def products(tokens: int, scored: int) -> None:
        for width, product_of in maps:
            product_of(rows[width][:tokens])
        stack.logits(rows[weight.shape[1]][:scored])

    def run() -> float:
        started = time.perf_counter()
        products(int(batch.prompt_mask.sum()), len(batch))
        for alive in counts[1:]:
            products(alive, alive)
        if weight.device.type != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return min(run(), run(), run())
