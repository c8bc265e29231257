import numpy as np
import pytest
from numpy.testing import assert_allclose
from pytest import approx

from surefoot.errors import InputError
from surefoot.exact.divergence import KL, TV
from surefoot.exact.generators import token_tree
from surefoot.exact.gradient import natural_policy_gradient, objective, policy_gradient
from surefoot.exact.mdp import occupancy, soft_value_iteration, value_iteration
from surefoot.exact.operators import Soft, softmax
from surefoot.exact.tree import TokenTree
from tests.exact.brute import finite_difference


def random_tree(vocab=3, depth=3, seed=0):
    rng = np.random.default_rng(seed)
    leaves = vocab**depth
    return TokenTree(vocab, depth, rng.normal(size=leaves), rng.dirichlet(np.ones(leaves)))


def random_logits(tree, seed=1):
    return np.random.default_rng(seed).normal(size=(tree.nodes, tree.vocab))


def test_leaves_are_numbered_first_token_first():
    tree = token_tree()
    assert tree.nodes == 85 and tree.leaves == 256
    assert tree.leaf((0, 0, 1, 1)) == 5 and tree.tokens(5) == (0, 0, 1, 1) and tree.tokens(201) == (3, 0, 2, 1)
    assert [tree.leaf(tree.tokens(i)) for i in range(256)] == list(range(256))
    assert np.flatnonzero(tree.leaf_reward).tolist() == [5, 100, 201]


def test_leaf_probabilities_are_products_along_the_path():
    tree = random_tree()
    policy = softmax(random_logits(tree))
    log_p = tree.log_leaves(random_logits(tree))
    for leaf in range(tree.leaves):
        node, p = 0, 1.0
        for token in tree.tokens(leaf):
            p *= policy[node, token]
            node = node * 3 + token + 1
        assert np.exp(log_p[leaf]) == approx(p)
    assert np.exp(log_p).sum() == approx(1)
    assert_allclose(tree.node_policy(np.exp(log_p)), policy, atol=1e-14)


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_the_optimum_token_by_token(beta):
    """kl-bayes (3), (4) and check 6: the same distribution, its value at the root beta log Z."""
    tree = random_tree()
    optimum = tree.optimum(beta)
    assert_allclose(optimum, (w := tree.reference * np.exp(tree.leaf_reward / beta)) / w.sum())
    assert_allclose(np.exp(tree.log_leaves(np.log(tree.soft_policy(beta)))), optimum, rtol=1e-11)
    V, Q = tree.soft_values(beta)
    assert V[0] == approx(beta * np.log(w.sum()))
    for seed in range(10):
        logits = random_logits(tree, seed)
        distance = KL(np.exp(tree.log_leaves(logits)), optimum)
        assert tree.objective(logits, beta) == approx(V[0] - beta * distance)


def test_the_tree_as_an_mdp():
    tree = random_tree()
    mdp, end = tree.as_mdp(), np.full((1, 3), 1 / 3)
    assert value_iteration(mdp).V[0] == approx(tree.leaf_reward.max())
    reference = np.vstack([tree.node_policy(tree.reference), end])
    found = soft_value_iteration(mdp, 0.3, reference)
    V, Q = tree.soft_values(0.3)
    assert_allclose(found.V[:-1], V, atol=1e-12)
    assert_allclose(found.Q[:-1], Q, atol=1e-12)
    assert_allclose(found.policy[:-1], tree.soft_policy(0.3), atol=1e-12)
    logits = np.vstack([random_logits(tree), np.zeros((1, 3))])
    visits = occupancy(mdp, softmax(logits))
    p = np.exp(tree.log_leaves(logits[:-1]))
    assert_allclose(visits[:-1], tree.node_sums(p).sum(1), atol=1e-14)
    under = Soft(0.3, reference)
    assert objective(mdp, logits, under) == approx(tree.objective(logits[:-1], 0.3))
    assert_allclose(policy_gradient(mdp, logits, under)[:-1], tree.gradient(logits[:-1], 0.3), atol=1e-13)
    assert_allclose(
        natural_policy_gradient(mdp, logits, under)[:-1], tree.natural_gradient(logits[:-1], 0.3), atol=1e-12
    )


def test_discounting_reaches_the_last_token_only():
    tree = token_tree(2, 3, correct=[0])
    assert value_iteration(tree.as_mdp(0.9)).V[0] == approx(0.81)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_gradient_against_finite_differences(beta):
    tree, logits = random_tree(), random_logits(random_tree())
    assert_allclose(
        tree.gradient(logits, beta), finite_difference(lambda z: tree.objective(z, beta), logits), atol=1e-8
    )


