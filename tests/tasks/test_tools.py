"""Several turns with a tool: what is present, what is masked, and whether the numbers agree."""

import numpy as np
import pytest
import torch

import surefoot as sf
from surefoot import tasks
from surefoot.policies import apprentice
from surefoot.rollout.native import Sampling
from surefoot.tasks.base import Problem, TextTask
from surefoot.tasks.tools import Calculator, Python, Sums, ToolTask
from surefoot.tasks.verifiers import exact
from tests.conftest import tiny_policy

SAMPLING = Sampling(max_new_tokens=7)


@pytest.mark.parametrize("fast", [True, False])
def test_log_probabilities_over_turns_are_those_of_scoring(fast):
    policy = tiny_policy()
    policy.fast = fast
    group, seeds = torch.tensor([0, 0, 1, 1, 1]), torch.arange(5)

    def reply(rows, said):
        return [None if i == 3 else "ok " + "x" * i for i in rows]

    batch = policy.converse(["one", "another one"], group, seeds, SAMPLING, reply, turns=3)
    with torch.no_grad():
        scored = policy.score(batch, {"logp"})["logp"]
    torch.testing.assert_close(scored[batch.mask], batch.rollout_logp[batch.mask], atol=2e-4, rtol=1e-4)
    assert (batch.rollout_logp[~batch.mask] == 0).all()
    assert set(batch.turn[batch.present].tolist()) == {0, 1, 2} and (batch.turn[~batch.present] == -1).all()
    assert set(batch.turn[3][batch.present[3]].tolist()) == {0}
    heard = batch.present & ~batch.mask
    for i in (0, 1, 2, 4):  # two answers each, word for word, and none after the last turn
        text = policy.decode(batch.tokens[i : i + 1], heard[i : i + 1])[0]
        assert text == ("ok " + "x" * i + "\n") * 2
        assert batch.mask[i][batch.present[i]][-1]
    assert bool((batch.turn[:, 1:] >= batch.turn[:, :-1])[batch.present[:, 1:]].all())


def test_one_turn_is_sampling():
    policy = tiny_policy()
    group, seeds = torch.tensor([0, 1, 1]), torch.tensor([5, 6, 7])
    plain = policy.sample(["a", "bb"], group, seeds, SAMPLING)
    talked = policy.converse(["a", "bb"], group, seeds, SAMPLING, lambda rows, said: ["?"] * len(rows), turns=1)
    for name in plain:
        assert torch.equal(plain[name], talked[name]), name


def test_a_trajectory_does_not_depend_on_its_neighbours_nor_turns_on_one_stream():
    policy = tiny_policy()

    def reply(rows, said):
        return ["same"] * len(rows)

    seeds = torch.arange(4)
    both = policy.converse(["a"], torch.zeros(4).long(), seeds, SAMPLING, reply, turns=3)
    alone = policy.converse(["a"], torch.zeros(1).long(), seeds[2:3], SAMPLING, reply, turns=3)
    assert torch.equal(both.tokens[2][both.present[2]], alone.tokens[0][alone.present[0]])


def test_the_context_is_never_left():
    policy = tiny_policy()
    policy.context = 40
    batch = policy.converse(
        ["hi"], torch.zeros(3).long(), torch.arange(3), SAMPLING, lambda r, s: ["y" * 9] * len(r), 9
    )
    assert (batch.present.sum(1) + batch.prompt_mask.sum(1) <= 40).all() and batch.truncated.all()


class _Script:
    """A policy that says what it is told, turn by turn."""

    def __init__(self, *turns):
        self.turns, self.heard = turns, []

    def converse(self, questions, group, seeds, sampling, reply, turns):
        live, told = list(range(len(group))), [""] * len(group)
        for said in self.turns[:turns]:
            texts = [said[i] for i in live]
            for i, text in zip(live, texts, strict=True):
                told[i] += text
            answers = reply(live, texts)
            self.heard.append({i: a for i, a in zip(live, answers, strict=True)})
            live = [i for i, a in zip(live, answers, strict=True) if a is not None]
        from surefoot.rollouts import Rollouts

        mask = torch.ones(len(group), 1, dtype=torch.bool)
        return Rollouts({"mask": mask, "present": mask, "group": group}, notes={"completion": told})


def _played(task, policy):
    problems = [task.train[0]]
    group = torch.zeros(len(policy.turns[0]), dtype=torch.long)
    batch = task.rollout(policy, problems, group, torch.arange(len(group)), None)
    return task.judge(problems * len(group), batch)


