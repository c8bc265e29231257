"""Every method runs, and goes on, where it is at home: `surefoot train --method M` with nothing else named."""

import json
from functools import partialmethod

import pytest

from surefoot import methods
from surefoot.cli import main
from surefoot.method import Home
from surefoot.policies import pruned
from surefoot.policies.flow import Flow

HOMES = {slug: home for slug in methods.names() if (home := methods.find(slug).home) != Home()}
LIGHTER = {  # what a home makes once and keeps in the cache is made smaller, in its own words
    "prefs:make=": "prefs:pairs=12,samples=4,make=",
    "quality=mixed": "quality=random,size=400",
    "apprentice:steps=120": "apprentice:steps=2",
    "pruned:layers=3": "pruned:layers=3,steps=1",
    "masked-diffusion:length=5": "masked-diffusion:length=5,steps=60,batch=32",
    "trained:method=grpo,steps=8": "trained:method=grpo,steps=1",
}
NEEDS = {"digits": "sklearn", "offline:": "mujoco", "gym:": "mujoco"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("slug", HOMES)
def test_a_method_runs_at_home_and_goes_on(slug, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SUREFOOT_CACHE", str(cache))
    home, method = HOMES[slug], methods.find(slug)
    for kind, package in NEEDS.items():
        if home.task.startswith(kind):
            pytest.importorskip(package)
    monkeypatch.setattr(Flow, "fit", partialmethod(Flow.fit, steps=30))
    monkeypatch.setattr(pruned, "BLOCK", pruned.QUESTIONS)
    named = []
    for flag in ("policy", "task", "teacher"):
        lighter = usual = getattr(home, flag)
        for heavy, light in LIGHTER.items():
            lighter = lighter.replace(heavy, light)
        named += [f"--{flag}", lighter] if lighter != usual else []
    few = {"prompts.prompts": max(4, 16 // method.prompts.rollouts), "update.minibatches": 1}
    few |= {"train.final_problems": 2, "train.final_samples": 1, "train.eval_every": 0}
    sets = [word for key, value in few.items() for word in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    assert main(["train", "--method", slug, *named, "--steps", "1", *sets, "--quiet", "--out", str(run)]) == 0, (
        capsys.readouterr().err
    )
    config = run / "config.toml"
    config.write_text(config.read_text().replace("\nsteps = 1\n", "\nsteps = 2\n"))
    assert main(["train", "--resume", str(run), "--quiet"]) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["grad_norm"] > 0 or not line["selected"] for line in lines)
    assert (run / "report.html").is_file()


@pytest.mark.parametrize(
    ("slug", "message"),
    [("salsa --set reference.of=", "--set reference.of=FOLDER"), ("rm-ensembles", "--task scored:by=")],
)
def test_a_method_that_needs_more_says_what_to_give(slug, message, tmp_path, capsys):
    few = ["--set", "prompts.prompts=2", "--set", "update.minibatches=1", "--set", "train.final_problems=0"]
    assert main(["train", "--method", *slug.split(), *few, "--quiet", "--out", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1
