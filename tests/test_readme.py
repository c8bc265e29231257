"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_there_are_examples_and_they_are_short():
    assert len(BLOCKS) >= 3
    assert all(len(block.strip().splitlines()) <= 20 for block in BLOCKS)


@pytest.mark.parametrize("i", range(len(BLOCKS)))
def test_the_readmes_code_runs(i, tmp_path, monkeypatch):
    """Each block runs after the ones before it, with fewer steps and problems than a reader would take."""
    import surefoot.training.loop as loop
    from surefoot.training.settings import Settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        loop,
        "Settings",
        lambda **k: Settings(**(k | {"steps": 1, "final_problems": 4, "final_samples": 2, "eval_every": 0})),
    )
    scope: dict = {"__name__": "readme"}
    import sys
    import types

    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    scope = module.__dict__
    for block in BLOCKS[: i + 1] if "import surefoot" not in BLOCKS[i] else [BLOCKS[i]]:
        exec(compile(block, "README.md", "exec"), scope)
