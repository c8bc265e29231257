import json

import numpy as np
import pytest

from surefoot import claims
from surefoot.claims import Claim, Outcome, reproduce
from surefoot.errors import InputError


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A claim that is not in the package, with results kept in a temporary folder."""

    def run(size, seeds, report):
        if report:
            (report / "toy.png").write_bytes(b"")
        row = {"name": "n", "value": np.float64(len(seeds)), "spread": float("inf")}
        return Outcome("reproduced", [row], [report / "toy.png"] if report else [])

    monkeypatch.setattr(claims, "claim", lambda slug: Claim(slug, "s", "r", run, seeds=(3, 4)))
    monkeypatch.setattr(claims, "HERE", tmp_path)
    return tmp_path


def test_nothing_is_written_unless_asked(toy):
    outcome = reproduce("toy")
    assert outcome.verdict == "reproduced" and outcome.measured[0]["value"] == 2
    assert not list(toy.iterdir())


def test_a_record_tells_what_where_and_with_which_seeds(toy):
    reproduce("toy", seeds=[7], out=toy / "out", record=True)
    kept = json.loads((toy / "results" / "toy.json").read_text())
    assert kept["verdict"] == "reproduced" and kept["seeds"] == [7] and kept["size"] == "quick"
    assert kept["measured"] == [{"name": "n", "value": 1.0, "spread": "inf"}]
    assert kept["pictures"] == ["toy.png"] and {"date", "machine", "seconds"} <= kept.keys()
    assert json.loads((toy / "out" / "outcome.json").read_text()) == kept


def test_an_unknown_claim_names_the_nearest():
    with pytest.raises(InputError, match="no claim for 'no-such-paper'"):
        reproduce("no-such-paper")


def test_bad_size_seeds_and_verdict(toy):
    with pytest.raises(InputError, match="expected quick or full"):
        reproduce("toy", size="huge")
    with pytest.raises(InputError, match="seeds is empty"):
        reproduce("toy", seeds=[])
    with pytest.raises(ValueError, match="verdict 'maybe'"):
        Outcome("maybe", [])
