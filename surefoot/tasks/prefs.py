"""Logged responses with scores, played back: offline preferences.

    prefs:PATH.jsonl                     columns prompt, chosen, rejected (and split, where the file says which side)
    prefs:[key=value,...,]make=TASK      pairs that TASK's own judge makes of a policy's samples, made once and cached

A training problem holds its responses, best first, and trajectories of one prompt play them in that order: two
rollouts a prompt are a pair, one is the chosen response (imitation). A made task keeps the held-out problems and the
judge of the task that it was made of, so its evaluation is that of fresh samples. A file has no judge: its held-out
pairs are ranked, and `ranking` is the share of the pairs whose chosen response has the higher log-probability.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from surefoot.cache import cache_folder
from surefoot.errors import InputError
from surefoot.files import write_aside
from surefoot.rollout.native import Sampling
from surefoot.rollouts import Rollouts
from surefoot.specs import call, read_options
from surefoot.tasks.base import Problem, Task
from surefoot.tasks.files import read_rows
from surefoot.tasks.play import act, judged
from surefoot.tasks.splits import is_held_out

COLUMNS = ("prompt", "chosen", "rejected")


def load(rest: str) -> Preferences:
    """The task `prefs:<rest>`: a file, or pairs that are made first (see the module).

    Raises:
        InputError: no such file, a row that is no pair, or an unknown option.
    """
    name = f"prefs:{rest}"
    options, make, base = rest.rpartition("make=")
    if not make:
        train, heldout = read_pairs(Path(rest))
        if not heldout:
            raise InputError(f"{rest}: no held-out pair; expected at least one (column 'split', else a hash decides)")
        return Preferences(name, train, heldout, path=Path(rest))
    from surefoot import tasks

    judge = tasks.load(base)
    path = call(made, read_options(options.rstrip(","), f"task {name!r}"), f"task {name!r}", judge)
    return Preferences(name, read_pairs(path)[0], judge.heldout, judge, path)


def read_pairs(path: Path) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out pairs of a file; the column `split`, else a hash of the prompt, decides the side."""
    found: dict[str, list[Problem]] = {"train": [], "heldout": []}
    for where, row in read_rows(path, COLUMNS):
        for column in COLUMNS:
            if not isinstance(row[column], str) or not row[column].strip():
                raise InputError(f"{where}: {column} is {str(row[column])[:40]!r}; expected text")
        side = row.get("split") or ("heldout" if is_held_out(row["prompt"]) else "train")
        if side not in found:
            raise InputError(f"{where}: split {side!r}; expected 'train' or 'heldout'")
        pair = (row["chosen"], row["rejected"])
        data = {"responses": pair, "scores": (1.0, 0.0)} if side == "train" else {"compare": pair}
        found[side].append(Problem(row["prompt"], row["chosen"], data))
    if not found["train"]:
        raise InputError(f"{path}: no training pair; expected at least one")
    return found["train"], found["heldout"]


class Preferences:
    """Problems whose responses are there already.

    Args:
        train: problems whose `data` holds `responses` (texts, best first) and `scores` (a number each).
        heldout: problems of `base`; without it, problems whose `data` holds a pair to `compare`, best first.
        base: the task that judges what is sampled for the held-out problems.
        path: where the pairs lie, if in a file.
    """

    def __init__(
        self,
        name: str,
        train: Sequence[Problem],
        heldout: Sequence[Problem],
        base: Task | None = None,
        path: Path | None = None,
    ):
        self.name, self.train, self.heldout, self.base, self.path = name, train, heldout, base, path
        self.max_new_tokens = base.max_new_tokens if base else 256

    def rollout(
        self, policy: Any, problems: Sequence[Problem], group: Int[Tensor, "n"], seeds: Int[Tensor, "n"], sampling: Any
    ) -> Rollouts:
        """Responses played back, held-out pairs ranked, or fresh samples: as the problems ask."""
        data = problems[0].data
        if "responses" in data:
            return played(policy, problems, group, seeds)
        if "compare" in data:
            return ranked(policy, problems, group, seeds)
        assert self.base is not None
        return act(policy, self.base, problems, group, seeds, sampling)

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts:
        """What was logged has its reward; what was sampled is judged by the task that posed it."""
        if self.base is None or "preferred" in rollouts.rewards:
            return rollouts
        return self.base.judge(problems, rollouts)


