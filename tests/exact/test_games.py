import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pytest import approx

from surefoot.errors import InputError
from surefoot.exact.divergence import KL
from surefoot.exact.games import (
    MarkovGame,
    exploitability,
    markov_exploitability,
    nash,
    preference_nash,
    preference_payoff,
    quantal_response,
    shapley,
)
from surefoot.exact.generators import random_mdp
from surefoot.exact.mdp import value_iteration

ROCK = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])


def random_game(seed, m=4, n=5):
    return np.random.default_rng(seed).normal(size=(m, n))


def test_known_games():
    found = nash(ROCK)
    assert_allclose(found.x, 1 / 3, atol=1e-9)
    assert_allclose(found.y, 1 / 3, atol=1e-9)
    assert found.value == approx(0, abs=1e-12)
    # Osborne's 2 x 2: no saddle point in pure strategies; value (ad - bc) / (a + d - b - c).
    found = nash(np.array([[3.0, -1], [-2, 1]]))
    assert found.value == approx(1 / 7) and found.x[0] == approx(3 / 7) and found.y[0] == approx(2 / 7)
    assert nash(np.array([[5.0]])).value == 5


@pytest.mark.parametrize("seed", range(10))
def test_nash_has_no_exploitability_and_the_value_of_both_programs(seed):
    A = random_game(seed)
    found, turned = nash(A), nash(-A.T)
    assert exploitability(A, found.x, found.y) == approx(0, abs=1e-9)
    assert found.value == approx(found.x @ A @ found.y) == approx(-turned.value)
    assert found.x.sum() == approx(1) and (found.x >= 0).all() and (found.y >= 0).all()
    uniform = exploitability(A, np.full(4, 0.25), np.full(5, 0.2))
    pure = max((np.eye(4)[i] @ A @ np.full(5, 0.2)) for i in range(4)) - min(np.full(4, 0.25) @ A)
    assert uniform == approx(pure) and uniform > 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [0.003, 0.05, 0.5, 20.0])
@pytest.mark.parametrize("with_reference", [False, True])
def test_quantal_response_is_a_saddle_point(seed, alpha, with_reference):
    A, rng = random_game(seed), np.random.default_rng(seed + 50)
    ref_x, ref_y = (rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(5))) if with_reference else (None, None)
    found = quantal_response(A, alpha, ref_x, ref_y)
    wx = np.ones(4) if ref_x is None else ref_x
    wy = np.ones(5) if ref_y is None else ref_y

    def game(x, y):
        def cost(p, w):
            return (p * np.log(np.where(p > 0, p / w, 1.0))).sum()

        return x @ A @ y - alpha * cost(x, wx) + alpha * cost(y, wy)

    assert found.value == approx(game(found.x, found.y), abs=1e-9)
    z = np.log(wx) + A @ found.y / alpha
    assert_allclose(found.x, np.exp(z - z.max()) / np.exp(z - z.max()).sum(), atol=1e-9)
    z = np.log(wy) - found.x @ A / alpha
    assert_allclose(found.y, np.exp(z - z.max()) / np.exp(z - z.max()).sum(), atol=1e-8)
    for _ in range(50):
        assert game(rng.dirichlet(np.ones(4)), found.y) <= found.value + 1e-9
        assert game(found.x, rng.dirichlet(np.ones(5))) >= found.value - 1e-9


def test_quantal_responses_run_from_the_reference_to_nash():
    A, reference = random_game(0), np.array([0.1, 0.2, 0.3, 0.4])
    far = quantal_response(A, 1e5, reference)
    assert_allclose(far.x, reference, atol=1e-4)
    gaps = []
    for alpha in (1.0, 0.1, 0.01, 0.001):
        near = quantal_response(A, alpha)
        gaps.append(exploitability(A, near.x, near.y))
        assert gaps[-1] <= alpha * (np.log(4) + np.log(5))
    assert gaps[-1] < 1e-2 and (np.diff(gaps) < 0).all()


def test_a_strategy_outside_the_reference_is_never_played():
    found = quantal_response(ROCK, 0.1, np.array([0.5, 0.5, 0]), np.array([1, 0, 0.0]))
    assert found.x[2] == 0 and found.y.tolist() == [1, 0, 0]
    assert found.x[1] > found.x[0]


# Preferences


CYCLE = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])


def test_a_cycle_of_preferences_has_a_mixed_nash():
    policy = preference_nash(CYCLE)
    assert (policy @ CYCLE >= 0.5 - 1e-9).all() and (policy > 0).all()
    # Of an antisymmetric 3 x 3 game: shares proportional to the opposite margins.
    assert_allclose(policy, np.array([0.2, 0.3, 0.4]) / 0.9, atol=1e-9)


