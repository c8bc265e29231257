"""Soft thinking: thoughts are mixtures of embeddings, the answer is tokens (SofT-GRPO, arXiv 2511.06411).

A step is soft until the end-of-thinking token names one; from then on steps are tokens. A soft step keeps the `k`
likeliest tokens within `top_p` and feeds back a mixture of their embeddings, made random by a noise law
(`objective.soft`): Gumbel noise on the log-probabilities, or Gaussian noise on the mixture
(`--policy soft-thinking:law=gaussian`). Columns: `soft` (which steps are), `slots` (the kept tokens, -1 for none),
`actions` (the perturbed log-probabilities, or the embedding), `tokens` (the slot that names the step, or the token).
Gumbel's embeddings are mixed anew from the stored slots when a batch is scored, with the current table.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.errors import InputError, nearest
from surefoot.objective.soft import NOISE_LAWS, GumbelNoise, NoiseLaw, renormalized
from surefoot.policies.base import CARD, refuse_unknown
from surefoot.policies.causal_lm import CausalLM
from surefoot.policies.llama import backbone
from surefoot.rollout.native import Sampling, decoder, draw, log_distribution, uniforms
from surefoot.rollouts import Rollouts
from surefoot.specs import call

GUMBEL = GumbelNoise()


class SoftThinking(CausalLM):
    """A causal language model that thinks in mixtures.

    Args:
        of: the model underneath.
        end: the text of the token that ends thinking.
        k, top_p: slots that a soft step keeps.
        noise: factor on the noise; the density is that of 1, and 0 takes no noise (for evaluation).
        law: what is random in a soft step.

    Raises:
        InputError: an end of thinking that is not one token.
    """

    kind = "soft-thinking"
    live = ("logp",)

    def __init__(
        self,
        of: CausalLM,
        end: str = "<answer>",
        k: int = 5,
        top_p: float = 0.95,
        noise: float = 1.0,
        law: NoiseLaw = GUMBEL,
        base: str = "pebble",
    ):
        super().__init__(of.model, of.tokenizer, name="soft-thinking", fast=False)
        ids = self.tokenizer(end, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(f"policy 'soft-thinking': end={end!r} is {len(ids)} tokens, expected one")
        self.end, self.k, self.top_p, self.noise = ids[0], k, top_p, noise
        self.law = law.on(backbone(self.model).embed_tokens.weight)
        self.options = dict(base=base, end=end, k=k, top_p=top_p, noise=noise, law=law.name) | vars(self.law)

    def save(self, folder: Path) -> None:
        """The model in Hugging Face format, and `policy.json`."""
        super().save(folder)
        card = {"kind": self.kind, "name": self.name, "options": self.options}
        (folder / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")

    @torch.no_grad()
    def sample(
        self, questions: Sequence[str], group: Int[Tensor, "n"], seeds: Int[Tensor, "n"], sampling: Sampling
    ) -> Rollouts:
        """One trajectory for each entry of `group`: soft thoughts, then a discrete answer."""
        prompts, valid = self.encode(questions, room=sampling.max_new_tokens)
        engine = decoder(self.model, prompts, valid, group, fast=False)
        n, limit, k = len(group), sampling.max_new_tokens, self.k
        tokens, logp = torch.full((n, limit), self.pad), torch.zeros(n, limit)
        entries = self.law.entries(k, backbone(self.model).embed_tokens.embedding_dim)
        slots, actions = torch.full((n, limit, k), -1), torch.zeros(n, limit, entries)
        soft, length = torch.zeros(n, limit, dtype=torch.bool), torch.zeros(n, dtype=torch.long)
        rows, thinking = torch.arange(n), torch.ones(n, dtype=torch.bool)  # both along the engine's rows
        logits, stops = engine.first(), torch.tensor(self.stop)
        for t in range(limit):
            chance = uniforms(seeds[rows], entries + 1, t * (entries + 1))
            token, step, kept, action = self._step(logits, chance, thinking, sampling)
            tokens[rows, t], logp[rows, t], soft[rows, t], length[rows] = token, step, thinking, t + 1
            slots[rows, t], actions[rows, t] = kept, action
            going = ~torch.isin(token, stops)
            if not going.any() or t == limit - 1:
                break
            fed = self._embedded(token, kept, action, thinking)
            thinking = thinking & (token != self.end)
            if not going.all():
                engine.keep(going.nonzero().flatten())
                rows, thinking, fed = rows[going], thinking[going], fed[going]
            logits = engine.step(fed)
        longest = int(length.max())
        present = torch.arange(longest) < length[:, None]
        ended = torch.isin(tokens[torch.arange(n), length - 1], stops)
        return Rollouts(
            dict(
                tokens=tokens[:, :longest],
                slots=slots[:, :longest],
                actions=actions[:, :longest],
                soft=soft[:, :longest] & present,
                mask=present,
                present=present,
                turn=torch.where(present, 0, -1),
                group=group,
                seed=seeds,
                prompt_tokens=prompts,
                prompt_mask=valid,
                truncated=~ended,
                rollout_logp=logp[:, :longest],
            ),
            notes={"completion": self.decode(tokens[:, :longest], present)},
        )

    def _step(
        self, logits: Tensor, chance: Float[Tensor, "b j"], thinking: Bool[Tensor, "b"], sampling: Sampling
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Token, log-probability (or density), slots and action of each row's next step."""
        full = log_distribution(logits, sampling)
        token = draw(full, chance[:, -1])
        step = full.gather(1, token[:, None])[:, 0]
        best, kept = (logits.float() / (sampling.temperature or 1.0)).log_softmax(-1).topk(self.k)
        there = best.exp().cumsum(-1) - best.exp() < self.top_p
        own, vectors = renormalized(best, there), backbone(self.model).embed_tokens(kept)
        factor = self.noise if sampling.temperature else 0.0
        action = self.law.draw(own, there, vectors, chance[:, :-1], factor)
        label = kept.gather(1, self.law.label(own, there, action)[:, None])[:, 0]
        density = self.law.logp(own, there, vectors, action)
        return (
            torch.where(thinking, label, token),
            torch.where(thinking, density, step),
            kept.where(there & thinking[:, None], -1),
            action.where(thinking[:, None], 0.0),
        )

    def _embedded(self, tokens: Tensor, slots: Tensor, actions: Tensor, soft: Tensor) -> Float[Tensor, "*n d"]:
        """What each step feeds back: its mixture, or its token's embedding."""
        table = backbone(self.model).embed_tokens
        fed = self.law.fed(actions, slots >= 0, table(slots.clamp_min(0)))
        return torch.where(soft[..., None], fed, table(tokens))

    def score(self, rollouts: Rollouts, want: Collection[str], temperature: float = 1.0) -> dict[str, Tensor]:
        """`logp`: of soft steps the density of their action over the slots that were kept then; else the token's."""
        refuse_unknown(self, want)
        logits = self._logits(rollouts) / (temperature or 1.0)  # [n t v]
        there, slots = rollouts.slots >= 0, rollouts.slots.clamp_min(0)
        own, vectors = renormalized(logits.gather(-1, slots), there), backbone(self.model).embed_tokens(slots)
        density = self.law.logp(own, there, vectors, rollouts.actions)
        token = logits.log_softmax(-1).gather(-1, rollouts.tokens[..., None])[..., 0]
        return {"logp": torch.where(rollouts.soft, density, token).where(rollouts.present, 0.0)}

    def _logits(self, rollouts: Rollouts) -> Float[Tensor, "n t v"]:
        """Logits before every step, teacher-forced on the stored slots."""
        prompts, valid = rollouts.prompt_tokens[rollouts.group], rollouts.prompt_mask[rollouts.group]
        steps = self._embedded(rollouts.tokens, rollouts.slots, rollouts.actions, rollouts.soft)
        embeddings = torch.cat([backbone(self.model).embed_tokens(prompts), steps], 1)
        mask = torch.cat([valid, rollouts.present], 1)
        positions = (mask.long().cumsum(1) - 1).clamp_min(0)
        out = self.model(inputs_embeds=embeddings, attention_mask=mask.long(), position_ids=positions).logits
        start = prompts.shape[1] - 1
        return out[:, start : start + rollouts.steps].float()


def load(
    task: object,
    base: str = "pebble",
    end: str = "<answer>",
    k: int = 5,
    top_p: float = 0.95,
    noise: float = 1.0,
    law: str = "gumbel",
    **of_law: Any,
) -> SoftThinking:
    """A causal language model by name, thinking softly; what `SoftThinking` does not know are options of the noise law.

    Raises:
        InputError: no law of that name, or an option that it does not have.
    """
    if law not in NOISE_LAWS:
        raise InputError(f"policy soft-thinking: no noise law {law!r}{nearest(str(law), NOISE_LAWS)}")
    made = call(NOISE_LAWS[law], of_law, f"policy soft-thinking with law={law}")
    return SoftThinking(CausalLM.load(base), end, k, top_p, noise, made, base)
