from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from pytest import approx
from scipy import sparse

from surefoot.errors import InputError
from surefoot.exact.generators import chain, cliff_walk, garnet, lock, open_grid, random_mdp
from surefoot.exact.mdp import (
    MDP,
    FiniteHorizon,
    backward_induction,
    evaluate,
    evaluate_finite,
    finite_horizon,
    gaps,
    inverse_bellman,
    occupancy,
    occupancy_finite,
    optimal_actions,
    performance,
    performance_difference,
    policy_iteration,
    soft_evaluate,
    soft_value_iteration,
    uniform_policy,
    value_iteration,
)
from surefoot.exact.operators import Fixed, Greedy, Soft, log_mean_exp, softmax
from tests.exact import brute


def as_sparse(mdp):
    return replace(mdp, P=sparse.csr_matrix(mdp.P.reshape(-1, mdp.states)))


def random_policy(mdp, seed):
    return np.random.default_rng(seed).dirichlet(np.ones(mdp.actions), mdp.states)


BOTH = pytest.mark.parametrize("kind", [lambda m: m, as_sparse], ids=["dense", "sparse"])


# Solvers against counting


@BOTH
@pytest.mark.parametrize("seed", range(5))
def test_the_optimum_is_the_best_of_all_deterministic_policies(kind, seed):
    mdp = random_mdp(4, 3, seed)
    values = np.array([brute.value(mdp.P, mdp.R, 0.9, p) for p in brute.deterministic_policies(4, 3)])
    for solve in (lambda m: value_iteration(m, 1e-12), policy_iteration):
        found = solve(kind(mdp))
        assert_allclose(found.V, values.max(0), atol=1e-11)
        assert_allclose(brute.value(mdp.P, mdp.R, 0.9, found.policy), values.max(0), atol=1e-11)
        assert_allclose(found.Q, mdp.R + 0.9 * mdp.P @ values.max(0), atol=1e-11)


@BOTH
def test_evaluation_and_visits_against_their_series(kind):
    mdp = random_mdp(5, 3, 1)
    policy = random_policy(mdp, 2)
    V, Q = evaluate(kind(mdp), policy)
    assert_allclose(V, brute.value(mdp.P, mdp.R, 0.9, policy), atol=1e-12)
    assert_allclose((policy * Q).sum(1), V, atol=1e-12)
    d = occupancy(kind(mdp), policy)
    moves = np.einsum("sa,sat->st", policy, mdp.P)
    assert_allclose(d, sum(0.9**t * mdp.mu @ np.linalg.matrix_power(moves, t) for t in range(400)), atol=1e-12)
    assert d.sum() == approx(10) and d @ (policy * mdp.R).sum(1) == approx(performance(mdp, policy))


def test_what_is_handed_in_is_left_as_it_was():
    mdp = as_sparse(random_mdp(4, 3))
    policy = np.eye(3)[[0, 1, 2, 0]]
    P, R, kept = mdp.P.copy(), mdp.R.copy(), policy.copy()
    evaluate(mdp, policy), occupancy(mdp, policy), value_iteration(mdp), policy_iteration(mdp), mdp.reachable()
    assert (policy == kept).all() and (mdp.R == R).all() and abs(mdp.P - P).nnz == 0


@pytest.mark.parametrize("tol", [1e-1, 1e-4, 1e-9])
@pytest.mark.parametrize(
    "make",
    [
        lambda: random_mdp(6, 3, 3, 0.99),
        lambda: as_sparse(random_mdp(6, 3, 4)),
        lambda: chain(30, 0.9),
        lambda: open_grid(6, 7),
    ],
)
def test_the_error_is_certified(make, tol):
    mdp = make()
    found, truth = value_iteration(mdp, tol), policy_iteration(mdp).V
    assert found.error <= tol and np.abs(found.V - truth).max() <= found.error + 1e-11
    soft, truth = value_iteration(mdp, tol, Soft(0.3)), policy_iteration(mdp, Soft(0.3)).V
    assert np.abs(soft.V - truth).max() <= soft.error + 1e-11


def test_mixing_needs_few_backups():
    """The bound is on the spread: the sup norm would need log(1e-10) / log(.95), more than 440."""
    assert value_iteration(garnet(2000, seed=1), 1e-10).iterations < 80


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_policy_iteration_at_every_depth(depth):
    for mdp in (random_mdp(6, 3, 5), open_grid(5, 5)):
        assert_allclose(policy_iteration(mdp, depth=depth).V, value_iteration(mdp, 1e-12).V, atol=1e-11)


