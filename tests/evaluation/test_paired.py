"""Tests of differences: exact twins, and the rate of false alarms."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from surefoot.evaluation.paired import crossed_test, holm, paired_bootstrap, paired_permutation


def test_permutation_enumerates_signs():
    rng = np.random.default_rng(0)
    d = rng.normal(0.3, 1, 9)
    patterns = np.array(list(product([1, -1], repeat=9)))
    truth = np.mean(np.abs(patterns @ d) >= abs(d.sum()) - 1e-12)
    assert paired_permutation(d) == truth
    assert paired_permutation(d, draws=500) == pytest.approx(truth, abs=0.08)  # sampled patterns


def test_crossed_test_of_one_row_or_column_is_the_paired_t_test():
    rng = np.random.default_rng(1)
    d = rng.normal(0.2, 1, 40)
    reference = ttest_1samp(d, 0)
    for table in (d[None, :], d[:, None]):
        found = crossed_test(table)
        assert found.p == pytest.approx(reference.pvalue, rel=1e-9)
        assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval()), rel=1e-9)


def test_one_cell_says_nothing_and_equal_cells_say_all():
    assert crossed_test(np.array([[0.5]])).p == 1.0
    assert crossed_test(np.full((3, 5), 0.5)).p == 0.0
    assert crossed_test(np.zeros((3, 5))).p == 1.0


def false_alarms(test, rng, runs=150, level=0.05):
    """Share of runs with p < `level` where three seeds differ by luck and the methods do not."""
    return np.mean([test(rng.normal(0, 0.03, (3, 1)) + rng.normal(0, 0.05, (3, 128))) < level for _ in range(runs)])


def test_only_the_crossed_test_keeps_its_rate_when_seeds_differ():
    rng = np.random.default_rng(2)
    assert false_alarms(lambda d: crossed_test(d).p, rng, runs=400) < 0.09
    assert false_alarms(lambda d: crossed_test(d).p, rng, runs=400, level=0.01) < 0.03  # Holm needs the tail as well
    assert false_alarms(lambda d: paired_bootstrap(d, draws=300).p, rng) > 0.15
    assert false_alarms(lambda d: paired_permutation(d.mean(0), draws=300), rng) > 0.5


def test_a_real_difference_is_found_by_all():
    rng = np.random.default_rng(3)
    d = 0.15 + rng.normal(0, 0.02, (3, 1)) + rng.normal(0, 0.2, (3, 200))
    for found in (crossed_test(d), paired_bootstrap(d)):
        assert found.p < 0.05 and found.low > 0 and found.low < d.mean() < found.high
    assert paired_permutation(d.mean(0)) < 0.001


def test_interval_and_p_value_agree():
    rng = np.random.default_rng(5)
    for _ in range(20):
        d = rng.normal(0.05, 0.05, (3, 1)) + rng.normal(0, 0.3, (3, 50))
        found = crossed_test(d)
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        assert crossed_test(d, level=1 - found.p).low * np.sign(found.mean) == pytest.approx(
            0 if found.mean > 0 else 2 * abs(found.mean), abs=1e-9
        )


def test_holm_by_definition():
    rng = np.random.default_rng(4)
    p = rng.random(6) ** 3
    order = np.argsort(p)
    truth = [min(1.0, max((6 - j) * p[order[j]] for j in range(rank + 1))) for rank in range(6)]
    assert holm(p)[order] == pytest.approx(truth)
    assert (holm(p) >= p).all()
    assert holm(np.array([])).shape == (0,)
