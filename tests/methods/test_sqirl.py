"""The card's exact checks (arXiv 2312.08369)."""

from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pytest import approx

from surefoot.claims.sqirl import Case, frozen_lake, needed, verdict
from surefoot.errors import InputError
from surefoot.exact.episodes import Counts, episodes
from surefoot.exact.generators import lock, random_mdp
from surefoot.exact.mdp import MDP, backward_induction, evaluate_finite, finite_horizon
from surefoot.methods.theory.sqirl import (
    Heads,
    Horizon,
    Tables,
    analyse,
    gap,
    iterates,
    random_policy,
    solves,
    sqirl,
    sticky,
)


def locked(L, A=2, consolation=0.0):
    return finite_horizon(lock(L, A, consolation), L)


def iterate(problem, k):
    each = iterates(problem, evaluate_finite(problem, random_policy(problem))[1])
    return [next(each) for _ in range(k)][-1]


def worth(problem, policy):
    return problem.mu @ evaluate_finite(problem, policy)[0][0]


@pytest.mark.parametrize("seed", range(4))
def test_1_one_step_is_solved_at_once(seed):
    problem = finite_horizon(random_mdp(3, 3, seed, 1.0), 1)
    assert_array_equal(iterate(problem, 1)[0], problem.stages[0].R)
    assert analyse(problem).min_k == 1


@pytest.mark.parametrize("seed", range(4))
def test_2_as_many_backups_as_steps_give_the_optimum(seed):
    problem = finite_horizon(random_mdp(4, 2, seed, 1.0), 4)
    assert_allclose(iterate(problem, 4)[0], backward_induction(problem)[1][0], atol=1e-12)
    assert solves(problem, iterate(problem, 4))


@pytest.mark.parametrize(("L", "A"), [(3, 2), (5, 2), (4, 3)])
def test_3_a_lock_is_solved_by_looking_one_step_ahead_with_a_small_gap(L, A):
    problem = locked(L, A)
    found = analyse(problem)
    assert found.min_k == 1 and gap(problem, iterate(problem, 1)) == approx(A ** -(L - 1.0))
    assert gap(problem, iterate(problem, L)) == approx(1.0)
    assert found.solving[1] == approx(1 + 2 * (L - 1)) and found.solving[L] == approx(L) == approx(found.effective)


def test_4_a_deceptive_lock_needs_all_its_steps():
    problem = locked(4, 2, 0.5)
    assert [iterate(problem, k)[0, 0, 0] for k in (1, 2, 3, 4)] == approx([1 / 8, 1 / 4, 1 / 2, 1])
    assert analyse(problem).min_k == 4 and analyse(problem).effective == approx(6)
    assert iterate(locked(5, 2, 0.5), 1)[0, 0, 0] == approx(1 / 16)


def brute_min_k(problem):
    """Every deterministic greedy policy of Q^k by enumeration: the least k for which all are optimal."""
    T, S, A = problem.horizon, len(problem.mu), problem.stages[0].actions
    best = worth(problem, np.eye(A)[backward_induction(problem)[1].argmax(-1)])
    for k in range(1, T + 1):
        Q = iterate(problem, k)
        ties = [np.flatnonzero(q >= q.max() - 1e-9) for q in Q.reshape(-1, A)]
        greedy = (np.eye(A)[np.reshape(choice, (T, S))] for choice in product(*ties))
        if all(worth(problem, p) > best - 1e-9 for p in greedy):
            return k
    return None


def small(seed):
    """Few rewards of equal size on deterministic moves: many ties."""
    rng = np.random.default_rng(seed)
    P = np.eye(3)[rng.integers(3, size=(3, 2))]
    return finite_horizon(MDP(P, rng.integers(0, 3, (3, 2)) / 2, 1.0, np.eye(3)[0]), 3)


def test_4_enumeration_of_tie_breaks_agrees():
    found = [(brute_min_k(p), analyse(p).min_k) for p in (*map(small, range(30)), locked(3, 2, 0.5))]
    assert len({k for k, _ in found}) == 3, "the problems do not tell the k apart"
    assert all(a == b for a, b in found)


def test_5_targets_of_k_1_are_returns_and_many_episodes_find_the_analysers_action():
    problem = finite_horizon(random_mdp(3, 2, 5, 1.0), 3)
    seen = episodes(problem, random_policy(problem), 50, np.random.default_rng(0))
    Q = Tables(1)(Counts.none(3, 3, 2).add(seen))
    s, a = seen.states[0, 1], seen.actions[0, 1]
    here = (seen.states[:, 1] == s) & (seen.actions[:, 1] == a)
    assert Q[1, s, a] == approx(seen.rewards[here, 1:].sum(1).mean())
    for k in (1, 2, 3):
        learnt = sqirl(problem, Tables(k), 20_000, np.random.default_rng(k))
        assert_array_equal(learnt[0].argmax(-1), iterate(problem, k)[0].argmax(-1))


