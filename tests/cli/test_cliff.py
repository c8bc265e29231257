import json
import re
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pytest import approx

from surefoot.cli import main
from surefoot.stability import tables
from surefoot.stability.tables import parse_weights, read


@pytest.fixture
def cliff(tmp_path, monkeypatch, capsys):
    """Run `surefoot cliff ...` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        status = main(["cliff", *map(str, args)])
        said = capsys.readouterr()
        return SimpleNamespace(status=status, out=said.out, flat=" ".join(said.out.split()), err=said.err)

    return call


def test_three_arms(cliff, tmp_path):
    done = cliff("--example", "three-arm")
    assert done.status == 0 and "On the cliff: 'a' and 'b'" in done.out
    for number in ("1.0000", "0.2449", "0.0500", "0.09992"):
        assert number in done.out
    page = (tmp_path / "cliff-three-arm" / "report.html").read_text()
    assert page.count("<svg") == 2 and "http" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "").replace("https://matplotlib.org", "")
    for name in ("jump.png", "price.png", "analysis.json"):
        assert (tmp_path / "cliff-three-arm" / name).stat().st_size > 0


def test_three_arms_as_json(cliff, tmp_path):
    done = cliff("--example", "three-arm", "--json")
    found = json.loads(done.out)
    assert [round(s["tv"], 4) for s in found["strengths"]] == [1, 0.2449, 0.05]
    assert found["distance"] == 0 and found["edge"]["rival"] == "b" and found["asked"]["alpha"] == approx(0.0999166)
    assert not list(tmp_path.iterdir())


def test_gridworld(cliff):
    done = cliff("--example", "gridworld", "--json", "--eps", "0.0005")
    found = json.loads(done.out)
    assert found["verdict"].startswith("Off the cliff") and 0 < found["certified"] < found["distance"]
    assert found["distance"] < found["witness"] and found["asked"]["greedy"]
    assert found["strengths"][0]["tv"] == 0
    policy = {s["state"]: s["optimal"] for s in found["states"]}
    assert policy["(1,1)"] == ["up"] and policy["(3,3)"] == ["right"] and policy["(4,1)"] == ["left"]


def test_a_reference_is_a_prior(cliff, tmp_path):
    (tmp_path / "r.json").write_text('{"reward": [[1, 1, 0]], "reference": [0.6, 0.3, 0.1]}')
    found = json.loads(cliff("r.json", "--beta", "0.1,0.5", "--json").out)
    assert found["regularisation"] == "beta" and [s["alpha"] for s in found["strengths"]] == [0.1, 0.5]
    expected = np.array([0.6, 0.3, 0.1]) * np.exp(np.array([1, 1, 0]) / 0.5)
    assert found["strengths"][1]["reward"] == approx(expected[:2].sum() / expected.sum())


def test_several_rewards_in_json(cliff, tmp_path):
    (tmp_path / "r.json").write_text(
        json.dumps(
            {
                "rewards": {"right": [[1, 0.9]], "style": [[0.2, 0.6]]},
                "weights": {"right": 9, "style": 1},
                "actions": ["i", "j"],
                "states": ["x"],
            }
        )
    )
    done = cliff("r.json")
    assert "0.025" in done.out and "'right' alone by" in done.flat


def test_one_row_a_response_in_csv(tmp_path):
    (tmp_path / "r.csv").write_text("prompt,response,right,style\nx,i,1,0.2\nx,j,0.9,0.6\ny,j,0,0\ny,i,1,1\n")
    found = read(tmp_path / "r.csv", {"right": 0.9, "style": 0.1})
    assert found.actions == ("i", "j") and found.states == ("x", "y")
    np.testing.assert_allclose(found.mdp.R, [[0.92, 0.87], [1, 0]])


def test_one_row_a_state_in_csv(tmp_path):
    (tmp_path / "a.csv").write_text("state_name,up,down\nhill,1,2\nlake,3,4\n")
    (tmp_path / "b.csv").write_text("up,down\n1,2\n3,4\n")
    named, bare = read(tmp_path / "a.csv"), read(tmp_path / "b.csv")
    assert named.states == ("hill", "lake") and bare.states == ("0", "1") and named.actions == ("up", "down")
    np.testing.assert_array_equal(named.mdp.R, bare.mdp.R)


def test_an_mdp_in_npz(cliff, tmp_path):
    mdp = tables.gridworld().mdp
    np.savez(tmp_path / "grid.npz", P=mdp.P, R=mdp.R, gamma=mdp.gamma, mu=mdp.mu)
    found = json.loads(cliff("grid.npz", "--json").out)
    assert found["distance"] == approx(json.loads(cliff("--example", "gridworld", "--json").out)["distance"])


BAD = {
    "broken.json": ("[[1, 2],\n [3 4]]", r"broken.json line 2 column \d+: .*expected JSON"),
    "ragged.json": ("[[1, 2], [3]]", "all of the same length"),
    "nan.json": ("[[1, NaN]]", "nan at row 0, column 1; expected finite"),
    "empty.json": ("[]", "expected"),
    "text.json": ('"hello"', "expected a list of rows"),
    "key.json": ('{"reward": [[1]], "action": []}', "unknown key 'action'; did you mean 'actions'"),
    "names.json": ('{"reward": [[1, 2]], "actions": ["a"]}', "1 actions named; expected 2"),
    "shapes.json": ('{"rewards": {"a": [[1, 2]], "b": [[1, 2, 3]]}}', "reward 'b' has shape"),
    "weights.json": ('{"rewards": {"a": [[1, 2]], "b": [[1, 2]]}, "weights": {"a": -1}}', "numbers of at least 0"),
    "unknown.json": ('{"rewards": {"aa": [[1, 2]]}, "weights": {"ab": 1}}', "unknown reward 'ab'; did you mean 'aa'"),
    "reference.json": ('{"reward": [[1, 2]], "reference": [[0.5, 0.4]]}', "sums to 0.9"),
    "cell.csv": ("a,b\n1,x2\n", "row 2, column 'b': 'x2'; expected a number"),
    "inf.csv": ("a,b\n1,inf\n", "expected a finite number"),
    "short.csv": ("a,b\n1\n", "row 2: 1 cells; expected 2"),
    "header.csv": ("a,b\n", "expected a header and at least one row"),
    "twice.csv": ("prompt,response,r\nx,i,1\nx,i,2\n", "is there twice"),
    "hole.csv": ("prompt,response,r\nx,i,1\nx,j,2\ny,i,2\n", "no row for 'y', 'j'"),
    "junk.npz": ("junk", "cannot be read"),
    "table.txt": ("1", "unknown kind of file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(cliff, tmp_path, name):
    text, complaint = BAD[name]
    (tmp_path / name).write_text(text)
    done = cliff(name)
    assert done.status == 2 and done.err.count("\n") == 1
    assert re.search(complaint, done.err), done.err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"P": np.full((2, 2, 2), 0.4)}, r"P\[0, 0\] sums to 0.8"),
        ({"P": np.ones((2, 2))}, r"P has shape \(2, 2\); expected \(2, 2, 2\)"),
        ({"R": np.array([[1, np.nan], [0, 0]])}, "nan at row 0, column 1"),
        ({"gamma": 1.0}, "gamma is 1; expected at least 0 and below 1"),
        ({"mu": np.array([0.2, 0.2])}, "mu sums to 0.4"),
        ({"R": None}, "no array 'R'"),
    ],
)
def test_bad_mdps(cliff, tmp_path, change, complaint):
    good = {"P": np.full((2, 2, 2), 0.5), "R": np.zeros((2, 2)), "gamma": 0.9, "mu": np.array([0.5, 0.5])}
    np.savez(tmp_path / "m.npz", **{k: v for k, v in (good | change).items() if v is not None})
    done = cliff("m.npz")
    assert done.status == 2 and re.search(complaint, done.err), done.err


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ((), "expected a table, an MDP or a run folder"),
        (("--example", "three-arms"), "unknown example 'three-arms'; did you mean 'three-arm'"),
        (("missing.json",), "no such file"),
        (("--example", "three-arm", "--stability", "0"), "expected a total variation above 0"),
        (("--example", "three-arm", "--eps", "-1"), "expected a number above 0"),
        (("--example", "three-arm", "--alpha", "0.1", "--beta", "0.1"), "expected one of them"),
        (("--example", "three-arm", "--alpha", "a"), "expected numbers with commas"),
        (("--example", "three-arm", "--tie-tol", "-1"), "tie tolerance"),
    ],
)
def test_bad_usage(cliff, args, complaint):
    done = cliff(*args)
    assert done.status == 2 and complaint in done.err and done.err.count("\n") == 1


def test_weights_are_parsed():
    assert parse_weights("a=0.7,b=.3") == {"a": 0.7, "b": 0.3} and parse_weights("") == {}
    with pytest.raises(tables.InputError, match="expected NAME=NUMBER"):
        parse_weights("a")


@pytest.fixture
def run(tmp_path):
    """A run with two rewards and 16 responses to each of 4 prompts in each of 3 steps."""
    rng, rows = np.random.default_rng(0), []
    for step in (1, 2, 3):
        for prompt in range(4):
            for _ in range(16):
                right = float(rng.random() < 0.5)
                style = float(rng.random() * 0.01)
                rows.append(
                    {
                        "step": step,
                        "prompt": prompt,
                        "group": prompt,
                        "question": "q",
                        "answer": "4",
                        "completion": f"<answer>{'4' if right else rng.integers(5, 9)}</answer>",
                        "reward": right + 0.5 * style,
                        "reward.right": right,
                        "reward.style": style,
                        "correct": bool(right),
                        "truncated": False,
                        "length": 9,
                        "logp": -2 - rng.random(),
                        "ref_logp": -2.5,
                        "advantage": 0.0,
                        "seed": 0,
                    }
                )
    folder = tmp_path / "run"
    (folder / "rollouts").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "rollouts" / "step-000003.parquet")
    (folder / "config.toml").write_text(
        '[method]\nname = "grpo"\n[method.reward.weights]\nstyle = 0.5\n[method.advantage]\neps = 1e-4\n'
        '[[method.regularizers]]\ncoef = 0.2\nreference = "ref_logp"\n'
    )
    return folder


def test_a_run(cliff, run):
    done = cliff(
        run,
        "--ceiling",
        "1.005",
        "--window",
        "2",
        "--primary",
        "right",
        "--false-accept",
        "0.02",
        "--false-reject",
        "0.05",
        "--audit",
        "1/60",
    )
    assert done.status == 0 and "128 responses to 4 prompts in 8 groups, steps 2 to 3" in done.flat
    assert "beta 0.2" in done.out and "not 'no cliff'" in done.flat
    for item in range(1, 10):
        assert f"\n{item}. " in done.out
    page = (run / "cliff" / "report.html").read_text()
    assert "Per prompt" in page and "what it cannot say" in page and page.count("<svg") == 1
    assert "log ratios to the policy that the run started from" in done.flat
    assert (run / "cliff" / "estimates.png").is_file() and (run / "cliff" / "estimates.svg").is_file()


def test_a_run_with_a_reference_of_its_own_says_so(cliff, run):
    config = run / "config.toml"
    config.write_text(config.read_text() + '[method.reference]\npart = "surefoot.objective.references:EMA"\n')
    assert "log ratios to the run's own reference as it stood at each step (EMA)" in cliff(run).flat


def test_a_run_as_json(cliff, run):
    found = json.loads(cliff(run, "--json", "--primary", "right", "--window", "1", "--beta", "1").out)
    by_name = {e["name"]: e for e in found["run"]}
    assert {e["item"] for e in found["run"]} == set(range(1, 10)) and len(found["prompts"]) >= 4 * 8
    assert by_name["flip margin"]["value"] > 0 and by_name["KL to the regularised optimum"]["ess"] > 10
    assert by_name["tie-breaker share"]["kind"] == "exact" and not (run / "cliff").exists()
    assert by_name["drift between checkpoints"]["n"] > 0


def test_a_run_without_a_reference_says_so(cliff, run):
    path = run / "rollouts" / "step-000003.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["ref_logp"]), path)
    found = {e["name"]: e for e in json.loads(cliff(run, "--json").out)["run"]}
    assert found["distance to the reference"]["value"] is None
    assert "ref_logp" in found["distance to the reference"]["cannot_say"]


def test_a_method_without_a_divisor_has_no_cliff_of_normalisation(cliff, run):
    config = run / "config.toml"
    config.write_text(config.read_text().replace("eps = 1e-4", 'part = "surefoot.objective.advantages:LeaveOneOut"'))
    found = {e["name"]: e for e in json.loads(cliff(run, "--json", "--primary", "right").out)["run"]}
    for name in ("gain of group normalisation", "tie-breaker share"):
        assert found[name]["value"] is None and "does not divide" in found[name]["cannot_say"]


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("--primary", "rigth"), "did you mean 'right'"),
        (("--audit", "7/3"), "expected WRONG/N"),
        (("--beta", "0.1,0.2"), "expected one for a run"),
        (("--window", "0"), "expected at least 1 step"),
    ],
)
def test_bad_questions_about_a_run(cliff, run, args, complaint):
    done = cliff(run, *args)
    assert done.status == 2 and complaint in done.err


def test_not_a_run(cliff, tmp_path):
    (tmp_path / "empty").mkdir()
    done = cliff("empty")
    assert done.status == 2 and "expected a run folder" in done.err