def played(policy: Any, problems: Sequence[Problem], group: Int[Tensor, "n"], seeds: Int[Tensor, "n"]) -> Rollouts:
    """The j-th trajectory of a problem is its j-th response, with its score as the reward `preferred`.

    Raises:
        InputError: more trajectories of a problem than it has responses.
    """
    texts, scores, said = [], [], [0] * len(problems)
    for g in group.tolist():
        j, data = said[g], problems[g].data
        if j == len(data["responses"]):
            raise InputError(
                f"logged responses: {problems[g].question.strip()[:40]!r} has {j} and more were asked for "
                f"(--set prompts.rollouts={j})"
            )
        texts.append(data["responses"][j])
        scores.append(data["scores"][j])
        said[g] += 1
    table = policy.logged([p.question for p in problems], group, seeds, texts)
    return table.having(rewards={"preferred": torch.tensor(scores)})


@torch.no_grad()
def ranked(policy: Any, problems: Sequence[Problem], group: Int[Tensor, "n"], seeds: Int[Tensor, "n"]) -> Rollouts:
    """The chosen response of each pair, with `ranking` (1 where the policy finds it more likely) and `margin`, nats."""
    questions, every = [p.question for p in problems], torch.arange(len(problems))
    sums = []
    for side in (0, 1):
        table = policy.logged(questions, every, torch.zeros_like(every), [p.data["compare"][side] for p in problems])
        sums.append(policy.score(table, {"logp"})["logp"].where(table.mask, 0.0).sum(1))
    margin = (sums[0] - sums[1])[group]
    table = policy.logged(questions, group, seeds, [problems[g].data["compare"][0] for g in group.tolist()])
    return table.having(rewards={"ranking": (margin > 0).float(), "margin": margin})


# Pairs of a policy's samples


def made(
    base: Task, pairs: int = 1024, policy: str = "pebble", samples: int = 8, seed: int = 0, flipped: float = 0.0
) -> Path:
    """The cached file of such pairs, made first if it is not there (`make_pairs`)."""
    from surefoot import policies

    asked = {"base": base.name, "pairs": pairs, "policy": policy, "samples": samples, "seed": seed, "flipped": flipped}
    digest = hashlib.blake2b(json.dumps(asked).encode(), digest_size=8).hexdigest()
    path = cache_folder() / "prefs" / f"{digest}.jsonl"
    if not path.is_file():
        rows = make_pairs(policies.load(policy, base), base, pairs, samples, seed, flipped)
        write_aside(path, "".join(json.dumps(row | {"split": "train"}) + "\n" for row in rows).encode())
    return path


def make_pairs(
    policy: Any, base: Task, pairs: int, samples: int = 8, seed: int = 0, flipped: float = 0.0, block: int = 64
) -> list[dict[str, Any]]:
    """Pairs of responses that the task's judge tells apart: for each prompt, two of the policy's samples at random.

    Args:
        pairs: how many; prompts whose samples are all worth the same give none.
        samples: of each prompt, from which the pair is drawn among those that differ. Cut responses do not count.
        flipped: chance that a pair's label is wrong.

    Raises:
        InputError: no prompt with a contrast among 32 blocks; a chance outside [0, 1/2).
    """
    if not 0 <= flipped < 0.5 or samples < 2 or pairs < 1:
        raise InputError(f"pairs={pairs}, samples={samples}, flipped={flipped}; expected >= 1, >= 2, in [0, 1/2)")
    sampling, rows, first = Sampling(max_new_tokens=base.max_new_tokens), [], 0
    while len(rows) < pairs:
        rng = np.random.default_rng([seed, 5, first])
        index = torch.from_numpy(rng.integers(len(base.train), size=block))
        problems = [base.train[i] for i in index.tolist()]
        group = torch.arange(block).repeat_interleave(samples)
        seeds = torch.from_numpy(rng.integers(0, 2**62, len(group)))
        batch = judged(base, problems, index, act(policy, base, problems, group, seeds, sampling))
        reward = torch.stack([r if r.ndim == 1 else r.sum(1) for r in batch.rewards.values()]).sum(0)
        worth = reward.where(~batch.truncated, torch.nan).view(block, samples).numpy()
        for b, values in enumerate(worth):
            better, worse = np.nonzero(values[:, None] > values[None, :])
            if len(better):
                i = rng.integers(len(better))
                two = [batch.notes["completion"][b * samples + j] for j in (better[i], worse[i])]
                two = two[::-1] if rng.random() < flipped else two
                rows.append(dict(zip(COLUMNS, (problems[b].question, *two), strict=True)))
        first += 1
        if first == 32 and not rows:
            raise InputError(f"task {base.name!r}: no prompt whose samples differ in reward; no pair can be made")
    return rows[:pairs]