def test_6_at_the_end_every_target_is_the_reward():
    problem = finite_horizon(random_mdp(3, 2, 6, 1.0), 3)
    counts = Counts.none(3, 3, 2).add(episodes(problem, random_policy(problem), 500, np.random.default_rng(0)))
    for k in (1, 2, 3):
        assert_allclose(Tables(k)(counts)[-1], problem.stages[-1].R, atol=1e-12)


def test_k_backups_on_all_that_can_happen_are_the_models():
    problem = finite_horizon(random_mdp(3, 2, 7, 1.0), 3)
    weights = np.stack([m.P for m in problem.stages])
    R, first = np.stack([m.R for m in problem.stages]), iterate(problem, 1)
    for k in (1, 2, 3):
        assert_allclose(Tables(k)(Counts(weights, R, first)), iterate(problem, k), atol=1e-12)


def test_one_table_for_all_steps_is_the_mean_over_them():
    problem = finite_horizon(random_mdp(3, 2, 8, 1.0), 4)
    seen = episodes(problem, random_policy(problem), 200, np.random.default_rng(0))
    counts = Counts.none(4, 3, 2).add(seen)
    Q = Tables(2, shared=True)(counts)
    ahead = np.append(Tables(1, shared=True)(counts)[0].max(-1), 0.0)
    here = (seen.states[:, :-1] == 1) & (seen.actions == 1)
    after = np.where(np.arange(4) < 3, seen.states[:, 1:], 3)  # the last step is an end
    assert_allclose(Q[:, 1, 1], (seen.rewards + ahead[after])[here].mean())


def test_the_networks_heads_come_to_the_tables():
    problem = finite_horizon(random_mdp(3, 2, 9, 1.0), 3)
    counts = Counts.none(3, 3, 2).add(episodes(problem, random_policy(problem), 500, np.random.default_rng(0)))
    heads = Heads(np.eye(3), 2, 3, np.zeros(3, bool), epochs=100, batch=512, rate=3e-3)
    errors = [np.abs(heads(counts)[0] - Tables(k, shared=True)(counts)[0]).mean() for k in (1, 2, 3, 3)]
    assert errors[-1] < 0.1 < min(errors[:2]) / 4


def test_the_network_learns_nothing_of_ends():
    problem = locked(2)
    ends = problem.stages[0].ends()
    counts = Counts.none(2, 3, 2).add(episodes(problem, random_policy(problem), 400, np.random.default_rng(0)))
    heads = Heads(np.eye(3), 2, 2, ends, epochs=160)  # the authors' rate: the scaled loss settles at about 30 rates
    assert_allclose(heads(counts)[0, :2], [[1, 0], [1, 0]], atol=0.05)
    policy = sqirl(problem, Heads(np.eye(3), 2, 2, ends, epochs=80, rate=3e-3), 64, np.random.default_rng(0))
    assert worth(problem, policy) == 1


def test_steps_before_t_are_not_learnt_from():
    problem = locked(3)
    learnt = sqirl(problem, Tables(1), 64, np.random.default_rng(0))
    assert worth(problem, learnt) == 1 and (learnt.max(-1) == 1).all()
    with pytest.raises(InputError, match="at least 1"):
        Tables(0)


def test_sticky_actions_repeat_with_their_chance_but_not_at_the_start():
    mdp = lock(3)  # states 0, 1, 2 and the end; action 0 is right
    stuck = sticky(mdp)
    S, A = 4, 2
    P = stuck.P.reshape(S, A + 1, A, S, A + 1)
    assert P[0, A, 0, 1, 0] == 1 and P[1, 0, 1, 3, 1] == 0.75 and P[1, 0, 1, 2, 0] == 0.25
    assert stuck.R.reshape(S, A + 1, A)[2, 0].tolist() == [1.0, 0.25]
    alike = finite_horizon(sticky(random_mdp(3, 2, 0, 1.0), 0.0), 3)
    assert_allclose(
        alike.mu @ backward_induction(alike)[0][0],
        (plain := finite_horizon(random_mdp(3, 2, 0, 1.0), 3)).mu @ backward_induction(plain)[0][0],
    )


def test_below_min_k_no_number_of_episodes_helps():
    draws = [(0, j) for j in range(20)]
    assert needed(locked(3, 3, 0.5), 1, draws, 8, 0.999) == np.inf
    assert needed(locked(3, 3, 0.5), 3, draws, 9, 0.999) <= 512


def test_the_claim_can_be_refuted():
    def cases(rising=True, early=np.inf):
        sign = 1.0 if rising else -1.0
        horizons = [Horizon(2, 2, {2: float(h)}) for h in range(1, 7)]
        return [Case("", 2, 3, 9, h, {1: early, 2: 2 ** (sign * h.effective)}) for h in horizons]

    assert verdict(cases()) == "reproduced"
    assert verdict(cases(rising=False)) == "refuted" and verdict(cases(early=64.0)) == "refuted"
    unsolved = [*cases(), Case("", 2, 3, 9, Horizon(2, 2, {2: 9.0}), {1: np.inf, 2: np.inf})]
    assert verdict(unsolved) == "not reproduced"


def test_frozen_lake_is_the_usual_one():
    rows = frozen_lake([0])
    assert next(rows)["value"] == 13
