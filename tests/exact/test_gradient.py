import numpy as np
import pytest
from numpy.testing import assert_allclose
from pytest import approx

from surefoot.exact import bandit
from surefoot.exact.generators import lock, random_mdp
from surefoot.exact.gradient import advantages, fisher, natural_policy_gradient, objective, policy_gradient
from surefoot.exact.mdp import MDP, policy_iteration, soft_value_iteration
from surefoot.exact.operators import Greedy, Soft, softmax
from tests.exact.brute import finite_difference

REFERENCE = np.random.default_rng(3).dirichlet(np.ones(3), 4)
under = pytest.mark.parametrize("choice", [Greedy(), Soft(0.4), Soft(0.4, REFERENCE)], ids=["plain", "entropy", "kl"])


def problem(seed=0):
    return random_mdp(4, 3, seed), np.random.default_rng(seed + 100).normal(size=(4, 3))


@under
def test_policy_gradient_against_finite_differences(choice):
    mdp, logits = problem()
    assert_allclose(
        policy_gradient(mdp, logits, choice), finite_difference(lambda z: objective(mdp, z, choice), logits), atol=1e-7
    )


@under
def test_natural_gradient_against_the_inverse_fisher(choice):
    mdp, logits = problem()
    direct = np.linalg.pinv(fisher(mdp, logits), rcond=1e-10) @ policy_gradient(mdp, logits, choice).ravel()
    assert_allclose(natural_policy_gradient(mdp, logits, choice).ravel(), direct, atol=1e-9)


def test_fisher_is_the_covariance_of_scores():
    mdp, logits = problem()
    policy, F = softmax(logits), np.zeros((12, 12))
    from surefoot.exact.mdp import occupancy

    d = occupancy(mdp, policy)
    for s in range(4):
        for a in range(3):
            score = np.zeros((4, 3))
            score[s] = np.eye(3)[a] - policy[s]
            F += d[s] * policy[s, a] * np.outer(score, score)
    assert_allclose(fisher(mdp, logits), F, atol=1e-14)


@under
def test_advantages_have_mean_zero_and_vanish_at_a_soft_optimum(choice):
    mdp, logits = problem()
    policy = softmax(logits)
    assert_allclose((policy * advantages(mdp, policy, choice)).sum(1), 0, atol=1e-12)
    best = policy_iteration(mdp, choice).policy
    largest = advantages(mdp, best, choice).max()
    assert largest == approx(0, abs=1e-11)
    if isinstance(choice, Soft):
        assert_allclose(advantages(mdp, best, choice), 0, atol=1e-10)


@pytest.mark.parametrize("reference", [None, REFERENCE])
def test_a_natural_step_of_one_over_alpha_is_soft_policy_iteration(reference):
    """Cen et al. (2022): quadratic convergence near the optimum, and no policy gets worse."""
    mdp, logits = problem()
    best = soft_value_iteration(mdp, 0.4, reference, 1e-13).policy
    values = [objective(mdp, logits, Soft(0.4, reference))]
    for _ in range(8):
        logits = logits + natural_policy_gradient(mdp, logits, Soft(0.4, reference)) / 0.4
        values.append(objective(mdp, logits, Soft(0.4, reference)))
    assert (np.diff(values) >= -1e-12).all()
    assert_allclose(softmax(logits), best, atol=1e-11)


def test_states_never_met_have_no_gradient():
    mdp, logits = problem()
    P = mdp.P.copy()
    P[:, :, 3] = 0
    P /= P.sum(2, keepdims=True)
    cut = MDP(P, mdp.R, 0.9, np.array([0.5, 0.5, 0, 0]))
    assert (policy_gradient(cut, logits)[3] == 0).all() and (natural_policy_gradient(cut, logits)[3] == 0).all()
    assert (natural_policy_gradient(cut, logits)[:3] != 0).any()


def test_gradient_of_an_undiscounted_lock():
    """J = p^3 with p the chance of the right action at each step: dJ/dz = p^3 (1 - p) for each right action."""
    logits = np.zeros((4, 2))
    grad = policy_gradient(lock(3), logits)
    assert_allclose(grad[:3, 0], 1 / 16)
    assert_allclose(grad[:3, 1], -1 / 16)