def test_a_transitive_preference_has_its_winner():
    r = np.array([1.0, 0.2, -0.5])
    P = 1 / (1 + np.exp(r[None] - r[:, None]))
    assert_allclose(preference_nash(P), [1, 0, 0], atol=1e-9)


@pytest.mark.parametrize("beta", [0.02, 0.2, 2.0])
def test_the_regularised_nash_is_its_own_best_response(beta):
    """arXiv 2312.00886: pi = ref exp(P pi / beta) / Z, and no policy does better against it."""
    reference = np.array([0.6, 0.3, 0.1])
    policy = preference_nash(CYCLE, beta, reference)
    weights = reference * np.exp(CYCLE @ policy / beta)
    assert_allclose(policy, weights / weights.sum(), atol=1e-10)
    rng = np.random.default_rng(0)
    own = 0.5 - beta * KL(policy, reference)
    for other in rng.dirichlet(np.ones(3), 200):
        assert other @ CYCLE @ policy - beta * KL(other, reference) <= own + 1e-10


@pytest.mark.parametrize(
    ("P", "message"),
    [(np.ones((2, 2)), "is not 1"), (np.ones((2, 3)) / 2, "square"), (np.array([[0.5, 2], [-1, 0.5]]), "chances")],
)
def test_what_is_no_preference(P, message):
    with pytest.raises(InputError, match=message):
        preference_payoff(P)


# Markov games


def random_markov_game(seed, states=3, gamma=0.8):
    rng = np.random.default_rng(seed)
    return MarkovGame(
        rng.dirichlet(np.ones(states), (states, 2, 3)),
        rng.normal(size=(states, 2, 3)),
        gamma,
        np.full(states, 1 / states),
    )


@pytest.mark.parametrize("seed", range(3))
def test_shapley_is_not_exploitable(seed):
    game = random_markov_game(seed)
    found = shapley(game, 1e-9)
    assert markov_exploitability(game, found.x, found.y) == approx(0, abs=1e-7)
    assert_allclose(value_iteration(game.against(found.y), 1e-12).V, found.V, atol=1e-8)
    uniform = markov_exploitability(game, np.full((3, 2), 1 / 2), np.full((3, 3), 1 / 3))
    assert uniform > 0.01


def test_shapley_lies_between_the_best_of_every_pure_strategy():
    game = random_markov_game(5)
    found = shapley(game)
    pure_rows = [np.eye(2)[list(c)] for c in itertools.product(range(2), repeat=3)]
    pure_columns = [np.eye(3)[list(c)] for c in itertools.product(range(3), repeat=3)]
    lower = max(-(game.mu @ value_iteration(game.turned().against(x)).V) for x in pure_rows)
    upper = min(game.mu @ value_iteration(game.against(y)).V for y in pure_columns)
    assert lower - 1e-8 <= game.mu @ found.V <= upper + 1e-8 and lower < upper


def test_one_state_is_the_matrix_game_and_one_column_is_the_mdp():
    game = MarkovGame(np.ones((1, 3, 3, 1)), ROCK[None] + 1, 0.9, np.ones(1))
    found = shapley(game, 1e-8)
    assert found.V[0] == approx(10) and found.x[0] == approx(1 / 3)
    mdp = random_mdp(4, 3, 0)
    alone = MarkovGame(mdp.P[:, :, None], mdp.R[:, :, None], 0.9, mdp.mu)
    assert_allclose(shapley(alone, 1e-9).V, value_iteration(mdp, 1e-12).V, atol=1e-8)


def test_soft_markov_game():
    mdp = random_mdp(4, 3, 0)
    from surefoot.exact.mdp import soft_value_iteration

    alone = MarkovGame(mdp.P[:, :, None], mdp.R[:, :, None], 0.9, mdp.mu)
    soft = soft_value_iteration(mdp, 0.3, tol=1e-12)
    found = shapley(alone, 1e-9, alpha=0.3)
    assert_allclose(found.V, soft.V, atol=1e-8)
    assert_allclose(found.x, soft.policy, atol=1e-7)


def test_what_cannot_be_asked():
    with pytest.raises(InputError, match="alpha 0"):
        quantal_response(ROCK, 0)
    with pytest.raises(InputError, match="finite"):
        nash(np.array([[np.nan]]))
    with pytest.raises(InputError, match="gamma 1"):
        random_markov_game(0, gamma=1.0)
