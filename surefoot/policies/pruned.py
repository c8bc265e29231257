"""A smaller copy of a language model: `pruned[:of=pebble,layers=2,...]`. Same tokens, same family, fewer layers.

It keeps some layers of the larger one (arXiv 1910.01108) and is healed on what the larger one says: likelihood of its
samples on the task's training questions (sequence-level distillation, arXiv 1606.07947), so that no demonstrations are
needed. It is made in seconds on first use, for its task, and kept in the cache. It starts below the larger one, which
leaves a teacher something to do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surefoot.cache import made_once
from surefoot.errors import InputError
from surefoot.policies.base import supervised
from surefoot.policies.causal_lm import CausalLM
from surefoot.policies.llama import backbone
from surefoot.rollout.native import Sampling
from surefoot.rollouts import Rollouts

QUESTIONS, EACH, BLOCK = 16, 4, 256  # questions of a step, samples of each, questions sampled at a time


def load(task: Any, of: str = "pebble", layers: int = 2, steps: int = 100, lr: float = 2e-3, seed: int = 0) -> CausalLM:
    """The smaller copy for a task, made on first use.

    Args:
        layers: kept.
        steps: of healing, on `QUESTIONS * EACH` samples each.

    Raises:
        InputError: no task, or a number of layers that the larger one does not have.
    """
    if task is None:
        raise InputError("policy 'pruned' is healed on the questions of a task; expected one")

    def fill(aside: Path) -> None:
        larger = CausalLM.load(of)
        smaller = cut(larger, layers)
        drawn = samples(larger, task, seed)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            supervised(smaller.parameters(), lambda: surprise(smaller, next(drawn)), steps, lr)
        smaller.save(aside)

    made_from = dict(task=task.name, of=of, layers=layers, steps=steps, lr=lr, seed=seed)
    return CausalLM.load(str(made_once("pruned", made_from, fill)))


def cut(larger: CausalLM, layers: int) -> CausalLM:
    """A copy with `layers` of the layers: the first, the last, and what lies at even distances between them.

    Raises:
        InputError: fewer than one, or more than there are.
    """
    model: Any = copy.deepcopy(larger.model).requires_grad_(True)
    net: Any = backbone(model)
    count = len(net.layers)
    if not 1 <= layers <= count:
        raise InputError(f"policy 'pruned': layers={layers}, expected 1 to {count}, what {larger.name!r} has")
    kept = [round(i * (count - 1) / max(1, layers - 1)) for i in range(layers)]
    stack = [net.layers[i] for i in kept]
    for i, layer in enumerate(stack):
        layer.self_attn.layer_idx = i  # its place in a cache of keys and values
    net.layers = nn.ModuleList(stack)
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
    return CausalLM(model, larger.tokenizer, name="pruned", fast=larger.fast)


def samples(policy: CausalLM, task: Any, seed: int) -> Iterator[Rollouts]:
    """An endless stream of the policy's samples at temperature 1, `QUESTIONS` training questions a table."""
    rng, sampling = np.random.default_rng(seed), Sampling(max_new_tokens=task.max_new_tokens)
    group = torch.arange(BLOCK).repeat_interleave(EACH)
    while True:
        questions = [task.train[int(i)].question for i in rng.integers(len(task.train), size=BLOCK)]
        seeds = torch.from_numpy(rng.integers(0, 2**62, len(group)))
        block = policy.sample(questions, group, seeds, sampling)
        for rows in torch.arange(len(group)).split(QUESTIONS * EACH):
            yield block.rows(rows)


def surprise(policy: CausalLM, said: Rollouts) -> Tensor:
    """Nats a token, the end token included."""
    return -policy.score(said, {"logp"})["logp"][said.present].mean()
