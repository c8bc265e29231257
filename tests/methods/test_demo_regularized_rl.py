"""The card's exact checks (arXiv 2310.17303)."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pytest import approx

from surefoot.claims.demo_regularized_rl import LOCK, Task, demo_reg, plain, random_task, verdict
from surefoot.errors import InputError
from surefoot.exact.episodes import Counts, episodes
from surefoot.exact.mdp import MDP, backward_induction, evaluate_finite, finite_horizon
from surefoot.methods.theory.demo_regularized_rl import (
    bradley_terry,
    clone,
    curious,
    online,
    optimum,
    plan,
    towards,
    trajectory_kl,
)

ARMS = finite_horizon(MDP(np.ones((1, 3, 1)), np.array([[1, 0.5, 0]]), 1.0, np.ones(1)), 1)
CLONE = np.array([[[4, 2, 1]]]) / 7
EXPERT = np.array([[[1.0, 0, 0]]])


def policies(task, n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(task.expert.shape[-1]), (n, *task.expert.shape[:-1]))


def test_1_smoothed_counts():
    assert_allclose(clone(np.array([[[3.0, 1, 0]]]))[0, 0], [4 / 7, 2 / 7, 1 / 7])
    with pytest.raises(InputError, match="expected above 0"):
        clone(np.zeros((1, 1, 3)), 0.0)


def test_1_smoothing_is_the_regularised_likelihoods_optimum():
    counts = np.array([3.0, 1, 0])

    def loss(p):
        return -(counts @ np.log(p)) - np.log(p).sum()

    best = clone(counts[None, None])[0, 0]
    for other in np.random.default_rng(0).dirichlet(np.ones(3), 200):
        assert loss(other) >= loss(best)


@pytest.mark.parametrize(
    ("beta", "policy", "value", "gap", "bound"),
    [
        (0.3, [0.906326, 0.085591, 0.008083], 0.861622, 0.050879, 0.167885),
        (0.05, None, 0.972020, 1.1350e-5, 0.027981),
    ],
)
def test_2_the_worked_example(beta, policy, value, gap, bound):
    V, pi = optimum(ARMS, CLONE, beta)
    assert trajectory_kl(ARMS, EXPERT, CLONE) == approx(np.log(7 / 4)) == approx(0.559616, abs=5e-7)
    assert V[0, 0] == approx(value, abs=5e-7)
    if policy:
        assert_allclose(pi[0, 0], policy, atol=5e-7)
    assert 1 - pi[0, 0] @ [1, 0.5, 0] == approx(gap, rel=1e-4)
    assert beta * np.log(7 / 4) == approx(bound, abs=5e-7) and gap <= bound


@pytest.mark.parametrize("seed", range(5))
def test_2_the_sandwich_holds_for_every_policy(seed):
    task = random_task(4, 3, 3, seed)
    reference = task.cloned(3, np.random.default_rng(seed))
    kl = trajectory_kl(task.problem, task.expert, reference)
    for beta in (0.02, 0.3, 3.0):
        for pi in policies(task, 10, seed):
            regret = task.best - task.value(pi)
            assert regret <= beta * kl + task.regularised_regret(pi, reference, beta) + 1e-12
            assert task.regularised_regret(pi, reference, beta) >= -1e-12
        pi = optimum(task.problem, reference, beta)[1]
        assert task.regularised_regret(pi, reference, beta) == approx(0, abs=1e-12)
        assert task.best - task.value(pi) <= beta * kl


def test_3_limits_of_beta():
    task = random_task(4, 3, 3, 0)
    reference = task.cloned(3, np.random.default_rng(0))
    assert_allclose(optimum(task.problem, reference, 1e9)[1], reference, atol=1e-8)
    assert_allclose(optimum(task.problem, reference, 1e-4)[1], task.expert, atol=1e-8)
    tied = finite_horizon(MDP(np.ones((1, 3, 1)), np.array([[1.0, 1, 0]]), 1.0, np.ones(1)), 1)
    assert_allclose(optimum(tied, CLONE, 1e-3)[1][0, 0], [2 / 3, 1 / 3, 0], atol=1e-12)


def test_3_ties_are_broken_by_the_reference_and_what_follows():
    """Two first actions lead to 1 or to 2 good actions of the second step."""
    P = np.zeros((3, 2, 3))
    P[0, 0, 1] = P[0, 1, 2] = P[1, :, 1] = P[2, :, 2] = 1
    first = MDP(P, np.zeros((3, 2)), 1.0, np.eye(3)[0])
    second = MDP(P, np.array([[0, 0], [1, 0], [1, 1.0]]), 1.0, np.eye(3)[0])
    problem = replace(finite_horizon(first, 2), stages=(first, second))
    reference = np.tile([0.6, 0.4], (2, 3, 1))
    pi = optimum(problem, reference, 1e-3)[1]
    assert pi[0, 0, 0] == approx(0.6 * 0.6 / (0.6 * 0.6 + 0.4 * 1.0))


def test_4_trajectory_kl_is_the_mean_log_ratio_of_episodes_and_a_backward_recursion():
    task = random_task(4, 3, 3, 1)
    expert, reference = policies(task, 2)
    seen = episodes(task.problem, expert, 20_000, np.random.default_rng(0))
    step = np.arange(3)
    at = (step, seen.states[:, :-1], seen.actions)
    ratios = np.log(expert[at] / reference[at]).sum(1)
    exact = trajectory_kl(task.problem, expert, reference)
    assert abs(ratios.mean() - exact) < 4 * ratios.std() / np.sqrt(len(ratios))
    free = replace(task.problem, stages=tuple(replace(m, R=0 * m.R) for m in task.problem.stages))
    V = evaluate_finite(free, expert, towards(reference, 1.0))[0]
    assert -task.problem.mu @ V[0] == approx(exact)


def test_5_without_demonstrations_it_is_entropy_regularised():
    task, beta = random_task(4, 3, 3, 2), 0.2
    assert_allclose(clone(np.zeros((3, 4, 3))), task.uniform)
    V = optimum(task.problem, task.uniform, beta)[0]
    entropy = np.zeros(4)
    for stage in reversed(task.problem.stages):
        entropy = beta * np.log(np.exp(stage.lookahead(entropy) / beta).sum(1))
    assert_allclose(V[0], entropy - beta * 3 * np.log(3), atol=1e-12)


def test_6_one_step_is_the_language_models_optimum():
    tilted = CLONE[0, 0] * np.exp(np.array([1, 0.5, 0]) / 0.3)
    assert_allclose(optimum(ARMS, CLONE, 0.3)[1][0, 0], tilted / tilted.sum())


def test_plans_bracket_the_truth_and_bound_the_regret():
    task, beta = random_task(3, 2, 3, 3), 0.2
    reference = task.cloned(5, np.random.default_rng(3))
    counts = task.count(episodes(task.problem, task.uniform, 300, np.random.default_rng(0)))
    made = plan(counts, reference, beta, bonus=1.0)
    assert task.regularised_regret(made.policy, reference, beta) <= task.problem.mu @ made.gap
    assert (made.width >= 0).all()
    nothing = plan(Counts.none(3, 3, 2), reference, beta)
    assert_allclose(nothing.policy, reference)
    assert (nothing.gap == 3).all()
    variants = list(curious(made))
    assert len(variants) == 4 and (variants[2][1].argmax(-1) == made.width[1].argmax(-1)).all()


def test_online_keeps_its_promise_with_fewer_episodes_for_more_demonstrations():
    task, eps, taken = random_task(3, 2, 3, 0), 0.2, []
    for N in (5, 80):
        rng = np.random.default_rng(N)
        reference = task.cloned(N, rng)
        beta = eps / 2 / trajectory_kl(task.problem, task.expert, reference)
        policy, n = online(task.problem, reference, beta, eps / 2, rng)
        assert task.best - task.value(policy) <= eps
        taken.append(n)
    assert taken[0] > 5 * taken[1]
    with pytest.raises(InputError, match="after .* episodes"):
        online(task.problem, reference, beta, 1e-9, rng, most=100)


def test_preferences_give_back_the_order_of_returns():
    task, rng = random_task(3, 2, 2, 4), np.random.default_rng(0)
    first, second = (episodes(task.problem, task.uniform, 40_000, rng) for _ in range(2))
    margin = (first.rewards - second.rewards).sum(1)
    wins = rng.random(40_000) < 1 / (1 + np.exp(-margin))
    learnt = bradley_terry(first, second, wins, 3, 2)
    at = (np.arange(2), first.states[:, :-1], first.actions)
    other = (np.arange(2), second.states[:, :-1], second.actions)
    error = learnt[at].sum(1) - learnt[other].sum(1) - margin
    assert np.sqrt((error**2).mean()) < 0.06 < margin.std() / 3


def test_the_lock_is_explored_only_behind_the_clone():
    task, rng = Task(LOCK), np.random.default_rng(0)
    cloned = task.cloned(5, rng)
    led = task.count(episodes(LOCK, cloned, 100, rng))
    blind = task.count(episodes(LOCK, task.uniform, 100, rng))
    assert task.value(cloned) == approx(0.1126, abs=5e-5)
    assert task.value(demo_reg(task, led, cloned)) > 0.99
    assert task.value(plain(task, blind)) == approx(0.05)
    assert backward_induction(LOCK)[0][0, 0] == 1


def test_the_claim_can_be_refuted():
    rng = np.random.default_rng(0)

    def table(demo):
        means = [0.05, 0.1, demo]
        return {(N, 100): np.array(means) + 0.01 * rng.normal(size=(20, 3)) for N in (1, 2, 5, 20)}

    falling = {1: 512.0, 2: 128.0, 5: 32.0, 20: 4.0}
    assert verdict(table(0.9), falling, -0.1) == "reproduced"
    assert verdict(table(0.0), falling, -0.1) == "refuted"
    assert verdict(table(0.9), falling, 0.1) == "refuted"
    assert verdict(table(0.9), dict.fromkeys(falling, 8.0), -0.1) == "refuted"
