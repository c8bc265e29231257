"""The card's exact checks (arXiv 2404.01730)."""

from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pytest import approx
from scipy.stats import binom

from surefoot.claims.alignment_asymptotics import Point, verdict
from surefoot.errors import InputError
from surefoot.exact.divergence import KL
from surefoot.methods.theory.alignment_asymptotics import (
    Levels,
    best_of_bound,
    choose_best,
    renyi_cross_entropy,
)

P, R = np.array([0.5, 0.3, 0.2]), np.array([0, 1, 2])
COINS = np.array([0.5, 0.5]), np.array([0, 1])
SMALL = Levels.of(P, R)


def test_1_the_tilt():
    tilt = SMALL.tilt(1.0)
    assert_allclose(np.exp(tilt), [0.179000, 0.291944, 0.529056], atol=5e-7)
    assert SMALL.log_z(1.0) == approx(1.0272222, abs=1e-7)
    assert SMALL.kl(tilt) == approx(0.3228343, abs=1e-7) and SMALL.mean(tilt) == approx(1.3500565, abs=1e-7)
    assert SMALL.alpha(SMALL.kl(tilt)) == approx(1, abs=1e-9)


def test_2_the_best_of_three_by_enumeration():
    expected = np.zeros(3)
    for drawn in product(range(3), repeat=3):
        expected[max(drawn)] += np.prod(P[list(drawn)])
    assert_allclose(np.exp(SMALL.best_of(3)), expected, atol=1e-15)
    assert_allclose(expected, [0.125, 0.387, 0.488], atol=1e-15)
    assert SMALL.kl(SMALL.best_of(3)) == approx(0.3605548, abs=1e-7) and best_of_bound(3) == approx(0.4319456, abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_3_the_identity_for_any_distribution(seed):
    rng = np.random.default_rng(seed)
    p, phi, r = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6)), rng.normal(size=6)
    model = Levels.of(p, r)
    order = np.argsort(r)
    for alpha in (0.3, 2.0):
        tilt = model.tilt(alpha)
        budget = model.kl(tilt)
        told = KL(phi, p) - budget + alpha * (model.mean(tilt) - phi @ r)
        assert float(KL(phi[order], np.exp(tilt))) == approx(told, abs=1e-12)
    spent = float(KL(phi, p))
    exact = float(KL(phi[order], np.exp(model.tilt(model.alpha(spent)))))
    assert model.inefficiency(spent, float(phi @ r)) == approx(exact, abs=1e-9)


@pytest.mark.parametrize(
    ("n", "reward", "gap", "distance"),
    [
        (10, 0.62189, 0.0979, 0.0277),
        (40, 0.67863, 0.0412, 0.0133),
        (160, 0.70568, 0.0141, 0.0067),
        (640, 0.71519, 0.0046, 0.00267),
    ],
)
def test_4_fair_coins(n, reward, gap, distance):
    one, model = Levels.of(*COINS), Levels.additive(*COINS, n)
    alpha = one.alpha(0.1)
    assert one.frontier(0.1) == approx(0.7197946, abs=1e-7) and alpha == approx(0.9434431, abs=1e-7)
    assert model.alpha(0.1 * n) == approx(alpha, rel=1e-7) and model.frontier(0.1 * n) / n == approx(
        0.7197946, abs=1e-6
    )
    best = model.best_of(np.exp(0.1 * n))
    assert model.mean(best) / n == approx(reward, abs=6e-6)
    assert 0.7197946 - model.mean(best) / n == approx(gap, abs=6e-5)
    assert model.kl(best, model.tilt(alpha)) / n == approx(distance, abs=6e-5)


def test_4_rounding_up_changes_the_small_ones():
    for n, many, reward in ((10, 3, 0.63215), (40, 55, 0.67885)):
        model = Levels.additive(*COINS, n)
        assert model.mean(model.best_of(many)) / n == approx(reward, abs=6e-6)


def test_5_the_bound_is_close_where_levels_are_many():
    model = Levels.additive(*COINS, 160)
    many = np.exp(16.0)
    assert model.kl(model.best_of(many)) == approx(14.9411, abs=5e-5) and best_of_bound(many) == approx(15, abs=2e-7)


def test_6_the_ends():
    tied = Levels.of(np.array([0.4, 0.3, 0.2, 0.1]), np.array([0, 2, 1, 2]))
    assert_allclose(np.exp(tied.log_p), [0.4, 0.2, 0.4])
    assert_allclose(np.exp(tied.best_of(1)), np.exp(tied.log_p), atol=1e-15)
    assert_allclose(np.exp(tied.best_of(1e100)), [0, 0, 1])
    assert_allclose(np.exp(tied.tilt(1e3)), [0, 0, 1])
    assert tied.alpha(-np.log(0.4)) == np.inf and tied.frontier(5.0) == 2, "the constraint binds no longer"
    assert tied.inefficiency(1.5, 2.0) == approx(1.5 + np.log(0.4)) and tied.inefficiency(1.5, 1.9) == np.inf
    assert tied.alpha(0.0) == 0 and tied.kl(tied.best_of(1e100)) == approx(-np.log(0.4))
    with pytest.raises(InputError, match="0 or more"):
        tied.alpha(-1.0)


