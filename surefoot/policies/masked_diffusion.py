"""A masked-diffusion language model: it fills in a row of masks, surest first: `masked-diffusion[:key=value,...]`.

A small transformer over pebble's tokens reads the prompt and, in both directions, L response positions, some of them
masked, and gives a distribution at each. (The prompt does not see the response, so that its group shares it.) Sampling
starts from L masks; each pass draws a token at every masked position and keeps the one that had most probability
(low-confidence remasking, one block; LLaDA, arXiv 2502.09992), so that a response costs L passes. The text ends at the
first `<eos>`; all L positions are choices and train.

A response has no likelihood at hand. What `score` gives as `logp` is a score of denoising: the trajectory's own mask
draw (column `noise`, made with it, so that the current, the old and the reference policy see the same one) splits the
response into two sets, and each token is scored once, from the input that masks its set and shows the other:

    logp_k = w_k log p(x_k | prompt, x with k's set masked)

with w = 1/2 (`even`: the mean of the two), or (L + 1) / (2 |set|) (`level`: the sum is an ELBO up to (L + 1) / L). The
sizes of the sets are spread evenly over 0..L in a batch.

The policy starts trained on its task's own questions and answers, in the cache. `load` says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from surefoot.cache import made_once
from surefoot.errors import InputError
from surefoot.policies.base import ModulePolicy, generator, supervised
from surefoot.policies.causal_lm import SHIPPED
from surefoot.rollout.native import Sampling, draw, log_distribution, uniforms
from surefoot.rollouts import Rollouts
from surefoot.specs import call

Weights = Literal["even", "level"]
LONGEST = 160  # of a prompt, tokens


def mask_draw(seeds: Int[Tensor, "n"], length: int) -> Bool[Tensor, "n t"]:
    """One set of positions a row: sizes spread evenly over 0..L by rows in random order, positions of the row's stream.

    >>> mask_draw(torch.arange(5), 4).sum(1).sort().values
    tensor([0, 1, 2, 3, 4])
    """
    n, g = len(seeds), generator(int(seeds[0])) if len(seeds) else None
    level = (torch.randperm(n, generator=g) + torch.rand((), generator=g)) / max(n, 1)
    size = (level * (length + 1)).long().clamp(max=length)
    place = uniforms(seeds, length, length * length + length).argsort(1).argsort(1)  # after what sampling draws
    return place < size[:, None]


def set_weights(noise: Bool[Tensor, "n t"], weights: Weights = "even") -> Float[Tensor, "n t"]:
    """The weight of each token's score: 1/2, or `(L + 1) / (2 size of its set)` (arXiv 2605.29398's code, TLC).

    >>> set_weights(torch.tensor([[True, False, False]]), "level")
    tensor([[2., 1., 1.]])
    """
    if weights == "even":
        return torch.full(noise.shape, 0.5)
    length, size = noise.shape[1], noise.sum(1, keepdim=True)
    return (length + 1) / (2 * torch.where(noise, size, length - size))


class Block(nn.Module):
    """Attention and a layer of SiLU: the prompt sees the prompt, a response sees its prompt and all of itself."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layer = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(
        self,
        prompt: Float[Tensor, "m p d"],
        valid: Bool[Tensor, "m p"],
        x: Float[Tensor, "n t d"],
        group: Int[Tensor, "n"],
    ) -> tuple[Float[Tensor, "m p d"], Float[Tensor, "n t d"]]:
        q, k, v = self._heads(prompt)
        own_q, own_k, own_v = self._heads(x)
        seen = F.scaled_dot_product_attention(q, k, v, valid[:, None, None])
        k, v = torch.cat([k[group], own_k], 2), torch.cat([v[group], own_v], 2)
        there = F.pad(valid[group], (0, x.shape[1]), value=True)
        own_seen = F.scaled_dot_product_attention(own_q, k, v, there[:, None, None])
        return self._after(prompt, seen), self._after(x, own_seen)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4))

    def _after(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.layer(self.between(x))


class Denoiser(nn.Module):
    """Logits at every response position. Prompts are padded on the left, and places count from the prompt's end."""

    def __init__(self, vocab: int, length: int, width: int, layers: int):
        super().__init__()
        self.embed = nn.Embedding(vocab + 1, width)  # the last one is the mask
        self.place = nn.Embedding(LONGEST + length, width)
        self.blocks = nn.ModuleList(Block(width, max(1, width // 16)) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab)
        for table in (self.embed, self.place):
            nn.init.normal_(table.weight, std=0.1)

    def forward(
        self, prompts: Int[Tensor, "m p"], valid: Bool[Tensor, "m p"], x: Int[Tensor, "n t"], group: Int[Tensor, "n"]
    ) -> Float[Tensor, "n t v"]:
        place = self.place(torch.arange(LONGEST - prompts.shape[1], LONGEST + x.shape[1]))
        prompt, h = self.embed(prompts) + place[: prompts.shape[1]], self.embed(x) + place[prompts.shape[1] :]
        for block in self.blocks:
            prompt, h = block(prompt, valid, h, group)
        return self.head(self.norm(h))


class MaskedDiffusion(ModulePolicy):
    """A denoiser as a policy of L tokens.

    Args:
        length: L.
        width, layers: of the transformer, with heads of 16.
        weights: of the two sets (`set_weights`).
        centred: score logits less their mean over the vocabulary, detached, in place of log-probabilities.
    """

    kind, live, unit = "masked-diffusion", ("logp",), "tokens"
    engine_exact = False  # what sampling records is the chance of each token when it was filled in
    likelihood = False  # sums of `logp` are no log-likelihoods

    def __init__(
        self,
        length: int = 8,
        width: int = 64,
        layers: int = 2,
        weights: Weights = "even",
        centred: bool = False,
        lr: float = 3e-4,
    ):
        from transformers import AutoTokenizer

        if length < 1 or weights not in ("even", "level"):
            raise InputError(
                f"policy masked-diffusion: length={length}, weights={weights!r}, expected a length of 1 or more and "
                "weights of 'even' or 'level'"
            )
        options = {k: v for k, v in locals().items() if k not in ("self", "__class__", "AutoTokenizer")}
        self.tokenizer = AutoTokenizer.from_pretrained(SHIPPED["pebble"])
        super().__init__(Denoiser(len(self.tokenizer), length, width, layers), options, lr=lr)
        self.length, self.centred = length, centred
        self.weights: Weights = weights
        self.mask, self.stop = len(self.tokenizer), self.tokenizer.eos_token_id

    def encode(self, questions: Sequence[str]) -> tuple[Int[Tensor, "m p"], Bool[Tensor, "m p"]]:
        """Prompt table, padded on the left.

        Raises:
            InputError: an empty question, or one that is too long.
        """
        rows = [self.tokenizer(q.strip() + "\n", add_special_tokens=False)["input_ids"] for q in questions]
        for question, row in zip(questions, rows, strict=True):
            if not question.strip() or len(row) > LONGEST:
                raise InputError(f"prompt {question[:60]!r}: {len(row)} tokens, expected some text, at most {LONGEST}")
        width = max(map(len, rows))
        tokens = torch.tensor([[self.stop] * (width - len(r)) + r for r in rows])
        return tokens, torch.arange(width) >= width - torch.tensor([len(r) for r in rows])[:, None]

    def texts(self, tokens: Int[Tensor, "n t"]) -> list[str]:
        """What stands before the first `<eos>`."""
        rows = [row[: row.index(self.stop)] if self.stop in row else row for row in tokens.tolist()]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    @torch.no_grad()
    def sample(
        self, questions: Sequence[str], group: Int[Tensor, "n"], seeds: Int[Tensor, "n"], sampling: Sampling
    ) -> Rollouts:
        """One trajectory for each entry of `group`; each draws from its own stream.

        Raises:
            InputError: a limit on new tokens below L, which is fixed.
        """
        n, length = len(group), self.length
        if sampling.max_new_tokens < length:
            raise InputError(
                f"policy masked-diffusion writes {length} tokens, and at most {sampling.max_new_tokens} are allowed; "
                f"expected a length of at most that (--policy masked-diffusion:length={sampling.max_new_tokens})"
            )
        prompts, valid = self.encode(questions)
        chances = uniforms(seeds, length * length).unflatten(1, (length, length))
        x, logp, rows = torch.full((n, length), self.mask), torch.zeros(n, length), torch.arange(n)
        for k in range(length):
            logits = self.model(prompts, valid, x, group)
            full = log_distribution(logits.flatten(0, 1), sampling)
            token = draw(full, chances[:, k].flatten()).view(n, length)
            sure = logits.log_softmax(-1).gather(-1, token[..., None])[..., 0]
            best = sure.where(x == self.mask, -torch.inf).argmax(1)
            x[rows, best] = token[rows, best]
            logp[rows, best] = full.view(n, length, -1)[rows, best, x[rows, best]]
        present = torch.ones(n, length, dtype=torch.bool)
        return Rollouts(
            dict(
                tokens=x,
                noise=mask_draw(seeds, length),
                mask=present,
                present=present,
                turn=torch.zeros(n, length, dtype=torch.long),
                group=group,
                seed=seeds,
                prompt_tokens=prompts,
                prompt_mask=valid,
                truncated=~(x == self.stop).any(1),
                rollout_logp=logp,
            ),
            notes={"completion": self.texts(x)},
        )

    def columns(self, rollouts: Rollouts, want: set[str], temperature: float) -> dict[str, Tensor]:
        r, noise, tokens = rollouts, rollouts.noise, rollouts.tokens
        x = torch.cat([tokens.masked_fill(noise, self.mask), tokens.masked_fill(~noise, self.mask)])
        first, second = self.model(r.prompt_tokens, r.prompt_mask, x, r.group.repeat(2)).chunk(2)
        return {"logp": denoising_score(torch.where(noise[..., None], first, second) / temperature, rollouts, self)}

    def fit(self, task: Any, steps: int, batch: int, lr: float, seed: int) -> list[float]:
        """Cross-entropy at masked positions, a uniform share of them, weighted 1 / share (LLaDA, eq. 3), on answers."""
        if not hasattr(task, "demonstrations"):
            raise InputError(f"policy 'masked-diffusion': the task {task.name!r} has no demonstrations")
        rng, g = np.random.default_rng(seed), torch.Generator().manual_seed(seed)

        def loss() -> Tensor:
            shown = task.demonstrations(rng, batch)
            prompts, valid = self.encode([conversation[0][0] for conversation in shown])
            target = self._targets([conversation[1][0] for conversation in shown])
            size = torch.randint(1, self.length + 1, (batch, 1), generator=g)
            hidden = torch.rand(batch, self.length, generator=g).argsort(1).argsort(1) < size
            logits = self.model(prompts, valid, target.masked_fill(hidden, self.mask), torch.arange(batch))
            each = F.cross_entropy(logits.transpose(1, 2), target, reduction="none")
            return (each * hidden / size).sum(1).mean()

        return supervised(self.model.parameters(), loss, steps, lr)

    def _targets(self, answers: Sequence[str]) -> Int[Tensor, "n t"]:
        """The answers' tokens, then `<eos>` to the end; what does not fit is cut."""
        rows = [self.tokenizer(a, add_special_tokens=False)["input_ids"][: self.length] for a in answers]
        return torch.tensor([r + [self.stop] * (self.length - len(r)) for r in rows])


def denoising_score(logits: Float[Tensor, "n t v"], rollouts: Rollouts, of: MaskedDiffusion) -> Float[Tensor, "n t"]:
    """Weighted score of each token, 0 where there is none: log-probabilities, or centred logits."""
    score = logits - logits.mean(-1, keepdim=True).detach() if of.centred else logits.log_softmax(-1)
    taken = score.gather(-1, rollouts.tokens[..., None])[..., 0]
    return (set_weights(rollouts.noise, of.weights) * taken).where(rollouts.present, 0.0)


def load(
    task: Any, steps: int = 300, batch: int = 64, rate: float = 3e-3, seed: int = 0, **options: Any
) -> MaskedDiffusion:
    """The policy, trained on first use for its task; kept in the cache.

    Args:
        steps, batch, rate, seed: of its supervised training; few steps leave something for reinforcement learning.
        options: those of `MaskedDiffusion`.
    """
    if task is None:
        return call(MaskedDiffusion, options, "policy masked-diffusion")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = call(MaskedDiffusion, options, "policy masked-diffusion")
        shape = {k: policy.options[k] for k in ("length", "width", "layers")}
        made_from = dict(task=task.name, **shape, steps=steps, batch=batch, rate=rate, seed=seed)

        def fill(aside: Path) -> None:
            policy.fit(task, steps, batch, rate, seed)
            policy.save(aside)

        policy.restore(made_once("diffusion", made_from, fill))
    return policy
