"""NFT: the card's exact checks."""

import pytest
import torch

from surefoot.methods.rlvr.dr_grpo import DR_GRPO
from surefoot.methods.rlvr.nft import NFT, NegativeAware, Rated, log_maxv
from surefoot.objective.advantages import GroupCentred, Relative, inverse_deviation
from surefoot.objective.groups import group_mean, group_population_std
from surefoot.rollout.prompts import Uniform
from surefoot.rollout.strategies import OnPolicy
from surefoot.rollouts import Rollouts
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, gradient_of_step, tiny_policy


def _gradient(right, p, ratio, eps=1.0, weight=None):
    """Loss and gradient to log pi of one token of a group with success rate p, the prompt's weight being 1 - p."""
    sign = (1 - p) if right else -p
    logp = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    table = Rollouts(
        dict(
            mask=torch.ones(1, 1, dtype=torch.bool),
            logp=logp,
            old_logp=torch.zeros(1, 1, dtype=torch.float64),
            advantage=torch.tensor([[sign]], dtype=torch.float64),
            success_rate=torch.tensor([p], dtype=torch.float64),
        )
    )
    loss = NegativeAware(eps=eps)(table)
    return float(loss.detach()), float(torch.autograd.grad(loss.sum(), logp)[0])


@pytest.mark.parametrize(
    ("p", "ratio", "eps", "expected"),
    [
        (0.25, 1.0, 1.0, 0.25),
        (0.25, 1.2, 1.0, 0.30),
        (0.25, 1.2, 0.1, 0.321429),
        (0.25, 1.5, 1.0, 0.375),
        (0.25, 1.5, 0.1, 0.45),
        (0.25, 0.8, 1.0, 0.1875),
        (0.75, 1.2, 1.0, 0.9),
        (0.75, 1.2, 0.1, 2.25),
        (0.75, 1.5, 1.0, 1.125),
        (0.75, 1.5, 0.1, 11.25),
        (0.75, 0.8, 1.0, 0.375),
    ],
)
def test_worked_gradients_of_wrong_tokens(p, ratio, eps, expected):
    assert _gradient(False, p, ratio, eps)[1] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 5.0, 1000.0])
def test_right_tokens_have_no_trust_region(ratio):
    for p in (0.25, 0.75):
        assert _gradient(True, p, ratio)[1] == pytest.approx(-(1 - p))


def test_the_loss_is_zero_where_the_policy_has_not_moved_and_extreme_ratios_are_finite():
    for right in (True, False):
        assert _gradient(right, 0.3, 1.0)[0] == 0
        for ratio in (1e-8, 1e12):
            assert all(torch.isfinite(torch.tensor(_gradient(right, 0.75, ratio, eps=0.01))))


def test_maxv_keeps_the_gradient_that_a_clamp_loses():
    x = torch.tensor([-3.0, 0.05, 0.5], requires_grad=True)
    value = log_maxv(x, 0.1)
    assert value.tolist() == pytest.approx(x.detach().clamp_min(0.1).log().tolist())
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.tolist() == pytest.approx([10, 10, 2])
    (clamped,) = torch.autograd.grad(x.clamp_min(0.1).log().sum(), x)
    assert clamped.tolist() == pytest.approx([0, 0, 2])


def _table(rewards=((1, 0, 0, 0), (1, 1, 1, 0), (1, 1, 1, 1), (0, 0, 0, 0))):
    reward = torch.tensor(rewards, dtype=torch.float32).flatten()
    mask = torch.ones(len(reward), 2, dtype=torch.bool)
    mask[0, 1] = False
    logp = torch.zeros(len(reward), 2).masked_fill(~mask, float("nan"))
    group = torch.arange(len(rewards)).repeat_interleave(4)
    return Rollouts(dict(mask=mask, reward=reward, group=group, logp=logp, old_logp=logp))


@pytest.mark.parametrize(
    ("part", "twin"),
    [
        (Rated(), GroupCentred()),
        (Rated(inverse_deviation), Relative(group_mean, group_population_std, eps=0.0)),
    ],
)
def test_at_ratio_one_it_is_the_policy_gradient(part, twin):
    """Dr. GRPO's, or GRPO's with the population's deviation; gradients of a group sum to zero."""
    table = _table()
    live = table.logp.clone().requires_grad_()
    table = table.having(logp=live, **part(table))
    loss = NegativeAware()(table)
    (gradient,) = torch.autograd.grad(loss.where(table.mask, 0.0).sum(), live)
    expected = twin(_table()).where(table.mask, 0.0)
    torch.testing.assert_close(-gradient, expected, atol=1e-6, rtol=1e-6)
    assert torch.isfinite(loss).all() and (gradient[8:] == 0).all(), "groups without contrast teach nothing"
    assert gradient[4:8].sum() == pytest.approx(0, abs=1e-6)


def test_the_right_part_of_the_old_policy_is_where_nothing_descends():
    """Theorem 3.1: at pi = pi+ the derivative is the same on every right answer, and higher on every wrong one."""
    old = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)
    right = torch.tensor([True, False, True, False, False])
    p = old[right].sum()
    pi = (old / p).where(right, 1e-8).requires_grad_()
    assert pi[right].tolist() == pytest.approx([0.25, 0.75])
    table = Rollouts(
        dict(
            mask=torch.ones(5, 1, dtype=torch.bool),
            logp=pi.log()[:, None],
            old_logp=old.log()[:, None],
            advantage=torch.where(right, 1.0, -p / (1 - p))[:, None],  # the weight w = 1
            success_rate=p.expand(5),
        )
    )
    expected_loss = (old[:, None] * NegativeAware(eps=1e-9)(table)).sum()
    (gradient,) = torch.autograd.grad(expected_loss, pi)
    assert gradient.tolist() == pytest.approx([-0.4, 0.4, -0.4, 0.4, 0.4])


def test_the_rate_is_that_of_the_whole_group_whatever_the_microbatches():
    gradient = {}
    for budget in (60, 10**6):
        method = NFT.but(prompts=Uniform(prompts=4, rollouts=4), rollout=OnPolicy())
        trainer = Trainer(tiny_policy(), digits_task(), method, Settings(lr=1e-4, micro_tokens=budget))
        gradient[budget] = gradient_of_step(trainer)
    torch.testing.assert_close(*gradient.values(), atol=1e-6, rtol=1e-3)


def test_the_first_update_is_dr_grpos():
    moved = []
    for method in (NFT, DR_GRPO):
        method = method.but(prompts=Uniform(prompts=4, rollouts=4), rollout=OnPolicy(), update=DR_GRPO.update)
        trainer = Trainer(tiny_policy(), digits_task(), method, Settings(lr=1e-2, warmup=0))
        moved.append(gradient_of_step(trainer))
    torch.testing.assert_close(*moved, atol=1e-6, rtol=1e-3)
