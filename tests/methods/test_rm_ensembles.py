"""RM ensembles: the card's numbers, the part as the trainer sees it, and best-of-n against enumeration."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from pytest import approx

from surefoot import methods
from surefoot.claims.rm_ensembles import SIZES, curves
from surefoot.errors import InputError
from surefoot.evaluation.overoptimization import Curve, best_of_n, best_of_n_curve, best_of_n_kl, synthetic
from surefoot.objective.rewards import Ensemble, disagreement, soft_min
from surefoot.rollouts import Rollouts

SCORES = torch.tensor([1, 0.2, 0.9, -0.3, 0.7], dtype=torch.float64)[:, None]
MEAN, WCO = Ensemble(), Ensemble(temperature=0.0)
UWO = Ensemble(penalty=0.5)


def _table(**rewards):
    n = len(next(iter(rewards.values())))
    mask = torch.tensor([[True, True, False]] * n)
    return Rollouts({"mask": mask}, {k: torch.tensor(v, dtype=torch.float64) for k, v in rewards.items()})


def test_worked_scores():
    assert float(MEAN.of(SCORES)) == approx(0.5) and float(WCO.of(SCORES)) == approx(-0.3)
    assert float(UWO.of(SCORES)) == approx(0.382)
    assert float(Ensemble(penalty=0.5, ddof=1).of(SCORES)) == approx(0.3525)
    assert float(UWO.of(SCORES)) != approx(0.2571, abs=1e-3), "the variance, not the deviation"


@pytest.mark.parametrize("ddof", [0, 1])
def test_one_member_or_equal_members_are_that_member(ddof):
    for members in (torch.tensor([[0.7, -2.0]]), torch.tensor([[0.7, -2.0]] * 4)):
        for part in (MEAN, WCO, Ensemble(penalty=0.5, ddof=ddof)):
            assert part.of(members).tolist() == approx([0.7, -2.0])
    assert disagreement(torch.ones(1, 2), 1).tolist() == [0, 0]


def test_shift_and_scale():
    members = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (WCO.of(members) <= MEAN.of(members)).all()
    for part in (MEAN, WCO, UWO):
        torch.testing.assert_close(part.of(members + 3), part.of(members) + 3)
    for part in (MEAN, WCO):
        torch.testing.assert_close(part.of(2 * members), 2 * part.of(members))
    torch.testing.assert_close(MEAN.of(2 * members) - UWO.of(2 * members), 4 * (MEAN.of(members) - UWO.of(members)))


def test_the_soft_minimum_runs_from_the_worst_to_the_mean_in_float32_too():
    members = SCORES.float()
    assert float(soft_min(members, 1e6)) == approx(0.5, abs=1e-5)
    assert float(soft_min(members, 1e-3)) == approx(-0.3, abs=2e-3)
    assert float(soft_min(members, 0.0)) == approx(-0.3) and float(soft_min(members, math.inf)) == approx(0.5)
    tau = 50.0
    second = float(SCORES.mean() - SCORES.var(correction=0) / (2 * tau))
    assert float(soft_min(SCORES, tau)) == approx(second, abs=1e-5)
    assert abs(float(soft_min(SCORES, tau)) - 0.5) > 1e-3
    hard = soft_min(torch.tensor([[1e4], [-1e4]]), 1e-2)
    assert torch.isfinite(hard).all() and float(hard) == approx(-1e4, abs=0.01)


def test_what_is_only_watched_does_not_count():
    table = _table(proxy1=[1.0, 0.0], proxy2=[0.0, 4.0], gold=[9.0, -9.0])
    assert WCO(table)["reward"].tolist() == [0, 0] and MEAN(table)["reward"].tolist() == [0.5, 2.0]
    assert MEAN(table)["step_reward"].tolist() == [[0, 0.5, 0], [0, 2.0, 0]], "paid at the last token"
    with pytest.raises(InputError, match=r"no reward named proxy\.\.\.; the task gives gold .*scored:by="):
        MEAN(_table(gold=[1.0]))


def test_the_kl_is_paid_at_every_token():
    part = Ensemble(coef=0.5)
    table = _table(proxy1=[1.0]).having(old_logp=torch.tensor([[0.2, 0.4, 9.0]]), ref_logp=torch.zeros(1, 3))
    paid = part(table)
    assert paid["step_reward"].tolist()[0] == approx([-0.1, 0.8, 0.0]) and float(paid["reward"]) == approx(0.7)
    assert part.reads == ("mask", "old_logp", "ref_logp") and MEAN.reads == ("mask",)


def test_best_of_n_worked_and_against_every_subset():
    proxy, gold = np.arange(4.0), np.array([1.0, 3, 5, 2])
    assert [best_of_n(proxy, gold, n) for n in (1, 2, 3, 4)] == approx([2.75, 19 / 6, 2.75, 2.0])
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(2, 9))
    for n in (1, 2, 5, 9):
        subsets = [list(s) for s in combinations(range(9), n)]
        assert best_of_n(proxy, gold, n) == approx(np.mean([gold[s][proxy[s].argmax()] for s in subsets]))
    with pytest.raises(ValueError, match="best of 10 of 9"):
        best_of_n(proxy, gold, 10)


def test_best_of_n_does_not_overflow_and_its_kl():
    proxy = np.random.default_rng(1).normal(size=(2, 12_500))
    assert best_of_n(proxy, np.ones((2, 12_500)), 4096) == approx(1.0)
    assert best_of_n(proxy, proxy, 12_500) == approx(proxy.max(1))
    assert best_of_n_kl(np.array([4.0, 16, 64, 256])) == approx([0.6363, 1.8351, 3.1745, 4.5491], abs=5e-5)


def test_peak_final_and_gap():
    curve = Curve(np.arange(3.0), np.zeros((2, 3)), np.array([[0.0, 2.0, 0.5], [0.0, 1.0, 3.0]]))
    assert curve.peak.tolist() == [2, 3] and curve.final.tolist() == [0.5, 3] and curve.gap.tolist() == [1.5, 0]


def test_the_testbed():
    gold, members = synthetic(200_000, 3, np.random.default_rng(0))
    error = members - gold
    assert error.shape == (3, 200_000) and error.mean() == approx(0.04, abs=0.01)  # .01 x 4
    assert np.cov(error)[0, 1] == approx(0.09, abs=0.01)
    _, same = synthetic(200_000, 3, np.random.default_rng(0), own=0.0, correlated=True)
    assert np.ptp(same, 0).max() == 0
    curve = best_of_n_curve(gold[None], gold[None], (1, 16))
    assert curve.gold[0] == approx([0, 1.766], abs=0.02)


def test_the_claims_numbers_and_its_control():
    own, shared = (curves(range(4), correlated=c) for c in (False, True))
    at = SIZES.index(256)
    for rule, expected in {"single": 0.97, "mean": 1.90, "WCO": 2.59, "UWO": 2.64}.items():
        assert own[rule].gold.mean(0)[at] == approx(expected, abs=0.25), rule
        assert shared[rule].final.mean() < 0.8, rule


def test_the_composition():
    method = methods.find("rm-ensembles").check()
    assert (method.reward.penalty, method.reward.ddof, method.reward.coef) == (0.1, 1, 0.01)
    assert "ref_logp" in method.readers() and "step_reward" in method.readers("advantage")
