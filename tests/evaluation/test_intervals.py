"""Intervals cover what they say they cover."""

import numpy as np
import pytest
from scipy.stats import binom

from surefoot.evaluation.intervals import bootstrap_interval, clopper_pearson, wilson


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_coverage_by_enumeration(share, n=60):
    k = np.arange(n + 1)
    weights = binom.pmf(k, n, share)
    exact = sum(
        w
        for i, w in zip(k, weights, strict=True)
        if clopper_pearson(int(i), n)[0] <= share <= clopper_pearson(int(i), n)[1]
    )
    score = sum(w for i, w in zip(k, weights, strict=True) if wilson(i, n)[0] <= share <= wilson(i, n)[1])
    assert exact >= 0.95
    assert 0.9 < score < 0.99


def test_wilson_matches_scipy():
    from scipy.stats import binomtest

    for c, n in ((0, 5), (3, 7), (50, 50)):
        reference = binomtest(c, n).proportion_ci(method="wilson")
        assert wilson(c, n) == pytest.approx((reference.low, reference.high), abs=1e-12)
        reference = binomtest(c, n).proportion_ci(method="exact")
        assert clopper_pearson(c, n) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_over_problems_is_wider_than_over_samples():
    rng = np.random.default_rng(0)
    # 50 problems that are always or never right, 16 samples each: 50 facts, not 800.
    values = (rng.random(50) < 0.5).astype(float)
    low, high = bootstrap_interval(values)
    naive = wilson(values.sum() * 16, 800)
    assert high - low > 3 * (naive[1] - naive[0])
    error = np.sqrt(values.var() / 50)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_bootstrap_covers_the_mean():
    rng = np.random.default_rng(1)
    hits = 0
    for i in range(200):
        low, high = bootstrap_interval(rng.beta(0.5, 0.5, 100), draws=400, seed=i)
        hits += low <= 0.5 <= high
    assert 0.9 < hits / 200 <= 0.99


def test_all_right_is_not_certainty():
    assert bootstrap_interval(np.ones(20)) == wilson(20, 20)
    assert bootstrap_interval(np.zeros(20)) == wilson(0, 20)
