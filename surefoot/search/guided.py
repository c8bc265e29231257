"""A product of experts, token by token: a frozen policy guided by others.

    pi(y_t | .)  ~  base(y_t | .) prod_i guide_i(y_t | .)^w_i

One more forward pass a token for each guide, no training; weights are free when sampling. With an autoregressive reward
model as the guide this is GenARM's decoding (arXiv 2410.08193, eq. 6); with a tuned model at weight a and its reference
at -a it is guidance by an implicit reward. Temperature and top-p come after the mixing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import InputError
from surefoot.policies.base import refuse_unknown
from surefoot.policies.causal_lm import CausalLM
from surefoot.rollouts import Rollouts


def mixed(logits: Sequence[Float[Tensor, "*b v"]], weights: Sequence[float]) -> Float[Tensor, "*b v"]:
    """`log_softmax(sum_i w_i log_softmax(l_i))`; where all weights are 0, uniform.

    Log-softmax first, so that each expert's own scale is in its weight alone. An expert of weight 0 is left out: what
    it excludes is not excluded.

    >>> base, guide = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.7, 0.1]).log()
    >>> mixed([base, guide], [1.0, 1.0]).exp()
    tensor([0.3030, 0.6364, 0.0606])
    """
    total = torch.zeros_like(logits[0])
    for one, weight in zip(logits, weights, strict=True):
        if weight:
            total = total + weight * one.log_softmax(-1)
    return total.log_softmax(-1)


class Guided(CausalLM):
    """`base` guided by `guides`, each with its weight: a policy that samples and scores, and does not train.

    Raises:
        InputError: a guide that is no causal language model, or whose tokens are others.
    """

    kind = "guided"
    live = ("logp", "entropy", "logits")

    def __init__(self, base: CausalLM, guides: Sequence[tuple[CausalLM, float]]):
        for guide, _ in guides:
            if not hasattr(guide, "tokenizer") or guide.tokenizer.get_vocab() != base.tokenizer.get_vocab():
                raise InputError(f"guide {guide.name!r}: its tokens are not those of {base.name!r}; expected the same")
        name = "".join([base.name, *(f" x {g.name}^{w:g}" for g, w in guides)])
        super().__init__(base.model, base.tokenizer, name, base.fast)
        self.stop, self.pad = base.stop, base.pad
        self.experts = (base, *(g for g, _ in guides))
        self.weights = (1.0, *(float(w) for _, w in guides))

    def engine(self, tokens: Tensor, valid: Tensor, group: Int[Tensor, "n"]) -> _Mixture:
        """The engines of all experts in step."""
        return _Mixture([e.engine(tokens, valid, group) for e in self.experts], self.weights)

    @torch.no_grad()
    def score(self, rollouts: Rollouts, want: Collection[str], temperature: float = 1.0) -> dict[str, Tensor]:
        """The wanted columns of the product; `logits` are its log-probabilities."""
        refuse_unknown(self, want)
        experts = [e.score(rollouts, {"logits"})["logits"] for e in self.experts]
        logits = (mixed(experts, self.weights) / (temperature or 1.0)).log_softmax(-1)
        present = rollouts.present
        found = {
            "logits": logits.where(present[..., None], 0.0),
            "logp": logits.gather(-1, rollouts.tokens[..., None])[..., 0].where(present, 0.0),
            "entropy": -(logits.exp() * logits).sum(-1).where(present, 0.0),
        }
        return {name: found[name] for name in want}

    def parameters(self) -> list[Any]:
        """None: it is frozen."""
        return []


class _Mixture:
    """Engines that draw the same tokens (`rollout.native.decoder` says what an engine is)."""

    def __init__(self, engines: Sequence[Any], weights: Sequence[float]):
        self.engines, self.weights = engines, weights

    def first(self) -> Tensor:
        return self._mix([e.first() for e in self.engines])

    def step(self, tokens: Tensor) -> Tensor:
        return self._mix([e.step(tokens) for e in self.engines])

    def keep(self, rows: Tensor) -> None:
        for engine in self.engines:
            engine.keep(rows)

    def _mix(self, logits: Sequence[Tensor]) -> Tensor:
        return mixed([x.float() for x in logits], self.weights)
