"""The card's exact checks (arXiv 2507.20150). The eighth, 'From samples', is tests/stability/test_from_samples.py."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pytest import approx

from surefoot.claims.policy_cliff import CLAIM, Cell, verdict
from surefoot.exact import cliff
from surefoot.exact.mdp import MDP, evaluate, inverse_bellman, uniform_policy
from surefoot.stability.harness import Control, Objective, Tree, sample, train_exact


def random_mdp(seed, gamma=0.9):
    rng = np.random.default_rng(seed)
    return MDP(rng.dirichlet(np.ones(5), (5, 4)), rng.normal(size=(5, 4)), gamma, np.full(5, 0.2))


def arms(*reward):
    return MDP(np.ones((1, len(reward), 1)), np.array([reward], float), 0.0, np.ones(1))


def soft(reward, alpha):
    return cliff.soft_policy(np.array([reward], float), alpha)


def test_1_inverse_bellman_gives_back_q():
    mdp, q = random_mdp(0), np.random.default_rng(1).normal(size=(5, 4))
    assert_allclose(cliff.solve(replace(mdp, R=inverse_bellman(mdp, q))), q, atol=1e-12)


@pytest.mark.parametrize("eps", [1e-1, 1e-3, 1e-6])
def test_2_a_tie_breaks_for_every_eps(eps):
    q = np.random.default_rng(2).normal(size=(5, 4))
    q[0] = [3, 3, 3, 1]
    mdp = random_mdp(0)
    mdp = replace(mdp, R=inverse_bellman(mdp, q))
    tied = cliff.analyse(mdp, tie_tol=eps / 1000)
    raised = replace(mdp, R=cliff.bump(mdp, 0, 2, eps))
    broken = cliff.analyse(raised, tie_tol=eps / 1000)
    assert list(tied.optimal[0]) == [True, True, True, False] and tied.height[0] == approx(2 / 3)
    assert list(broken.optimal[0]) == [False, False, True, False]
    assert np.abs(raised.R - mdp.R).max() <= eps * (1 + 1e-6)
    jump = cliff.total_variation(uniform_policy(tied.optimal), uniform_policy(broken.optimal))
    assert jump[0] == approx(2 / 3, abs=1e-15)


def test_3_the_sharp_bound_is_attained():
    one = cliff.total_variation(soft([0, 0], 0.1), soft([0.1, -0.1], 0.1))[0]
    assert one == approx(np.tanh(1) / 2) == approx(0.380797, abs=5e-7)
    assert cliff.linear_bound(0.1, 0.1) == approx(0.5) and one <= cliff.tanh_bound(0.2, 0.1)
    both = cliff.total_variation(soft([-0.1, 0.1], 0.1), soft([0.1, -0.1], 0.1))[0]
    assert both == approx(cliff.tanh_bound(0.4, 0.1)) == approx(0.761594, abs=5e-7)
    assert cliff.linear_bound(0.2, 0.1) == approx(1.0)


@pytest.mark.parametrize(
    ("alpha", "tv", "linear", "sharp"),
    [(0.02, 0.244919, 0.25, 0.244919), (0.1, 0.049957, 0.05, 0.049958), (0.0, 1.0, np.inf, 1.0)],
)
def test_4_three_arms(alpha, tv, linear, sharp):
    assert cliff.total_variation(soft([1.01, 1, 0], alpha), soft([1, 1.01, 0], alpha))[0] == approx(tv, abs=5e-7)
    mdp = arms(1, 1, 0)
    row = cliff.stability(mdp, cliff.analyse(mdp).edge, 0.01, [alpha])[0]
    assert row.tv == approx(tv, abs=5e-7) and row.sharp == approx(sharp, abs=5e-7)
    assert row.linear == approx(linear)


def test_5_small_alpha_counts_continuations():
    transitions = np.zeros((4, 3, 4))
    transitions[0, 0, 1] = transitions[0, 1, 2] = transitions[0, 2, 3] = 1
    transitions[1:, :, 3] = 1
    reward = np.array([[0, 0, -9.0], [1, 1, 1], [1, -9, -9], [0, -9, -9]])
    mdp = MDP(transitions, reward, 0.9, np.eye(1, 4)[0])
    for alpha in (0.1, 0.02):
        root = cliff.soft_policy(cliff.solve(mdp, alpha), alpha)[0]
        assert_allclose(root[:2], [0.728841, 0.271159], atol=5e-7)
    assert_allclose(cliff.optimal_continuations(np.log([3.0, 1.0]), 0.9), root[:2], atol=1e-9)
    base = np.array([0.5, 0.3, 0.15, 0.05])
    for beta in (0.01, 0.0):
        optimum = cliff.sequence_optimum(np.array([1.0, 0, 1, 1]), beta, base)
        assert_allclose(optimum, [0.714286, 0, 0.214286, 0.071429], atol=5e-7)


def test_6_the_slacker_loses_visits_times_advantage():
    q = np.random.default_rng(2).normal(size=(5, 4))
    q[0] = [3, 3, 3, 1]
    mdp = random_mdp(0)
    mdp = replace(mdp, R=inverse_bellman(mdp, q))
    policy = cliff.soft_policy(cliff.solve(mdp))
    for seed in range(20):
        missing = np.random.default_rng(seed).normal(size=(5, 4))
        found = cliff.incomplete_reward(mdp, missing, policy, 0, 2)
        assert found.gain == approx(found.visits * found.advantage, abs=1e-12)
        on_missing = replace(mdp, R=missing)
        value = evaluate(on_missing, policy)[0]
        assert found.advantage == approx(on_missing.lookahead(value)[0, 2] - value[0], abs=1e-11)
        assert found.suboptimal == (found.gain > 0)


@pytest.mark.parametrize("eps", [0.1, 1e-5])
def test_6_a_tie_breaker_within_eps(eps):
    q = np.random.default_rng(2).normal(size=(5, 4))
    q[0] = [3, 3, 3, 1]
    mdp = random_mdp(0)
    mdp = replace(mdp, R=inverse_bellman(mdp, q))
    broken = cliff.tie_breaker(mdp, 0, 1, eps)
    new = cliff.solve(replace(mdp, R=broken))
    assert np.abs(broken - mdp.R).max() <= eps and new[0, 1] - new[0, 0] == approx(eps / 1.9, abs=1e-12)


def test_7_nothing_flips_below_the_certificate():
    rng, mdp = np.random.default_rng(0), random_mdp(4)
    found = cliff.analyse(mdp)
    greedy = found.q.argmax(1)
    for _ in range(300):
        moved = replace(mdp, R=mdp.R + rng.choice([-1, 1], (5, 4)) * found.certified * 0.999)
        assert (cliff.solve(moved).argmax(1) == greedy).all()


@pytest.mark.parametrize("seed", range(20))
def test_7_the_witness_flips_one_and_the_exact_distance_lies_between(seed):
    mdp = random_mdp(seed)
    found = cliff.analyse(mdp)
    greedy = found.q.argmax(1)
    size, reward = cliff.witness(mdp, found.q, found.gap, found.decisions)
    assert size == found.witness <= (1 + mdp.gamma) * found.gap.min() / 2 * (1 + 1e-6)
    assert (cliff.solve(replace(mdp, R=reward)).argmax(1) != greedy).sum() == 1
    edge = found.edge
    assert found.certified < edge.distance < found.witness
    for factor, flips in ((1 - 1e-6, 0), (1 + 1e-6, 1)):
        moved = replace(mdp, R=mdp.R + factor * edge.distance * edge.direction)
        assert (cliff.solve(moved).argmax(1) != greedy).sum() == flips


def test_learner_climbs_the_gradient_of_its_objective():
    tree, rng = Tree(3, 2), np.random.default_rng(0)
    reward, reference = rng.normal(size=(1, 9)), np.log(rng.dirichlet(np.ones(9)))
    objective = Objective(reward, np.array([0.3]), reference)
    logits = [rng.normal(size=z.shape) for z in tree.start(1)]

    def value():
        log_p = tree.log_leaves(logits)
        return float((np.exp(log_p) * objective.payoff(log_p)).sum())

    log_p = tree.log_leaves(logits)
    grads = tree.score(logits, np.exp(log_p) * objective.payoff(log_p))
    for z, g in zip(logits, grads, strict=True):
        for place in np.ndindex(z.shape):
            z[place] += 1e-6
            up = value()
            z[place] -= 2e-6
            down = value()
            z[place] += 1e-6
            assert g[place] == approx((up - down) / 2e-6, abs=1e-8)


def test_learner_reaches_the_regularised_optimum():
    objective = Objective(np.array([[1.0, 0, 0.5, 0.2]]), np.array([0.5]), np.log([0.4, 0.3, 0.2, 0.1]))
    assert_allclose(train_exact(Tree(2, 2), objective, 1.0, 2000), objective.optimum(), atol=1e-9)


def test_leaves_are_numbered_first_token_first():
    tree = Tree(4, 4)
    logits = tree.start(1)
    for depth, token in enumerate([0, 0, 1, 1]):  # 5 in base 4
        logits[depth][..., token] = 50
    assert np.exp(tree.log_leaves(logits))[0].argmax() == 5


def test_draws_follow_the_policy():
    p = np.array([[0.1, 0.0, 0.9], [1.0, 0, 0]])
    drawn = sample(p, 20_000, np.random.default_rng(0))
    assert (drawn[0] == 2).mean() == approx(0.9, abs=0.01) and (drawn != 1).all() and (drawn[1] == 0).all()


def test_the_verdict_can_be_refuted():
    fine = [Cell(0.0, e, 0.666, 2 / 3, 1.0, 1.0) for e in (0.001, 0.1)] + [Cell(0.1, 0.1, 0.24, 0.24, 0.245, 1.0)]
    arm, noise = [Cell(0.0, 0.01, 0.997, 1.0, 1.0, 1.0)], Control(0.66, 0.66, 0.1, 0.66)
    assert verdict(arm, fine, noise) == "reproduced"
    shrinking = [Cell(0.0, 0.001, 0.1, 2 / 3, 1.0, 1.0), *fine[1:]]
    assert verdict(arm, shrinking, noise) == "refuted"
    assert verdict(arm, [*fine, Cell(0.1, 0.01, 0.02, 0.03, 0.025, 1.0)], noise) == "refuted"
    assert verdict(arm, fine, Control(0.1, 0.1, 0.1, 0.1)) == "not reproduced"


def test_the_claim_names_what_would_refute_it():
    assert CLAIM.slug == "policy-cliff" and "exceeds its bound" in CLAIM.refuted_if
