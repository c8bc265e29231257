"""Several turns: the policy speaks, its environment answers, the policy goes on.

What the environment says is `present` and not in the `mask`: the policy reads it and does not learn to say it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from surefoot.rollout.native import Sampling, continued
from surefoot.rollouts import Rollouts

Reply = Callable[[Sequence[int], Sequence[str]], Sequence[str | None]]
_TURN = 6364136223846793005  # an odd number: turns of one trajectory draw from different streams


def converse(
    policy: Any,
    questions: Sequence[str],
    group: Int[Tensor, "n"],
    seeds: Int[Tensor, "n"],
    sampling: Sampling,
    reply: Reply,
    turns: int,
) -> Rollouts:
    """One trajectory of up to `turns` turns for each entry of `group`, which indexes `questions`.

    A turn ends with a stop token or at `sampling.max_new_tokens`, which is of each turn; a trajectory that would leave
    the policy's context ends before that turn, and counts as truncated, as does one whose last turn was cut. With one
    turn this is `policy.sample`.

    Args:
        policy: a causal language model (`policies.causal_lm`).
        reply: called once a turn with the rows that spoke and what they said; what the environment answers each, or
            None where the conversation ends. The answers to a last turn are not heard.
    """
    prompts, valid = policy.encode(questions, room=sampling.max_new_tokens)
    rows = [_Row() for _ in group]
    live = list(range(len(rows)))
    for turn in range(turns):
        index = torch.tensor(live)
        if turn:
            asked = [prompts[g][valid[g]].tolist() + row.tokens for g, row in zip(group.tolist(), rows, strict=True)]
            known, there, of = *_left_padded([asked[i] for i in live], policy.pad), torch.arange(len(live))
        else:
            known, there, of = prompts, valid, group
        with torch.no_grad():
            engine = policy.engine(known, there, of)
            said = continued(engine, seeds[index] + torch.tensor(turn) * _TURN, sampling, policy.stop, policy.pad)
        for k, i in enumerate(live):
            keep = said.present[k]
            rows[i].hear(said.tokens[k][keep].tolist(), turn, said.logp[k][keep].tolist())
            rows[i].cut = bool(said.truncated[k])
        answers = reply(live, policy.decode(said.tokens, said.present))
        following = []
        for i, answer in zip(live, answers, strict=True):
            if answer is None or turn == turns - 1:
                continue
            heard = policy.heard(answer)
            ahead = int(valid[group[i]].sum()) + len(rows[i].tokens) + len(heard) + sampling.max_new_tokens
            if ahead > policy.context:
                rows[i].cut = True
                continue
            rows[i].hear(heard, turn)
            following.append(i)
        live = following
        if not live:
            break
    return _table(policy, rows, prompts, valid, group, seeds)


class _Row:
    """The steps of one trajectory as they come."""

    def __init__(self):
        self.tokens: list[int] = []
        self.turn: list[int] = []
        self.chosen: list[bool] = []
        self.logp: list[float] = []
        self.cut = False

    def hear(self, tokens: list[int], turn: int, logp: list[float] | None = None) -> None:
        """Add tokens: the policy's own where their log-probabilities come with them."""
        self.tokens += tokens
        self.turn += [turn] * len(tokens)
        self.chosen += [logp is not None] * len(tokens)
        self.logp += logp if logp is not None else [0.0] * len(tokens)


def _table(policy: Any, rows: list[_Row], prompts: Tensor, valid: Tensor, group: Tensor, seeds: Tensor) -> Rollouts:
    longest = max(len(row.tokens) for row in rows)

    def grid(name: str, filler: float | int | bool) -> Tensor:
        return torch.tensor([getattr(row, name) + [filler] * (longest - len(row.tokens)) for row in rows])

    present = torch.arange(longest) < torch.tensor([len(row.tokens) for row in rows])[:, None]
    tokens = grid("tokens", policy.pad)
    return Rollouts(
        dict(
            tokens=tokens,
            mask=grid("chosen", False),
            present=present,
            turn=grid("turn", -1),
            group=group,
            seed=seeds,
            prompt_tokens=prompts,
            prompt_mask=valid,
            truncated=torch.tensor([row.cut for row in rows]),
            rollout_logp=grid("logp", 0.0),
        ),
        notes={"completion": policy.decode(tokens, present)},
    )


def _left_padded(rows: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    tokens = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    return tokens, torch.arange(width) >= (width - torch.tensor([len(row) for row in rows]))[:, None]
