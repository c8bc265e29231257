r"""Problems that are solved with a tool, over several turns: `tools:calculator`, `tools:python:<task>`.

A turn of the policy calls the tool, answers, or does neither: a void turn. The tool's output is the next thing it
reads. A conversation ends with an answer, with a void turn, or at the limit of turns.

    calculator   sums of three small numbers. `[3+14]` calls it, `<answer>20</answer>` answers. A share `noise` of its
                 replies is spoilt by characters that a policy which learnt from clean replies has never seen.
    python       any text task. A fenced block is a call, run in the sandbox (`tasks.sandbox`); `\boxed{...}`, in what
                 the policy or its program says, answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from surefoot.errors import InputError, nearest
from surefoot.rollouts import Rollouts
from surefoot.specs import call, read_options
from surefoot.tasks import sandbox
from surefoot.tasks.base import Problem, TextTask
from surefoot.tasks.splits import is_held_out

Seed = tuple[int, int]  # of the trajectory, and how many calls it made before
Talk = list[tuple[str, bool]]  # pieces of a conversation, and whether the policy says them


class Tool(Protocol):
    """Finds calls and answers in a turn, and runs many calls at once; `seeds` are for tools with chance in them.

    `demonstrate` is how a problem is solved with it: what comes after the question.
    """

    def call(self, said: str) -> str | None: ...

    def answer(self, said: str) -> str | None: ...

    def run(self, calls: Sequence[str], seeds: Sequence[Seed]) -> list[str]: ...

    def demonstrate(self, problem: Problem) -> Talk: ...


@dataclass(frozen=True)
class Python:
    """The sandboxed interpreter; output and the end of an error are given back."""

    limits: sandbox.Limits = field(default_factory=sandbox.Limits)
    _BLOCK = re.compile(r"```(?:py|python)?\n(.*?)\n```", re.S)
    _SUM = re.compile(r"[-(]*\d+(?:[ ()]*[-+*/][ (]*\d+[ )]*)+")

    def call(self, said: str) -> str | None:
        """The last fenced block: ```, ```py or ```python, a line break, anything, a line break, ```."""
        blocks = self._BLOCK.findall(said)
        return blocks[-1] if blocks else None

    def answer(self, said: str) -> str | None:
        r"""What stands in the last `\boxed{...}`, braces matched; an unclosed one runs to the end."""
        start = said.rfind("\\boxed{")
        if start < 0:
            return None
        text, depth = said[start + len("\\boxed{") :], 1
        for i, c in enumerate(text):
            depth += (c == "{") - (c == "}")
            if not depth:
                return text[:i]
        return text

    def run(self, calls: Sequence[str], seeds: Sequence[Seed]) -> list[str]:
        """Standard output, and what went wrong."""
        return [
            "\n".join(filter(None, (r.output, r.error, "stopped at the time limit" if r.timed_out else "")))
            for r in sandbox.run_all(calls, self.limits)
        ]

    def demonstrate(self, problem: Problem) -> Talk:
        """A program that prints the sum, difference, product or quotient that the question asks for, then the answer.

        Raises:
            InputError: a question without one.
        """
        found = max(self._SUM.findall(problem.question), key=len, default="")
        if not found:
            raise InputError(f"tools:python: no demonstration: no sum in the question {problem.question[:60]!r}")
        program, answer = f"```py\nprint({found.strip()})\n```", str(problem.answer)
        return [(program, True), (answer, False), (f"\\boxed{{{answer}}}", True)]


@dataclass(frozen=True)
class Calculator:
    """`[a+b]` with whole numbers and +, - or *; one of `[...]` and `<answer>...</answer>` makes a turn.

    Attributes:
        noise: share of the replies between characters of `junk`.
    """

    noise: float = 0.3
    junk: str = "~#@&%^"
    _CALL, _ANSWER = re.compile(r"\[([^\[\]]*)\]"), re.compile(r"<answer>(.*?)</answer>", re.S)

    def call(self, said: str) -> str | None:
        found = self._CALL.findall(said)
        return found[-1] if found else None

    def answer(self, said: str) -> str | None:
        found = self._ANSWER.findall(said)
        return found[-1].strip() if found else None

    def run(self, calls: Sequence[str], seeds: Sequence[Seed]) -> list[str]:
        return [self.reply(c, seed) for c, seed in zip(calls, seeds, strict=True)]

    def demonstrate(self, problem: Problem) -> Talk:
        """Of a sum of three: two calls and the answer, with clean replies."""
        a, b, c = map(int, problem.question.split("+"))
        total = str(a + b + c)
        calls = [(f"[{a}+{b}]", True), (str(a + b), False), (f"[{a + b}+{c}]", True), (total, False)]
        return [*calls, (f"<answer>{total}</answer>", True)]

    def reply(self, expression: str, seed: Seed) -> str:
        """The value, or `error`; spoilt or not is a function of the seed."""
        parts = re.fullmatch(r"\s*(-?\d{1,6})\s*([+*-])\s*(-?\d{1,6})\s*", expression)
        value = "error"
        if parts:
            a, b = int(parts[1]), int(parts[3])
            value = str({"+": a + b, "-": a - b, "*": a * b}[parts[2]])
        rng = np.random.default_rng(seed)
        if rng.random() >= self.noise:
            return value
        before, after = ("".join(rng.choice(list(self.junk), size)) for size in rng.integers(1, 4, 2))
        return f"{before}{value}{after}"


class ToolTask:
    """A text task solved with a tool.

    Args:
        inner: gives the problems and judges final answers; it reads `<answer>...</answer>`.
        tool: what may be called.
        turns: at most so many.
        max_new_tokens: of each turn.
        instruction: put before every question, so that a model that can read knows the protocol.
    """

    def __init__(self, name: str, inner: Any, tool: Tool, turns: int, max_new_tokens: int, instruction: str = ""):
        self.name, self.inner, self.tool, self.turns = name, inner, tool, turns
        self.train, self.heldout, self.max_new_tokens = inner.train, inner.heldout, max_new_tokens
        self.instruction = instruction

    def rollout(
        self, policy: Any, problems: Sequence[Problem], group: Tensor, seeds: Tensor, sampling: Any
    ) -> Rollouts:
        """Converse until an answer, a void turn or the last turn; the note `final` holds the answers, None for none."""
        answers: list[str | None] = [None] * len(group)
        void = torch.zeros(len(group), dtype=torch.bool)
        heard = [0] * len(group)

        def reply(rows: Sequence[int], said: Sequence[str]) -> list[str | None]:
            asked: dict[int, str] = {}
            for i, text in zip(rows, said, strict=True):
                answers[i], wanted = self.tool.answer(text), self.tool.call(text)
                if answers[i] is None and wanted is None:
                    void[i] = True
                elif answers[i] is None:
                    asked[i] = str(wanted)
            chances = [(int(seeds[i]), heard[i]) for i in asked]
            outputs = dict(zip(asked, self.tool.run(list(asked.values()), chances), strict=True))
            for i, output in outputs.items():
                heard[i] += 1
                answers[i] = self.tool.answer(output)  # a program may print the answer itself
            return [outputs[i] if i in outputs and answers[i] is None else None for i in rows]

        questions = [self.instruction + p.question for p in problems]
        batch = policy.converse(questions, group, seeds, sampling, reply, self.turns)
        return batch.having(notes={"final": answers}, void=void)

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts:
        """The inner task's rewards for the final answers; without an answer it judges an empty one."""
        final = [f"<answer>{a}</answer>" if a is not None else "" for a in rollouts.notes["final"]]
        told = rollouts.notes["completion"]
        return self.inner.judge(problems, rollouts.having(notes={"completion": final})).having(
            notes={"completion": told}
        )

    def demonstrations(self, rng: np.random.Generator, count: int) -> list[Talk]:
        """Conversations to learn the protocol from: pieces of text, and whether the policy says them."""
        drawn = [self.train[int(i)] for i in rng.integers(len(self.train), size=count)]
        return [[(self.instruction + p.question, False), *self.tool.demonstrate(p)] for p in drawn]


