"""Comparisons from end to end, with a tiny policy: in this process, and by the command."""

from __future__ import annotations

import json

import pytest

import surefoot as sf
from surefoot.cli import main
from surefoot.errors import InputError
from surefoot.methods import find
from tests.conftest import digits_task, tiny_policy

SMALL = {
    "prompts.prompts": 2,
    "prompts.rollouts": 4,
    "train.final_problems": 8,
    "train.final_samples": 2,
    "train.eval_every": 1,
    "train.eval_problems": 8,
    "rollout.max_new_tokens": 4,
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A folder with a random policy."""
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    tiny_policy().save(folder)
    return str(folder)


def test_methods_of_ones_own_are_compared_in_this_process(policy, tmp_path, capsys):
    mine = find("grpo").but(name="mine", regularizers=())
    arguments = dict(policy=policy, task=digits_task(length=4), steps=1, out=tmp_path / "c", set=SMALL)
    found = sf.compare(["rloo", mine], seeds=1, **arguments)
    assert {row.name for row in found.rows} == {"rloo", "mine"} and found.seeds == (0,) and found.problems == 8
    for name in ("rloo", "mine"):
        assert len((tmp_path / "c" / name / "seed-0" / "metrics.jsonl").read_text().splitlines()) == 1
    assert {p.name for p in (tmp_path / "c").iterdir()} >= {"comparison.json", "comparison.md", "comparison.png"}
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("metrics.jsonl")}
    again = sf.compare(["rloo", mine], seeds=2, **arguments)  # goes on with one more seed
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert again.seeds == (0, 1) and "2 of them found finished" in capsys.readouterr().err
    by_name = {row.name: row for row in found.rows}
    assert all(row.per_seed[:1] == by_name[row.name].per_seed for row in again.rows)


def test_the_command_trains_in_processes_and_prints_json(policy, tmp_path, capsys):
    problems = tmp_path / "sums.jsonl"
    problems.write_text("".join(json.dumps({"prompt": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(40)))
    settings = [word for k, v in SMALL.items() for word in ("--set", f"{k}={v}")]
    assert (
        main(
            [
                "compare",
                "reinforce",
                "--policy",
                policy,
                "--task",
                str(problems),
                "--reward",
                "exact",
                "--seeds",
                "1",
                "--steps",
                "1",
                "--out",
                str(tmp_path / "c"),
                "--json",
                *settings,
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in found["methods"]] == ["reinforce"] and found["pairs"] == []
    assert json.loads((tmp_path / "c" / "comparison.json").read_text()) == found


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"methods": ["grpoo"]}, "did you mean 'grpo'"),
        ({"methods": []}, "expected at least one of each"),
        ({"methods": ["grpo", "grpo"]}, "'grpo' is given twice"),
        ({"seeds": 0}, "0 seeds"),
        ({"jobs": 0}, "expected at least 1"),
        ({"set": {"surrogate.lwo": 1}}, "did you mean 'low'"),
        ({"set": {"train.final_samples": 0}}, "they are what is compared"),
        ({"task": "rg:no_such_set"}, "no_such_set"),
    ],
)
def test_bad_input_ends_before_anything_is_written(tmp_path, changes, message):
    arguments = {"methods": ["grpo"], "task": "rg:gcd", "out": tmp_path / "c"} | changes
    with pytest.raises(InputError, match=message):
        sf.compare(**arguments)
    assert not (tmp_path / "c").exists()
