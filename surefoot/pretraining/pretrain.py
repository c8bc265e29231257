"""How pebble is made: one command, one seed, three quarters of an hour on two busy cores."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from surefoot.errors import InputError, nearest
from surefoot.objective.optimizers import AdamW, Aro, Muon
from surefoot.parts import Part
from surefoot.pretraining import corpus, tokenizer

Make = Callable[[nn.Module], list[torch.optim.Optimizer]]
STEPS = 3600  # of the shipped model
TEXTBOOK = 0.7  # share of the steps that read the textbook; the rest read the exam
BATCH_TOKENS = 8192
POOL = 2048  # examples sorted by length together, so that a batch holds little padding
MUON_LR, ADAM_LR, WARMUP, DECAY = 0.02, 3e-3, 50, 0.4
OPTIMIZERS = {"adamw": AdamW(), "muon": Muon(), "aro": Aro()}  # what can be named instead, with one rate for all
LR = 0.01  # of those
HELDOUT = 10_007  # the seed of the exam that is held out from training
CONTEXT = 1024  # positions that the shipped model declares; the longest example of the corpus has 447 tokens


def new_model(vocabulary: int) -> Any:
    """The untrained pebble: a Llama of 0.8 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
            initializer_range=0.05,
            attn_implementation="eager",  # pyright: ignore[reportCallIssue]
        )
    )


def batches(seed: int, exam: bool, tokens: int = BATCH_TOKENS) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids [b l], padded on the right, and the mask of the tokens that are learnt: responses."""
    vocabulary = tokenizer.build()
    stream, order = corpus.examples(seed, exam), torch.Generator().manual_seed(seed)
    while True:
        pool = []
        for prompt, response in islice(stream, POOL):
            asked = vocabulary(prompt)["input_ids"]
            said = [*vocabulary(response)["input_ids"], vocabulary.eos_token_id]
            if len(asked) + len(said) <= CONTEXT:
                pool.append((asked, said))
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        groups, group = [], []
        for pair in pool:
            width = len(pair[0]) + len(pair[1])
            if group and width * (len(group) + 1) > tokens:
                groups.append(group)
                group = []
            group.append(pair)
        groups.append(group)
        for i in torch.randperm(len(groups), generator=order).tolist():
            width = max(len(a) + len(s) for a, s in groups[i])
            ids = torch.zeros(len(groups[i]), width, dtype=torch.long)
            learnt = torch.zeros(len(groups[i]), width, dtype=torch.bool)
            for row, (asked, said) in enumerate(groups[i]):
                ids[row, : len(asked) + len(said)] = torch.tensor(asked + said)
                learnt[row, len(asked) : len(asked) + len(said)] = True
            yield ids, learnt


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """The shipped model's: Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    ids = {id(p) for p in inner}
    outer = [p for p in model.parameters() if id(p) not in ids]
    return [
        torch.optim.Muon(inner, lr=MUON_LR, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(outer, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def by(part: Part, lr: float) -> Make:
    """All parameters by one part of `objective.optimizers`, at one peak rate: `train(..., make=by(Aro(), 0.01))`."""

    def make(model: nn.Module) -> list[torch.optim.Optimizer]:
        names = {id(p): name for name, p in model.named_parameters()}
        return [part([{"params": list(model.parameters())}], names, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)]

    return make


def rate(step: int, steps: int) -> float:
    """Warm-up, constant, then a linear fall to zero over the last part (of the learning rate)."""
    return min(1.0, step / WARMUP, (steps - step + 1) / max(1, math.ceil(DECAY * steps)))


def mean_loss(model: Any, ids: Int[Tensor, "b l"], learnt: Bool[Tensor, "b l"]) -> Float[Tensor, ""]:
    """Nats a token that is learnt, in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state[learnt[:, 1:]]
        logits = model.lm_head(hidden)
    return F.cross_entropy(logits.float(), ids[:, 1:][learnt[:, 1:]])


@cache
def heldout(count: int) -> list[tuple[Tensor, Tensor]]:
    """`count` batches of an exam that no training reads; the same ones every time."""
    return list(islice(batches(HELDOUT, True), count))


@torch.no_grad()
def heldout_loss(model: Any, count: int = 8) -> float:
    """Nats a response token on `heldout`."""
    losses, tokens = [], []
    for ids, learnt in heldout(count):
        losses.append(mean_loss(model, ids, learnt).item())
        tokens.append(int(learnt.sum()))
    return float(np.average(losses, weights=tokens))


def train(
    model: Any,
    steps: int,
    seed: int,
    tokens: int = BATCH_TOKENS,
    log=lambda step, loss: None,
    total: int | None = None,
    make: Make = optimizers,
) -> list[float]:
    """The first `steps` steps of a schedule of `total`; returns the losses (nats a response token)."""
    made = make(model)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in made]
    losses = []
    total = total or steps
    read = round(TEXTBOOK * total)
    course = chain(islice(batches(seed, False, tokens), read), batches(seed, True, tokens))
    for step, (ids, learnt) in enumerate(islice(course, steps), start=1):
        for optimizer, peak in zip(made, peaks, strict=True):
            for group, lr in zip(optimizer.param_groups, peak, strict=True):
                group["lr"] = lr * rate(step, total)
        loss = mean_loss(model, ids, learnt)
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in made:
            optimizer.step()
        losses.append(loss.item())
        log(step, losses[-1])
    return losses


def pretrain(
    out: Path | str,
    steps: int = STEPS,
    seed: int = 0,
    optimizer: str | None = None,
    lr: float | None = None,
    tokens: int = BATCH_TOKENS,
) -> list[float]:
    """Train pebble from nothing and write it to `out` in Hugging Face format; returns the losses.

    The same seed, steps and number of threads give the same weights on the same machine.

    Args:
        optimizer: one of `OPTIMIZERS` for all parameters, with peak rate `lr` (.01 by default); none takes the
            shipped model's pair, which has its own rates.
        tokens: of a batch, padding included.

    Raises:
        InputError: an unknown optimizer, or a rate without one.
    """
    if optimizer is None and lr is not None:
        raise InputError(f"pretrain: lr={lr} without an optimizer; the shipped model's pair has its own rates")
    if optimizer is not None and optimizer not in OPTIMIZERS:
        raise InputError(f"pretrain: optimizer {optimizer!r}{nearest(optimizer, OPTIMIZERS)}")
    lr = LR if lr is None else lr
    make = by(OPTIMIZERS[optimizer], lr) if optimizer else optimizers
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    vocabulary = tokenizer.build()
    vocabulary.save_pretrained(out)
    model = new_model(-(-len(vocabulary) // 8) * 8)
    started = time.time()

    def log(step: int, loss: float) -> None:
        if step % 50 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss:.4f}  {time.time() - started:.0f} s", flush=True)
        if step % 400 == 0:
            model.save_pretrained(out)  # usable, if unfinished, from early on

    losses = train(model, steps, seed, tokens, log, make=make)
    model.save_pretrained(out)
    at_the_end = heldout_loss(model)
    print(f"held-out loss {at_the_end:.4f}", flush=True)
    (out / "losses.json").write_text(
        json.dumps(
            {
                "seed": seed,
                "steps": steps,
                "threads": torch.get_num_threads(),
                "seconds": round(time.time() - started),
                "first": losses[:10],
                "last_mean": sum(losses[-100:]) / len(losses[-100:]),
                "heldout": at_the_end,
            }
            | ({"tokens": tokens} if tokens != BATCH_TOKENS else {})
            | ({"optimizer": optimizer, "lr": lr} if optimizer else {}),
            indent=1,
        )
    )
    return losses