def test_ties_do_not_keep_policy_iteration_from_ending():
    mdp = MDP(np.repeat(np.eye(3)[[1, 2, 0]], 4, 0).reshape(3, 4, 3), np.ones((3, 4)) / 3, 0.999, np.ones(3) / 3)
    assert_allclose(policy_iteration(mdp).V, 1000 / 3)


def test_large_sparse_systems_by_either_way():
    """Random graphs go through BiCGStab, a long chain with gamma near 1 and a grid are factorised."""
    for mdp in (garnet(5000, 3), chain(5000, 0.999), open_grid(60, 60)):
        policy = random_policy(mdp, 0)
        V, Q = evaluate(mdp, policy)
        assert np.abs((policy * Q).sum(1) - V).max() <= 1e-14 * max(1, np.abs(V).max()) * 10
        assert occupancy(mdp, policy) @ (policy * mdp.R).sum(1) == approx(performance(mdp, policy), rel=1e-10)


def test_discount_one_where_everything_ends():
    assert value_iteration(cliff_walk()).V @ cliff_walk().mu == -13
    mdp = lock(4, 3)
    wrong = uniform_policy(np.ones((5, 3), bool))
    assert performance(mdp, wrong) == approx(1 / 81) and value_iteration(mdp).error == 0
    assert_allclose(occupancy(mdp, wrong), [1, 1 / 3, 1 / 9, 1 / 27, 0])
    assert policy_iteration(mdp).V[0] == 1


def test_discount_one_without_an_end():
    mdp = MDP(np.ones((1, 1, 1)), np.ones((1, 1)), 1.0, np.ones(1))
    with pytest.raises(InputError, match="never ends"):
        evaluate(mdp, np.ones((1, 1)))
    with pytest.raises(InputError, match="no convergence"):
        value_iteration(mdp, max_iterations=50)


# Identities


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 4), st.floats(0, 0.98))
def test_inverse_bellman_gives_back_q(seed, states, actions, gamma):
    """policy-cliff check 1: 1e-12 at gamma .9; the condition of the map grows as 1 / (1 - gamma)."""
    mdp, rng = random_mdp(states, actions, seed, gamma), np.random.default_rng(seed + 1)
    Q = rng.normal(size=(states, actions))
    for choose in (Greedy(), Soft(0.2), Soft(0.7, rng.dirichlet(np.ones(actions), states))):
        solved = policy_iteration(replace(mdp, R=inverse_bellman(mdp, Q, choose)), choose)
        assert_allclose(solved.Q, Q, atol=2e-12 / (1 - gamma))


def test_inverse_bellman_to_1e_12():
    mdp, Q = random_mdp(5, 4, 0), np.random.default_rng(1).normal(size=(5, 4))
    assert np.abs(policy_iteration(replace(mdp, R=inverse_bellman(mdp, Q))).Q - Q).max() < 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.97))
def test_performance_difference(seed, gamma):
    mdp = random_mdp(5, 4, seed, gamma)
    new, old = random_policy(mdp, seed + 1), random_policy(mdp, seed + 2)
    assert performance_difference(mdp, new, old) == approx(performance(mdp, new) - performance(mdp, old), abs=1e-11)


def test_a_change_at_one_place_gains_visits_times_advantage():
    """policy-cliff check 6."""
    mdp = random_mdp(5, 4, 0)
    old = random_policy(mdp, 1)
    new = old.copy()
    new[2] = np.eye(4)[3]
    V, Q = evaluate(mdp, old)
    gain = performance(mdp, new) - performance(mdp, old)
    assert gain == approx(occupancy(mdp, new)[2] * (Q[2, 3] - V[2]), abs=1e-12)


def test_values_move_no_more_than_rewards():
    """policy-cliff, prop. 2.1."""
    mdp, rng = random_mdp(5, 4, 0), np.random.default_rng(0)
    for choose in (Greedy(), Soft(0.1)):
        base = policy_iteration(mdp, choose).Q
        for _ in range(20):
            change = rng.uniform(-1, 1, (5, 4))
            moved = policy_iteration(replace(mdp, R=mdp.R + change), choose).Q
            assert np.abs(moved - base).max() <= np.abs(change).max() / 0.1 + 1e-12


