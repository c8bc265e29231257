"""The table of systems, and the commands that show it."""

from __future__ import annotations

import json
import re

import pytest

from surefoot import papers as module
from surefoot.cli import main
from surefoot.errors import InputError
from surefoot.papers import module_of, paper, papers

KINDS = {
    "language",
    "preference",
    "distillation",
    "agents",
    "multimodal",
    "control",
    "offline-control",
    "tabular",
    "diffusion-image",
    "diffusion-lm",
    "evaluation",
    "search",
    "optimizer",
    "scaling",
}


def test_all_systems_are_listed_once():
    rows = papers()
    assert len(rows) == 130
    for what in ("slug", "title", "arxiv"):
        assert len({getattr(r, what) for r in rows}) == 130
    assert [r.slug for r in rows] == sorted(r.slug for r in rows)
    for row in rows:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row.slug)
        assert re.fullmatch(r"\d{4}\.\d{4,5}", row.arxiv) and 2014 <= row.year <= 2026
        # two digits of the identifier are the year of the first version; a card may give the year of publication
        assert row.year - (2000 + int(row.arxiv[:2])) in (0, 1)
        assert row.kind in KINDS and len(row.title) > 10


def test_a_row():
    row = paper("iql")
    assert (row.arxiv, row.year, row.kind) == ("2110.06169", 2021, "offline-control")
    assert "Implicit Q-Learning" in row.title and row.code == "ikostrikov/implicit_q_learning"
    with pytest.raises(InputError, match="did you mean 'bnpo'"):
        paper("bnpoo")


def test_module_and_verdict_are_looked_up(tmp_path, monkeypatch):
    toml = (module.HERE / "papers.toml").read_text()
    (tmp_path / "methods" / "rlvr").mkdir(parents=True)
    (tmp_path / "claims" / "results").mkdir(parents=True)
    (tmp_path / "papers.toml").write_text(toml)
    (tmp_path / "methods" / "rlvr" / "dapo_direct.py").touch()
    (tmp_path / "claims" / "results" / "dapo-direct.json").write_text('{"verdict": "not reproduced"}')
    monkeypatch.setattr(module, "HERE", tmp_path)
    row = paper("dapo-direct")
    assert (row.module, row.verdict) == ("surefoot.methods.rlvr.dapo_direct", "not reproduced")
    assert [r.slug for r in papers() if r.module] == ["dapo-direct"]
    (tmp_path / "claims" / "results" / "iql.json").write_text("{")
    with pytest.raises(InputError, match="iql.json line 1"):
        papers()


def test_every_named_module_is_there():
    import importlib.util

    for row in papers():
        if row.module:
            assert importlib.util.find_spec(row.module) is not None
    assert module_of("no-such-paper") is None


def test_command_as_json_and_as_a_table(capsys):
    assert main(["papers", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 130 and all(list(r) == ["slug", "title", "arxiv", "kind", "module", "verdict"] for r in rows)
    assert main(["papers", "--kind", "scaling"]) == 0
    shown = capsys.readouterr().out
    assert "chinchilla-approach3" in shown and "iql" not in shown and "130 systems" in shown
    assert main(["papers", "--kind", "scalling"]) == 2
    assert "did you mean 'scaling'" in capsys.readouterr().err
