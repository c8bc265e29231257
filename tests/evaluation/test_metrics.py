"""Accuracy and calibration against brute force."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.evaluation.metrics import auc, auc_within, ece, equal_mass, equal_width, maj_at_k, pass_at_k, summarise


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n):
    for c in range(n + 1):
        samples = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            truth = np.mean([any(s) for s in combinations(samples, k)])
            assert pass_at_k(np.array([c]), n, k)[0] == pytest.approx(truth, abs=1e-14)


def test_pass_at_k_of_many_samples_does_not_overflow():
    # C(100000, 1000) overflows float64; 1 - (1 - 1/n)^k is near for one right sample: exactly k / n.
    assert pass_at_k(np.array([1]), 100_000, 1000)[0] == pytest.approx(0.01, rel=1e-9)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_refuses_more_than_was_sampled(k):
    with pytest.raises(ValueError, match="expected 1 <= k <= 4"):
        pass_at_k(np.array([1]), 4, k)


def vote(answers, correct):
    """Share of the most frequent answers that is right."""
    counts = {a: answers.count(a) for a in answers if a is not None}
    if not counts:
        return 0.0
    best = [a for a, c in counts.items() if c == max(counts.values())]
    return float(np.mean([correct[a] for a in best]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=8), st.data())
def test_maj_at_k_is_the_mean_vote_over_subsets(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    right = {"1": 1.0, "2": 0.0, "3": data.draw(st.sampled_from([0.0, 1.0])), None: 0.0}
    truth = np.mean([vote(list(s), right) for s in combinations(answers, k)])
    assert maj_at_k(answers, np.array([right[a] == 1 for a in answers]), k) == pytest.approx(truth, abs=1e-12)


def test_maj_at_one_is_the_share_of_right_answers_and_majority_sharpens_it():
    answers, correct = ["4"] * 10 + ["5"] * 6, np.array([True] * 10 + [False] * 6)
    assert maj_at_k(answers, correct, 1) == pytest.approx(10 / 16)
    assert maj_at_k(answers, correct, 9) > 0.8
    assert maj_at_k(answers, correct, 16) == 1.0


def test_nobody_voting_is_wrong():
    assert maj_at_k([None, None], np.array([False, False]), 2) == 0.0


def test_ece_by_hand_and_zero_when_calibrated():
    confidence = np.array([0.1] * 10 + [0.8] * 10)
    correct = np.array([True] + [False] * 9 + [True] * 5 + [False] * 5)  # bins: |.1 - .1|, |.8 - .5|
    for binning in (equal_width, equal_mass):
        assert ece(confidence, correct, 2, binning) == pytest.approx(0.15)
        assert ece(confidence[:10], correct[:10], 10, binning) == pytest.approx(0.0, abs=1e-12)


def test_equal_mass_bins_do_not_depend_on_the_order_of_ties():
    rng = np.random.default_rng(0)
    confidence, correct = rng.integers(0, 4, 200) / 4, rng.random(200) < 0.5
    order = rng.permutation(200)
    assert ece(confidence, correct, 10) == pytest.approx(ece(confidence[order], correct[order], 10), abs=1e-14)
    assert np.bincount(equal_mass(rng.random(200), 10)).tolist() == [20] * 10


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(1)
    score, correct = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in score[correct] for b in score[~correct]]
    assert auc(score, correct) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc(score, np.ones(40, dtype=bool)))


def test_auc_within_ignores_differences_between_problems():
    score = np.array([[0.0, 1.0], [10.0, 11.0], [5.0, 6.0]])
    correct = np.array([[True, False], [False, True], [True, True]])  # one inverted, one in order, one not mixed
    assert auc_within(score, correct) == 0.5
    assert np.isnan(auc_within(score[2:], correct[2:]))


def test_summary_of_a_small_evaluation():
    correct = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=bool)
    logp = np.where(correct, -1.0, -4.0)
    answers = [["3", "3", "4", "5"], ["1", "2", "1", None], ["9"] * 4, ["7", "8", "8", "6"]]
    out = summarise(correct, logp, np.full((4, 4), 2), answers, k=4, prompts=[10, 11, 12, 13])
    assert out["n"] == 4
    assert out["pass@1"] == pytest.approx((0.5 + 0 + 1 + 0.25) / 4)
    assert out["pass@4"] == 0.75
    assert out["maj@4"] == 0.5  # 3 and 9 win their votes; 8 beats the right 7
    assert out["auc"] == 1.0 and out["auc_within"] == 1.0  # every right sample is likelier
    assert out["entropy"] == pytest.approx((7 * 1 + 9 * 4) / 32)
    assert out["length"] == 2.0
    # likelihood per step: e^-.5 = .6065 for the right, e^-2 = .1353 for the wrong; two confidences, two bins
    assert out["ece"] == pytest.approx((7 * (1 - np.exp(-0.5)) + 9 * np.exp(-2)) / 16)
    assert out["per_problem"][3] == {"prompt": 13, "correct": 1, "samples": 4}
    low, high = out["pass@1_interval"]
    assert low < out["pass@1"] < high


def test_a_summary_without_wrong_samples_has_no_auc():
    out = summarise(np.ones((3, 2), dtype=bool), np.full((3, 2), -1.0), np.ones((3, 2)), [["1", "1"]] * 3, k=2)
    assert out["auc"] is None and out["auc_within"] is None
    assert 0.3 < out["pass@1_interval"][0] < 1.0  # three of three is not certainty
