from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pytest import approx
from scipy import sparse
from scipy.optimize import linprog, minimize

from surefoot.errors import InputError
from surefoot.exact.divergence import CHI2, FORWARD_KL, HELLINGER, JENSEN_SHANNON, KL, TV, Alpha
from surefoot.exact.generators import garnet, random_mdp
from surefoot.exact.mdp import MDP, evaluate, policy_iteration, value_iteration
from surefoot.exact.operators import Soft
from surefoot.exact.robust import Ball, Kernels, Penalised, PenalisedTV, TVBall, robust_value_iteration
from tests.exact import brute

V3, P3 = np.array([0, 0.2, 1]), np.array([0.1, 0.3, 0.6])


def one_row(p=P3):
    return MDP(np.tile(p, (len(p), 1, 1)), np.zeros((len(p), 1)), 0.9, np.eye(1, len(p))[0])


def natures(mdp):
    return {
        "kl": Ball(mdp, 0.1),
        "chi2": Ball(mdp, 0.1, CHI2),
        "hellinger": Ball(mdp, 0.02, HELLINGER),
        "js": Ball(mdp, 0.02, JENSEN_SHANNON),
        "forward": Ball(mdp, 0.1, FORWARD_KL),
        "alpha": Ball(mdp, 0.1, Alpha(1.5)),
        "tv": TVBall(mdp, 0.15),
        "tv inside": TVBall(mdp, 0.15, False),
        "price kl": Penalised(mdp, 0.4),
        "price chi2": Penalised(mdp, 0.4, CHI2),
        "price tv": PenalisedTV(mdp, 0.4),
        "price tv inside": PenalisedTV(mdp, 0.4, False),
        "kernels": Kernels([mdp, random_mdp(mdp.states, mdp.actions, 77)]),
    }


DIVERGENCE = {
    "kl": KL,
    "chi2": CHI2,
    "hellinger": HELLINGER,
    "js": JENSEN_SHANNON,
    "forward": FORWARD_KL,
    "alpha": Alpha(1.5),
}
every = pytest.mark.parametrize("name", natures(one_row()))


@pytest.mark.parametrize(
    ("price", "tv", "kl", "chi2"),
    [(0.1, 0.09, 0.1961638, 0.2925), (0.5, 0.36, 0.4807785, 0.5718), (2.0, 0.66, 0.6147640, 0.63795)],
)
def test_worked_penalties(price, tv, kl, chi2):
    """r2pvi check 1."""
    mdp = one_row()
    assert PenalisedTV(mdp, price)(V3)[0, 0] == approx(tv)
    assert Penalised(mdp, price)(V3)[0, 0] == approx(kl, abs=5e-8)
    assert Penalised(mdp, price, CHI2)(V3)[0, 0] == approx(chi2)


