"""The policies behind a run folder: fresh responses from its checkpoint and its start, and all answers of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surefoot.errors import InputError
from surefoot.objective.references import Start, weights
from surefoot.policies import load
from surefoot.rollout.native import Sampling
from surefoot.rollouts import Rollouts
from surefoot.stability.enumeration import FLOOR, Answers, enumerate_answers
from surefoot.stability.samples import Samples, classes, concatenate


@dataclass(frozen=True)
class Subject:
    """What can be sampled again.

    Attributes:
        before, after: the policy that the run started from, and its newest checkpoint.
        step: of that checkpoint.
        task, method: of the run.
        prompts: indices of training problems.
        label: completion -> class; None takes the final answer.
        moved: the run's reference, where it is not `before`.
    """

    before: Any
    after: Any
    step: int
    task: Any
    method: Any
    prompts: tuple[int, ...]
    label: Callable[[str], str] | None = None
    moved: Any = None

    @property
    def reference(self) -> Any:
        """What log ratios are measured against."""
        return self.before if self.moved is None else self.moved

    @property
    def sampling(self) -> Sampling:
        """The run's own sampling distribution."""
        part = self.method.rollout
        if hasattr(part, "sampling"):
            return part.sampling(self.task)
        return Sampling(max_new_tokens=self.task.max_new_tokens)


def open_subject(folder: Path, prompts: int = 8, label: Callable[[str], str] | None = None) -> Subject:
    """The policies of a run, and the last `prompts` different problems that it was trained on.

    Raises:
        InputError: not a run folder, no checkpoint in it, or one that is corrupt.
    """
    from surefoot import tasks
    from surefoot.method import Method
    from surefoot.policies.causal_lm import CausalLM
    from surefoot.training import checkpoint
    from surefoot.training.run import Run

    if prompts < 1:
        raise InputError(f"cliff: --prompts {prompts}; expected at least 1")
    config = Run.open(folder).config()
    found = checkpoint.checkpoints(folder / "checkpoints")
    if not found:
        raise InputError(f"{folder}: no checkpoint; expected one to sample from")
    checkpoint.verify(found[-1])
    task = tasks.load(config["task"], config.get("reward") or None)
    before, method = CausalLM.load(config["policy"]), Method.from_dict(config["method"])
    return Subject(
        before=before,
        after=CausalLM.load(str(found[-1])),
        step=int(found[-1].name.removeprefix("step-")),
        task=task,
        method=method,
        prompts=_last_prompts(folder, prompts) or tuple(range(prompts)),
        label=label,
        moved=_moved(method.reference, before, task, checkpoint.moved_reference(found[-1])),
    )


def _moved(part: Any, before: Any, task: Any, held: dict[str, torch.Tensor]) -> Any:
    """The run's reference: with the weights that its checkpoint holds, or made again; None for the start."""
    if type(part) is Start or part.moves and not held:
        return None
    reference = part(before, lambda spec: load(spec, task))
    with torch.no_grad():
        for name, weight in weights(reference) if held else ():
            weight.copy_(held[name])
    return reference


def against(reference: Mapping[str, Any], when: str) -> str:
    """What log ratios are measured against, from the method's table in a run's configuration.

    >>> against({"part": "surefoot.objective.references:EMA"}, "at its end")
    "the run's own reference at its end (EMA)"
    """
    name = str(reference.get("part", "")).rpartition(":")[2] or "Start"
    return "the policy that the run started from" if name == "Start" else f"the run's own reference {when} ({name})"


def fresh(subject: Subject, n: int, seed: int = 0) -> Samples:
    """`n` responses to each prompt from the start (step 0) and from the checkpoint, with their log ratios.

    Seeds depend on (seed, policy, prompt, response) alone.

    Raises:
        InputError: fewer than two responses a prompt.
    """
    if n < 2:
        raise InputError(f"cliff: --fresh {n}; expected at least 2 responses a prompt")
    sides = ((0, subject.before), (subject.step, subject.after))
    return concatenate([_sampled(subject, policy, step, n, seed) for step, policy in sides])