# Soft values


@BOTH
@pytest.mark.parametrize("alpha", [0.01, 0.3, 5.0])
def test_the_soft_optimum_beats_every_policy_in_its_own_value(kind, alpha):
    mdp = kind(random_mdp(5, 4, 0))
    reference = random_policy(mdp, 9)
    for ref in (None, reference):
        found = soft_value_iteration(mdp, alpha, ref, 1e-12)
        V, Q = soft_evaluate(mdp, found.policy, alpha, ref)
        assert_allclose(V, found.V, atol=1e-10)
        assert_allclose(Q, found.Q, atol=1e-10)
        assert_allclose(policy_iteration(mdp, Soft(alpha, ref)).V, found.V, atol=1e-10)
        for seed in range(50):
            assert (soft_evaluate(mdp, random_policy(mdp, seed), alpha, ref)[0] <= found.V + 1e-10).all()


def test_entropy_is_the_uniform_reference_up_to_a_constant():
    mdp = random_mdp(5, 4, 0)
    entropy, uniform = soft_value_iteration(mdp, 0.3), soft_value_iteration(mdp, 0.3, np.full((5, 4), 0.25))
    assert_allclose(entropy.policy, uniform.policy, atol=1e-9)
    assert_allclose(entropy.V - uniform.V, 0.3 * np.log(4) / 0.1, atol=1e-9)


def test_soft_values_tend_to_hard_ones_and_their_price_is_bounded():
    mdp = random_mdp(5, 4, 0)
    hard = policy_iteration(mdp)
    for alpha in (1.0, 0.1, 0.001):
        price = hard.V - evaluate(mdp, soft_value_iteration(mdp, alpha, tol=1e-12).policy)[0]
        assert (price >= -1e-10).all() and (price <= alpha * np.log(4) / 0.1).all()
    assert price.max() < 1e-3


def test_an_action_outside_the_reference_is_never_taken():
    mdp = random_mdp(5, 4, 0)
    reference = np.tile([0.5, 0.5, 0, 0], (5, 1))
    found = policy_iteration(mdp, Soft(0.1, reference))
    assert (found.policy[:, 2:] == 0).all() and np.isfinite(found.V).all()
    two = replace(mdp, P=mdp.P[:, :2], R=mdp.R[:, :2])
    assert_allclose(found.V, policy_iteration(two, Soft(0.1, reference[:, :2])).V, atol=1e-11)


@pytest.mark.parametrize("alpha", [0.1, 0.02])
def test_small_alpha_counts_optimal_continuations(alpha):
    """policy-cliff check 5: 3^.9 / (1 + 3^.9) for every alpha, not one half."""
    P = np.zeros((4, 3, 4))
    P[0, [0, 1, 2], [1, 2, 3]] = P[1:, :, 3] = 1
    R = np.array([[0, 0, -9.0], [1, 1, 1], [1, -9, -9], [0, -9, -9]])
    root = soft_value_iteration(MDP(P, R, 0.9, np.eye(1, 4)[0]), alpha, tol=1e-12).policy[0]
    assert_allclose(root, [0.728841, 0.271159, 0], atol=5e-7)


@pytest.mark.parametrize(
    ("lam", "policy", "value", "gap"),
    [(0.3, [0.906326, 0.085591, 0.008083], 0.861622, 0.050879), (0.05, None, 0.972020, 1.1350e-5)],
)
def test_demo_regularised(lam, policy, value, gap):
    """demo-regularized-rl check 2: one step, expert plays action 0, reference cloned from (3, 1, 0) counts."""
    reference = np.array([[4, 2, 1]]) / 7
    mdp = MDP(np.ones((1, 3, 1)), np.array([[1, 0.5, 0]]), 0.0, np.ones(1))
    found = soft_value_iteration(mdp, lam, reference)
    assert found.V[0] == approx(value, abs=5e-7)
    assert 1 - performance(mdp, found.policy) == approx(gap, abs=5e-7, rel=1e-4)
    assert gap <= lam * np.log(7 / 4)
    if policy:
        assert_allclose(found.policy[0], policy, atol=5e-7)


# Operators