# Bandits


R, MU = np.array([[0, 1, 2.0], [1, -1, 0.5]]), np.array([0.3, 0.7])
REF = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])


def logits_at(seed=0):
    return np.random.default_rng(seed).normal(size=(2, 3))


def test_worked_gradient_of_kl_bayes():
    """kl-bayes checks 1 and 2."""
    one = (np.log([[0.2, 0.3, 0.5]]), R[:1], np.ones(1), 0.5, REF[:1])
    assert bandit.objective(*one) == approx(1.1625564, abs=5e-8)
    assert_allclose(bandit.policy_gradient(*one)[0], [-0.1408822, -0.0487669, 0.1896491], atol=5e-8)
    policy, best = np.array([0.2, 0.3, 0.5]), bandit.soft_optimum(R[:1], 0.5, REF[:1])[0]
    ratio = np.log(policy / best)
    assert_allclose(bandit.policy_gradient(*one)[0], -0.5 * policy * (ratio - policy @ ratio), atol=1e-15)


@pytest.mark.parametrize(("alpha", "reference"), [(0.0, None), (0.3, None), (0.3, REF)])
def test_bandit_gradients(alpha, reference):
    z = logits_at()
    grad = bandit.policy_gradient(z, R, MU, alpha, reference)
    assert_allclose(grad, finite_difference(lambda z: bandit.objective(z, R, MU, alpha, reference), z), atol=1e-9)
    mdp, choice = bandit.as_mdp(R, MU), Soft(alpha, reference) if alpha else Greedy()
    assert_allclose(grad, policy_gradient(mdp, z, choice), atol=1e-15)
    assert_allclose(
        bandit.natural_gradient(z, R, MU, alpha, reference), natural_policy_gradient(mdp, z, choice), atol=1e-14
    )
    if alpha:
        best = bandit.soft_optimum(R, alpha, reference)
        assert np.ptp(bandit.payoff(best, R, alpha, reference), axis=1) == approx(0, abs=1e-13)
        assert_allclose(bandit.policy_gradient(np.log(best), R, MU, alpha, reference), 0, atol=1e-14)
    else:
        assert bandit.optimum(R, MU) == approx(0.3 * 2 + 0.7 * 1)


@pytest.mark.parametrize("baseline", [0.0, np.array([0.3, -0.2])])
def test_variance_of_the_estimator_by_counting(baseline):
    z = logits_at()
    policy = softmax(z)
    u = bandit.payoff(policy, R, 0.3, REF)
    b = np.broadcast_to(baseline, 2)
    draws = []
    for x in range(2):
        for a in range(3):
            g = np.zeros((2, 3))
            g[x] = (u[x, a] - b[x]) * (np.eye(3)[a] - policy[x])
            draws.append((MU[x] * policy[x, a], g))
    mean = sum(p * g for p, g in draws)
    assert_allclose(mean, bandit.policy_gradient(z, R, MU, 0.3, REF), atol=1e-15)
    spread = sum(p * ((g - mean) ** 2).sum() for p, g in draws)
    assert bandit.gradient_variance(z, R, MU, baseline, 0.3, REF) == approx(spread)


def test_the_best_baseline_is_best():
    z = logits_at()
    best = bandit.best_baseline(z, R, 0.3, REF)
    least = bandit.gradient_variance(z, R, MU, best, 0.3, REF)
    for other in (best + np.array([1e-2, 0]), best - 1e-2, (softmax(z) * R).sum(1)):
        assert bandit.gradient_variance(z, R, MU, other, 0.3, REF) > least
    two = bandit.best_baseline(z[:, :2], R[:, :2])
    assert bandit.gradient_variance(z[:1, :2], R[:1, :2], np.ones(1), two[:1]) == approx(0, abs=1e-15)


def test_reward_variance_by_counting():
    policy = softmax(logits_at())
    p = (MU[:, None] * policy).ravel()
    assert bandit.reward_variance(policy, R, MU) == approx(p @ R.ravel() ** 2 - (p @ R.ravel()) ** 2)
