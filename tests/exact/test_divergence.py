import numpy as np
import pytest
from numpy.testing import assert_allclose
from pytest import approx
from scipy.optimize import linprog

from surefoot.errors import InputError
from surefoot.exact.divergence import (
    CHI2,
    CHI2_KL,
    FORWARD_KL,
    HELLINGER,
    JENSEN_SHANNON,
    KL,
    TV,
    Alpha,
    Divergence,
    Regularised,
    f_regularised_optimum,
    f_regularised_value,
    renyi,
)
from surefoot.exact.generators import random_mdp
from surefoot.exact.mdp import evaluate, soft_value_iteration, value_iteration

SMOOTH = [KL, FORWARD_KL, CHI2, CHI2_KL, HELLINGER, JENSEN_SHANNON, Alpha(1.5), Alpha(3.0), Alpha(0.5), Alpha(-1.0)]
NAMES = ["kl", "forward", "chi2", "chi2kl", "hellinger", "js", "a1.5", "a3", "a.5", "a-1"]
smooth = pytest.mark.parametrize("D", SMOOTH, ids=NAMES)
every = pytest.mark.parametrize("D", [*SMOOTH, TV], ids=[*NAMES, "tv"])
P, Q = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.3, 0.2])


def batch(seed=0, n=40, arms=5):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(arms, 0.5), n), rng.normal(size=(n, arms))


@pytest.mark.parametrize(
    ("D", "value"),
    [
        (KL, (P * np.log(P / Q)).sum()),
        (FORWARD_KL, (Q * np.log(Q / P)).sum()),
        (CHI2, ((P - Q) ** 2 / Q).sum()),
        (TV, 0.3),
        (HELLINGER, 1 - np.sqrt(P * Q).sum()),
        (Alpha(2.0), ((P - Q) ** 2 / Q).sum() / 2),
        (Alpha(0.5), 4 * (1 - np.sqrt(P * Q).sum())),
        (JENSEN_SHANNON, sum((a * np.log(2 * a / (P + Q))).sum() for a in (P, Q)) / 2),
    ],
)
def test_against_the_usual_formulas(D, value):
    assert D(P, Q) == approx(value, abs=1e-14)


@every
def test_a_divergence_is_zero_only_between_equals(D):
    p, _ = batch(0)
    q, _ = batch(1)
    assert_allclose(D(p, p), 0, atol=1e-14)
    assert (D(p, q) > 0).all()


@pytest.mark.parametrize(
    ("D", "apart"),
    [(KL, np.inf), (FORWARD_KL, np.inf), (CHI2, np.inf), (TV, 1), (HELLINGER, 1), (JENSEN_SHANNON, np.log(2))],
)
def test_between_disjoint_supports(D, apart):
    assert D(np.array([1.0, 0]), np.array([0, 1.0])) == approx(apart)
    assert D(np.array([1.0, 0]), np.array([1.0, 0])) == 0


@smooth
def test_slopes_and_their_inverses(D):
    t = np.array([0.01, 0.5, 1, 3, 20])
    h = 1e-6 * t
    assert_allclose(D.slope(t), (D.f(t + h) - D.f(t - h)) / (2 * h), rtol=1e-6, atol=1e-8)
    assert_allclose(D.inverse(D.slope(t)), t, rtol=1e-10)
    if np.isfinite(D.at_zero):
        assert D.slope(1e-9) == approx(D.at_zero, abs=1e-3)
    if np.isfinite(D.at_infinity):
        assert D.slope(1e12) == approx(D.at_infinity, abs=1e-5)


@smooth
@pytest.mark.parametrize("beta", [0.05, 0.5, 10.0])
def test_nothing_beats_the_optimum(D, beta):
    """The objective is concave, so `max_a g_a - p . g` bounds what is left to gain: g its gradient at the optimum."""
    q, r = batch()
    p = f_regularised_optimum(q, r, beta, D)
    assert_allclose(p.sum(-1), 1, atol=1e-12)
    assert (p >= 0).all()
    # Where p fell below what its ratio can say, the ratio is 0: the slope there only matters if it is finite.
    ratio = p / q
    g = r - beta * D.slope(np.maximum(ratio, 1e-300))
    assert ((g - (p * g).sum(-1, keepdims=True))[p > 1e-9 * q] < 1e-6 * (1 + beta)).all()
    if np.isfinite(D.at_zero):
        assert (g.max(-1) - (p * g).sum(-1) < 1e-8 * (1 + beta)).all()
    value = f_regularised_value(q, r, beta, D)
    assert_allclose(value, (p * r).sum(-1) - beta * D(p, q), atol=1e-10)
    for seed in range(20):
        other = batch(seed + 2)[0]
        for trial in (other, 0.9 * p + 0.1 * other, q):
            assert ((trial * r).sum(-1) - beta * D(trial, q) <= value + 1e-10).all()


@pytest.mark.parametrize("D", [KL, CHI2])
@pytest.mark.parametrize("beta", [0.01, 0.3, 5.0])
def test_closed_forms_against_bisection(D, beta):
    q, r = batch()
    assert_allclose(D.optimum(q, r, beta), Divergence.optimum(D, q, r, beta), atol=1e-12)
    assert_allclose(D.best_value(q, r, beta), Divergence.best_value(D, q, r, beta), atol=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.6, 3.0])
