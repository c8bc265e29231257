from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from pytest import approx

from surefoot.errors import InputError
from surefoot.stability.analysis import Question, analyse
from surefoot.stability.samples import Samples, samples_from_rollouts


def by_name(estimates):
    return {e.name: e for e in estimates}


def enumerated(reward, policy, ref, labels=None):
    """One prompt with all its responses and their probabilities."""
    n = len(reward)
    return Samples(
        np.zeros(n, int),
        np.asarray(reward, float),
        np.array(labels or list("abcdefgh"[:n]), object),
        log_ratio=np.log(np.array(policy) / ref),
        weight=np.array(policy),
    )


def drawn(rng, prompts=6, n=40, ref=(0.5, 0.3, 0.15, 0.05), policy=(0.55, 0.15, 0.2, 0.1), reward=(1.0, 0.0, 1.0, 1.0)):
    picks = rng.choice(4, prompts * n, p=policy)
    ratio = np.log(np.array(policy) / ref)
    return Samples(
        np.repeat(np.arange(prompts), n),
        np.array(reward)[picks],
        np.array(list("abcd"), object)[picks],
        log_ratio=ratio[picks],
    )


def test_sampled_estimates_agree_with_enumeration():
    ref, policy, reward = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.55, 0.15, 0.2, 0.1]), [1.0, 0, 1, 1]
    question = Question(beta=0.5, ceiling=1.0)
    exact = by_name(analyse(enumerated(reward, policy, ref), question).run)
    sampled = by_name(analyse(drawn(np.random.default_rng(0), prompts=20, n=400), question).run)
    assert exact["KL to the regularised optimum"].value == approx(0.0750058, abs=1e-7)
    assert exact["KL to the regularised optimum"].kind == "exact"
    for name, tol in [
        ("KL to the regularised optimum", 0.005),
        ("distance to the reference", 0.01),
        ("drift along the tie", 0.01),
        ("share at the best reward", 0.01),
        ("cliff height", 0.01),
    ]:
        assert sampled[name].value == approx(exact[name].value, abs=tol), name
        assert sampled[name].kind == "estimate"
    low, high = sampled["KL to the regularised optimum"].interval
    assert low < 0.075 < high


def test_a_tie_at_the_known_ceiling_is_exact_and_elsewhere_bounds_nothing():
    tied = enumerated([1, 1, 0], [0.4, 0.4, 0.2], [1 / 3] * 3)
    at = by_name(analyse(tied, Question(ceiling=1.0)).prompts)["distance to the cliff"]
    assert (at.value, at.kind) == (0.0, "exact")
    unknown = by_name(analyse(tied, Question()).prompts)["distance to the cliff"]
    assert unknown.value is None and "ceiling is not known" in unknown.cannot_say
    below = by_name(analyse(tied, Question(ceiling=2.0)).prompts)["distance to the cliff"]
    assert below.value is None and "no response reached" in below.cannot_say


def test_one_class_at_the_ceiling_gives_an_upper_bound_only():
    one = by_name(analyse(enumerated([1, 0.4, 0], [0.4, 0.4, 0.2], [1 / 3] * 3), Question(ceiling=1.0)).prompts)
    assert one["distance to the cliff"].value == approx(0.3) and one["distance to the cliff"].kind == "upper bound"


def test_no_estimate_claims_a_lower_bound_on_the_distance():
    run = analyse(drawn(np.random.default_rng(0)), Question(beta=0.1, ceiling=1.0)).run
    assert {e.name for e in run if e.kind == "lower bound"} <= {"classes in the tie"}


def test_what_is_missing_is_said():
    plain = replace(drawn(np.random.default_rng(0)), log_ratio=None)
    found = by_name(analyse(plain, Question(beta=0.1)).run)
    for name in ("drift along the tie", "KL to the regularised optimum", "distance to the reference"):
        assert found[name].value is None and "ref_logp" in found[name].cannot_say
    assert "one reward" in found["flip margin"].cannot_say
    assert "--false-accept" in found["accuracy behind the pass rate"].cannot_say
    assert {e.item for e in found.values()} == set(range(1, 10))


def test_few_effective_samples_are_refused():
    few = by_name(analyse(drawn(np.random.default_rng(0), n=6), Question(beta=0.01)).run)
    assert few["KL to the regularised optimum"].value is None
    assert "below 10" in few["KL to the regularised optimum"].cannot_say
    assert few["drift along the tie"].value is None