class Sums(TextTask):
    """`a+b+c` with whole numbers up to `largest`; all of them, told apart by a hash of their text."""

    def __init__(self, largest: int = 20):
        texts = [
            f"{a}+{b}+{c}" for a in range(1, largest + 1) for b in range(1, largest + 1) for c in range(1, largest + 1)
        ]
        order = np.random.default_rng(0).permutation(len(texts))
        problems = [Problem(texts[i], str(sum(map(int, texts[i].split("+"))))) for i in order]
        held = [p for p in problems if is_held_out(p.question)]
        from surefoot.tasks.verifiers import exact

        super().__init__("sums", [p for p in problems if not is_held_out(p.question)], held[:512], exact)


def calculator(noise: float = 0.3, largest: int = 20, turns: int = 4) -> ToolTask:
    """Sums with a calculator whose replies are partly spoilt."""
    return ToolTask("tools:calculator", Sums(largest), Calculator(noise), turns, max_new_tokens=12)


INSTRUCTION = (
    "Solve the problem. You may write Python between ```python and ``` and will see what it prints. "
    "Give the final answer in \\boxed{}.\n\n"
)


def load(rest: str) -> ToolTask:
    """The task of `calculator[:noise=0.3,largest=20,turns=4]` or `python:<task>`."""
    kind, _, more = rest.partition(":")
    where = f"task 'tools:{rest}'"
    if kind == "calculator":
        task = call(calculator, read_options(more, where), where)
    elif kind == "python" and more:
        from surefoot import tasks

        task = ToolTask("", tasks.load(more), Python(), turns=5, max_new_tokens=512, instruction=INSTRUCTION)
    else:
        raise InputError(f"{where}: expected calculator or python:<task>{nearest(kind, ('calculator', 'python'))}")
    task.name = f"tools:{rest}"
    return task