def enumerated(subject: Subject, floor: float = FLOOR) -> list[tuple[Samples, Answers]]:
    """For each prompt every answer of the checkpoint's policy (see `enumeration`), judged, with its probability.

    `weight` is conditioned on what was enumerated: it sums to 1, and `Answers.rest` tells what is missing.
    """
    found = []
    for prompt in subject.prompts:
        problem = subject.task.train[prompt]
        answers = enumerate_answers(subject.after, problem.question, subject.sampling, subject.reference, floor)
        n = len(answers)
        tokens, valid = subject.after.encode([problem.question], room=subject.sampling.max_new_tokens)
        batch = Rollouts(
            dict(
                tokens=answers.tokens,
                mask=answers.present,
                present=answers.present,
                group=torch.zeros(n, dtype=torch.long),
                prompt=torch.full((n,), prompt),
                prompt_tokens=tokens,
                prompt_mask=valid,
                truncated=torch.from_numpy(answers.cut),
            ),
            notes={"completion": subject.after.decode(answers.tokens, answers.present)},
        )
        samples = _judged(subject, subject.after, [problem] * n, batch, subject.step)
        weight = np.exp(answers.logp)
        found.append(
            (replace(samples, log_ratio=answers.logp - answers.ref_logp, weight=weight / weight.sum()), answers)
        )
    return found


def _sampled(subject: Subject, policy: Any, step: int, n: int, seed: int) -> Samples:
    problems = [subject.task.train[i] for i in subject.prompts]
    group = torch.arange(len(problems)).repeat_interleave(n)
    drawn = [np.random.default_rng([seed, 6, step, i]).integers(0, 2**62, n) for i in subject.prompts]
    batch = policy.sample(
        [p.question for p in problems], group, torch.from_numpy(np.concatenate(drawn)), subject.sampling
    )
    batch = batch.having(prompt=torch.tensor(subject.prompts)[group])
    return _judged(subject, policy, [problems[g] for g in group.tolist()], batch, step, "ref_logp")


def _judged(
    subject: Subject, policy: Any, problems: Sequence[Any], batch: Rollouts, step: int, *columns: str
) -> Samples:
    """The run's reward of each response, without a KL penalty, and its log ratio where `ref_logp` is asked for."""
    from surefoot.objective.rewards import KLInReward
    from surefoot.training.signals import Signals

    part = subject.method.reward
    if isinstance(part, KLInReward):
        part = part.having(coef=0.0)
    signals = Signals(policy, subject.sampling.temperature or 1.0, reference=lambda: subject.reference)
    batch = signals.fill(subject.task.judge(problems, batch), {*part.reads, *columns})
    made = part(batch)
    reward, cut = made["reward"] if isinstance(made, dict) else made, batch.truncated.numpy().astype(bool)
    ratio = None
    if "ref_logp" in columns:
        ratio = (batch.rollout_logp.double() - batch.ref_logp).where(batch.mask, 0.0).sum(1).numpy()
    return Samples(
        prompt=batch.prompt.numpy(),
        reward=reward.double().numpy(),
        label=classes(batch.notes["completion"], cut, subject.label),
        rewards={k: (v if v.ndim == 1 else v.sum(1)).double().numpy() for k, v in batch.rewards.items()},
        weights=dict(getattr(part, "weights", {})),
        log_ratio=ratio,
        step=np.full(len(batch), step),
        cut=cut,
    )


def _last_prompts(folder: Path, most: int) -> tuple[int, ...]:
    """The last different prompts in the run's rollouts; none where nothing was logged."""
    import pyarrow.parquet as pq

    seen: dict[int, None] = {}
    for path in reversed(sorted((folder / "rollouts").glob("*.parquet"))):
        table = pq.read_table(path, columns=["prompt"])
        seen |= dict.fromkeys(reversed(table["prompt"].to_pylist()))
        if len(seen) >= most:
            break
    return tuple(list(seen)[:most])
