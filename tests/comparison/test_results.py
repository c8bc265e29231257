"""Comparisons of finished runs: tables, tests, text and picture."""

from __future__ import annotations

import json

import numpy as np
import pytest

from surefoot.comparison.output import markdown, text, write
from surefoot.comparison.results import compare_runs
from surefoot.errors import InputError
from tests.report.folders import make_run


def runs(tmp_path, finals, seeds=3, **changes):
    return {
        name: [
            make_run(
                tmp_path / name / f"seed-{s}",
                seed=100 * i + s,
                final=final,
                method=name,
                steps=20,
                rollouts=False,
                problems=200,
                **changes,
            )
            for s in range(seeds)
        ]
        for i, (name, final) in enumerate(finals.items())
    }


def test_real_and_lucky_differences_are_told_apart(tmp_path):
    found = compare_runs(runs(tmp_path, {"rloo": 0.5, "grpo": 0.8, "twin": 0.8}), tmp_path)
    assert [row.name for row in found.rows][-1] == "rloo"
    real = {(p.a, p.b): p.real for p in found.pairs}
    assert len(real) == 3
    for (a, b), is_real in real.items():
        assert is_real == ("rloo" in (a, b))  # the twins differ by luck alone
    assert all(p.adjusted >= p.p and p.low < p.mean < p.high for p in found.pairs)


def test_numbers_are_those_of_the_folders(tmp_path):
    folders = runs(tmp_path, {"grpo": 0.7}, seeds=2)
    (row,) = compare_runs(folders, tmp_path).rows
    records = [json.loads((f / "evaluation.json").read_text()) for f in folders["grpo"]]
    assert row.per_seed == pytest.approx(tuple(r["after"]["pass@1"] for r in records))
    assert row.mean == pytest.approx(np.mean(row.per_seed))
    assert row.best == pytest.approx(np.mean([r["after"]["pass@4"] for r in records]))
    assert row.before == pytest.approx(np.mean([r["before"]["pass@1"] for r in records]))
    assert (row.tokens, row.seconds) == (20 * 3000, 20.0)
    assert row.low < min(row.per_seed) and row.high > max(row.per_seed)  # two seeds leave much open


def test_output_says_what_was_found(tmp_path):
    found = compare_runs(runs(tmp_path, {"rloo": 0.5, "grpo": 0.8}), tmp_path)
    write(found)
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert [m["name"] for m in data["methods"]] == ["grpo", "rloo"] and data["seeds"] == [0, 1, 2]
    assert data["pairs"][0]["real"] is True
    page = (tmp_path / "comparison.md").read_text()
    assert page == markdown(found) and "| grpo − rloo |" in page
    assert "Real (p < 0.05 after Holm): grpo is better than rloo by" in page
    assert (tmp_path / "comparison.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "grpo - rloo: +" in text(found) and "before" in text(found)


def test_one_seed_says_so(tmp_path):
    found = compare_runs(runs(tmp_path, {"a": 0.6, "b": 0.6}, seeds=1), tmp_path)
    assert "nothing about other seeds" in markdown(found)
    assert "could be luck" in text(found) or found.pairs[0].real


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    folders = runs(tmp_path, {"a": 0.6, "b": 0.6}, seeds=1)
    other = json.loads((folders["b"][0] / "evaluation.json").read_text())
    (folders["b"][0] / "evaluation.json").write_text(json.dumps(other | {"task": "rg:gcd"}))
    with pytest.raises(InputError, match="evaluated with task 'rg:gcd'"):
        compare_runs(folders, tmp_path)
    other["after"]["per_problem"][0]["prompt"] = 999
    (folders["b"][0] / "evaluation.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match="other held-out problems"):
        compare_runs(folders, tmp_path)
    (folders["b"][0] / "evaluation.json").unlink()
    with pytest.raises(InputError, match="no evaluation after training"):
        compare_runs(folders, tmp_path)
