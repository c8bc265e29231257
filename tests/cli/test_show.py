"""`surefoot show`: compositions of base methods, rows of papers, and names that are neither."""

from __future__ import annotations

import json

import pytest

from surefoot import papers
from surefoot.cli import main

BASE = ("reinforce", "rloo", "ppo", "grpo", "dr-grpo", "dapo", "gspo", "cispo")


@pytest.mark.parametrize("slug", BASE)
def test_base_methods_show_their_composition(slug, capsys):
    assert main(["show", slug]) == 0
    out = capsys.readouterr().out
    for slot in ("prompts", "rollout", "reward", "advantage", "select", "surrogate", "aggregate", "update"):
        assert f"\n  {slot} " in out
    assert f"module   surefoot.methods.rlvr.{slug.replace('-', '_')}" in out
    assert out.startswith(f"{slug}: ")


def test_grpo_in_full(capsys):
    main(["show", "grpo"])
    out = capsys.readouterr().out
    assert "https://arxiv.org/abs/2402.03300" in out
    assert "A_i = (R_i - mean(R)) / std(R)" in out  # its equations
    assert "Uniform(prompts=16, rollouts=8, " in out and "coef=0.04" in out
    reads = next(line for line in out.splitlines() if line.startswith("  reads")).split(None, 1)[1].split(", ")
    assert {"reward", "logp", "ref_logp"} <= set(reads)


def test_a_paper_that_is_not_here_yet(capsys, monkeypatch):
    monkeypatch.setattr("surefoot.papers.module_of", lambda slug: None)
    assert main(["show", "iql"]) == 0
    out = capsys.readouterr().out
    assert "https://arxiv.org/abs/2110.06169 (2021)" in out
    assert "https://github.com/ikostrikov/implicit_q_learning" in out
    assert "not implemented yet" in out


def test_the_recorded_claim_is_shown(capsys, monkeypatch, tmp_path):
    (tmp_path / "papers.toml").write_text((papers.HERE / "papers.toml").read_text())
    monkeypatch.setattr(papers, "HERE", tmp_path)
    (tmp_path / "claims" / "results").mkdir(parents=True)
    (tmp_path / "claims" / "results" / "iql.json").write_text(json.dumps({"verdict": "reproduced", "gain": 0.2}))
    assert main(["show", "iql"]) == 0
    out = capsys.readouterr().out
    assert "claim    reproduced" in out and "gain" in out


@pytest.mark.parametrize("slug, hint", [("grpoo", "grpo"), ("policyclif", "policy-cliff")])
def test_unknown_names_get_the_nearest(slug, hint, capsys):
    assert main(["show", slug]) == 2
    err = capsys.readouterr().err
    assert f"did you mean {hint!r}" in err and err.count("\n") == 1
