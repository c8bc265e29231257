"""Every answer that a language model can give to one prompt, with its probability: the exact side of `from_samples`.

The tree of prefixes is expanded breadth first, for the policy and its reference together. A prefix is dropped when
both give it less than `floor`; what was dropped is summed, so that nothing is silently lost. Log space, float64 (the
logits themselves are the model's float32).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.errors import InputError
from surefoot.rollout.native import Sampling, decoder, log_distribution

MOST = 20_000  # prefixes of one length that are kept at most
FLOOR = 1e-4


@dataclass(frozen=True)
class Answers:
    """The answers to one prompt: token sequences that end in a stop token, or are cut at the length limit.

    Attributes:
        tokens, present: the sequences, padded.
        cut: those that reached the limit.
        logp, ref_logp: under the policy and under the reference (`logp` again where there is none).
        rest, ref_rest: probability of all that was dropped.
    """

    tokens: Int[Tensor, "n t"]
    present: Bool[Tensor, "n t"]
    cut: Bool[np.ndarray, "n"]
    logp: Float[np.ndarray, "n"]
    ref_logp: Float[np.ndarray, "n"]
    rest: float
    ref_rest: float

    def __len__(self) -> int:
        return len(self.logp)


@torch.no_grad()
def enumerate_answers(
    policy: Any, question: str, sampling: Sampling, reference: Any = None, floor: float = FLOOR, most: int = MOST
) -> Answers:
    """All answers of `policy` to `question` under `sampling` whose every prefix has at least `floor` probability.

    As in a run's rollouts, the policy's distribution is the one that is sampled from, the reference's is not truncated.

    Args:
        policy, reference: causal language models over the same tokens.
        floor: least probability of a prefix, under the policy or the reference. What the policy cannot say is dropped
            whatever the floor, and counted in `ref_rest`.
        most: prefixes of one length beyond which the tree is refused.

    Raises:
        InputError: a floor outside [0, 1), or a tree that is too large.
    """
    if not 0 <= floor < 1:
        raise InputError(f"enumeration: floor {floor}; expected at least 0 and below 1")
    models = [policy] if reference is None else [policy, reference]
    tokens, valid = policy.encode([question], room=sampling.max_new_tokens)
    untruncated = Sampling(temperature=sampling.temperature or 1.0)
    root = torch.zeros(1, dtype=torch.long)
    decoders = [decoder(m.model, tokens, valid, root, m.fast, block=1) for m in models]
    logits = [d.first() for d in decoders]
    prefix, mass = torch.zeros(1, 0, dtype=torch.long), torch.zeros(len(models), 1, dtype=torch.float64)
    least = np.log(floor) if floor else -np.inf
    dropped, leaves = [torch.full((len(models), 1), -torch.inf, dtype=torch.float64)], []
    for length in range(1, sampling.max_new_tokens + 1):
        step = [log_distribution(x.cpu(), s) for x, s in zip(logits, (sampling, untruncated), strict=False)]
        ahead = mass[:, :, None] + torch.stack(step).double()  # [model, prefix, token]
        kept = (ahead.amax(0) >= least) & (ahead[0] > -torch.inf)
        dropped.append(ahead[:, ~kept].logsumexp(-1, keepdim=True))
        parent, token = kept.nonzero(as_tuple=True)
        prefix, mass = torch.cat([prefix[parent], token[:, None]], 1), ahead[:, parent, token]
        stopped = torch.isin(token, torch.tensor(policy.stop))
        done = stopped | (length == sampling.max_new_tokens)
        leaves.append((prefix[done], mass[:, done], ~stopped[done]))
        prefix, mass, parent, token = prefix[~done], mass[:, ~done], parent[~done], token[~done]
        if not len(token):
            break
        if len(token) > most:
            raise InputError(
                f"enumeration: {len(token)} prefixes of {length} tokens, at most {most} are kept; "
                f"expected a larger floor than {floor:g}, a shorter answer or a more certain policy"
            )
        for d in decoders:
            d.keep(parent)
        logits = [d.step(token) for d in decoders]
    return _gathered(leaves, torch.cat(dropped, 1).logsumexp(1).exp(), policy.pad)


def _gathered(leaves: Sequence[tuple[Tensor, Tensor, Tensor]], rest: Tensor, pad: int) -> Answers:
    longest = max(t.shape[1] for t, _, _ in leaves)
    tokens = torch.cat([torch.nn.functional.pad(t, (0, longest - t.shape[1]), value=pad) for t, _, _ in leaves])
    lengths = torch.cat([torch.full((len(t),), t.shape[1]) for t, _, _ in leaves])
    logp = torch.cat([m for _, m, _ in leaves], 1).numpy()
    return Answers(
        tokens=tokens,
        present=torch.arange(longest) < lengths[:, None],
        cut=torch.cat([c for _, _, c in leaves]).numpy(),
        logp=logp[0],
        ref_logp=logp[-1],
        rest=float(rest[0]),
        ref_rest=float(rest[-1]),
    )
