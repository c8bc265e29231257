"""The leaderboard: what is run, what is read from the runs, and what the page says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from surefoot import load_policy
from surefoot.cli import main
from surefoot.comparison import leaderboard as L
from surefoot.comparison.leaderboard_page import edges, page, write_page
from surefoot.errors import InputError
from tests.report.folders import lines, make_run

TASK = L.TASKS[0]
RATE = load_policy("pebble").suggested_lr
PLAN = L.Plan(
    ("grpo", "rloo"), (TASK,), seeds=2, steps=20, factors=(0.5, 1.0), stress=(3.0, 10.0), problems=100, samples=4
)


def _runs(out, finals):
    """Finished run folders wherever the plan looks for them; `finals(stage, method, lr)` is their accuracy."""
    made = []
    for method in PLAN.methods:
        stages = [("tune", f * RATE, L.TUNING_SEED) for f in PLAN.factors]
        stages += [("compare/" + L._folder(TASK), f * RATE, s) for f in PLAN.factors for s in range(PLAN.seeds)]
        stages += [("stress", f * RATE, s) for f in PLAN.stress for s in range(PLAN.seeds)]
        for stage, lr, seed in stages:
            job = L._job(PLAN, method, TASK, lr, seed, out / stage)
            final = finals(stage.split("/")[0], method, lr)
            make_run(job.folder, seed=seed, final=final, method=method, steps=20, rollouts=False, problems=100)
            (job.folder / "drift.json").write_text('{"kl": 0.125}')
            made.append(job)
    return made


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("leaderboard")
    L.keep_plan(out, PLAN.shared())
    pushed = {True: 0.05, False: 0.7}
    made = _runs(out, lambda stage, method, lr: pushed[lr > 5 * RATE] if stage == "stress" else 0.6 + 0.2 * lr / RATE)
    assert all(job.finished for job in made)
    return out, L.leaderboard(PLAN, out, progress=False)


def test_runs_that_are_there_are_not_run_again_and_the_best_rate_is_compared(found):
    out, board = found
    assert {e.lr for e in board.entries} == {RATE}
    assert all(row[RATE] > row[RATE / 2] for row in board.tuning.values())
    for e in board.entries:
        folders = [out / "compare" / L._folder(TASK) / e.method / f"lr-{RATE:g}" / f"seed-{s}" for s in (0, 1)]
        records = [json.loads((f / "evaluation.json").read_text()) for f in folders]
        assert e.pass1 == pytest.approx(np.mean([r["after"]["pass@1"] for r in records]))
        assert e.ece == pytest.approx(np.mean([r["after"]["ece"] for r in records]))
        assert e.kl == 0.125 and e.low < e.pass1 < e.high
    assert json.loads((out / "leaderboard.json").read_text())["entries"][0]["kl"] == 0.125


def test_collapse_is_an_end_below_the_beginning(found):
    rates = {(s.method, s.factor): s.collapsed for s in found[1].stressed}
    assert rates == {(m, f): 2 * (f == 10.0) for m in PLAN.methods for f in PLAN.stress}
    assert found[1].stressed[0].interval == pytest.approx((0.0, 1 - 0.025**0.5))


def test_a_run_that_a_guard_stopped_counts_and_is_not_started_again(tmp_path):
    job = L._job(PLAN, "grpo", TASK, 1e-2, 0, tmp_path)
    job.folder.mkdir(parents=True)
    (job.folder / "events.jsonl").write_text('{"step": 3, "kind": "stop", "text": "loss is nan"}\n')
    L.launch([job], 1, None, False)  # would fail: there is nothing to resume
    assert L.learned(job.folder) == -np.inf
    stressed = L._stressed("grpo", 10.0, [job])
    assert stressed.collapsed == 1 and np.isnan(stressed.pass1)


def test_spikes_are_counted_against_the_median_before(tmp_path):
    norms = [1.0] * 6 + [4.9, 5.1, 1.0, 80.0]
    lines(tmp_path / "metrics.jsonl", [{"step": i + 1, "grad_norm": n} for i, n in enumerate(norms)])
    assert L.spikes(tmp_path) == 2


def test_the_page_says_what_was_found_and_what_it_cannot_see(found, tmp_path):
    board = found[1]
    written = write_page(board, tmp_path / "board.md", "surefoot leaderboard grpo rloo")
    assert {p.name for p in written} >= {"board.md", "board-accuracy.png", "board-stress.png"}
    text = (tmp_path / "board.md").read_text()
    assert "half-width of an interval" in text and "(board-accuracy.png)" in text
    assert "0 of 2 [0, 84] % | 2 of 2 [16, 100] %" in text
    assert "No difference shown: rloo." in text and "Every method helped." in text
    rates = text.split("## Tuning")[1]
    assert f"| {RATE / 2:.1e} | {RATE:.1e} |" in rates and rates.count("**") == 4
    assert "For every method the best is the lowest or the highest that was tried" in rates
    inside = replace(board, tuning={"grpo": {1.0: 0.1, 2.0: 0.9, 3.0: 0.2}, "rloo": {1.0: 0.3, 2.0: 0.2, 3.0: 0.1}})
    assert "For rloo the best" in edges(inside)
    assert page(board, "c", "a", "s").splitlines()[0] == "# Leaderboard"
    (tmp_path / "board.notes.md").write_text("## Notes\n\nMade on a Tuesday.\n")
    write_page(board, tmp_path / "board.md", "surefoot leaderboard grpo rloo")
    assert (tmp_path / "board.md").read_text() == f"{text}\n## Notes\n\nMade on a Tuesday.\n"


def test_another_plan_in_the_same_folder_and_unknown_methods_are_refused(found, capsys):
    out, _ = found
    with pytest.raises(InputError, match="holds a comparison with steps 20, not 21"):
        L.leaderboard(replace(PLAN, steps=21), out, progress=False)
    assert main(["leaderboard", "grppo", "--out", str(out / "no")]) == 2
    assert "did you mean 'grpo'" in capsys.readouterr().err


def test_each_task_has_a_folder_of_its_own():
    usual = [
        "rg-chain-sum-min-terms-2-max-terms-4-min-digits-2-max-digits",
        "rg-gcd-min-value-2-max-value-60",
        "rg-letter-counting-min-words-1-max-words-3",
    ]
    assert [L._folder(t) for t in L.TASKS] == usual, "leaderboards that are there go on"
    others = [*L.TASKS, TASK[:-1] + "3", TASK + ",size=9", "a/b.jsonl", "a-b.jsonl", "rg:gcd:n=1", "rg:gcd:n-1"]
    names = [L._folder(t) for t in others]
    assert len(set(names)) == len(others) and all(len(n) <= 60 for n in names)
    assert len({n.lower() for n in names}) == len(others), "also where case does not count"


def test_the_command_asks_for_what_a_plan_is_by_itself(monkeypatch):
    """Its help must not wait for torch, so the command repeats the numbers."""
    asked = []
    monkeypatch.setattr(L, "leaderboard", lambda plan, *_: asked.append(plan) or sys.exit())
    with pytest.raises(SystemExit):
        main(["leaderboard", "grpo"])
    assert asked == [L.Plan(("grpo",))]
    code = "import sys; from surefoot.cli import main; main(sys.argv[1:])"
    for verb in ("leaderboard", "compare"):
        call = [sys.executable, "-X", "importtime", "-c", code, verb, "--help"]
        said = subprocess.run(call, capture_output=True, text=True)
        assert "usage" in said.stdout and not re.search(r"\| +torch\n", said.stderr)
