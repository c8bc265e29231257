"""`surefoot fetch` of a task's data."""

import pytest

from surefoot.cli import main


def test_logged_data_are_made_once_and_their_place_is_said(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    from surefoot import tasks
    from surefoot.tasks import offline

    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path))
    spec = "offline:InvertedPendulum-v5:quality=random,size=50"
    assert main(["fetch", spec]) == 0
    (path,) = tmp_path.rglob("*.safetensors")
    assert capsys.readouterr().out == f"{spec} is at {path}\n"
    monkeypatch.setattr(offline, "collect", None)
    assert main(["fetch", spec]) == 0
    assert len(tasks.load(spec).train) == 50


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("digits", "keeps no data in the cache"),
        ("offline:", "expected offline:<environment>"),
        ("offlin:Hopper-v5", "expected a Hugging Face id"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(what, message, capsys):
    assert main(["fetch", what]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1
