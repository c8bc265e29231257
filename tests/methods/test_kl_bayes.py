"""The card's exact checks (arXiv 2205.11275)."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from pytest import approx

from surefoot.claims.kl_bayes import Run, verdict, world
from surefoot.errors import InputError
from surefoot.exact import bandit
from surefoot.exact.divergence import KL
from surefoot.exact.operators import softmax
from surefoot.exact.tree import TokenTree
from surefoot.methods.theory.kl_bayes import (
    FORWARD_KL,
    KL_BAYES,
    ForwardKL,
    Target,
    effective_sample_size,
    forward_engine,
    forward_kl,
    importance,
    reverse_engine,
    reverse_kl,
    sample,
    score,
    train,
)
from surefoot.rollouts import Rollouts

PRIOR, REWARD, POLICY = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1, 2]), np.array([0.2, 0.3, 0.5])
GRADIENT = [-0.1408822, -0.0487669, 0.1896491]


def small(depth=2, seed=0):
    rng = np.random.default_rng(seed)
    tree = TokenTree(3, depth, rng.normal(size=3**depth), rng.dirichlet(np.ones(3**depth)))
    return tree, rng.normal(size=(tree.nodes, 3))


def test_1_the_objective_is_the_evidence_bound():
    target = Target.posterior(PRIOR, REWARD, 0.5)
    objective = POLICY @ REWARD - 0.5 * KL(POLICY, PRIOR)
    assert objective == approx(1.1625564, abs=1e-7) and 0.5 * target.log_z == approx(1.3063694, abs=1e-7)
    assert objective == approx(0.5 * target.log_z - 0.5 * target.reverse_kl(POLICY), abs=1e-12)
    assert_allclose(target.probabilities, [0.0366667, 0.1625594, 0.8007739], atol=1e-7)


def test_2_the_gradient_is_that_of_the_reverse_kl():
    target = Target.posterior(PRIOR, REWARD, 0.5)
    gap = np.log(POLICY / target.probabilities)
    assert_allclose(-0.5 * POLICY * (gap - POLICY @ gap), GRADIENT, atol=1e-7)
    row = [x[None] for x in (np.log(POLICY), REWARD)]
    assert_allclose(bandit.policy_gradient(*row, np.ones(1), 0.5, PRIOR[None])[0], GRADIENT, atol=1e-7)


def test_2_and_3_what_the_engines_expect():
    """Weights of every sequence in proportion to its chance: equation 7, and `pi* - pi`."""
    tree = TokenTree(3, 1, REWARD, PRIOR)
    counts = (POLICY * 10).round().astype(int)
    samples, logits = np.repeat(np.arange(3), counts), np.log(POLICY)[None]
    for engine, expected in (
        (reverse_engine(tree, 0.5), GRADIENT),
        (forward_engine(tree, 0.5), [-0.1633333, -0.1374406, 0.3007739]),
    ):
        weights = np.bincount(samples, engine(samples, np.log(POLICY)), 3)
        assert_allclose(score(tree, logits, weights)[0], expected, atol=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_sampled_gradient_is_the_exact_one(beta):
    tree, logits = small()
    log_p, engine = tree.log_leaves(logits), reverse_engine(tree, beta)
    samples = sample(log_p, 400_000, np.random.default_rng(0))
    found = score(tree, logits, np.bincount(samples, engine(samples, log_p), tree.leaves))
    assert_allclose(found, tree.gradient(logits, beta), atol=4e-3)
    assert np.abs(tree.gradient(logits, beta)).max() > 0.05


def test_4_the_ends_of_beta():
    tied = np.array([2.0, 1, 2])
    assert_allclose(Target.posterior(PRIOR, tied, 1e9).probabilities, PRIOR, atol=1e-8)
    assert_allclose(Target.posterior(PRIOR, tied, 1e-3).probabilities, [5 / 7, 0, 2 / 7], atol=1e-12)


def test_5_a_constant_reward_changes_nothing_but_the_objective():
    at, shifted = Target.posterior(PRIOR, REWARD, 0.5), Target.posterior(PRIOR, REWARD + 7, 0.5)
    assert_allclose(at.probabilities, shifted.probabilities, atol=1e-15)
    assert 0.5 * (shifted.log_z - at.log_z) == approx(7)
    tree, logits = small()
    moved = TokenTree(3, 2, tree.leaf_reward + 7, tree.reference)
    log_p = tree.log_leaves(logits)
    samples = sample(log_p, 64, np.random.default_rng(0))
    for engine in (reverse_engine, forward_engine):
        assert_allclose(engine(tree, 0.5)(samples, log_p), engine(moved, 0.5)(samples, log_p), atol=1e-13)


def test_6_token_kls_along_the_sampled_path_are_the_sequence_kl():
    tree, logits = small(3)
    log_p = tree.log_leaves(logits)
    p, own, reference = np.exp(log_p), softmax(logits), tree.node_policy(tree.reference)
    at_node = KL(own, reference)
    along = np.zeros(tree.leaves)
    ratios = np.zeros(tree.leaves)
    for leaf in range(tree.leaves):
        node = 0
        for token in tree.tokens(leaf):
            along[leaf] += at_node[node]
            ratios[leaf] += np.log(own[node, token] / reference[node, token])
            node = node * 3 + token + 1
    assert_allclose(ratios, log_p - np.log(tree.reference), atol=1e-12)
    assert p @ along == approx(KL(p, tree.reference))


def test_7_importance_weights_give_the_posteriors_mean():
    rng, errors = np.random.default_rng(0), {}
    exact = Target.posterior(PRIOR, REWARD, 0.5).probabilities @ REWARD
    for n in (100, 10_000):
        draws = REWARD[rng.choice(3, (400, n), p=PRIOR)]
        errors[n] = np.sqrt(np.mean([(importance(r, 0.5) @ r - exact) ** 2 for r in draws]))
    assert errors[100] / errors[10_000] == approx(10, rel=0.25)
    assert effective_sample_size(importance(np.ones(8), 0.1)) == approx(8)
    assert effective_sample_size(importance(np.array([0.0, 9, 0]), 0.01)) == approx(1)


def test_5_targets_that_are_no_posterior():
    allowed = Target.constrained(PRIOR, np.array([True, False, True])).probabilities
    assert_allclose(allowed, [5 / 7, 0, 2 / 7])
    features = np.array([[0.0, 1, 2], [1.0, 0, 0]])
    fitted = Target.with_moments(PRIOR, features, np.array([1.2, 0.3]))
    assert_allclose(features @ fitted.probabilities, [1.2, 0.3], atol=1e-6)
    mean = Target.with_moments(PRIOR, features[:1], np.array([1.2])).probabilities
    rival = 0.5 * mean + 0.5 * fitted.probabilities  # the same mean
    assert KL(mean, PRIOR) < KL(rival, PRIOR)
    with pytest.raises(InputError, match="can reach"):
        Target.with_moments(PRIOR, features[:1], np.array([2.5]))
    with pytest.raises(InputError, match="weight 0"):
        Target.constrained(np.array([0.0, 1.0]), np.array([True, False]))
    with pytest.raises(InputError, match="above 0"):
        Target.posterior(PRIOR, REWARD, 0.0)


def test_the_engines_by_hand():
    assert_allclose(reverse_kl(np.array([1.0, 3.0])), [-0.5, 0.5])
    assert_allclose(forward_kl(np.log([0.2, 0.6]), np.log([0.5, 0.5])), [0.25, 0.75])


def _batch(**more):
    """Two prompts with two samples each; what is masked holds nonsense."""
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]], dtype=torch.bool)
    old = torch.tensor([[-1.0, -1.0], [-2.0, torch.nan], [-1.0, -0.5], [-0.5, -0.5]])
    table = {"mask": mask, "group": torch.tensor([4, 4, 9, 9]), "reward": torch.tensor([1.0, 0.0, 2.0, 2.0])}
    table |= {"old_logp": old, "ref_logp": torch.full((4, 2), -1.0)}
    return Rollouts({**table, **more}, rewards={"accuracy": table["reward"]})


def test_the_reverse_composition_pays_u_and_takes_the_others_mean():
    batch = _batch()
    batch = batch.having(**KL_BAYES.set("reward.coef", 0.5).reward(batch))
    u = torch.tensor([1.0, 0.5, 1.75, 1.5])
    torch.testing.assert_close(batch.reward, u)
    credit = torch.tensor([[0.5, 0.5], [-0.5, 0.0], [0.25, 0.25], [-0.25, -0.25]])
    torch.testing.assert_close(KL_BAYES.advantage(batch), credit)


def test_the_forward_composition_weighs_by_the_posterior_within_the_prompt():
    weights = torch.tensor([[2.0, 1.0], [3.5, 3.0]]).softmax(1).flatten() * 2 - 1
    expected = weights[:, None] * _batch().mask
    torch.testing.assert_close(ForwardKL(0.5)(_batch()), expected)
    huge = ForwardKL(1e-4)(_batch())
    assert torch.isfinite(huge).all() and huge[0, 0] == 1 and huge[1, 0] == -1
    assert FORWARD_KL.check() and KL_BAYES.check()


def test_the_payoff_is_not_differentiated():
    live = torch.full((4, 2), -1.0, requires_grad=True)
    batch = _batch(logp=live)
    made = KL_BAYES.reward(batch)["reward"]
    assert not made.requires_grad and not ForwardKL()(batch).requires_grad


def test_either_engine_comes_near_a_small_posterior():
    tree, logits = small()
    target = Target.posterior(tree.reference, tree.leaf_reward, 0.5)
    start = target.reverse_kl(np.exp(tree.log_leaves(logits)))
    for make in (reverse_engine, forward_engine):
        found = train(tree, make(tree, 0.5), logits, 1500, 256, 0.5, np.random.default_rng(0))
        assert target.reverse_kl(np.exp(tree.log_leaves(found))) < 0.02 < start / 10


def test_the_claim_can_be_refuted():
    def runs(entropy, distance):
        free = Run(0.0, "reverse", 0, 4.0, entropy, 6.0, np.nan, np.nan)
        kept = Run(0.5, "reverse", 0, 3.0, 3.2, 1.7, distance, distance)
        return [free, kept, Run(0.1, "reverse", 0, 4.0, 0.4, 6.0, 4.0, 4.0)]

    assert verdict(runs(0.05, 0.07), 3) == "reproduced"
    assert verdict(runs(1.5, 0.07), 3) == "refuted" and verdict(runs(0.05, 0.3), 3) == "refuted"
    assert verdict(runs(0.05, 0.07), 2) == "not reproduced"
    tree, logits = world(0)
    assert_allclose(np.exp(tree.log_leaves(logits)), tree.reference, atol=1e-12)
