"""`surefoot reproduce`: the outcome is printed, refused names are one line."""

import json

from surefoot import claims
from surefoot.cli import main


def test_an_outcome_is_printed_and_kept(tmp_path, capsys, monkeypatch):
    found = claims.Outcome(
        "refuted", [{"name": "gap", "value": 0.5, "expected": 0.1, "spread": 0.01}], notes="one seed"
    )
    made = claims.Claim("toy", "a is b", "a is not b", lambda size, seeds, report: found, seeds=(7,))
    monkeypatch.setattr(claims, "modules", lambda: ["toy"])
    monkeypatch.setattr(claims, "claim", lambda slug: made)
    assert main(["reproduce", "toy", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "toy: refuted" in out and "expected 0.1" in out and "one seed" in out
    assert json.loads((tmp_path / "toy/outcome.json").read_text())["verdict"] == "refuted"
    assert main(["reproduce", "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["seeds"] == [7]


def test_bad_input(capsys):
    assert main(["reproduce"]) == 2 and "name a paper" in capsys.readouterr().err
    assert main(["reproduce", "policy-clif"]) == 2 and "did you mean 'policy-cliff'" in capsys.readouterr().err
    assert main(["reproduce", "policy-cliff", "--size", "huge"]) == 2