def test_log_mean_exp():
    x, w = np.array([0.0, 0.2, 1.0]), np.array([0.1, 0.3, 0.6])
    assert log_mean_exp(x, 0.5, np.log(w)) == approx(0.5 * np.log(w @ np.exp(x / 0.5)))
    assert log_mean_exp(x, -0.5, np.log(w)) == approx(0.4807785, abs=5e-8)
    assert log_mean_exp(x, np.inf, np.log(w)) == approx(0.66) == approx(log_mean_exp(x, 1e7, np.log(w)), abs=1e-6)
    assert log_mean_exp(x, 1e-5, np.log(w)) == approx(1, abs=1e-5)
    assert log_mean_exp(x, -1e-5, np.log(w)) == approx(0, abs=3e-5)
    assert log_mean_exp(np.array([1e6, 1e6 + 1]), 1e-3) == approx(1e6 + 1)
    per_row = log_mean_exp(np.stack([x, x]), np.array([[0.5], [-0.5]]), np.log(w))
    assert_allclose(per_row, [log_mean_exp(x, 0.5, np.log(w)), log_mean_exp(x, -0.5, np.log(w))])


@pytest.mark.parametrize(
    "choose",
    [
        Greedy(),
        Soft(0.3),
        Soft(0.3, np.array([[0.2, 0.8, 0]])),
        Fixed(np.array([[0.4, 0.6, 0]])),
        Fixed(np.array([[0.4, 0.6, 0]]), Soft(0.2)),
    ],
)
def test_a_choice_is_the_best_of_value_and_bonus_and_passes_constants_through(choose):
    rng = np.random.default_rng(0)
    for _ in range(20):
        Q, more = rng.normal(size=(1, 3)), rng.random((1, 3))
        best = choose.policy(Q)
        assert choose.value(Q) == approx((best * (Q + choose.bonus(best))).sum(1))
        assert choose.value(Q + 2) == approx(choose.value(Q) + 2)
        assert choose.value(Q + more) >= choose.value(Q)
        if not isinstance(choose, Fixed):
            other = rng.dirichlet(np.ones(2), 1) @ np.eye(3)[:2]
            assert (other * (Q + choose.bonus(other))).sum() <= choose.value(Q) + 1e-12


def test_alpha_zero_is_refused():
    with pytest.raises(InputError, match="alpha 0"):
        Soft(0.0)


# Ties, gaps, reachable states, ends


def test_ties_and_gaps():
    Q = np.array([[3, 3 - 1e-12, 1], [2, 0, 1.0]])
    assert optimal_actions(Q).tolist() == [[True, True, False], [True, False, False]]
    assert optimal_actions(Q, 0.0).sum() == 2
    assert_allclose(gaps(Q), [1e-12, 1], atol=1e-15)
    assert_allclose(gaps(Q, 1e-9), [2, 1])
    assert np.isinf(gaps(np.ones((2, 1)))).all() and np.isinf(gaps(np.ones((1, 3)), 1e-9)).all()
    assert_allclose(uniform_policy(optimal_actions(Q)), [[0.5, 0.5, 0], [1, 0, 0]])


@BOTH
def test_reachable(kind):
    P = np.zeros((4, 2, 4))
    P[0, 0, 1] = P[0, 1, 2] = P[1, :, 1] = P[2, :, 0] = P[3, :, 0] = 1
    mdp = kind(MDP(P, np.array([[1, 0], [0, 0], [0, 0], [0, 0.0]]), 0.9, np.eye(1, 4)[0]))
    assert mdp.reachable().tolist() == [True, True, True, False]
    allowed = optimal_actions(value_iteration(mdp).Q)
    assert allowed[0].tolist() == [True, False]
    assert mdp.reachable(allowed).tolist() == [True, True, False, False]
    assert mdp.ends().tolist() == [False, True, False, False]


# Finite horizons


def three_stages(seed=0):
    mdps = tuple(random_mdp(3, 2, seed + i, 1.0) for i in range(3))
    return FiniteHorizon(mdps, np.array([0.5, 0.5, 0]))


