"""A small language model that learnt its task's protocol here, from the task's own demonstrations, in seconds.

For tasks that pebble does not know. It is a `CausalLM` with pebble's tokenizer, kept in the cache; the task has
`demonstrations(rng, count)`: conversations as pieces of text, each with whether the policy says it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from surefoot.cache import made_once
from surefoot.errors import InputError
from surefoot.policies.base import supervised
from surefoot.policies.causal_lm import SHIPPED, CausalLM


def load(
    task: Any, width: int = 64, layers: int = 2, steps: int = 300, batch: int = 64, lr: float = 3e-3, seed: int = 0
) -> CausalLM:
    """The apprentice of a task, made on first use.

    Args:
        steps: of supervised learning; few of them leave something for reinforcement learning to do.

    Raises:
        InputError: a task without demonstrations.
    """
    if not hasattr(task, "demonstrations"):
        raise InputError(f"policy 'apprentice': the task {getattr(task, 'name', task)!r} has no demonstrations")
    made_from = dict(task=task.name, width=width, layers=layers, steps=steps, batch=batch, lr=lr, seed=seed)

    def fill(aside: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            policy = new(width, layers)
            learn(policy, task, steps, batch, lr, seed)
            policy.save(aside)

    policy = CausalLM.load(str(made_once("apprentices", made_from, fill)))
    policy.name = "apprentice"
    return policy


def new(width: int, layers: int) -> CausalLM:
    """An untrained Llama with heads of 16 and pebble's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED["pebble"])
    config = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 16),
        num_key_value_heads=max(1, width // 16),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.05,
    )
    return CausalLM(LlamaForCausalLM(config), tokenizer, name="apprentice")


def learn(policy: CausalLM, task: Any, steps: int, batch: int, lr: float, seed: int) -> list[float]:
    """Supervised steps on demonstrations; returns the losses."""
    rng = np.random.default_rng(seed)

    def loss() -> torch.Tensor:
        tokens, said = rows(policy, task.demonstrations(rng, batch))
        out = policy.model(input_ids=tokens[:, :-1]).logits
        return F.cross_entropy(out[said[:, 1:]], tokens[:, 1:][said[:, 1:]])

    return supervised(policy.parameters(), loss, steps, lr)


def rows(policy: CausalLM, conversations: list[list[tuple[str, bool]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [n l], padded on the right, and which of them the policy says: its own pieces, each with a stop token."""
    table = []
    for conversation in conversations:
        tokens, said = [], []
        for i, (text, own) in enumerate(conversation):
            if own:
                piece = [*policy.tokenizer(text, add_special_tokens=False)["input_ids"], policy.stop[0]]
            elif i == 0:
                piece = policy.tokenizer(policy.prompt_text(text), add_special_tokens=False)["input_ids"]
            else:
                piece = policy.heard(text)
            tokens += piece
            said += [own] * len(piece)
        table.append((tokens, said))
    width = max(len(t) for t, _ in table)
    padded = torch.tensor([t + [policy.pad] * (width - len(t)) for t, _ in table])
    return padded, torch.tensor([s + [False] * (width - len(s)) for _, s in table])