def test_python_is_run_and_what_it_prints_may_be_the_answer():
    problem = [Problem("6 * 7?", "42")]
    task = ToolTask("t", TextTask("one", problem, [Problem("other", "1")], exact), Python(), 3, 64)
    policy = _Script(
        ["```python\nprint(6 * 7)\n```", "it is \\boxed{42}", "I do not know", "```py\nprint('\\\\boxed{42}')\n```"],
        ["so \\boxed{42}", "", "", ""],
    )
    batch = _played(task, policy)
    assert policy.heard[0] == {0: "42\n", 1: None, 2: None, 3: None}
    assert batch.correct.tolist() == [True, True, False, True] and batch.void.tolist() == [False, False, True, False]
    assert batch.notes["completion"][0].startswith("```python"), "the whole conversation stays in the record"
    assert batch.notes["final"] == ["42", "42", None, "42"]


def test_boxes_with_braces():
    assert Python().answer("x \\boxed{1} \\boxed{\\frac{1}{2}} y") == "\\frac{1}{2}"
    assert Python().answer("none") is None


def test_the_calculator():
    clean, noisy = Calculator(0.0), Calculator(1.0)
    assert [clean.reply(c, (1, 0)) for c in ("3+4", "12 * 3", "7-9", "2**9", "__import__('os')")] == [
        "7", "36", "-2", "error", "error",
    ]  # fmt: skip
    spoilt = [noisy.reply("3+4", (seed, 0)) for seed in range(50)]
    assert all("7" in s and s.strip("~#@&%^") == "7" and s != "7" for s in spoilt) and len(set(spoilt)) > 40
    share = np.mean([Calculator(0.3).reply("1+1", (seed, 1)) != "2" for seed in range(2000)])
    assert share == pytest.approx(0.3, abs=0.04)


def test_sums_are_split_and_demonstrated():
    sums = Sums(6)
    assert not {p.question for p in sums.train} & {p.question for p in sums.heldout}
    task = tasks.load("tools:calculator:noise=0.0,largest=6")
    talk = task.demonstrations(np.random.default_rng(0), 1)[0]
    said = [text for text, own in talk if own]
    replies = [text for text, own in talk if not own][1:]
    assert replies == Calculator(0.0).run([task.tool.call(s) for s in said[:2]], [(0, 0)] * 2)
    assert task.tool.answer(said[2]) == str(sum(map(int, talk[0][0].split("+"))))


def test_python_is_demonstrated_by_programs_that_run():
    """Each demonstration, played by the tool: its program prints what comes next, and its last piece is right."""
    task = tasks.load("tools:python:rg:chain_sum:min_terms=2,max_terms=4,min_digits=1,max_digits=2")
    talks = task.demonstrations(np.random.default_rng(0), 6)
    programs = [task.tool.call(talk[1][0]) for talk in talks]
    outputs = task.tool.run([str(p) for p in programs], [(0, 0)] * len(talks))
    for talk, output in zip(talks, outputs, strict=True):
        assert [own for _, own in talk] == [False, True, False, True] and talk[0][0].startswith("Solve the problem.")
        assert task.tool.answer(talk[1][0]) is None and talk[2][0] == output.strip() == task.tool.answer(talk[3][0])
    words = tasks.load("tools:python:rg:letter_counting")
    with pytest.raises(sf.InputError, match="no sum in the question"):
        words.demonstrations(np.random.default_rng(0), 1)


def test_an_apprentice_learns_what_it_says_and_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path))
    task = tasks.load("tools:calculator:largest=6")
    tokens, said = apprentice.rows(tiny_policy(), task.demonstrations(np.random.default_rng(0), 3))
    text = tiny_policy().tokenizer.decode(tokens[0][said[0]].tolist())
    assert text.count("<eos>") == 3 and "<answer>" in text and "\n" not in text
    policy = apprentice.load(task, width=16, layers=1, steps=2, batch=4)
    again = apprentice.load(task, width=16, layers=1, steps=2, batch=4)
    assert len(list((tmp_path / "apprentices").iterdir())) == 1
    assert all(torch.equal(a, b) for a, b in zip(policy.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize("spec", ["tools:calculater", "tools:python", "tools:calculator:nois=1"])
def test_what_cannot_be_loaded_says_so(spec):
    with pytest.raises(sf.InputError):
        tasks.load(spec)