def test_7_slopes_in_alpha():
    h, at = 1e-5, SMALL.tilt(0.7)
    variance = np.exp(at) @ (SMALL.reward - SMALL.mean(at)) ** 2
    above, below = SMALL.tilt(0.7 + h), SMALL.tilt(0.7 - h)
    assert (SMALL.mean(above) - SMALL.mean(below)) / (2 * h) == approx(variance, rel=1e-7)
    assert (SMALL.kl(above) - SMALL.kl(below)) / (2 * h) == approx(0.7 * variance, rel=1e-7)


def test_5_and_6_deviations_and_cumulants_of_the_tilt():
    one = Levels.of(*COINS)
    rate = one.kl(one.tilt(1.5), one.tilt(0.5))  # to a mean above the tilt's
    for rho in (-0.7, 2.0):
        cumulant = np.log(np.exp(one.tilt(0.5)) @ np.exp(rho * one.reward))
        assert cumulant == approx(one.log_z(0.5 + rho) - one.log_z(0.5), abs=1e-12)
    measured = []
    for n in (100, 400, 1600):
        model = Levels.additive(*COINS, n)
        tail = model.tilt(0.5)[model.reward >= n * one.mean(one.tilt(1.5))]
        measured.append(-np.logaddexp.reduce(tail) / n)
    assert measured[0] > measured[1] > measured[2] > rate and measured[2] == approx(rate, rel=0.05)


def test_6_in_the_form_of_renyi():
    q = np.array([0.2, 0.3, 0.5])
    model = Levels.of(P, np.log(q))
    for rho in (-0.4, 0.5, 2.0):
        assert model.log_z(rho) == approx(-rho * renyi_cross_entropy(P, q, 1 + rho), abs=1e-12)
    assert renyi_cross_entropy(P, q, 1 + 1e-7) == approx(renyi_cross_entropy(P, q, 1), abs=1e-6)


def test_sums_by_enumeration_and_by_the_binomial():
    rng = np.random.default_rng(0)
    start, moves, r = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), 3), np.array([-1, 0, 2])
    chance = {}
    for y in product(range(3), repeat=4):
        p = start[y[0]] * np.prod([moves[a, b] for a, b in zip(y, y[1:], strict=False)])
        chance[r[list(y)].sum()] = chance.get(r[list(y)].sum(), 0.0) + p
    model = Levels.markov(start, moves, r, 4)
    assert model.reward.tolist() == sorted(chance)
    assert_allclose(np.exp(model.log_p), [chance[k] for k in sorted(chance)], atol=1e-15)
    coins = Levels.additive(np.array([0.3, 0.7]), np.array([0, 1]), 1500)
    assert_allclose(coins.log_p, binom.logpmf(np.arange(1501), 1500, 0.7), rtol=1e-9, atol=1e-9)
    with pytest.raises(InputError, match="whole numbers"):
        Levels.additive(P, np.array([0, 0.5, 1]), 3)
    with pytest.raises(InputError, match="distribution"):
        Levels.of(2 * P, R)


def test_sampled_best_of_n_follows_the_law_with_ties_at_random():
    rng = np.random.default_rng(0)
    p, r = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0, 2, 1, 2])
    drawn = rng.choice(4, (40_000, 3), p=p)
    kept = drawn[np.arange(len(drawn)), choose_best(r[drawn], rng)]
    level = np.exp(Levels.of(p, r).best_of(3))
    expected = np.array([level[0], level[2] * 0.75, level[1], level[2] * 0.25])
    assert_allclose(np.bincount(kept, minlength=4) / len(kept), expected, atol=0.01)


def test_nothing_underflows():
    model = Levels.additive(*COINS, 1500)
    best = model.best_of(np.exp(150.0))
    assert np.exp(best).sum() == approx(1) and np.isfinite(model.kl(best)) and not np.isnan(best).any()


def test_the_claim_can_be_refuted():
    def point(n, reward, kl=1.0):
        return Point(n, 2.0, kl, reward, 0.7, 0.1 / n, 0.75)

    assert verdict([point(10, 0.6), point(40, 0.65)], []) == "reproduced"
    assert verdict([point(10, 0.65), point(40, 0.6)], []) == "refuted"
    assert verdict([point(10, 0.6), point(40, 0.65)], [point(5, 0.76)]) == "refuted"