def primal(objective, constraint=None):
    """Smallest of a smooth function over the simplex, from several starts."""
    constraints = [{"type": "eq", "fun": lambda p: p.sum() - 1}]
    if constraint:
        constraints.append({"type": "ineq", "fun": constraint})
    found = [
        minimize(
            objective,
            start,
            bounds=[(1e-12, 1)] * 3,
            constraints=constraints,
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        for start in (P3, 0.9 * P3 + 0.1 / 3)
    ]
    return min(f.fun for f in found if f.success)


@pytest.mark.parametrize("name", DIVERGENCE)
def test_penalties_and_balls_are_the_primal_minimum(name):
    D, mdp = DIVERGENCE[name], one_row()
    assert Penalised(mdp, 0.4, D)(V3)[0, 0] == approx(primal(lambda p: p @ V3 + 0.4 * D(p, P3)), abs=1e-6)
    assert Ball(mdp, 0.03, D)(V3)[0, 0] == approx(primal(lambda p: p @ V3, lambda p: 0.03 - D(p, P3)), abs=1e-6)


@pytest.mark.parametrize("radius", [0.0, 0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("anywhere", [True, False])
def test_total_variation_is_the_linear_program(radius, anywhere):
    p, V = np.array([0.1, 0.3, 0.6, 0]), np.array([0.4, 0.2, 1, -1.0])
    eye = np.eye(4)
    room = [(0, None)] * 4 if anywhere else [(0, None)] * 3 + [(0, 0)]
    lp = linprog(
        np.append(V, np.zeros(8)),
        A_ub=[np.append(np.zeros(4), np.full(8, 0.5))],
        b_ub=[radius],
        A_eq=np.vstack([np.append(np.ones(4), np.zeros(8)), np.hstack([eye, -eye, eye])]),
        b_eq=np.append(1.0, p),
        bounds=room + [(0, None)] * 8,
        method="highs",
    )
    mdp = one_row(p)
    assert TVBall(mdp, radius, anywhere)(V)[0, 0] == approx(lp.fun, abs=1e-12)
    prices = np.linspace(1e-6, 3, 6001)
    dual = max(PenalisedTV(mdp, c, anywhere)(V)[0, 0] - c * radius for c in prices)
    assert dual == approx(lp.fun, abs=1e-3)


def test_chi_squared_by_its_published_duals():
    """`sup_a E[min(V, a)] - Var / (4 price)` (r2pvi) and `sup_a E[min(V, a)] - sqrt(radius Var)` (Iyengar 2005)."""
    mdp, rng = one_row(), np.random.default_rng(0)
    for _ in range(20):
        V = rng.normal(size=3)
        cut = np.minimum(V, np.linspace(V.min(), V.max(), 20_001)[:, None])
        mean = cut @ P3
        var = cut**2 @ P3 - mean**2
        assert Penalised(mdp, 0.3, CHI2)(V)[0, 0] == approx((mean - var / 1.2).max(), abs=1e-7)
        assert Ball(mdp, 0.3, CHI2)(V)[0, 0] == approx((mean - np.sqrt(0.3 * np.maximum(var, 0))).max(), abs=1e-7)


def test_kl_ball_by_its_dual():
    mdp, rng = one_row(), np.random.default_rng(0)
    for _ in range(20):
        V = rng.normal(size=3)
        prices = np.geomspace(1e-3, 100, 20_001)[:, None]
        dual = -prices[:, 0] * np.log(np.exp(-(V - V.min()) / prices) @ P3) + V.min() - prices[:, 0] * 0.1
        assert Ball(mdp, 0.1)(V)[0, 0] == approx(dual.max(), abs=1e-6)


@every
def test_between_the_worst_and_the_mean_monotone_and_constants_pass_through(name):
    """r2pvi check 3."""
    mdp, rng = random_mdp(5, 3, 0), np.random.default_rng(0)
    nature = natures(mdp)[name]
    for _ in range(5):
        V = rng.normal(size=5)
        assert (nature(V) <= mdp.expect(V) + 1e-12).all() and (nature(V) >= V.min() - 1e-12).all()
        assert_allclose(nature(V + 3), nature(V) + 3, atol=1e-11)
        assert (nature(V + rng.random(5)) >= nature(V) - 1e-11).all()
    assert_allclose(nature(np.full(5, 2.0)), 2, atol=1e-12)


@every
def test_natures_choice_attains_its_value(name):
    mdp = garnet(6, 3, 4, seed=1)
    nature, V = natures(mdp)[name], np.random.default_rng(0).normal(size=6)
    kernel = nature.kernel(V)
    assert_allclose(np.asarray(kernel.sum(1)).ravel(), 1, atol=1e-12)
    mean, worst = (kernel @ V).reshape(6, 3), nature(V)
    P, K = mdp.rows.toarray(), kernel.toarray()
    if name in DIVERGENCE:
        distance = DIVERGENCE[name](K, P)
        assert (distance <= nature.radius + 1e-9).all()
    if name.startswith("tv"):
        assert (TV(K, P) <= 0.15 + 1e-12).all()
    if name.startswith("price"):
        D = {"price kl": KL, "price chi2": CHI2}.get(name, TV)
        mean = mean + 0.4 * D(K, P).reshape(6, 3)
    assert_allclose(mean, worst, atol=1e-9)
    if "inside" in name or name in DIVERGENCE:
        assert (K[P == 0] == 0).all()


@every
def test_the_robust_value_is_that_of_the_worst_mdp(name):
    mdp = random_mdp(5, 3, 0)
    nature = natures(mdp)[name]
    found = robust_value_iteration(mdp, nature, 1e-11)
    kernel = nature.kernel(found.V)
    bill = nature(found.V) - (kernel @ found.V).reshape(5, 3)
    worst = replace(mdp, P=kernel, R=mdp.R + mdp.gamma * bill)
    assert_allclose(policy_iteration(worst).V, found.V, atol=1e-8)
    assert (found.V <= value_iteration(mdp).V + 1e-9).all()
    if not name.startswith("price"):
        assert np.abs(bill).max() < 1e-8


def test_two_kernels_against_every_policy_and_every_choice_of_nature():
    mdp, other = random_mdp(3, 2, 0), random_mdp(3, 2, 1)
    other = replace(other, R=mdp.R)
    P = np.stack([mdp.P.reshape(6, 3), other.P.reshape(6, 3)])
    best = np.full(3, -np.inf)
    for policy in brute.deterministic_policies(3, 2):
        values = [
            np.linalg.solve(
                np.eye(3) - 0.9 * np.einsum("sa,sat->st", policy, P[list(pick), range(6)].reshape(3, 2, 3)),
                (policy * mdp.R).sum(1),
            )
            for pick in np.ndindex(*[2] * 6)
        ]
        best = np.maximum(best, np.min(values, 0))
    assert_allclose(robust_value_iteration(mdp, Kernels([mdp, other]), 1e-12).V, best, atol=1e-10)


def test_limits():
    """r2pvi check 2: no price, the worst; any price, the mean."""
    mdp = one_row(np.array([0.1, 0.3, 0.6, 0]))
    V = np.append(V3, -1.0)
    assert PenalisedTV(mdp, 2.0)(V)[0, 0] == approx(0.66) and PenalisedTV(mdp, 1e-9)(V)[0, 0] == approx(-1)
    for D in (KL, CHI2, HELLINGER):
        assert Penalised(mdp, 1e6, D)(V)[0, 0] == approx(0.66, abs=1e-5)
        assert Penalised(mdp, 1e-6, D)(V)[0, 0] == approx(0, abs=1e-3)
        assert Ball(mdp, 1e-12, D)(V)[0, 0] == approx(0.66, abs=1e-5)
    assert Ball(mdp, -np.log(0.1) + 0.01)(V)[0, 0] == approx(0, abs=1e-12)
    assert TVBall(mdp, 0.0)(V)[0, 0] == approx(0.66)


def test_dense_and_sparse_rows_with_empty_places_agree():
    mdp = garnet(6, 3, 2, seed=3)
    dense = replace(mdp, P=mdp.P.toarray().reshape(6, 3, 6))
    stored = mdp.P.toarray()
    padded = sparse.csr_matrix((stored.ravel(), np.tile(np.arange(6), 18), np.arange(19) * 6), (18, 6))
    V = np.random.default_rng(0).normal(size=6)
    for name in natures(mdp):
        values = [natures(m)[name](V) for m in (mdp, dense, replace(mdp, P=padded))]
        assert_allclose(values[1], values[0], atol=1e-12)
        assert_allclose(values[2], values[0], atol=1e-12)


def test_a_soft_policy_against_a_penalised_nature():
    """Both are one log-mean-exp: risk seeking over actions, risk averse over next states."""
    mdp = random_mdp(4, 3, 0)
    found = robust_value_iteration(mdp, Penalised(mdp, 0.5), 1e-12, Soft(0.3))
    Q = np.zeros((4, 3))
    for _ in range(400):
        V = 0.3 * np.log(np.exp(Q / 0.3).sum(1))
        Q = mdp.R - 0.9 * 0.5 * np.log(mdp.P @ np.exp(-V / 0.5))
    assert_allclose(found.Q, Q, atol=1e-11)


def test_robust_policies_lose_less_when_the_world_is_worse():
    mdp = random_mdp(5, 3, 2)
    nature = TVBall(mdp, 0.3)
    robust, plain = robust_value_iteration(mdp, nature), value_iteration(mdp)
    V = {}
    for name, policy in (("robust", robust.policy), ("plain", plain.policy)):
        worst = np.zeros(5)
        for _ in range(500):  # nature's best answer to a fixed policy
            worst = (policy * (mdp.R + 0.9 * nature(worst))).sum(1)
        V[name] = worst
    assert_allclose(V["robust"], robust.V, atol=1e-9)
    assert (V["plain"] <= V["robust"] + 1e-9).all()
    assert (evaluate(mdp, robust.policy)[0] <= plain.V + 1e-9).all()


def test_what_cannot_be_asked():
    mdp = one_row()
    for make, message in (
        (lambda: Ball(mdp, 0), "radius 0"),
        (lambda: Ball(mdp, 0.1, TV), "TVBall"),
        (lambda: Penalised(mdp, 0), "price 0"),
        (lambda: PenalisedTV(mdp, -1), "price -1"),
        (lambda: TVBall(mdp, -1), "radius -1"),
        (lambda: Kernels([]), "no MDP"),
    ):
        with pytest.raises(InputError, match=message):
            make()
