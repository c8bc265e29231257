"""BNPO: the card's exact checks."""

import math

import pytest
import torch

from surefoot.claims.bnpo import signal_to_noise, variance_functional
from surefoot.methods.rlvr.bnpo import BNPO, BetaNormalized, inverse_density, normaliser
from surefoot.objective.advantages import GroupCentred, Relative
from surefoot.objective.groups import group_mean, group_population_std
from surefoot.rollouts import Rollouts


def _table(rates, group=16, **more):
    right = torch.cat([(torch.arange(group) < round(p * group)).float() for p in rates])
    n = len(right)
    return Rollouts(
        {
            "group": torch.arange(len(rates)).repeat_interleave(group),
            "mask": torch.ones(n, 2, dtype=torch.bool),
            "reward": right,
        },
        rewards={"accuracy": right} | more,
    )


def _one(x):
    return torch.tensor(x, dtype=torch.float64)


def test_alpha_and_beta_of_one_are_reinforce_with_the_mean_as_baseline():
    table = _table([0.5, 0.5, 0.5])  # no variance over prompts: alpha = beta = 1
    torch.testing.assert_close(BetaNormalized()(table), GroupCentred()(table), atol=0, rtol=0)
    assert torch.equal(inverse_density(_one([0.0, 0.3, 1.0]), _one(1.0), _one(1.0)), torch.ones(3).double())


def test_three_halves_are_grpo_times_pi_over_eight():
    table = _table([0.125, 0.25, 0.5, 0.75])
    p = group_mean(table.reward, table.group).double()
    weight = inverse_density(p, _one(1.5), _one(1.5))
    grpo = Relative(group_mean, group_population_std, eps=0.0)(table)[:, 0]
    torch.testing.assert_close((weight * (table.reward - p)).float(), grpo * math.pi / 8, atol=1e-6, rtol=1e-6)


def test_worked_numbers():
    p = _one([0.125, 0.25, 0.5, 0.75])
    assert float(p.mean()) == 0.40625 and float(p.var()) == pytest.approx(0.0768229, abs=1e-7)
    alpha, beta = normaliser(p.mean(), p.var())
    assert (float(alpha), float(beta)) == pytest.approx((1.289769, 1.423508), abs=1e-6)
    assert inverse_density(p, alpha, beta).tolist() == pytest.approx([0.9866, 0.8615, 0.8368, 0.9979], abs=5e-5)
    table = _table(p.tolist())
    expected = inverse_density(p, alpha, beta).repeat_interleave(16) * (table.reward - p.repeat_interleave(16))
    torch.testing.assert_close(BetaNormalized()(table)[:, 1], expected.float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "best", "reinforce"),
    [(2, 3, 0.136687, 0.2), (5, 1, 0.056141, 0.119048), (0.5, 0.5, 0.120229, 0.125), (1, 1, 0.148870, 0.166667)],
)
def test_the_variance_functional_is_least_at_the_papers_parameters(a, b, best, reinforce):
    at = 1 + a / 3, 1 + b / 3
    assert variance_functional(a, b, *at) == pytest.approx(best, abs=1e-6)
    assert variance_functional(a, b, 1.5, 1.5) == pytest.approx((math.pi / 8) ** 2, abs=1e-12)
    assert variance_functional(a, b, 1, 1) == pytest.approx(reinforce, abs=1e-6)
    for da, db in ((0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1)):
        assert variance_functional(a, b, at[0] + da, at[1] + db) > best + 1e-6


def test_groups_without_contrast_get_zero_and_nothing_is_nan():
    credit = BetaNormalized()(_table([0.0, 1.0, 0.25, 0.5]))
    assert torch.isfinite(credit).all() and (credit[:32] == 0).all() and (credit[32:] != 0).all()
    almost = inverse_density(_one([0.0, 1.0]), _one(30.0), _one(30.0))
    assert almost.tolist() == [1e6, 1e6], "1 / 0 is capped"


@pytest.mark.parametrize("rates", [[0.5], [0.25] * 4, [0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
def test_moments_that_say_nothing_are_guarded(rates):
    """One prompt, equal rates, and a variance above m (1 - m), which makes a and b negative: all are REINFORCE."""
    table = _table(rates)
    torch.testing.assert_close(BetaNormalized()(table), GroupCentred()(table), atol=0, rtol=0)


def test_several_rewards_have_their_own_densities():
    format_ = (torch.arange(64) % 4 > 0).float()
    both = _table([0.125, 0.25, 0.5, 0.75], format=format_)
    alone = [BetaNormalized().credit(name, r, both.group) for name, r in both.rewards.items()]
    torch.testing.assert_close(BetaNormalized()(both)[:, 0], (alone[0] + alone[1]) / 2)
    signs = _table([0.125, 0.25, 0.5, 0.75])
    shifted = Rollouts({k: signs[k] for k in signs}, {"accuracy": 2 * signs.reward - 1})
    torch.testing.assert_close(BetaNormalized(low=-1.0)(shifted), BetaNormalized()(signs))


def test_the_fit_is_remembered_and_resumed():
    first, second = _table([0.125, 0.25, 0.5, 0.75]), _table([0.5, 0.75, 1.0, 0.875])
    part = BNPO.but(advantage=BetaNormalized(decay=0.9)).fresh().advantage
    assert torch.allclose(part(first), BetaNormalized()(first)), "the first batch is all there is"
    saved = part.state_dict()
    expected = part(second)
    resumed = BetaNormalized(decay=0.9)
    resumed.load_state_dict(saved)
    assert torch.equal(resumed(second), expected) and not torch.allclose(expected, BetaNormalized()(second))


@pytest.mark.parametrize(
    ("a", "b", "bnpo", "grpo"),
    [(0.5, 0.5, 0.990, 0.811), (1, 1, 0.974, 0.925), (5, 1, 0.910, 0.872), (9, 1, 0.880, 0.840), (2, 3, 0.939, 0.976)],
)
def test_relative_to_its_signal_no_normaliser_beats_reinforce_under_the_theorems_noise(a, b, bnpo, grpo):
    assert signal_to_noise(a, b, 1 + a / 3, 1 + b / 3) == pytest.approx(bnpo, abs=1e-3)
    assert signal_to_noise(a, b, 1.5, 1.5) == pytest.approx(grpo, abs=1e-3)
    assert signal_to_noise(a, b, 1, 1) == pytest.approx(1)
    p = torch.linspace(0, 1, 200_001, dtype=torch.float64)[1:-1]
    w, density = inverse_density(p, _one(1 + a / 3), _one(1 + b / 3)), p ** (a - 1) * (1 - p) ** (b - 1)
    signal, noise, plain = ((density * x * p * (1 - p)).sum() for x in (w, w**2, torch.ones_like(w)))
    assert float(signal**2 / noise / plain) == pytest.approx(bnpo, abs=2e-3)
