"""Jobs in processes: what is skipped, resumed, set aside; failures and Ctrl-C."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass

import pytest

from surefoot.comparison import launch
from surefoot.comparison.compare import command, keep_plan
from surefoot.comparison.launch import Job, RunsFailed, run_jobs
from surefoot.errors import InputError
from tests.report.folders import make_run

PLAN = {"task": "rg:gcd", "policy": "pebble", "steps": 5, "reward": None, "set": {"train.lr": "0.001"}}


@dataclass(frozen=True)
class Script(Job):
    """A job that runs a small program instead of a training."""

    def command(self):
        self.make_room()
        return [sys.executable, "-c", *self.arguments, str(self.folder)]


def script(folder, program, method="m", seed=0):
    return Script(method, seed, folder, [textwrap.dedent(program)])


def test_finished_runs_are_skipped(tmp_path, capsys):
    make_run(tmp_path / "seed-0", steps=5)
    job = script(tmp_path / "seed-0", "raise SystemExit(1)")
    assert job.finished
    run_jobs([job])
    assert "1 of them found finished" in capsys.readouterr().err
    assert not make_job(tmp_path / "seed-1", steps=5, evaluation=False).finished


def make_job(folder, **changes):
    return Job("grpo", 0, make_run(folder, **changes), ["train", "--out", str(folder)])


def test_an_interrupted_run_is_resumed_and_one_without_checkpoint_is_set_aside(tmp_path):
    job = make_job(tmp_path / "a", steps=5, evaluation=False)
    assert job.command()[-2:] == ["--out", str(tmp_path / "a")]
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "a.unfinished-1" / "metrics.jsonl").is_file()  # nothing written is lost
    job = make_job(tmp_path / "b", steps=5, evaluation=False)
    (tmp_path / "b" / "checkpoints" / "step-000003").mkdir(parents=True)
    assert job.command()[-4:] == ["train", "--resume", str(tmp_path / "b"), "--quiet"]


def test_failures_are_named_after_the_others_have_run(tmp_path, capsys):
    good = "import sys, pathlib; pathlib.Path(sys.argv[1]).mkdir(); print('done')"
    jobs = [
        script(tmp_path / "seed-0", "import sys; print('surefoot: no such thing'); sys.exit(2)"),
        script(tmp_path / "seed-1", good, seed=1),
        script(tmp_path / "seed-2", good, seed=2),
    ]
    with pytest.raises(RunsFailed, match="1 of 3 runs failed; the first, m seed 0: exit status 2: surefoot: no such"):
        run_jobs(jobs, at_once=2)
    assert (tmp_path / "seed-1").is_dir() and (tmp_path / "seed-2").is_dir()
    assert (tmp_path / "seed-1.log").read_text() == "done\n"
    assert "[3/3]" in capsys.readouterr().err


def test_a_job_in_this_process_fails_alike(tmp_path):
    def fail():
        raise InputError("no such field")

    with pytest.raises(RunsFailed, match="no such field"):
        run_jobs([Job("mine", 0, tmp_path / "x", here=fail)], progress=False)


CHILD = """
    import pathlib, signal, sys, time
    folder = pathlib.Path(sys.argv[1]); folder.mkdir(); count = [0]
    def save(*_):
        count[0] += 1
        (folder / "saved").write_text(str(count[0]))
    signal.signal(signal.SIGINT, save); (folder / "ready").touch()
    for _ in range(400):
        time.sleep(0.05)
        if count[0]: time.sleep(0.3); sys.exit(130)
"""
NO_RAY = importlib.util.find_spec("ray") is None


@pytest.mark.parametrize(
    "options",
    [
        {"at_once": 2},
        pytest.param({"ray_address": "local"}, marks=pytest.mark.skipif(NO_RAY, reason="no ray (surefoot[cluster])")),
    ],
)
def test_ctrl_c_reaches_every_child_once(tmp_path, options):
    parent = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from surefoot.comparison.launch import Stopped, run_jobs
        from tests.comparison.test_launch import CHILD, script
        try:
            run_jobs([script(Path({str(tmp_path)!r}) / f"seed-{{i}}", CHILD, seed=i) for i in (0, 1)], **{options})
        except Stopped:
            sys.exit(130)
    """)
    process = subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.DEVNULL, preexec_fn=as_a_terminal)
    try:
        deadline = time.monotonic() + 60
        while not all((tmp_path / f"seed-{i}" / "ready").exists() for i in (0, 1)):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert [(tmp_path / f"seed-{i}" / "saved").read_text() for i in (0, 1)] == ["1", "1"]


def as_a_terminal():
    """A shell without a terminal starts what runs in its background with Ctrl-C ignored; the tests may run there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ray_that_is_not_installed_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"ray is not installed; expected pip install 'surefoot\[cluster\]'"):
        run_jobs([script(tmp_path / "a", "pass")], ray_address="local", progress=False)


@pytest.mark.skipif(NO_RAY, reason="no ray (surefoot[cluster])")
def test_jobs_run_as_ray_tasks(tmp_path):
    jobs = [
        script(tmp_path / f"seed-{i}", "import sys, pathlib; pathlib.Path(sys.argv[1]).mkdir()", seed=i)
        for i in range(2)
    ]
    run_jobs(jobs, ray_address="local", progress=False)
    with pytest.raises(InputError, match="is an object"):
        run_jobs([Job("mine", 0, tmp_path / "x", here=print)], ray_address="local", progress=False)
    assert all((tmp_path / f"seed-{i}").is_dir() for i in range(2))


def test_plan_of_a_folder_must_stay_the_same(tmp_path):
    keep_plan(tmp_path / "c", PLAN)
    keep_plan(tmp_path / "c", PLAN)
    with pytest.raises(InputError, match="holds a comparison with steps 5, not 9"):
        keep_plan(tmp_path / "c", PLAN | {"steps": 9})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").touch()
    with pytest.raises(InputError, match="holds no comparison"):
        keep_plan(tmp_path / "full", PLAN)


def test_the_command_carries_every_setting(tmp_path):
    words = command("dapo", 2, tmp_path, PLAN | {"reward": "math"})
    assert words[0] == "train" and words[words.index("--seed") + 1] == "2" and words[words.index("--steps") + 1] == "5"
    assert words[words.index("--reward") + 1] == "math" and words[words.index("--set") + 1] == "train.lr=0.001"
