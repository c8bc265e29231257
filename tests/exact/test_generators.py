import numpy as np
import pytest
from numpy.testing import assert_allclose
from pytest import approx
from scipy import sparse

from surefoot.errors import InputError
from surefoot.exact import generators as g
from surefoot.exact.bench import solver_times
from surefoot.exact.mdp import optimal_actions, policy_iteration, value_iteration


def test_chain_has_its_closed_form():
    found = value_iteration(g.chain(8, 0.9, 2.0), 1e-12)
    assert_allclose(found.V, 2 * 0.9 ** np.arange(7, -1, -1) / 0.1, atol=1e-10)
    assert (found.policy[:, 1] == 1).all()


def test_lock():
    assert value_iteration(g.lock(5)).V.tolist() == [1, 1, 1, 1, 1, 0]
    assert value_iteration(g.lock(5, gamma=0.5)).V[0] == approx(1 / 16)
    assert value_iteration(g.lock(5, 3, 0.5, gamma=0.5)).policy[0].argmax() == 1


def test_a_grid_drawn_as_text():
    mdp = g.gridworld(["S#G", "...", "X.."], gamma=0.9)
    V = value_iteration(mdp, 1e-12).V
    assert mdp.states == 7 and mdp.P.shape == (28, 7)
    # Down, right, right, up into the exit: three steps, then the fourth pays.
    assert V[0] == approx(0.9**3) and V[-1] == 0
    assert mdp.R[1, 2] == -1 and mdp.R.sum() == 1 - 1 - 1  # above X, left of X; below G
    assert mdp.ends().tolist() == [False] * 6 + [True]


def test_slipping_mixes_the_sides():
    sure, slippery = g.gridworld(["...", ".S.", "..G"]), g.gridworld(["...", ".S.", "..G"], slip=0.2)
    P = slippery.P.toarray().reshape(9, 4, 9)
    assert P[4, 0, 1] == approx(0.8) and P[4, 0, 3] == approx(0.1) and P[4, 0, 5] == approx(0.1)
    assert slippery.R[5, 1] == approx(0.1) and slippery.R[5, 2] == approx(0.8)
    assert sure.R[5, 1] == 0 and sure.R[5, 2] == 1


def test_bumping_is_a_step_and_not_an_entry():
    mdp = g.gridworld(["S.G"], enter={"S": 5.0, "G": 1.0}, step=-0.1)
    assert mdp.R[0].tolist() == [-0.1, -0.1, -0.1, -0.1]
    assert mdp.R[1, 3] == approx(4.9) and mdp.R[1, 1] == approx(0.9)


def test_cliff_walk_of_sutton_and_barto():
    mdp = g.cliff_walk()
    found = value_iteration(mdp)
    assert mdp.states == 38 and found.V @ mdp.mu == -13
    assert mdp.R[36].tolist() == [-1, -100, -1, -1]
    path, state = [], 36
    while state != 37:
        action = found.policy[state].argmax()
        path.append(action)
        state = mdp.P[state * 4 + action].indices[0]
    assert path == [0] + [1] * 11 + [2]


def test_river_swim_swims():
    mdp = g.river_swim()
    assert optimal_actions(value_iteration(mdp).Q).tolist() == [[False, True]] * 6
    hasty = value_iteration(g.river_swim(gamma=0.5))
    assert hasty.policy[0, 0] == 1


@pytest.mark.parametrize(("states", "branching"), [(50, 5), (6, 6), (7, 1), (3, 2)])
def test_garnet_has_distinct_next_states(states, branching):
    mdp = g.garnet(states, 3, branching, seed=4)
    P = mdp.P.toarray()
    assert ((P > 0).sum(1) == branching).all() and mdp.P.nnz == states * 3 * branching
    assert_allclose(P.sum(1), 1)
    again, other = g.garnet(states, 3, branching, seed=4), g.garnet(states, 3, branching, seed=5)
    assert abs(mdp.P - again.P).nnz == 0 and (mdp.R == again.R).all() and abs(mdp.P - other.P).nnz > 0


def test_every_next_state_of_a_garnet_is_as_likely():
    P = g.garnet(10, 2000, 4, seed=0).P
    share = np.bincount(P.indices, minlength=10) / P.nnz
    assert_allclose(share, 0.1, atol=0.004)


def test_random_mdps_are_fixed_by_their_seed():
    assert (g.random_mdp(4, 3, 1).P == g.random_mdp(4, 3, 1).P).all()
    assert (g.random_mdp(4, 3, 1).P != g.random_mdp(4, 3, 2).P).any()
    assert not sparse.issparse(g.random_mdp(4, 3).P) and sparse.issparse(g.open_grid(4, 4).P)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: g.gridworld(["S.", "."]), "rectangle"),
        (lambda: g.gridworld(["..G"]), "0 starts"),
        (lambda: g.garnet(3, branching=4), "branching 4"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_solver_times_are_records_of_solves():
    records = list(solver_times([100, 400]))
    solvers = len({r.solver for r in records})
    assert solvers >= 2 and [(r.world, r.states) for r in records[::solvers]] == [
        ("garnet", 100),
        ("grid", 100),
        ("garnet", 400),
        ("grid", 400),
    ]
    for r in records:
        assert r.actions == 4 and r.seconds > 0 and r.iterations > 0 and r.error <= 1e-8
    by_size = {(r.world, r.states): r.iterations for r in records if r.solver == "value iteration"}
    assert by_size["grid", 400] > by_size["grid", 100]


def test_large_worlds_agree_between_solvers():
    for mdp in (g.garnet(5_000, seed=2), g.open_grid(60, 60)):
        assert_allclose(policy_iteration(mdp).V, value_iteration(mdp, 1e-10).V, atol=2e-10)
