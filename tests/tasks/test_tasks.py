"""Tasks: splits that never overlap, the datasets' own judges, files, and one clear line for bad input."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from surefoot import tasks
from surefoot.errors import InputError
from surefoot.rollouts import Rollouts
from surefoot.tasks.reasoning_gym import parse_spec
from surefoot.tasks.splits import is_held_out
from surefoot.tasks.verifiers import exact, final_answer, math, reward_function


def _judged(task, problems, completions):
    blank = torch.zeros(len(problems), 1, dtype=torch.bool)
    return task.judge(problems, Rollouts({"mask": blank}, notes={"completion": completions}))


@pytest.mark.parametrize(
    "spec",
    [
        "rg:chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=2",
        "rg:gcd",
        "rg:spell_backward:max_word_len=5",
        "rg:countdown:min_numbers=3,max_numbers=3",
    ],
)
def test_train_and_heldout_never_overlap(spec):
    task = tasks.load(spec)
    heldout = {task.heldout[i].question for i in range(min(200, len(task.heldout)))}
    train = {task.train[i].question for i in range(600)}
    assert not heldout & train and len(heldout) == min(200, len(task.heldout))
    assert all(map(is_held_out, heldout)) and not any(map(is_held_out, train))


def test_a_text_task_demonstrates_its_answers_to_training_questions():
    task = tasks.load("rg:gcd:min_value=2,max_value=60")
    shown = task.demonstrations(np.random.default_rng(0), 40)
    assert not any(is_held_out(question) for (question, _), _ in shown)
    assert all((own, says) == (False, True) for (_, own), (_, says) in shown)
    asked = {task.train[i].question: task.train[i] for i in range(8192)}
    posed = [asked[question] for (question, _), _ in shown]
    assert _judged(task, posed, [said for _, (said, _) in shown]).correct.all()
    silent = tasks.TextTask("silent", [tasks.Problem("a")], [tasks.Problem("b")], exact)
    with pytest.raises(InputError, match="no answers"):
        silent.demonstrations(np.random.default_rng(0), 2)


def test_problems_are_a_function_of_their_index():
    a, b = tasks.load("rg:gcd"), tasks.load("rg:gcd")
    assert [a.train[i].question for i in (5, 3, 9)] == [b.train[i].question for i in (5, 3, 9)]


def test_about_one_question_in_eight_is_held_out():
    share = sum(is_held_out(f"question {i}") for i in range(8000)) / 8000
    assert abs(share - 1 / 8) < 0.015
    assert is_held_out("a  b\nc") == is_held_out("a b c")


def test_the_datasets_own_judge_scores():
    task = tasks.load("rg:countdown:min_numbers=3,max_numbers=3,min_value=1,max_value=12,min_target=5,max_target=60")
    problem = task.train[0]
    said = [f"so <answer>{problem.answer}</answer>", "<answer>1+1</answer>", "no idea"]
    judged = _judged(task, [problem] * 3, said)
    assert judged.correct.tolist() == [True, False, False]
    assert judged.rewards["accuracy"][0] == 1


def test_spec_values_are_read_by_type():
    assert parse_spec("rg:a:x=1,y=2.5,z=true,ops=['+','-'],w=word") == (
        "a",
        {"x": 1, "y": 2.5, "z": True, "ops": ["+", "-"], "w": "word"},
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rg:chainsum", "did you mean 'chain_sum'"),
        ("rg:chain_sum:min_term=2", "did you mean 'min_terms'"),
        ("rg:chain_sum:min_terms=5,max_terms=2", "rg:chain_sum"),
        ("rg:chain_sum:min_terms", "expected rg:<dataset>:key=value"),
        ("nothing", "expected rg:"),
        ("missing.jsonl", "needs a reward"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(InputError, match=message):
        tasks.load(spec)


def _jsonl(tmp_path, lines):
    path = tmp_path / "problems.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_files_of_both_kinds(tmp_path):
    rows = [{"prompt": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(64)]
    path = _jsonl(tmp_path, rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "problems.parquet")
    for source in (path, str(tmp_path / "problems.parquet")):
        task = tasks.load(source, "exact")
        assert len(task.train) + len(task.heldout) == 64 and len(task.heldout) > 0
        assert not {p.question for p in task.train} & {p.question for p in task.heldout}
        problem = task.train[0]
        assert _judged(task, [problem], [f"<answer>{problem.answer}</answer>"]).correct.all()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"prompt": "a", "answer": "b"}, "{broken"], "line 2: malformed JSON"),
        (
            [{"prompt": "a", "answer": "b"}, {"promt": "a", "answer": "b"}],
            "line 2: no column 'prompt'; did you mean 'promt'",
        ),
        ([{"prompt": "  ", "answer": "b"}], "line 1: empty prompt"),
        (["[1, 2]"], "line 1: got list, expected an object"),
        ([{"prompt": "a", "answer": "b", "split": "test"}], "split 'test'"),
        ([{"prompt": "a", "answer": "b", "split": "train"}], "0 held-out problems"),
        ([{"prompt": "a", "answer": "b", "split": s} for s in ("train", "heldout")], "in both splits"),
    ],
)
def test_bad_files_name_the_line(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        tasks.load(_jsonl(tmp_path, lines), "exact")


def test_verifiers():
    assert final_answer("x <answer>1</answer> y <answer> 2 </answer>") == "2"
    assert final_answer("first\nlast \n") == "last" and final_answer("") == ""
    assert exact(["<answer>7</answer>", "8"], ["7", "7"]) == [1, 0]
    assert math([r"<answer>\frac{1}{2}</answer>", "<answer>0.4</answer>"], ["0.5", "0.5"]) == [1, 0]


def test_a_reward_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine_reward.py").write_text(
        "def short(completions):\n    return {'short': [1 / len(c) for c in completions]}"
    )
    monkeypatch.chdir(tmp_path)
    assert reward_function("mine_reward:short")(["abcd"]) == {"short": [0.25]}
    for name, message in (("exat", "did you mean 'exact'"), ("mine_reward:long", "long"), ("nowhere:f", "nowhere")):
        with pytest.raises(InputError, match=message):
            reward_function(name)


def test_a_reward_that_asks_for_the_unknown_is_refused():
    from surefoot.tasks.base import Problem, TextTask

    with pytest.raises(InputError, match="asks for 'weights'"):
        TextTask("t", [Problem("a")], [Problem("b")], lambda completions, weights: [])
