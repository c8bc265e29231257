"""Logged preferences: played back, ranked, made by a task's own judge, and trained on by the one trainer."""

import json

import pytest
import torch

import surefoot as sf
from surefoot import tasks
from surefoot.errors import InputError
from surefoot.methods.preference.dpo import DPO
from surefoot.methods.preference.ipo import IPO
from surefoot.rollout.prompts import Uniform
from surefoot.tasks.prefs import make_pairs
from tests.conftest import digits_task, tiny_policy


def _row(i, **more):
    return {"prompt": f"say {i}", "chosen": "7" * (2 + i % 3), "rejected": "no way", "split": "train"} | more


@pytest.fixture
def path(tmp_path):
    rows = [_row(i) for i in range(12)] + [_row(i, split="heldout") for i in range(20, 24)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def _play(task, policy, problems, group):
    return task.rollout(policy, problems, torch.tensor(group), torch.arange(len(group)), None)


def test_what_was_logged_is_played_as_if_it_had_been_sampled(path, policy):
    task = tasks.load(f"prefs:{path}")
    batch = task.judge([], _play(task, policy, task.train[:3], [0, 0, 1, 2, 2]))
    assert batch.rewards["preferred"].tolist() == [1, 0, 1, 1, 0]
    assert batch.notes["completion"] == ["77", "no way", "777", "7777", "no way"]
    assert policy.decode(batch.tokens, batch.present) == batch.notes["completion"]
    last = batch.present.sum(1) - 1
    assert (batch.tokens[torch.arange(5), last] == policy.stop[0]).all(), "every response ends in the stop token"
    assert batch.present.sum(1).tolist() == [3, 7, 4, 5, 7] and not batch.truncated.any()
    assert "rollout_logp" not in batch, "who said it, and how likely it was to them, is not known"


def test_logged_responses_are_the_tokens_that_were_sampled_and_score_the_same():
    """Pebble's text has one spelling in tokens, so what it said can be told from the text alone."""
    from surefoot import policies
    from surefoot.rollout.native import Sampling

    pebble, task = policies.load("pebble"), tasks.load("rg:chain_sum:min_terms=2,max_terms=2")
    questions = [task.train[i].question for i in range(2)]
    group, seeds = torch.tensor([0, 0, 1, 1]), torch.arange(4)
    said = pebble.sample(questions, group, seeds, Sampling(max_new_tokens=120))
    assert not said.truncated.any()
    again = pebble.logged(questions, group, seeds, said.notes["completion"])
    for column in ("tokens", "present", "mask", "turn", "group", "seed", "prompt_tokens", "prompt_mask", "truncated"):
        assert again[column].equal(said[column]), column
    logp = pebble.score(again, {"logp"})["logp"]
    torch.testing.assert_close(logp, said.rollout_logp, atol=1e-4, rtol=1e-4)


def test_heldout_pairs_are_ranked_by_their_log_probabilities(path, policy):
    task = tasks.load(f"prefs:{path}")
    problems = task.heldout[:3]
    batch = _play(task, policy, problems, [0, 0, 1, 2])
    for row, i in enumerate([0, 0, 1, 2]):
        both = policy.logged([problems[i].question], torch.zeros(2).long(), torch.zeros(2).long(), _pair(problems[i]))
        logp = policy.score(both, {"logp"})["logp"].sum(1)
        torch.testing.assert_close(batch.rewards["margin"][row], logp[0] - logp[1], atol=1e-3, rtol=1e-4)
        assert batch.rewards["ranking"][row] == float(logp[0] > logp[1])


def _pair(problem):
    return list(problem.data["compare"])


def test_a_third_trajectory_of_a_pair_is_refused(path, policy):
    task = tasks.load(f"prefs:{path}")
    with pytest.raises(InputError, match=r"'say 0' has 2 and more were asked for \(--set prompts.rollouts=2\)"):
        _play(task, policy, task.train[:1], [0, 0, 0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "say", "chosen": "7"}, "line 1: no column 'rejected'"),
        (_row(0, chosen=" "), "line 1: chosen is ' '; expected text"),
        (_row(0, split="test"), "line 1: split 'test'"),
        (_row(0, split="heldout"), "no training pair"),
        (_row(0), "no held-out pair"),
    ],
)
def test_bad_files(tmp_path, row, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        tasks.load(f"prefs:{file}")


def test_bad_specifications(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        tasks.load("prefs:nowhere.jsonl")
    with pytest.raises(InputError, match="no option 'pears'; did you mean 'pairs'"):
        tasks.load("prefs:pears=3,make=rg:gcd")


def test_a_response_longer_than_the_context_is_refused(policy):
    with pytest.raises(InputError, match="response of 131 tokens does not fit"):
        policy.logged(["say"], torch.tensor([0]), torch.tensor([0]), ["7" * 130])


def _quick_to_stop():
    policy = tiny_policy()
    policy.stop = [1, *range(40, 60)]
    return policy


def _digits(text):
    return sum(ch.isdigit() for ch in text) / max(1, len(text))


def test_pairs_that_a_judge_makes():
    policy, base = _quick_to_stop(), digits_task(length=30)
    rows = make_pairs(policy, base, 40, samples=6, seed=1)
    assert len(rows) == 40 and all(_digits(r["chosen"]) > _digits(r["rejected"]) for r in rows)
    assert rows == make_pairs(policy, base, 40, samples=6, seed=1)
    noisy = make_pairs(policy, base, 40, samples=6, seed=1, flipped=0.4)
    wrong = sum(_digits(r["chosen"]) < _digits(r["rejected"]) for r in noisy)
    assert 6 <= wrong <= 26
    with pytest.raises(InputError, match="flipped=0.5"):
        make_pairs(policy, base, 1, flipped=0.5)


def test_made_pairs_are_made_once_and_judged_by_their_own_task(tmp_path, monkeypatch):
    from surefoot import policies

    loaded = []
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path))
    monkeypatch.setattr(policies, "load", lambda *a: loaded.append(a) or _quick_to_stop())
    tasks.register("digits-to-pair")(lambda: digits_task(length=30))
    task = tasks.load("prefs:pairs=10,samples=4,make=digits-to-pair")
    again = tasks.load("prefs:pairs=10,samples=4,make=digits-to-pair")
    assert len(loaded) == 1 and [p.data for p in again.train] == [p.data for p in task.train] and len(task.train) == 10
    score = sf.evaluate(tiny_policy(), task, problems=3, k=2)
    assert score["n"] == 3 and 0 <= score["pass@1"] <= 1


@pytest.mark.parametrize("method", [DPO, IPO], ids=["dpo", "ipo"])
def test_the_trainer_learns_from_a_file_and_resumes_exactly(path, tmp_path, method):
    method = method.but(prompts=Uniform(prompts=6, rollouts=2))
    settings = {"train.lr": 3e-3, "train.warmup": 1, "train.checkpoint_seconds": 0, "train.keep": 9}
    settings |= {"train.final_samples": 1, "train.final_problems": 4}
    whole = sf.train(tiny_policy(), f"prefs:{path}", method, steps=6, set=settings, out=tmp_path / "a", progress=False)
    lines = (tmp_path / "a" / "metrics.jsonl").read_text()
    assert json.loads(lines.splitlines()[-1])["preference_accuracy"] == 1
    assert whole.after["headline"] == "ranking" and whole.after["margin"] > whole.before["margin"] + 1
    after = {k: v.clone() for k, v in whole.policy.model.state_dict().items()}
    resumed = sf.resume(tmp_path / "a" / "checkpoints" / "step-000003", policy=tiny_policy(), progress=False)
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == lines
    for name, tensor in resumed.policy.model.state_dict().items():
        assert tensor.equal(after[name]), name
