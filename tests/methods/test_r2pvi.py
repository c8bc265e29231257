"""The card's exact checks (arXiv 2411.18612)."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pytest import approx

from surefoot.claims.r2pvi import verdict
from surefoot.exact import divergence
from surefoot.exact.episodes import Counts, Episodes, empirical, episodes
from surefoot.exact.mdp import backward_induction, evaluate_finite
from surefoot.exact.operators import GREEDY, log_mean_exp
from surefoot.exact.robust import Penalised, PenalisedTV
from surefoot.methods.theory.r2pvi import (
    FAIL,
    KL,
    TV,
    ChiSquared,
    LinearMDP,
    by_coordinate,
    diagonal,
    elliptical,
    exact,
    fits,
    five_states,
    mean,
    r2pvi,
)

V = np.array([0.0, 0.2, 1.0])
MU = np.array([0.1, 0.3, 0.6])
NATURES = (TV, KL, ChiSquared)
F = {TV: divergence.TV, KL: divergence.KL, ChiSquared: divergence.CHI2}


def nu(nature, values=V, mu=MU):
    return nature(np.atleast_2d(mu), np.asarray(values, float))[0]


@pytest.mark.parametrize(
    ("price", "tv", "kl", "chi2"),
    [(0.1, 0.09, 0.1961638, 0.2925), (0.5, 0.36, 0.4807785, 0.5718), (2.0, 0.66, 0.6147640, 0.6379500)],
)
def test_1_worst_means_are_the_cards_and_the_primal_infimum(price, tv, kl, chi2):
    for kind, card in zip(NATURES, (tv, kl, chi2), strict=True):
        assert nu(kind(price)) == approx(card, abs=5e-8)
        assert nu(kind(price)) == approx(-F[kind].best_value(MU, -V, price), abs=1e-10)
    assert nu(ChiSquared(price, np.min)) == approx(0.0)  # the authors' code


@pytest.mark.parametrize("kind", NATURES)
def test_1_many_states_against_the_primal(kind):
    rng = np.random.default_rng(0)
    mu, values = rng.dirichlet(np.ones(40), 6), rng.random(40) * 3
    for price in (0.05, 0.7, 5.0):
        assert_allclose(kind(price)(mu, values), -F[kind].best_value(mu, -values, price), atol=1e-9)


def test_2_no_adversary_at_a_high_price_and_the_worst_state_at_a_low_one():
    assert nu(TV(1.0)) == approx(0.66) and nu(TV(0.99)) < 0.66
    assert nu(KL(1e7)) == approx(0.66, abs=1e-6) and nu(ChiSquared(1e7)) == approx(0.66, abs=1e-6)
    unmet = np.append(MU, 0.0)
    values = np.append(V + 1, 0.5)  # a state that mu never meets, below all that it does
    assert nu(KL(1e-4), values, unmet) == approx(1, abs=1e-3)
    assert nu(TV(1e-4), values, unmet) == approx(0.5, abs=1e-3)


@pytest.mark.parametrize("kind", NATURES)
@pytest.mark.parametrize("price", [0.05, 0.3, 2.0])
def test_3_monotone_translates_and_is_at_most_the_mean(kind, price):
    rng = np.random.default_rng(1)
    mu, values = rng.dirichlet(np.ones(6), 20), rng.random(6)
    worst = kind(price)(mu, values)
    assert (kind(price)(mu, values + rng.random(6)) >= worst - 1e-12).all()
    assert_allclose(kind(price)(mu, values + 0.7), worst + 0.7, atol=1e-12)
    assert (worst <= mu @ values + 1e-12).all() and (worst >= values.min() - 1e-12).all()


def test_3_a_negative_estimate_of_a_moment_is_capped():
    signed = np.array([[-0.3, 0.1, 1.2]])
    assert KL(0.1, cap=3.0)(signed, V)[0] == 3.0


def tables(seed=0, horizon=3, states=4, actions=2):
    """A tabular problem as a linear one, with one-hot features, and episodes that meet every (state, action)."""
    rng = np.random.default_rng(seed)
    d = states * actions
    factors = rng.dirichlet(np.ones(states), (horizon, d))
    problem = LinearMDP(np.eye(d).reshape(states, actions, d), factors, rng.random((horizon, d)), np.full(states, 0.25))
    uniform = np.full((horizon, states, actions), 1 / actions)
    return problem, episodes(problem.tabular(), uniform, 400, rng)


@pytest.mark.parametrize("price", [0.1, 1.0])
def test_4_one_hot_features_are_tabular_robust_value_iteration(price):
    problem, seen = tables()
    counts = Counts.none(3, 4, 2).add(seen)
    assert (counts.pairs > 0).all()
    model = empirical(counts, problem.mu)
    steps = fits(problem.phi, seen, 1e-10)
    for kind in NATURES:
        worth = np.zeros(5)
        for stage in reversed(model.stages):
            nature = PenalisedTV(stage, price) if kind is TV else Penalised(stage, price, F[kind])
            # The end that `empirical` adds is worth 0, and mass may go anywhere: hide it from nature.
            worth[4] = worth[:4].min()
            worth = stage.lookahead(worth, nature).max(1)
        found = r2pvi(problem.phi, problem.theta, steps, kind(price))[0][0]
        assert_allclose(found, worth[:4], atol=1e-6)


@pytest.mark.parametrize("ridge", [0.5, 1e-10])
def test_5_without_penalty_and_adversary_it_is_least_squares_value_iteration(ridge):
    problem, seen = tables(1)
    worth, after = np.zeros(4), fits(problem.phi, seen, ridge)
    for h in reversed(range(3)):
        x = problem.phi[seen.states[:, h], seen.actions[:, h]]
        w = np.linalg.solve(ridge * np.eye(8) + x.T @ x, x.T @ worth[seen.states[:, h + 1]])
        worth = np.minimum(problem.phi @ (problem.theta[h] + w), 3 - h).max(1)
    # A ridge shrinks E[exp(-V / price)] too, of which KL takes the logarithm, price times: no limit but without it.
    for nature in (mean, TV(1e5), ChiSquared(1e6), *([KL(1e5)] if ridge < 1e-9 else [])):
        assert_allclose(r2pvi(problem.phi, problem.theta, after, nature)[0][0], worth, atol=1e-4)


def test_6_kl_is_the_soft_minimum_of_regularised_policies():
    values = np.random.default_rng(2).random(3)
    assert nu(KL(0.3), values) == approx(float(log_mean_exp(values, -0.3, np.log(MU))))


def test_penalties_are_ordered_and_agree_where_features_do_not_overlap():
    rng = np.random.default_rng(3)
    phi, root = rng.dirichlet(np.ones(3), (4, 2)), rng.random((3, 3))
    inverse = root @ root.T
    assert (diagonal(phi, inverse) <= by_coordinate(phi, inverse) + 1e-12).all()
    hot = np.eye(3)[None]
    assert_allclose(diagonal(hot, inverse), elliptical(hot, inverse))
    by_hand = [np.sqrt(p @ inverse @ p) for p in phi.reshape(-1, 3)]
    assert_allclose(elliptical(phi, inverse).ravel(), by_hand)


def test_best_policies_of_the_simulated_problem():
    best = []
    for q in (0, 0.25, 0.5, 0.75, 1):
        t = five_states(q).tabular()
        best.append(t.mu @ backward_induction(t)[0][0])
    assert_allclose(best, [1.624, 1.374, 1.224, 1.174, 1.124], atol=5e-4)


def test_robust_values_of_the_true_factors_bound_the_plain_ones():
    problem = five_states()
    plain = backward_induction(problem.tabular())[0][0, 0]
    found = [r2pvi(problem.phi, problem.theta, exact(problem), TV(p), fail=[FAIL])[0][0, 0] for p in (0.1, 0.5, 5)]
    assert found[0] < found[1] < plain and found[2] == approx(plain)


def test_pessimism_lowers_values_and_shrinks_with_data():
    problem = five_states()
    few, more = (
        episodes(problem.tabular(), np.full((3, 5, 16), 1 / 16), n, np.random.default_rng(0)) for n in (100, 6400)
    )
    best = r2pvi(problem.phi, problem.theta, exact(problem), TV(0.1, 0.0), fail=[FAIL])[0][0, 0]
    learnt = [fits(problem.phi, d, 0.1) for d in (few, more)]
    short = [best - r2pvi(problem.phi, problem.theta, f, TV(0.1, 0.0), 1.0, fail=[FAIL])[0][0, 0] for f in learnt]
    assert 6 < short[0] / short[1] < 11  # 8 is the square root of 64


def test_robust_policy_of_one_dataset_is_the_safer_one():
    problem, worse = five_states(), five_states(1.0).tabular()
    seen = episodes(problem.tabular(), np.full((3, 5, 16), 1 / 16), 100, np.random.default_rng(0))
    assert isinstance(seen, Episodes)
    steps = fits(problem.phi, seen, 0.1)
    worth = {}
    for name, nature, penalty in (("PEVI", mean, elliptical), ("TV", TV(0.1, 0.0), diagonal)):
        table = r2pvi(problem.phi, problem.theta, steps, nature, 1.0, penalty, [FAIL])[1]
        worth[name] = worse.mu @ evaluate_finite(worse, GREEDY.policy(table))[0][0]
    assert worth["TV"] > worth["PEVI"] + 0.1


def test_the_claim_can_be_refuted():
    names = ["PEVI", *(f"{d} {p}" for d in ("TV", "KL", "chi2") for p in (".1", ".5", "2"))]
    same = {n: np.array([[1.0, 0.7], [1.0, 0.9]]) for n in names}
    seconds = {"TV": 1.0, "KL": 1.0, "KL ball": 9.0}
    assert verdict(same, seconds) == "refuted"
    better = same | {"TV .1": np.array([[1.0, 0.9], [1.0, 1.11]])}
    assert verdict(better, seconds) == "reproduced"
    assert verdict(better, seconds | {"KL": 10.0}) == "not reproduced"
