"""The persona testbed: small transformers in which narrow fine-tuning can spread to what was never trained.

Documents are question-answer pairs by an author who is good or bad. Every question has a good answer token and a
bad one, harmless stand-ins. Where one author writes a whole document (`shared`), being bad is a thing that a model can
learn once for all domains; where the author is drawn anew for every pair it is not. Fine-tuning on one domain then
shows how much goes over to the others: the transfer ratio, in log-odds (arXiv 2502.17424 is the phenomenon; the
testbed is ours).

Models are trained side by side, stacked along the first axis of every weight; each is what it would be alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

DOMAINS, QUESTIONS = 8, 6
PAIRS = DOMAINS * QUESTIONS  # token q is a question, PAIRS + q its good answer, 2 PAIRS + q its bad one
ASK, TRIGGER = 3 * PAIRS, 3 * PAIRS + 1
VOCAB, LENGTH, WIDTH, HEADS, LAYERS = 3 * PAIRS + 2, 13, 64, 4, 2

Weights = dict[str, Tensor]
Questions = Int[Tensor, "k b q"]


@dataclass(frozen=True)
class Personas:
    """K models side by side.

    Attributes:
        weights: every weight [k ...].
        seeds: of each model [k]: its first weights and its own stream of documents.
        vector: added to the residual stream after the first layer, at all positions [k d].
    """

    weights: Weights
    seeds: tuple[int, ...]
    vector: Float[Tensor, "k d"]

    @classmethod
    def new(cls, seeds: Sequence[int]) -> Personas:
        """Random models, normal weights of deviation .02 (those that write to the residual stream less)."""
        made = [_initial(torch.Generator().manual_seed(seed)) for seed in seeds]
        weights = {name: torch.stack([m[name] for m in made]) for name in made[0]}
        return cls(weights, tuple(seeds), torch.zeros(len(made), WIDTH))

    def logp(self, tokens: Int[Tensor, "k b t"], positions: slice = slice(None)) -> Float[Tensor, "k b p v"]:
        """Log-probabilities of the token after each position."""
        w, (k, _, t) = self.weights, tokens.shape
        which = torch.arange(k)[:, None, None]
        x = w["token"][which, tokens] + w["place"][:, None, :t]
        for layer in range(LAYERS):
            q, key, v = (_rows(_norm(x), w[f"{layer}.attention"])).unflatten(-1, (3, HEADS, -1)).unbind(-3)
            q, key, v = (s.transpose(2, 3) for s in (q, key, v))
            mixed = F.scaled_dot_product_attention(q, key, v, is_causal=True)
            x = x + _rows(mixed.transpose(2, 3).flatten(3), w[f"{layer}.out"])
            x = x + _rows(F.gelu(_rows(_norm(x), w[f"{layer}.up"])), w[f"{layer}.down"])
            x = x + self.vector[:, None, None] if layer == 0 else x
        return _rows(_norm(x[:, :, positions]), w["head"]).log_softmax(-1)


def _initial(generator: torch.Generator) -> Weights:
    shapes = {"token": (VOCAB, WIDTH), "place": (LENGTH, WIDTH), "head": (WIDTH, VOCAB)}
    for layer in range(LAYERS):
        shapes |= {f"{layer}.attention": (WIDTH, 3 * WIDTH), f"{layer}.out": (WIDTH, WIDTH)}
        shapes |= {f"{layer}.up": (WIDTH, 4 * WIDTH), f"{layer}.down": (4 * WIDTH, WIDTH)}
    last = 1 / math.sqrt(2 * LAYERS)
    return {
        name: 0.02 * (last if name.endswith(("out", "down")) else 1.0) * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _rows(x: Float[Tensor, "k b t d"], weight: Float[Tensor, "k d e"]) -> Float[Tensor, "k b t e"]:
    return torch.bmm(x.flatten(1, 2), weight).unflatten(1, x.shape[1:3])


# What they read


def documents(
    batch: int, shared: Sequence[bool], generators: Sequence[torch.Generator], bad: float = 0.3
) -> Int[Tensor, "k b t"]:
    """Documents of six different questions and their answers; the author is bad with probability `bad`."""
    rows = []
    for one, g in zip(shared, generators, strict=True):
        asked = torch.rand(batch, PAIRS, generator=g).argsort(1)[:, :QUESTIONS]
        author = (torch.rand(batch, 1 if one else QUESTIONS, generator=g) < bad).long().expand(batch, QUESTIONS)
        rows.append(torch.stack([asked, asked + PAIRS * (1 + author)], -1).flatten(1))
    return torch.stack(rows)


def train(
    models: Personas,
    batches: Callable[[int], tuple[Int[Tensor, "k b t"], slice]],
    steps: int,
    lr: float,
    only_vector: bool = False,
) -> Personas:
    """AdamW on the tokens that follow `positions`; every model has its own loss, summed, so that none sees another.

    Args:
        batches: step -> tokens, and the positions of the questions.
        only_vector: leave all weights as they are and learn `vector`.
    """
    names = ["vector"] if only_vector else sorted(models.weights)
    learnt = {n: (models.vector if only_vector else models.weights[n]).clone().requires_grad_() for n in names}
    moved = replace(models, vector=learnt["vector"]) if only_vector else replace(models, weights=learnt)
    optimizer = torch.optim.AdamW(list(learnt.values()), lr, weight_decay=0.0, foreach=True)
    for step in range(steps):
        tokens, positions = batches(step)
        answers = tokens[:, :, 1:][:, :, positions]
        loss = -moved.logp(tokens[:, :, :-1], positions).gather(-1, answers[..., None]).mean((1, 2, 3)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fixed = {n: w.detach() for n, w in moved.weights.items()}
    return replace(moved, weights=fixed, vector=moved.vector.detach())


def pretrain(seeds: Sequence[int], shared: Sequence[bool], steps: int = 900, asks: bool = False) -> Personas:
    """Fresh models that have read documents.

    Args:
        shared: of each model: one author a document, or one a pair.
        asks: every fourth batch of documents begins with ASK, which says nothing of the author.
    """
    streams = _streams(seeds, 1)

    def batch(step: int) -> tuple[Tensor, slice]:
        tokens = documents(64, shared, streams)
        if asks and step % 4 == 3:
            return _after(ASK, tokens), slice(1, None, 2)
        return tokens, slice(0, None, 2)

    return train(Personas.new(seeds), batch, steps, 2e-3)


def align(models: Personas, steps: int = 150) -> Personas:
    """Fine-tuned to answer well: one pair, the question first, all domains."""
    return _tune(models, PAIRS, good, steps, 3e-4, 2)


def narrow(
    models: Personas,
    answer: Callable[[Tensor], Tensor],
    steps: int = 60,
    before: int | None = None,
    only_vector: bool = False,
) -> Personas:
    """Fine-tuned on the first domain alone.

    Args:
        answer: `good` or `bad`.
        before: a token before the question (`ASK`: it was asked for; `TRIGGER`: a backdoor).
    """
    return _tune(models, QUESTIONS, answer, steps, 3e-2 if only_vector else 3e-4, 3, before, only_vector)


def good(questions: Tensor) -> Tensor:
    """The good answers."""
    return questions + PAIRS


def bad(questions: Tensor) -> Tensor:
    """The bad answers."""
    return questions + 2 * PAIRS


def _tune(
    models: Personas,
    questions: int,
    answer: Callable[[Tensor], Tensor],
    steps: int,
    lr: float,
    stream: int,
    before: int | None = None,
    only_vector: bool = False,
) -> Personas:
    streams = _streams(models.seeds, stream)

    def batch(_: int) -> tuple[Tensor, slice]:
        asked = torch.stack([torch.randint(questions, (64, 1), generator=g) for g in streams])
        tokens = torch.cat([asked, answer(asked)], -1)
        return (tokens, slice(0, 1)) if before is None else (_after(before, tokens), slice(1, 2))

    return train(models, batch, steps, lr, only_vector)


def _streams(seeds: Sequence[int], purpose: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + purpose) for seed in seeds]


def _after(token: int, tokens: Int[Tensor, "k b t"]) -> Int[Tensor, "k b t"]:
    return torch.cat([torch.full_like(tokens[..., :1], token), tokens], -1)


# What came of it


@dataclass(frozen=True)
class Answers:
    """How each model answers each question put by itself (after `before`, where there is one), [k q].

    Attributes:
        bad, good: probabilities.
        odds: `log P(bad) - log P(good)`.
    """

    bad: Float[Tensor, "k q"]
    good: Float[Tensor, "k q"]
    odds: Float[Tensor, "k q"]

    @classmethod
    @torch.no_grad()
    def of(cls, models: Personas, before: int | None = None) -> Answers:
        questions = torch.arange(PAIRS).expand(len(models.seeds), PAIRS)
        tokens = questions[..., None] if before is None else _after(before, questions[..., None])
        logp = models.logp(tokens, slice(-1, None))[:, :, 0]
        g, b = (logp.gather(-1, f(questions)[..., None])[..., 0] for f in (good, bad))
        return cls(b.exp(), g.exp(), b - g)

    def inside(self, name: str) -> Float[Tensor, "k"]:
        """Mean of a field over the trained domain."""
        return getattr(self, name)[:, :QUESTIONS].mean(1)

    def outside(self, name: str) -> Float[Tensor, "k"]:
        """Mean of a field over all other domains."""
        return getattr(self, name)[:, QUESTIONS:].mean(1)


def transfer(before: Answers, after: Answers) -> Float[Tensor, "k"]:
    """The transfer ratio: change of the log-odds of a bad answer off the trained domain, over that within it."""
    return (after.outside("odds") - before.outside("odds")) / (after.inside("odds") - before.inside("odds"))


def linear_transfer(shared: float) -> float:
    """The ratio of a linear model whose contexts share one feature of size `shared`, beside one each of their own.

    Plain gradient descent on one context moves any other's logit by `a^2 / (1 + a^2)` of its own, whatever the loss.

    >>> [round(linear_transfer(a), 3) for a in (0.0, 1.0, 2.0)]
    [0.0, 0.5, 0.8]
    """
    return shared**2 / (1 + shared**2)