def test_backward_induction_against_every_policy_and_the_unrolled_mdp():
    problem = finite_horizon(random_mdp(2, 2, 0, 1.0), 3)
    mdp = problem.stages[0]
    V, Q = backward_induction(problem)
    best = max(
        sum(c * g for c, _, _, g in brute.trajectories(mdp.P, mdp.R, 3, p.reshape(3, 2, 2), problem.mu))
        for p in brute.deterministic_policies(6, 2)
    )
    assert problem.mu @ V[0] == approx(best)
    unrolled = problem.unroll()
    assert_allclose(value_iteration(unrolled).V, np.append(V[:-1].ravel(), 0), atol=1e-14)


def test_dynamics_that_change():
    problem = three_stages()
    V, Q = backward_induction(problem)
    unrolled = problem.unroll()
    assert_allclose(policy_iteration(unrolled).Q[:-1].reshape(Q.shape), Q, atol=1e-13)
    policy = np.random.default_rng(0).dirichlet(np.ones(2), (3, 3))
    V, Q = evaluate_finite(problem, policy, Soft(0.3))
    plain, _ = evaluate_finite(problem, policy)
    flat = np.concatenate([policy.reshape(9, 2), [[0.5, 0.5]]])
    assert_allclose(evaluate(unrolled, flat)[0][:-1].reshape(3, 3), plain[:-1], atol=1e-13)
    entropies = -(policy * np.log(policy)).sum(2)
    d = occupancy_finite(problem, policy)
    assert problem.mu @ V[0] == approx(problem.mu @ plain[0] + 0.3 * (d * entropies).sum())
    assert_allclose(d.sum(1), 1)
    assert_allclose(occupancy(unrolled, flat)[:-1].reshape(3, 3), d, atol=1e-14)


def test_trajectory_chances():
    problem = finite_horizon(random_mdp(2, 2, 3, 1.0), 3)
    policy = np.random.default_rng(0).dirichlet(np.ones(2), (3, 2))
    every = list(brute.trajectories(problem.stages[0].P, problem.stages[0].R, 3, policy, problem.mu))
    assert sum(c for c, *_ in every) == approx(1)
    assert problem.mu @ evaluate_finite(problem, policy)[0][0] == approx(sum(c * g for c, _, _, g in every))
    met = sum(c for c, s, _, _ in every if s[2] == 1)
    assert occupancy_finite(problem, policy)[2, 1] == approx(met)


@pytest.mark.parametrize(("k", "value"), [(1, 1 / 8), (2, 1 / 4), (3, 1 / 2), (4, 1)])
def test_looking_k_steps_ahead_at_a_deceptive_lock(k, value):
    """sqirl check 4: k - 1 greedy backups on the random policy's Q."""
    problem = finite_horizon(lock(4, 2, consolation=0.5), 4)
    random = uniform_policy(np.ones((5, 2), bool))
    Q = backward_induction(problem, [Greedy() if 1 <= t < k else Fixed(random) for t in range(4)])[1]
    assert_allclose(Q[0, 0], [value, 0.5])


def test_a_plain_lock_shows_its_way_to_the_random_policy():
    """sqirl check 3: the gap is A^-(L - 1)."""
    V, Q = evaluate_finite(finite_horizon(lock(5, 3), 5), np.full((5, 6, 3), 1 / 3))
    assert gaps(Q[0])[0] == approx(3.0**-4)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"P": np.ones((2, 2, 2))}, "sums to 2"),
        ({"P": np.ones((2, 3, 2)) / 2}, "P has shape"),
        ({"P": np.array([[[1.5, -0.5]] * 2] * 2)}, "at least 0"),
        ({"P": np.full((2, 2, 2), np.nan)}, "P of state 0"),
        ({"mu": np.ones(2)}, "mu sums to 2"),
        ({"mu": np.ones(3) / 3}, "mu has shape"),
        ({"gamma": 1.1}, "gamma 1.1"),
        ({"gamma": float("nan")}, "gamma"),
        ({"R": np.array([[1, np.inf], [0, 0]])}, "not finite"),
        ({"R": np.ones(4)}, "R has shape"),
    ],
)
def test_what_is_no_mdp(change, message):
    good = {"P": np.ones((2, 2, 2)) / 2, "R": np.ones((2, 2)), "gamma": 0.9, "mu": np.array([0.5, 0.5])}
    MDP(**good)
    with pytest.raises(InputError, match=message):
        MDP(**good | change)


def test_softmax_of_huge_logits():
    assert_allclose(softmax(np.array([[1e308, 0], [-1e308, -1e308]])), [[1, 0], [0.5, 0.5]])