def test_one_natural_step_of_size_one_over_beta_lands_on_the_optimum_of_one_token():
    tree = TokenTree(4, 1, np.array([1, 0, 1, 1.0]), np.array([0.5, 0.3, 0.15, 0.05]))
    logits = random_logits(tree)
    assert_allclose(softmax(logits + tree.natural_gradient(logits, 0.5) / 0.5)[0], tree.optimum(0.5), atol=1e-14)


def test_a_leaf_without_reference_is_not_in_the_optimum():
    tree = TokenTree(2, 2, np.array([0, 5.0, 1, 0]), np.array([0.5, 0, 0.25, 0.25]))
    assert tree.optimum(0.1)[1] == 0 and tree.soft_policy(0.1)[1].tolist() == [1, 0]
    V, Q = tree.soft_values(0.1)
    assert np.isfinite(V).all()


def test_small_beta_keeps_the_reference_among_the_correct():
    """policy-cliff check 5: not uniform over the tie."""
    tree = TokenTree(4, 1, np.array([1, 0, 1, 1.0]), np.array([0.5, 0.3, 0.15, 0.05]))
    assert_allclose(tree.optimum(0.01), [0.714286, 0, 0.214286, 0.071429], atol=5e-7)
    assert_allclose(tree.optimum(1e6), tree.reference, atol=1e-6)


def ascend(tree, beta, steps=6000, size=2.0):
    logits = tree.zeros()
    for _ in range(steps):
        logits = logits + size * tree.gradient(logits, beta)
    return logits


def bonus_on_leaf_5(eps):
    tree = token_tree()
    return TokenTree(4, 4, tree.leaf_reward + eps * np.eye(256)[5])


@pytest.mark.parametrize(
    ("beta", "steps", "tv", "reward"),
    [(0.0, 6000, 0.667, 0.9994), (0.1, 6000, 0.0226, 0.994), (0.5, 600, 0.0005, 0.081)],
)
def test_claim_b_of_the_policy_cliff(beta, steps, tv, reward):
    """Exact gradient on the tree with three correct leaves, eps = .01 on one; fewer steps where they suffice."""
    plain, raised = (ascend(bonus_on_leaf_5(e), beta, steps) for e in (0.0, 0.01))
    tree = bonus_on_leaf_5(0.0)
    p, q = np.exp(tree.log_leaves(plain)), np.exp(tree.log_leaves(raised))
    assert TV(p, q) == approx(tv, abs=6e-4 if beta else 2e-3)
    assert p @ tree.leaf_reward == approx(reward, abs=6e-4)


@pytest.mark.parametrize(
    ("beta", "eps", "tv"),
    [
        (0.1, 0.001, 0.0022),
        (0.1, 0.01, 0.0225),
        (0.1, 0.1, 0.243),
        (0.5, 0.1, 0.0058),
        (0.02, 0.001, 0.0112),
        (0.02, 0.01, 0.119),
        (0.02, 0.1, 0.653),
    ],
)
def test_regularised_optima_of_claim_b(beta, eps, tv):
    moved = TV(bonus_on_leaf_5(0).optimum(beta), bonus_on_leaf_5(eps).optimum(beta))
    assert moved == approx(tv, abs=6e-4) and moved <= np.tanh(eps / (4 * beta))


def test_generated_trees():
    tree = token_tree(3, 3, correct=4, concentration=0.5, seed=7)
    assert tree.leaf_reward.sum() == 4 and tree.reference.sum() == approx(1) and tree.reference.min() > 0
    again = token_tree(3, 3, correct=4, concentration=0.5, seed=7)
    assert (tree.reference == again.reference).all() and (tree.leaf_reward == again.leaf_reward).all()
    assert (token_tree(3, 3, correct=4, concentration=0.5, seed=8).reference != tree.reference).any()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((2, 2, np.zeros(3)), "leaf_reward"),
        ((2, 2, np.zeros(4), np.ones(4)), "sums to 4"),
        ((2, 2, np.zeros(4), np.ones(2) / 2), "reference has shape"),
        ((2, 0, np.zeros(1)), "depth 0"),
    ],
)
def test_what_is_no_tree(args, message):
    with pytest.raises(InputError, match=message):
        TokenTree(*args)
