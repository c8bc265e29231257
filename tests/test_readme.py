"""The README's Python runs as it stands."""

import re
import sys
import types
from pathlib import Path

import pytest

import surefoot.training.loop as loop

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_there_are_examples_and_they_are_short():
    assert len(BLOCKS) >= 3
    assert all(len(block.strip().splitlines()) <= 20 for block in BLOCKS)


@pytest.mark.parametrize("i", range(len(BLOCKS)))
def test_the_readmes_code_runs(i, tmp_path, monkeypatch):
    """As it stands, with one step and few problems where a reader would take more."""
    real = loop.train

    def brief(*args, **kwargs):
        small = {"train.final_problems": 4, "train.final_samples": 2, "train.eval_every": 0}
        return real(*args, **(kwargs | {"steps": 1, "progress": False, "set": small | kwargs.get("set", {})}))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "train", brief)
    module = types.ModuleType("readme")  # a run's configuration names parts by their module
    monkeypatch.setitem(sys.modules, "readme", module)
    exec(compile(BLOCKS[i], "README.md", "exec"), module.__dict__)
    assert list((tmp_path / "runs").glob("*/evaluation.json")), "the example trained something"
