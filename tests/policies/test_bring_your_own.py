"""docs/policies.md runs as it stands: a policy and a task of another kind, with the trainer as it is."""

import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import surefoot as sf
from surefoot.errors import InputError
from surefoot.policies import load

PAGE = Path(__file__).parent.parent.parent / "docs" / "policies.md"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The module that the page's blocks make, run in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("surefoot.policies.thrower")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    exec(compile("\n".join(blocks), str(PAGE), "exec"), module.__dict__)
    module.load = lambda task: module.Thrower()
    return module


def test_the_page_trains_and_the_report_shows_its_reward(page):
    result = page.result
    assert result.after["headline"] == "closeness"
    assert result.after["closeness"] > max(0.6, result.before["closeness"] + 0.1)
    low, high = result.after["closeness_interval"]
    assert low < result.after["closeness"] < high
    assert "Held-out" in (result.folder / "report.html").read_text()


def test_a_run_of_another_kind_resumes_bit_for_bit(page, tmp_path):
    quick = {"train.final_problems": 4, "train.final_samples": 1, "train.eval_every": 0}
    args = dict(method="grpo", progress=False, report=False, set=quick, seed=3)
    torch.manual_seed(3)
    sf.train(page.Thrower(), page.Throwing(), steps=4, out=tmp_path / "whole", **args)
    torch.manual_seed(3)
    sf.train(page.Thrower(), page.Throwing(), steps=2, out=tmp_path / "half", **args)
    config = tmp_path / "half" / "config.toml"
    config.write_text(config.read_text().replace("steps = 2", "steps = 4"))
    sf.resume(tmp_path / "half", policy=page.Thrower(), task=page.Throwing(), progress=False, report=False)
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "half")]
    assert lines[0] == lines[1]


def test_a_checkpoint_leads_back_to_its_kind(page, monkeypatch):
    import surefoot.policies as policies

    monkeypatch.setattr(policies, "kinds", lambda package: {"thrower": page.__name__})
    folder = sorted((page.result.folder / "checkpoints").iterdir())[-1]
    assert json.loads((folder / "policy.json").read_text())["kind"] == "thrower"
    again, states = load(str(folder)), torch.zeros(2, 1, 1)
    assert torch.equal(again.gaussian(states).mean, page.result.policy.gaussian(states).mean)
    with pytest.raises(InputError, match="no option 'hiden'"):
        load("thrower:hiden=3")


def test_a_column_that_the_kind_cannot_give_is_named(page):
    with pytest.raises(InputError, match="thrower.*cannot give column 'value'"):
        page.Thrower().score(None, {"value"})
