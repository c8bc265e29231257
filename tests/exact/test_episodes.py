import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from surefoot.exact.episodes import Counts, draw, empirical, episodes
from surefoot.exact.generators import lock, random_mdp
from surefoot.exact.mdp import backward_induction, evaluate_finite, finite_horizon, occupancy_finite


def problem(horizon=3, seed=0):
    return finite_horizon(random_mdp(4, 3, seed, gamma=1.0), horizon)


def uniform(p):
    return np.full((p.horizon, len(p.mu), p.stages[0].actions), 1 / p.stages[0].actions)


def test_what_has_no_chance_is_never_drawn():
    drawn = draw(np.tile([0, 0.5, 0, 0.5, 0], (20_000, 1)), np.random.default_rng(0))
    assert set(drawn) == {1, 3} and abs((drawn == 1).mean() - 0.5) < 0.02


def test_visits_and_returns_are_those_of_the_exact_policy():
    p = problem()
    n = 40_000
    seen = episodes(p, uniform(p), n, np.random.default_rng(1))
    share = np.stack([np.bincount(seen.states[:, t], minlength=4) / n for t in range(3)])
    assert_allclose(share, occupancy_finite(p, uniform(p)), atol=0.015)
    exact = p.mu @ evaluate_finite(p, uniform(p))[0][0]
    G = seen.returns_to_go()[:, 0]
    assert abs(G.mean() - exact) < 4 * G.std() / np.sqrt(n)


def test_returns_to_go_by_hand():
    p = finite_horizon(lock(3, 2), 3)
    right = np.tile([1.0, 0.0], (3, 4, 1))
    seen = episodes(p, right, 2, np.random.default_rng(0))
    assert_array_equal(seen.states, [[0, 1, 2, 3]] * 2)
    assert_allclose(seen.returns_to_go(0.5), [[0.25, 0.5, 1.0]] * 2)


def test_counts_add_up_and_leave_out_earlier_steps():
    p = problem()
    seen = episodes(p, uniform(p), 500, np.random.default_rng(2))
    late = Counts.none(3, 4, 3).add(seen, since=1)
    assert late.pairs[0].sum() == 0 and late.pairs[1].sum() == late.pairs[2].sum() == 500
    both = late.add(seen)
    assert_allclose(both.visits[1:], 2 * late.visits[1:])
    s, a = seen.states[0, 1], seen.actions[0, 1]
    here = (seen.states[:, 1] == s) & (seen.actions[:, 1] == a)
    assert_allclose(late.earned[1, s, a], seen.rewards[here, 1:].sum())
    assert_allclose(late.paid[1, s, a], seen.rewards[here, 1].sum())


def test_empirical_model_of_every_transition_is_the_model():
    p = problem()
    weights = 1000 * np.stack([m.P for m in p.stages])
    R = np.stack([m.R for m in p.stages])
    counts = Counts(weights, weights.sum(-1) * R, np.zeros_like(R))
    assert_allclose(backward_induction(empirical(counts, p.mu))[0][:, :4], backward_induction(p)[0], atol=1e-12)


def test_what_was_never_seen_is_worth_nothing():
    model = empirical(Counts.none(2, 3, 2), np.eye(3)[0])
    assert_array_equal(backward_induction(model)[1], 0)
