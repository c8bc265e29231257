"""The report of a run that the trainer wrote: what the two agree on."""

from __future__ import annotations

import surefoot as sf
from tests.conftest import digits_task, tiny_policy
from tests.report.test_report import data_of

SMALL = {
    "prompts.prompts": 2,
    "prompts.rollouts": 4,
    "train.final_problems": 4,
    "train.final_samples": 2,
    "train.eval_every": 1,
    "train.eval_problems": 4,
}


def test_steps_are_called_what_the_policy_calls_them(tmp_path):
    few = {**SMALL, "train.final_problems": 0, "train.eval_every": 0}
    made = sf.train("gaussian", "gym:Pendulum-v1:steps=4", "ppo", steps=1, out=tmp_path, set=few, progress=False)
    (run,) = data_of(made.folder / "report.html")["runs"]
    assert run["unit"] == "actions" and run["tokens"] == 2 * 4 * 4


def test_everything_of_a_real_run_arrives_on_its_page(tmp_path):
    folder = sf.train(
        tiny_policy(), digits_task(length=4), "grpo", steps=2, out=tmp_path / "run", set=SMALL, progress=False
    ).folder
    (run,) = data_of(folder / "report.html")["runs"]
    assert run["steps"] == 2 and run["tokens"] > 0 and run["seconds"] > 0
    assert run["config"]["method"]["name"] == "grpo" and run["config"]["train"]["steps"] == 2
    assert {
        "reward",
        "entropy",
        "kl",
        "length",
        "grad_norm",
        "loss",
        "heldout.pass@1",
        "time.total",
        "time.tokens_per_s",
    } <= set(run["curves"])
    assert [s["step"] for s in run["rewards"]] == [1, 2]
    assert all(len(s["groups"]) == 2 and len(g["rows"]) == 4 for s in run["rewards"] for g in s["groups"])
    group = run["rewards"][0]["groups"][0]
    assert group["question"].startswith("say ") and all(len(row[3]) <= 4 for row in group["rows"])
    for when in ("before", "after"):
        record = run["evaluation"][when]
        assert record["n"] == 4 and {"pass@1", "pass@2", "maj@2", "pass@1_interval", "samples"} <= set(record)
        assert len(record["samples"]) == 4
    assert [e["kind"] for e in run["events"]][0] == "start" and run["unit"] == "tokens"
