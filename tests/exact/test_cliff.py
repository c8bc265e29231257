from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pytest import approx
from scipy import sparse

from surefoot.errors import InputError
from surefoot.exact import cliff
from surefoot.exact.mdp import MDP
from surefoot.stability.tables import gridworld


def random_mdp(seed, states=5, actions=4, gamma=0.9):
    rng = np.random.default_rng(seed)
    return MDP(
        rng.dirichlet(np.ones(states), (states, actions)),
        rng.normal(size=(states, actions)),
        gamma,
        np.full(states, 1 / states),
    )


def arms(*reward):
    return MDP(np.ones((1, len(reward), 1)), np.array([reward], float), 0.0, np.ones(1))


def value_iteration(mdp, alpha=0.0, reference=None, steps=3000):
    """The plain twin of `solve`."""
    q, ref = np.zeros(mdp.R.shape), 1.0 if reference is None else reference
    for _ in range(steps):
        v = q.max(1) if alpha == 0 else alpha * np.log((ref * np.exp((q - q.max()) / alpha)).sum(1)) + q.max()
        q = mdp.R + mdp.gamma * mdp.P @ v
    return q


@pytest.mark.parametrize("alpha", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("with_reference", [False, True])
def test_policy_iteration_agrees_with_value_iteration(alpha, with_reference):
    mdp = random_mdp(0)
    reference = np.random.default_rng(1).dirichlet(np.ones(4), 5) if with_reference else None
    assert_allclose(cliff.solve(mdp, alpha, reference), value_iteration(mdp, alpha, reference), atol=1e-12)


def test_sparse_and_dense_agree():
    mdp = random_mdp(0)
    rows = replace(mdp, P=sparse.csr_matrix(mdp.P.reshape(20, 5)))
    assert_allclose(cliff.solve(rows), cliff.solve(mdp), atol=1e-13)
    assert cliff.analyse(rows).edge.distance == approx(cliff.analyse(mdp).edge.distance, abs=1e-13)


def test_a_tie_has_no_distance_and_a_height():
    found = cliff.analyse(arms(1, 1, 1, 0))
    assert list(found.optimal[0]) == [True, True, True, False]
    assert found.ties[0] == 3 and found.height[0] == approx(2 / 3) and found.gap[0] == 1
    assert found.edge.distance == 0 and found.certified == 0 and found.contained == approx(0.5)


def test_without_a_tie_the_distance_of_arms_is_half_the_gap():
    found = cliff.analyse(arms(1, 0.7, 0))
    assert found.edge.distance == approx(0.15) and found.certified == approx(0.15) and found.witness == approx(0.15)
    assert_allclose(found.edge.direction, [[-1, 1, 0]])


def test_nothing_to_choose():
    assert cliff.analyse(arms(1)).edge is None
    assert np.isinf(cliff.analyse(arms(1)).contained)


@pytest.mark.parametrize("seed", range(10))
def test_the_first_edge_is_the_nearest_of_all(seed):
    mdp = random_mdp(seed)
    q = cliff.solve(mdp)
    policy, every = q.argmax(1), []
    for s in range(5):
        for a in set(range(4)) - {policy[s]}:
            c = cliff.gap_gradient(mdp, policy, s, a)
            assert (c * mdp.R).sum() == approx(q[s].max() - q[s, a], abs=1e-10)
            assert np.abs(c).sum() <= 2 / (1 - mdp.gamma) + 1e-9
            every.append((q[s].max() - q[s, a]) / np.abs(c).sum())
    assert cliff.analyse(mdp).edge.distance == approx(min(every), rel=1e-12)


def test_only_reachable_states_count():
    transitions = np.zeros((3, 2, 3))
    transitions[0, :, 1] = transitions[1, :, 1] = transitions[2, :, 0] = 1
    mdp = MDP(transitions, np.array([[1, 0.0], [1, 0], [1, 1]]), 0.5, np.array([1.0, 0, 0]))
    found = cliff.analyse(mdp)
    assert list(found.decisions) == [True, True, False] and found.ties[2] == 2
    assert found.edge.distance > 0 and found.certified > 0


def test_no_small_change_lets_a_new_action_into_a_tie():
    rng, mdp = np.random.default_rng(0), arms(1, 1, 0.5)
    found = cliff.analyse(mdp)
    for _ in range(300):
        moved = replace(mdp, R=mdp.R + rng.choice([-1, 1], (1, 3)) * found.contained * 0.999)
        assert not (cliff.analyse(moved).optimal & ~found.optimal).any()


def test_the_effective_reward():
    rewards = np.random.default_rng(0).normal(size=(3, 5, 4))
    flat = cliff.effective_reward(rewards, [0.2, 0.3, 0.5])
    by_state = cliff.effective_reward(rewards, np.tile([[0.2], [0.3], [0.5]], 5))
    assert_allclose(flat, 0.2 * rewards[0] + 0.3 * rewards[1] + 0.5 * rewards[2])
    assert_allclose(by_state, flat)
    changed = rewards + np.random.default_rng(1).uniform(-0.1, 0.1, rewards.shape)
    moved = np.abs(cliff.effective_reward(changed, [0.2, 0.3, 0.5]) - flat).max()
    assert moved <= np.abs(changed - rewards).max()


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.5, 0.2, 0.2], [1.5, -0.5, 0]])
def test_bad_weights(weights):
    with pytest.raises(InputError, match="weights"):
        cliff.effective_reward(np.zeros((3, 5, 4)), weights)


