"""What the tests share: tiny models made on the spot, so that no test needs a network."""

from __future__ import annotations

import os
import re

import pytest
import torch

workers = "PYTEST_XDIST_WORKER" in os.environ  # they share the cores
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1 if workers else 2)))


def tiny_llama(seed: int = 0, vocab: int = 40, heads: int = 4, kv_heads: int = 2, **changes):
    """A random two-layer Llama with sharp logits, so that differences show."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **changes,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(6)
    return model


@pytest.fixture(params=["loops", "torch"])
def engine(request, monkeypatch):
    """The compiled loops, and torch's operations alone."""
    from surefoot import kernels

    if request.param == "torch":
        monkeypatch.setattr(kernels, "applies", lambda _: False)
    elif kernels.library() is None:
        pytest.skip("no C compiler here")


@pytest.fixture
def llama():
    return tiny_llama()


@pytest.fixture
def prompts():
    """Four prompts of lengths 9, 5, 7 and 3, padded on the left: tokens and validity."""
    torch.manual_seed(1)
    lengths = torch.tensor([9, 5, 7, 3])
    return torch.randint(2, 40, (4, 9)), torch.arange(9) >= (9 - lengths)[:, None]


def tiny_policy(seed: int = 0, **changes):
    """A random character-level policy."""
    from surefoot.policies.causal_lm import CausalLM
    from surefoot.pretraining.tokenizer import build

    return CausalLM(tiny_llama(seed, vocab=104, **changes), build(), name="tiny")


def digits_task(problems: int = 40, length: int = 12):
    """Reward: the share of digits among the characters said; everybody can learn it in a few steps."""
    from surefoot.tasks.base import Problem, TextTask

    def digits(completions):
        return [sum(ch.isdigit() for ch in c) / max(1, len(c)) for c in completions]

    return TextTask(
        "digits",
        [Problem(f"say {i}", "0") for i in range(problems)],
        [Problem(f"hold {i}", "0") for i in range(10)],
        digits,
        max_new_tokens=length,
    )


@pytest.fixture
def policy():
    return tiny_policy()


@pytest.fixture
def task():
    return digits_task()


def gradient_of_step(trainer) -> torch.Tensor:
    """The gradient of one step of training, flat, as the optimizer finds it; it is freed after the step."""
    found: list[torch.Tensor] = []

    def look(*_):
        found.append(torch.cat([p.grad.flatten() for p in trainer.policy.parameters()]))

    handle = trainer.optimizer.register_step_pre_hook(look)
    trainer.train_step()
    handle.remove()
    return found[-1]


def label(value) -> str:
    """A test id of a part or function that is the same in every process: its repr without addresses."""
    return re.sub(r"( of type object)? at 0x[0-9a-f]+", "", repr(value))
