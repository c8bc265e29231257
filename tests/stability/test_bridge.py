"""A language model small enough to enumerate: every estimator against the truth."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pytest import approx

import surefoot as sf
from surefoot import tasks
from surefoot.cli import main
from surefoot.errors import InputError
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.methods.theory.kl_bayes import KL_BAYES
from surefoot.objective.references import EMA, weights
from surefoot.pretraining.tokenizer import build
from surefoot.rollout.native import Sampling
from surefoot.rollout.prompts import Uniform
from surefoot.stability import policies
from surefoot.stability.analysis import Question
from surefoot.stability.bridge import Beside, bridge, summarise, unseen
from surefoot.stability.enumeration import enumerate_answers
from surefoot.stability.from_samples import Estimate
from surefoot.stability.policies import Subject, enumerated, fresh
from surefoot.stability.samples import Samples, classes, labelling, samples_from_rollouts
from surefoot.training.signals import Signals
from tests.conftest import digits_task, tiny_llama, tiny_policy

QUESTION = "say 3"


def moved(seed=0, size=0.05):
    policy = tiny_policy()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.model.parameters():
            p += size * torch.randn(p.shape, generator=generator)
    return policy


@pytest.fixture(scope="module")
def subject():
    """Two policies that say two characters: at most 104^2 answers."""
    return Subject(tiny_policy(), moved(), 7, digits_task(length=2), GRPO, (3, 5), labelling("text"))


def test_all_answers_sum_to_one_and_have_the_policys_probabilities():
    policy, sampling = tiny_policy(), Sampling(max_new_tokens=2)
    answers = enumerate_answers(policy, QUESTION, sampling, floor=0.0)
    assert np.exp(answers.logp).sum() == approx(1, abs=1e-5) and answers.rest == 0
    assert len(answers) > 5000 and (answers.logp == answers.ref_logp).all()
    some = torch.tensor(np.argsort(-answers.logp)[:50].copy())
    tokens, valid = policy.encode([QUESTION], room=2)
    batch = sf.Rollouts(
        {
            "tokens": answers.tokens[some],
            "mask": answers.present[some],
            "present": answers.present[some],
            "group": torch.zeros(50, dtype=torch.long),
            "prompt_tokens": tokens,
            "prompt_mask": valid,
        }
    )
    scored = Signals(policy).fill(batch, {"old_logp"}).old_logp.where(batch.mask, 0.0).sum(1)
    assert_allclose(answers.logp[some], scored, atol=1e-5)


def test_what_falls_below_the_floor_is_summed():
    policy, other, sampling = tiny_policy(), moved(), Sampling(max_new_tokens=3, top_k=5)
    every = enumerate_answers(policy, QUESTION, sampling, other, floor=0.0)
    likely = enumerate_answers(policy, QUESTION, sampling, other, floor=0.05)
    assert len(likely) < len(every)
    for answers in (every, likely):
        assert np.exp(answers.logp).sum() + answers.rest == approx(1, abs=1e-6)
        assert np.exp(answers.ref_logp).sum() + answers.ref_rest == approx(1, abs=1e-6)
        assert np.isfinite(answers.logp).all() and answers.ref_rest > 0.01, "the reference is not truncated"
    assert likely.rest > 0.001
    texts = [tuple(t[p].tolist()) for t, p in zip(every.tokens, every.present, strict=True)]
    assert len(set(texts)) == len(texts)
    with pytest.raises(InputError, match="at most 3 are kept"):
        enumerate_answers(policy, QUESTION, sampling, most=3)
    with pytest.raises(InputError, match="floor 1"):
        enumerate_answers(policy, QUESTION, sampling, floor=1.0)


def test_fresh_responses_come_from_the_start_and_from_the_checkpoint(subject):
    samples = fresh(subject, 400)
    assert len(samples) == 1600 and set(samples.step) == {0, 7} and set(samples.prompt) == {3, 5}
    assert_allclose(samples.log_ratio[samples.step == 0], 0, atol=1e-5)
    again = fresh(subject, 400)
    assert (again.label == samples.label).all(), "seeds decide"
    for everything, _ in enumerated(subject, 1e-6):
        own = samples.where((samples.step == 7) & (samples.prompt == everything.prompt[0]))
        assert own.reward.mean() == approx(float(everything.weight @ everything.reward), abs=0.06)
        texts = Counter(everything.label)  # one text may be said in two ways
        exact = {x: r for x, r in zip(everything.label, everything.log_ratio, strict=True) if texts[x] == 1}
        known = np.array([x in exact for x in own.label])
        assert known.mean() > 0.8
        assert_allclose(own.log_ratio[known], [exact[x] for x in own.label[known]], atol=1e-4)
    with pytest.raises(InputError, match="at least 2"):
        fresh(subject, 1)


def test_estimates_come_to_the_truth(subject):
    samples = fresh(subject, 1000)
    pairs = enumerated(subject, 1e-6)
    rows = list(bridge(pairs, samples.where(samples.step == 7), Question(beta=0.5, ceiling=1.0)))
    found = {s.name: s for s in summarise(rows)}
    for name, tol in (
        ("share at the best reward", 0.03),
        ("distance to the reference", 0.04),
        ("KL to the regularised optimum", 0.05),
        ("mass of unseen classes", 0.02),
        ("drift along the tie", 0.1),
        ("gain of group normalisation", 0.1),
    ):
        assert found[name].error < tol, name
    judged = [r.holds for r in rows if r.holds is not None]
    assert len(judged) >= 12 and all(judged)
    assert found["distance to the reference"].exact > 0.05, "the two policies differ"


def test_the_truth_about_what_was_not_seen():
    everything = Samples(
        np.zeros(4, int),
        np.array([0.0, 1, 2, 1]),
        np.array(list("aabb"), object),
        weight=np.array([0.1, 0.2, 0.3, 0.4]),
    )
    seen = Samples(np.zeros(2, int), np.array([0.0, 1]), np.array(["a", "a"], object))
    assert list(unseen(everything, seen).values()) == approx([0.7, 0.7, 0.3])


def test_bounds_and_intervals_can_be_wrong():
    def beside(kind, value, exact, interval=None, missing=0.0):
        return Beside(Estimate(1, "", value, interval, 9, None, kind, ""), exact, missing, 5)

    assert beside("upper bound", 0.2, 0.1).holds is True and beside("upper bound", 0.2, 0.3).holds is False
    assert beside("lower bound", 0.2, 0.1).holds is False and beside("lower bound", 0.2, 0.1, missing=0.1).holds is True
    assert beside("estimate", 0.2, 0.3, (0.1, 0.25)).holds is False and beside("estimate", 0.2, 0.3).holds is None
    assert beside("estimate", None, 0.3, (0, 1)).holds is None


def test_a_penalty_in_the_reward_is_left_out(subject):
    penalised = replace(subject, method=KL_BAYES)
    assert_allclose(fresh(penalised, 20).reward, fresh(subject, 20).reward, atol=1e-12)
    rows = {"prompt": [0, 0], "completion": ["a", "b"], "reward": [0.9, -0.2], "reward.right": [1.0, 0.0]}
    assert samples_from_rollouts({k: np.array(v) for k, v in rows.items()}, penalised=True).reward.tolist() == [
        1.0,
        0.0,
    ]


def test_classes_are_answers_or_texts():
    text = "1+2=3\n<answer>3</answer> "
    cut = np.array([False, True])
    assert classes([text, "1+2"], cut, labelling("answer")).tolist() == ["3", "(cut)"]
    assert classes([text, "1+2"], cut, labelling("text")).tolist() == [text.strip(), "1+2"]
    with pytest.raises(InputError, match="did you mean 'text'"):
        labelling("texts")


def test_the_command(subject, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(policies, "open_subject", lambda *_: subject)
    assert main(["cliff", str(tmp_path / "run"), "--exact", "--fresh", "40", "--floor", "1e-6"]) == 0
    said = capsys.readouterr().out
    assert "sampled anew at step 7" in said and "Beside the truth" in said and "\n9. " in said
    page = (tmp_path / "run" / "cliff" / "report.html").read_text()
    assert "Beside the truth" in page and "were enumerated" in page
    found = json.loads((tmp_path / "run" / "cliff" / "analysis.json").read_text())["bridge"]
    assert {s["item"] for s in found["run"]} >= {1, 2, 6, 8} and all(p["missing"] < 0.01 for p in found["prompts"])
    assert main(["cliff", str(tmp_path / "run"), "--fresh", "1"]) == 2
    assert "at least 2 responses" in capsys.readouterr().err


def test_a_reference_that_moved_is_taken_from_the_checkpoint(tmp_path, monkeypatch, capsys):
    """After one step of an average with decay 1/4 it is a quarter start and three quarters policy."""
    tiny_llama(vocab=104).save_pretrained(tmp_path / "start")
    build().save_pretrained(tmp_path / "start")
    task, few = digits_task(length=2), {"train.final_problems": 0, "train.eval_every": 0, "train.lr": 1e-2}
    monkeypatch.setattr(tasks, "load", lambda *_: task)
    method = GRPO.but(reference=EMA(decay=0.25), prompts=Uniform(prompts=4, rollouts=4))
    run = tmp_path / "run"
    sf.train(str(tmp_path / "start"), task, method, steps=1, out=run, set=few | {"train.warmup": 0}, progress=False)
    subject = policies.open_subject(run, 2)
    named = map(weights, (subject.reference, subject.before, subject.after))
    for (_, ref), (_, old), (_, new) in zip(*named, strict=True):
        torch.testing.assert_close(ref, 0.25 * old + 0.75 * new)
    near, far = fresh(subject, 8).log_ratio, fresh(replace(subject, moved=None), 8).log_ratio
    assert near is not None and far is not None and not np.allclose(near, far)
    (everything, answers), *_ = enumerated(subject, floor=0.0)
    assert everything.log_ratio == approx(answers.logp - answers.ref_logp)
    assert main(["cliff", str(run), "--fresh", "8", "--exact", "--floor", "1e-4", "--prompts", "2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "log ratios to the run's own reference as the checkpoint of step 1 holds it (EMA)" in said
    assert "Filled: the exact value" in (run / "cliff" / "report.html").read_text()


def test_a_run_without_a_checkpoint_says_so(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.toml").write_text('policy = "pebble"\n')
    assert main(["cliff", str(tmp_path), "--fresh", "4"]) == 2
    assert "no checkpoint" in capsys.readouterr().err
