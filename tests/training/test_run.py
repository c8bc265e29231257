"""Run folders: resumed equals uninterrupted, nothing is lost, bad input is refused in one line."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

import surefoot as sf
from surefoot.errors import GuardStop, InputError
from surefoot.method import Method
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.rewards import Ensemble
from surefoot.rollout.prompts import Uniform
from surefoot.training import checkpoint
from surefoot.training.run import Run
from tests.conftest import digits_task, tiny_policy

METHOD = GRPO.but(prompts=Uniform(prompts=3, rollouts=4))
QUICK = {"train.eval_every": 2, "train.final_problems": 4, "train.final_samples": 2, "train.lr": 1e-2}


def _train(out, steps=4, **more):
    overrides = QUICK | more.pop("set", {})
    return sf.train(
        tiny_policy(),
        digits_task(),
        more.pop("method", METHOD),
        steps=steps,
        out=out,
        set=overrides,
        progress=False,
        report=False,
        **more,
    )


def test_a_run_folder_holds_what_it_should(tmp_path):
    result = _train(tmp_path / "run", steps=12)
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {
        "config.toml",
        "metrics.jsonl",
        "timings.jsonl",
        "events.jsonl",
        "rollouts",
        "evaluation.json",
        "checkpoints",
    } <= names
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == list(range(1, 13))
    assert {"reward", "loss", "entropy", "kl", "grad_norm", "length", "lr", "zero_groups"} <= set(metrics[0])
    assert "heldout" in metrics[1] and "heldout" not in metrics[2]
    rows = pq.read_table(sorted((tmp_path / "run/rollouts").glob("*.parquet"))).to_pylist()
    assert len(rows) == 12 * 12 and {r["step"] for r in rows} == set(range(1, 13))
    assert rows[0]["question"].startswith("say") and isinstance(rows[0]["completion"], str)
    assert rows[0]["ref_logp"] is not None and rows[0]["length"] > 0
    assert result.before["n"] == 4 and result.after["pass@1"] >= 0
    config = Run.open(tmp_path / "run").config()
    assert Method.from_dict(config["method"]) == METHOD and config["train"]["steps"] == 12


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _train(whole, steps=6)
    _train(cut, steps=6, set={"train.checkpoint_seconds": 0, "train.keep": 10})
    for step in (4, 5, 6):
        for name in (cut / "checkpoints").glob(f"step-{step:06d}"):
            subprocess.run(["rm", "-r", name], check=True)
    with open(cut / "metrics.jsonl", "a") as f:
        f.write('{"step": 7, "loss"')  # a line cut short by a crash
    sf.resume(cut, policy=tiny_policy(), task=digits_task(), progress=False, report=False)
    assert (cut / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    pairs = [(pq.read_table(sorted((d / "rollouts").glob("*.parquet"))).to_pylist()) for d in (whole, cut)]
    assert pairs[0] == pairs[1]
    ends = [(d / "checkpoints/step-000006/model.safetensors").read_bytes() for d in (whole, cut)]
    assert ends[0] == ends[1]
    records = [json.loads((d / "evaluation.json").read_text()) for d in (whole, cut)]
    assert records[0]["after"] == records[1]["after"]


def test_a_checkpoint_loads_as_a_plain_hugging_face_model(tmp_path):
    result = _train(tmp_path / "run", steps=2)
    loaded = sf.load_policy(str(tmp_path / "run/checkpoints/step-000002"))
    for (_, a), (_, b) in zip(result.policy.model.named_parameters(), loaded.model.named_parameters(), strict=True):
        assert (a == b).all()


def test_an_output_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="exists and is not empty"):
        _train(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.safetensors", "trainer.json"])
def test_a_corrupt_checkpoint_is_named_with_an_earlier_one(tmp_path, name):
    _train(tmp_path / "run", steps=3, set={"train.checkpoint_seconds": 0})
    newest = checkpoint.checkpoints(tmp_path / "run/checkpoints")[-1]
    data = bytearray((newest / name).read_bytes())
    data[len(data) // 2] ^= 255
    (newest / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name} is corrupt; an earlier one: --resume .*step-000002"):
        sf.resume(tmp_path / "run", policy=tiny_policy(), task=digits_task(), progress=False)
    again = sf.resume(
        tmp_path / "run/checkpoints/step-000002", policy=tiny_policy(), task=digits_task(), progress=False, report=False
    )
    assert again.after


def test_resuming_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        sf.resume(tmp_path)


def test_a_full_disk_loses_nothing_already_written(tmp_path, monkeypatch, capsys):
    from surefoot.cli import main

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoint")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError):
        _train(tmp_path / "run", steps=3)
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 3
    assert not list((tmp_path / "run/checkpoints").iterdir()), "no half-written checkpoint is left"
    monkeypatch.setattr("surefoot.cli._dispatch", full)
    assert main(["train"]) == 2
    assert "No space left on device" in capsys.readouterr().err


def _bad_reward(kind):
    def reward(completions):
        if kind == "raises":
            raise KeyError("oops")
        if kind == "short":
            return [0.0]
        return [float("nan")] * len(completions)

    return reward


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", "reward 'reward' raised KeyError"),
        ("short", "returned 1 values for"),
        ("nan", "is nan for the question"),
    ],
)
def test_a_bad_reward_is_one_clear_line(tmp_path, kind, message):
    from surefoot.tasks.base import TextTask

    good = digits_task()
    task = TextTask("bad", good.train, good.heldout, _bad_reward(kind), 8)
    with pytest.raises(InputError, match=message) as caught:
        sf.train(tiny_policy(), task, METHOD, steps=2, out=tmp_path / "run", set=QUICK, progress=False, report=False)
    assert "\n" not in str(caught.value)


def test_of_a_run_that_is_refused_nothing_is_left(tmp_path, monkeypatch):
    """A part finds in the first batch that its rewards are not there; the empty folder that was there stays."""
    monkeypatch.chdir(tmp_path)
    needs = METHOD.but(reward=Ensemble())
    (tmp_path / "empty").mkdir()
    for out in (None, "new/run", "empty"):
        with pytest.raises(InputError, match="no reward named proxy"):
            sf.train(tiny_policy(), digits_task(), needs, steps=2, out=out, set=QUICK, progress=False)
        assert os.listdir(tmp_path) == ["empty"] and not os.listdir(tmp_path / "empty")


def test_a_run_that_is_refused_later_is_kept(tmp_path):
    from surefoot.tasks.base import TextTask

    good, calls = digits_task(), []

    def reward(completions):
        calls.append(len(completions))
        return [0.0] * (1 if len(calls) == 4 else len(completions))

    task = TextTask("bad", good.train, good.heldout, reward, 8)
    with pytest.raises(InputError, match="returned 1 values for"):
        plain = QUICK | {"train.final_problems": 0, "train.eval_every": 0}
        sf.train(tiny_policy(), task, METHOD, steps=5, out=tmp_path, set=plain, progress=False)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_guard_keeps_a_checkpoint(tmp_path):
    from dataclasses import dataclass

    from surefoot.objective.surrogates import Clip

    @dataclass(frozen=True)
    class Breaks(Clip):
        def __call__(self, rollouts):
            self.memory["calls"] = self.memory.get("calls", 0) + 1
            return super().__call__(rollouts) * (float("nan") if self.memory["calls"] > 2 else 1.0)

    globals()["Breaks"] = Breaks
    Breaks.__qualname__ = "Breaks"
    with pytest.raises(GuardStop, match="step 3: the loss is nan.*checkpoint kept: .*step-000002"):
        _train(tmp_path / "run", steps=5, method=METHOD.but(surrogate=Breaks(0.2)))
    checkpoint.verify(tmp_path / "run/checkpoints/step-000002")


def test_ctrl_c_saves_and_exits_130(tmp_path):
    script = (
        "import sys; from tests.conftest import *; import surefoot as sf; from surefoot.cli import main\n"
        "import surefoot.cli.train as verb\n"
        "verb.run = lambda args: sf.train(tiny_policy(), digits_task(), 'grpo', steps=100000, out=sys.argv[1],\n"
        "    set={'train.final_problems': 0, 'prompts.prompts': 2}, progress=False)\n"
        "sys.exit(main(['train']))"
    )
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", script, str(out)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text()
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in err, err
    kept = checkpoint.checkpoints(out / "checkpoints")
    checkpoint.verify(kept[-1])
    steps = len((out / "metrics.jsonl").read_text().splitlines())
    assert kept[-1].name == f"step-{steps:06d}"
