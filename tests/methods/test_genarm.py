"""GenARM: the card's decoding numbers, the exact token tree, the training gradient, and its claim."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from surefoot import methods
from surefoot.claims.genarm import at_levels, best_of, brackets, prefix_rewards, product_of, tree
from surefoot.exact.operators import softmax
from surefoot.exact.tree import TokenTree
from surefoot.rollouts import Rollouts
from surefoot.search.guided import mixed

PROBABILITIES = ((0.5, 0.3, 0.2), (0.2, 0.7, 0.1), (0.6, 0.1, 0.3))
BASE, ARM, SECOND = (torch.tensor(p, dtype=torch.float64).log() for p in PROBABILITIES)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (0, (0.5, 0.3, 0.2)),
        (0.5, (0.4157, 0.4667, 0.1176)),
        (1, (0.3030, 0.6364, 0.0606)),
        (2, (0.1183, 0.8698, 0.0118)),
    ],
)
def test_worked_products(weight, expected):
    assert_allclose(mixed([BASE, ARM], [1, weight]).exp(), expected, atol=5e-5)


def test_two_guides_and_the_usual_bug_of_temperature():
    assert_allclose(mixed([BASE, ARM, SECOND], [1, 1, 0.5]).exp(), (0.5003, 0.4289, 0.0708), atol=5e-5)
    normalised = mixed([BASE, ARM], [0.5, 0.5]).exp()  # weights over their sum: not the product
    assert_allclose(normalised, (0.3453, 0.5003, 0.1544), atol=5e-5)
    assert_allclose((mixed([BASE, ARM], [0.5, 0.5]) / 0.5).softmax(-1), mixed([BASE, ARM], [1, 1]).exp())


def test_what_does_not_matter_to_the_product():
    raw = 3 + ARM
    torch.testing.assert_close(mixed([BASE - 7, raw], [1, 1.5]), mixed([BASE, ARM], [1, 1.5]))
    scaled = mixed([BASE, 4 * ARM], [1, 0.25])
    torch.testing.assert_close(scaled, mixed([BASE, ARM], [1, 1.0]))
    torch.testing.assert_close(mixed([BASE, torch.zeros(3).double()], [1, 5.0]), BASE)
    closed = torch.tensor([0.0, -torch.inf, 0.0]).double()
    torch.testing.assert_close(mixed([BASE, closed], [1, 0.0]), BASE)
    assert mixed([BASE, closed], [1, 1.0])[1] == -torch.inf


def _two_tokens():
    first, second = np.array([0.5, 0.3, 0.2]), np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]])
    r = np.array([[1, 0, 0.5], [0, 1.5, 0], [0.5, 0, 2]])
    return TokenTree(3, 2, r.ravel(), (first[:, None] * second).ravel())


def test_soft_values_decode_the_optimum_exactly_and_a_sequence_matching_model_does_not():
    t, beta = _two_tokens(), 0.5
    optimum = t.optimum(beta)
    base = np.log(t.node_policy(t.reference))
    assert_allclose(optimum.reshape(3, 3).sum(1), [0.244007, 0.308376, 0.447618], atol=1e-6)
    soft = t.soft_values(beta)[1]  # logits of pi_r, beta_r = 1
    assert np.abs(np.exp(t.log_leaves(product_of(base, soft, 1 / beta))) - optimum).sum() / 2 < 1e-12
    matching = t.node_policy(softmax(t.leaf_reward))
    assert_allclose(matching[0], [0.245220, 0.296151, 0.458629], atol=1e-6)
    decoded = np.exp(t.log_leaves(product_of(base, np.log(matching), 1 / beta)))
    assert_allclose(decoded.reshape(3, 3).sum(1), [0.305410, 0.267268, 0.427322], atol=1e-6)
    assert np.abs(decoded - optimum).sum() / 2 == pytest.approx(0.0614036, abs=1e-7)


def test_one_token_responses_are_exact():
    r = np.array([1.0, 0, 2.5])
    t = TokenTree(3, 1, np.log(softmax(r)), np.array([0.5, 0.3, 0.2]))
    arm = np.log(softmax(r))[None]
    assert_allclose(np.exp(product_of(np.log(t.reference)[None], arm, 2.0))[0], t.optimum(0.5))


def test_the_training_gradient():
    """-beta_r sigma(-d) (e_w - e_l) on logits: the softmax's normaliser cancels."""
    method = methods.find("genarm").check()
    assert method.surrogate.shape.beta == 0.05 and "ref_logp" not in method.readers()
    logits = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logp = logits.log_softmax(-1)
    rows = torch.tensor([2, 0])  # chosen, rejected
    columns = dict(logp=logp[rows][:, None], mask=torch.ones(2, 1, dtype=torch.bool), group=torch.zeros(2).long())
    loss = method.surrogate(Rollouts(columns | {"reward": torch.tensor([1.0, 0.0])})).mean()
    (grad,) = torch.autograd.grad(loss, logits)
    push = 0.05 * torch.sigmoid(-0.05 * (logits[2] - logits[0])).item()
    assert_allclose(grad, [push, 0, -push, 0], atol=1e-12)


def test_brackets_and_their_prefixes():
    assert [brackets(s) for s in ((0, 1), (1, 0), (2, 2), (0, 0, 1), (0, 2, 1, 0, 1))] == [4, 0, 4, 0, 4]
    table = prefix_rewards(brackets)
    t = tree(brackets, 0)
    assert table.shape == (t.nodes, 3)
    assert table[0].tolist() == [0, 0, 4] and table[1].tolist() == [0, 4, 0]  # after "(": only ")" balances
    assert_allclose(table[t.level(7)].ravel(), t.leaf_reward)


def test_best_of_n_is_a_law_and_its_mean():
    t = tree(brackets, 1)
    assert_allclose(best_of(t, 1), t.reference)
    law, p = best_of(t, 3), t.reference @ (t.leaf_reward > 0)
    assert law.sum() == pytest.approx(1) and law @ t.leaf_reward == pytest.approx(4 * (1 - (1 - p) ** 3))


def test_a_level_beyond_the_sweep_is_not_made_up():
    assert_allclose(at_levels([0, 0.2, 0.4], [1, 2, 3], [0.1, 0.5]), [1.5, np.nan])