def test_the_run_pools_over_prompts():
    samples = drawn(np.random.default_rng(0))
    found = analyse(samples, Question(beta=0.5))
    own = [e.value for e in found.prompts if e.name == "share at the best reward"]
    pooled = by_name(found.run)["share at the best reward"]
    assert len(own) == 6 and pooled.value == approx(np.mean(own)) and pooled.n == len(samples)
    assert by_name(found.run)["mass of anything unseen"].value == approx(1 - 0.05 ** (1 / 240))
    low, high = by_name(found.run)["distance to the reference"].interval
    assert high - low == approx(2 * np.sqrt(np.log(40) / 480))


def test_checkpoints_are_different_policies():
    rng = np.random.default_rng(0)
    early = drawn(rng, policy=(0.8, 0.1, 0.05, 0.05))
    late = drawn(rng, policy=(0.1, 0.1, 0.7, 0.1))
    both = Samples(
        np.r_[early.prompt, late.prompt],
        np.r_[early.reward, late.reward],
        np.r_[early.label, late.label],
        step=np.repeat([1, 9], len(early)),
    )
    found = analyse(both)
    run = by_name(found.run)
    assert found.groups == 12 and "p = 0.001" in run["drift between checkpoints"].says
    assert run["class shares, first to last checkpoint"].value > 0.4
    late_only = both.where(both.step == 9)
    assert by_name(analyse(late_only).run)["drift between checkpoints"].value is None
    assert by_name(analyse(late_only, history=both).run)["drift between checkpoints"].value > 0.4


def test_several_rewards():
    rewards = {"right": np.array([1, 0.9]), "style": np.array([0.2, 0.6])}
    weights = {"right": 0.9, "style": 0.1}
    both = Samples(
        np.zeros(2, int), sum(weights[k] * rewards[k] for k in rewards), np.array(["i", "j"], object), rewards, weights
    )
    found = by_name(analyse(both, Question(beta=0.5)).run)
    assert found["flip margin"].value == approx(0.025) and "'right'" in found["flip margin"].says
    assert found["without reward 'style'"].value > 0


def test_the_verifier():
    samples = drawn(np.random.default_rng(0))
    found = by_name(analyse(samples, Question(accepts_wrong=0.05, rejects_right=0.1, audit=(0, 59))).run)
    rate = samples.reward.mean()
    assert found["accuracy behind the pass rate"].value == approx(min((rate - 0.05) / 0.85, 1))
    assert found["wrong among accepted (audit)"].interval == (0.0, approx(0.0495, abs=1e-4))


def table(**columns):
    base = {
        "step": [1, 1],
        "prompt": [3, 3],
        "completion": ["so\n<answer>4</answer>", "no idea\n5"],
        "reward": [1.0, 0.0],
        "truncated": [False, False],
        "logp": [-2.0, -3.0],
        "ref_logp": [-2.5, -2.5],
        "reward.accuracy": [1.0, 0.0],
    }
    return pa.table({k: v for k, v in (base | columns).items() if v is not None})


def test_rollouts_become_samples():
    s = samples_from_rollouts(table())
    assert list(s.label) == ["4", "5"] and list(s.log_ratio) == [0.5, -0.5] and list(s.rewards) == ["accuracy"]
    assert list(s.step) == [1, 1] and list(s.prompt) == [3, 3]


def test_rollouts_without_a_full_reference_have_no_ratio():
    assert samples_from_rollouts(table(ref_logp=pa.array([None, -1.0]))).log_ratio is None
    assert samples_from_rollouts(table(ref_logp=None)).log_ratio is None


def test_cut_responses_are_a_class_of_their_own():
    assert samples_from_rollouts(table(truncated=[True, False])).label[0] == "(cut)"


def test_bad_rollouts():
    with pytest.raises(InputError, match="no column 'reward'"):
        samples_from_rollouts(table(reward=None))
    with pytest.raises(InputError, match="reward is not finite at row 1"):
        samples_from_rollouts(table(reward=[1.0, float("nan")]))
    with pytest.raises(InputError, match="no rows"):
        samples_from_rollouts(table().slice(0, 0))
    with pytest.raises(InputError, match="label has shape"):
        Samples(np.zeros(2, int), np.zeros(2), np.array(["a"]))