def test_total_variation_against_a_linear_program(beta):
    q, r = batch(n=10)
    p = f_regularised_optimum(q, r, beta, TV)
    for i in range(10):  # variables p, up, down with p = q + up - down
        eye = np.eye(5)
        lp = linprog(
            np.concatenate([-r[i], np.full(10, beta / 2)]),
            method="highs",
            bounds=[(0, None)] * 15,
            A_eq=np.vstack([np.append(np.ones(5), np.zeros(10)), np.hstack([eye, -eye, eye])]),
            b_eq=np.append(1.0, q[i]),
        )
        assert p[i] @ r[i] - beta * TV(p[i], q[i]) == approx(-lp.fun, abs=1e-9)
        assert f_regularised_value(q[i], r[i], beta, TV) == approx(-lp.fun, abs=1e-9)
        assert -lp.fun == approx(q[i] @ np.maximum(r[i], r[i].max() - beta), abs=1e-9)


@every
def test_the_support_is_kept(D):
    p = f_regularised_optimum(np.array([0.5, 0, 0.5]), np.array([0.0, 9, 1]), 0.7, D)
    assert p[1] == 0 and p[2] > p[0] and p.sum() == approx(1)


@every
def test_extremes_of_beta(D):
    q, r = Q, np.array([1.0, 0, 0.9])
    assert_allclose(f_regularised_optimum(q, r, 1e6, D), q, atol=1e-5)
    assert f_regularised_optimum(q, r, 1e-4, D)[0] > 0.97


def test_small_beta_and_ties():
    """KL keeps the reference's shares in a tie, to the last digit."""
    p = f_regularised_optimum(np.array([0.5, 0.3, 0.15, 0.05]), np.array([1, 0, 1, 1.0]), 0.01)
    assert_allclose(p, [0.5 / 0.7, 0, 0.15 / 0.7, 0.05 / 0.7], atol=1e-12)


def test_chi_squared_drops_what_is_bad_and_kl_does_not():
    q, r = np.full(4, 0.25), np.array([1, 0.9, 0, -1])
    assert (f_regularised_optimum(q, r, 0.3, CHI2) == 0).tolist() == [False, False, False, True]
    assert (f_regularised_optimum(q, r, 0.3) > 0).all() and (f_regularised_optimum(q, r, 0.3, FORWARD_KL) > 0).all()


def test_worked_numbers_of_kl_bayes_and_the_tilt():
    """kl-bayes check 1 and 5; alignment-asymptotics check 1 (alpha = 1 / beta)."""
    r = np.array([0.0, 1, 2])
    assert_allclose(f_regularised_optimum(Q, r, 0.5), [0.0366667, 0.1625594, 0.8007739], atol=5e-8)
    assert f_regularised_value(Q, r, 0.5) == approx(1.3063694, abs=5e-8)
    assert P @ r - 0.5 * KL(P, Q) == approx(1.1625564, abs=5e-8)
    assert_allclose(f_regularised_optimum(Q, r + 7, 0.5), f_regularised_optimum(Q, r, 0.5), atol=1e-14)
    tilt = f_regularised_optimum(Q, r, 1.0)
    assert_allclose(tilt, [0.179, 0.291944, 0.529056], atol=5e-7)
    assert KL(tilt, Q) == approx(0.3228343, abs=5e-8) and tilt @ r == approx(1.3500565, abs=5e-8)


def test_renyi():
    p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    assert renyi(p, q, 2.0) == approx(np.log(1 + CHI2(p, q)))
    assert renyi(p, q, 0.5) == approx(-2 * np.log(1 - HELLINGER(p, q)))
    assert renyi(p, q, np.inf) == approx(np.log(2)) and renyi(p, q, 1) == KL(p, q)
    assert renyi(p, q, 1 + 1e-6) == approx(KL(p, q), abs=1e-5)
    orders = [renyi(P, Q, a) for a in (0.1, 0.5, 0.9, 1, 1.5, 4, 50)]
    assert (np.diff(orders) > 0).all()
    assert renyi(np.array([1.0, 0]), np.array([0.5, 0.5]), 3.0) == approx(np.log(2))
    assert np.isinf(renyi(np.array([0.5, 0.5]), np.array([1.0, 0]), 2.0))


def test_what_cannot_be_asked():
    with pytest.raises(InputError, match="beta 0"):
        f_regularised_optimum(Q, P, 0)
    with pytest.raises(InputError, match="FORWARD_KL"):
        Alpha(0)


@every
def test_an_mdp_regularised_by_any_divergence(D):
    """No policy has a higher regularised value, evaluated by a linear solve; for KL it is the soft solution."""
    rng = np.random.default_rng(0)
    mdp, reference = random_mdp(4, 3, 1), rng.dirichlet(np.ones(3), 4)
    choose = Regularised(0.3, reference, D)
    found = value_iteration(mdp, 1e-11, choose)
    assert_allclose(evaluate(mdp, found.policy, choose)[0], found.V, atol=1e-9)
    for _ in range(50):
        rival = 0.8 * found.policy + 0.2 * rng.dirichlet(np.ones(3), 4)
        assert (evaluate(mdp, rival, choose)[0] <= found.V + 1e-9).all()
    soft = soft_value_iteration(mdp, 0.3, reference)
    assert (np.abs(soft.policy - found.policy).max() < 1e-9) == (D is KL)
    with pytest.raises(InputError, match="0 is Greedy"):
        Regularised(0.0, reference)