def test_prompt_weights_make_the_objective_one_reward():
    rng = np.random.default_rng(0)
    share, prompts, rewards = np.array([0.4, 1.2]), rng.dirichlet(np.ones(3), 2), rng.normal(size=(2, 3, 4))
    policy = rng.dirichlet(np.ones(4), 3)
    apart = sum(share[k] * prompts[k] @ (policy * rewards[k]).sum(1) for k in range(2))
    start = share @ prompts / share.sum()
    joined = cliff.effective_reward(rewards, cliff.prompt_weights(share, prompts))
    assert share.sum() * start @ (policy * joined).sum(1) == approx(apart)


def test_bounds_hold_between_random_rewards():
    rng = np.random.default_rng(0)
    for seed in range(20):
        mdp, alpha = random_mdp(seed), rng.uniform(0.1, 1)
        other = replace(mdp, R=mdp.R + rng.uniform(-0.1, 0.1, mdp.R.shape))
        q, r = cliff.solve(mdp, alpha), cliff.solve(other, alpha)
        tv = cliff.total_variation(cliff.soft_policy(q, alpha), cliff.soft_policy(r, alpha))
        sharp = cliff.tanh_bound(np.ptp(r - q, axis=1), alpha)
        assert (tv <= sharp + 1e-12).all()
        assert sharp.max() <= cliff.linear_bound(np.abs(other.R - mdp.R).max(), alpha, mdp.gamma)
        assert (np.abs(r - q) <= 0.1 / (1 - mdp.gamma)).all()


def test_the_slope_is_never_above_its_bounds_and_the_price_never_above_its_own():
    mdp = random_mdp(3)
    edge = cliff.analyse(mdp).edge
    for row in cliff.stability(mdp, edge, 0.01, [0.0, 0.02, 0.1, 0.5]):
        assert row.tv <= row.sharp + 1e-9 and row.sharp <= row.certified + 1e-9 and row.certified <= row.linear
        assert -1e-12 <= row.price <= row.price_bound + 1e-12
        if row.alpha == 0:
            assert row.tv == (edge.distance < 0.01) and row.price == approx(0, abs=1e-12)


@pytest.mark.parametrize("mdp", [arms(1, 1, 0), arms(1, 0.9, 0.2), random_mdp(1)], ids=["tie", "arms", "mdp"])
def test_the_stabiliser_gives_what_was_asked(mdp):
    found = cliff.analyse(mdp)
    asked = cliff.stabilise(mdp, found.edge, tv=0.1, eps=0.01)
    full, least, less = cliff.stability(mdp, found.edge, 0.01, [asked.alpha, asked.at_edge, 0.98 * asked.at_edge])
    assert full.certified == approx(0.1) and full.tv <= 0.1 and full.price == approx(asked.price)
    assert least.tv <= 0.1 and (less.tv > 0.1 or asked.at_edge == 0)
    assert asked.at_edge <= asked.alpha and asked.price_at_edge <= asked.price + 1e-12
    assert asked.greedy == (found.edge.distance > 0.01)


def test_two_equal_arms_need_all_that_is_certified():
    mdp = arms(0, 0)
    asked = cliff.stabilise(mdp, cliff.analyse(mdp).edge, tv=0.05, eps=0.01)
    assert asked.at_edge == approx(asked.alpha, rel=2e-4) == approx(0.099917, rel=2e-4)
    assert asked.price == approx(0, abs=1e-15)


@pytest.mark.parametrize(("tv", "eps"), [(0, 0.1), (1.2, 0.1), (0.1, -1)])
def test_what_cannot_be_asked(tv, eps):
    with pytest.raises(InputError):
        cliff.enough(tv, eps)
    with pytest.raises(InputError, match="tolerance"):
        cliff.analyse(arms(1, 0), tie_tol=-1)


def test_price_of_a_reference_on_sequences():
    base, reward, beta = np.array([0.5, 0.3, 0.15, 0.05]), np.array([1.0, 0.2, 1.0, 0.9]), 0.3
    price = reward.max() - cliff.sequence_optimum(reward, beta, base) @ reward
    assert 0 < price <= cliff.price_bound_reference(base, reward, beta)


def test_a_large_sparse_chain_is_quick():
    n = 20_000
    right = np.minimum(np.arange(n) + 1, n - 1)
    left = np.maximum(np.arange(n) - 1, 0)
    rows = sparse.csr_matrix((np.ones(2 * n), np.stack([right, left], 1).ravel(), np.arange(2 * n + 1)), (2 * n, n))
    reward = np.zeros((n, 2))
    reward[-1] = 1
    mdp = MDP(rows, reward, 0.9, np.eye(1, n)[0])
    q = cliff.solve(mdp)
    assert q[-1, 0] == approx(10) and q[-2, 0] == approx(9)


def test_an_end_holds_no_decision():
    transitions = np.zeros((2, 2, 2))
    transitions[:, :, 1] = 1
    mdp = MDP(transitions, np.array([[1, 0.0], [0, 0]]), 0.9, np.array([1.0, 0]))
    assert list(cliff.analyse(mdp).decisions) == [True, False] and cliff.analyse(mdp).edge.distance > 0
    assert list(cliff.analyse(replace(mdp, R=np.array([[1, 0.0], [1, 1]]))).decisions) == [True, True]


def test_the_edge_of_a_grid_is_where_two_actions_draw_level():
    """Ends are tied in all their actions; were their reward moved too, the distance would be wrong."""
    mdp = gridworld().mdp
    edge = cliff.analyse(mdp).edge
    q = cliff.solve(replace(mdp, R=mdp.R + edge.distance * edge.direction))[edge.state]
    assert q[edge.action] == approx(q[edge.rival], abs=1e-10) == approx(q.max(), abs=1e-10)
    assert (edge.direction[-1] == 0).all()
