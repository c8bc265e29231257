"""The command on real input: pebble trains, and every kind of bad input is one line and exit status 2."""

import json
import tomllib

import pytest

from surefoot.cli import VERBS, main

FAST = [
    "--set",
    "prompts.prompts=2",
    "--set",
    "prompts.rollouts=2",
    "--set",
    "train.final_problems=4",
    "--set",
    "train.final_samples=2",
    "--set",
    "train.eval_every=0",
    "--quiet",
]


def _run(capsys, *argv):
    status = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return status, out, err


def test_pebble_trains_and_resumes_from_the_command(tmp_path, capsys):
    run = tmp_path / "run"
    status, out, err = _run(capsys, "train", "--steps", 2, "--out", run, *FAST)
    assert status == 0, err
    assert "before" in out and "after" in out and str(run / "report.html") in out and (run / "report.html").exists()
    assert tomllib.loads((run / "config.toml").read_text())["method"]["prompts"]["prompts"] == 2
    status, out, err = _run(capsys, "train", "--resume", run, "--quiet", "--json")
    assert status == 0 and json.loads(out)["after"]["n"] == 4


def test_eval_of_a_policy_and_of_a_run(tmp_path, capsys):
    status, out, err = _run(
        capsys, "eval", "pebble", "--task", "rg:gcd:min_value=2,max_value=60", "--problems", 6, "--k", 4, "--json"
    )
    record = json.loads(out)
    assert status == 0 and record["n"] == 6 and {"pass@1", "pass@4", "maj@4", "ece", "auc"} <= set(record)
    _run(capsys, "train", "--steps", 1, "--out", tmp_path / "run", *FAST)
    status, out, err = _run(capsys, "eval", tmp_path / "run", "--problems", 4, "--k", 2)
    assert status == 0 and "pass@2" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method", "gpro"], "did you mean 'grpo'"),
        (["--method", "nowhere:X"], "nowhere"),
        (["--task", "rg:chain_summ"], "did you mean 'chain_sum'"),
        (["--task", "missing.jsonl", "--reward", "exact"], "no such file"),
        (["--policy", "peble"], "did you mean 'pebble'"),
        (["--set", "surrogate.lo=1"], "did you mean 'low'"),
        (["--set", "surrogate.low=high"], "expected float"),
        (["--set", "surrogate.low"], "expected part.field=value"),
        (["--set", "train.stepz=1"], "did you mean 'steps'"),
        (["--set", "train.schedule=cosin"], "did you mean 'cosine'"),
        (["--steps", "0"], "expected at least 1"),
        (["--steps", "many"], "invalid int value"),
        (["--resume", "nowhere"], "not a run folder"),
        (["--reward", "exact"], "brings its own reward"),
        (["--frobnicate"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = _run(capsys, "train", *argv)
    assert status == 2 and message in err, err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert not (tmp_path / "runs").exists(), "nothing is written for bad input"


def _file_task(tmp_path, prompt):
    rows = [
        {"prompt": f"{prompt}{i}", "answer": "1", "split": s} for i, s in enumerate(["train"] * 4 + ["heldout"] * 4)
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return ["train", "--task", path, "--reward", "exact", "--steps", 1, "--out", tmp_path / "run", *FAST]


def test_a_prompt_longer_than_the_context(tmp_path, capsys):
    status, _, err = _run(capsys, *_file_task(tmp_path, "x" * 1200))
    assert status == 2 and "longer than the context of 1024" in err


def test_a_file_task_trains(tmp_path, capsys):
    status, _, err = _run(capsys, *_file_task(tmp_path, "1 + "), "--set", "rollout.max_new_tokens=8")
    assert status == 0, err


def test_an_unknown_verb_and_the_overview(capsys):
    assert _run(capsys, "trian")[0] == 2
    status, out, _ = _run(capsys)
    assert status == 0 and all(verb in out for verb in VERBS)
    assert _run(capsys, "--version")[1].startswith("surefoot ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    assert done.value.code == 0
