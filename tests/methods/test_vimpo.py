"""VIMPO: the card's exact checks."""

import math

import pytest
import torch

from surefoot.claims._tabular import Table, trajectories
from surefoot.claims._tabular import loss as tabular_loss
from surefoot.methods.rlvr.dr_grpo import DR_GRPO
from surefoot.methods.rlvr.vimpo import VIMPO, ImpliedCredit, ImpliedValueLoss, implied_td
from surefoot.objective.divergences import REVERSE_KL, f_divergence
from surefoot.rollout.prompts import Uniform
from surefoot.rollouts import Rollouts
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, gradient_of_step, tiny_policy

BETA = 0.5
PATHS = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
STATES = torch.stack([torch.zeros(4, dtype=torch.long), 1 + PATHS[:, 0]], 1)  # root, after 0, after 1
REWARD = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)


def _optimum():
    """Depth two, two tokens, uniform reference, reward on (0, 0) alone: policy [3, 2] and the root's value."""
    after = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    below = (after / BETA).softmax(-1)
    value = (below * after).sum(-1)
    root = (value / BETA).softmax(-1)
    return torch.cat([root[None], below]), float((root * value).sum()), value


def _columns(pi):
    logp, ref = pi.log()[STATES], torch.full((4, 2, 2), 0.5, dtype=torch.float64).log()
    taken = logp.gather(-1, PATHS[..., None])[..., 0]
    return taken, ref[..., 0], f_divergence(logp, ref, REVERSE_KL)


def test_at_the_optimum_the_terms_are_temporal_differences_of_the_value():
    pi, root, value = _optimum()
    assert (float(pi[0, 0]), float(pi[1, 0]), root) == pytest.approx((0.853409, 0.880797, 0.751680), abs=1e-6)
    assert float(value[0]) == pytest.approx(0.880797, abs=1e-6)
    assert root == pytest.approx(float(pi[0, 0] * pi[1, 0])), "the value is the reward that the optimum expects"
    td = implied_td(*_columns(pi), torch.ones(4, 2, dtype=torch.bool), BETA)
    assert td.sum(1).tolist() == pytest.approx([0.248320, -0.751680, -0.751680, -0.751680], abs=1e-6)
    assert td[0].tolist() == pytest.approx([0.129117, 0.119203], abs=1e-6)
    assert td[1].tolist() == pytest.approx([0.129117, -0.880797], abs=1e-6)


def test_the_loss_is_zero_at_the_optimum_with_the_exact_baseline_and_path_consistency_has_another_optimum():
    pi, root, _ = _optimum()
    logp, ref, kl = _columns(pi)
    target = (REWARD - root)[:, None].expand(4, 2)
    table = Rollouts(dict(logp=logp, ref_logp=ref, now_kl=kl, returns=target, mask=torch.ones(4, 2).bool()))
    assert ImpliedValueLoss(beta=BETA)(table).tolist() == pytest.approx([0] * 4, abs=1e-12)
    posterior = (REWARD / BETA).softmax(0)
    consistent = float(posterior[0] + posterior[1])
    assert consistent == pytest.approx((math.e**2 + 1) / (math.e**2 + 3)) == pytest.approx(0.807490, abs=1e-6)
    assert abs(consistent - float(pi[0, 0])) > 0.04


def test_the_terms_have_zero_mean_under_any_policy():
    g = torch.Generator().manual_seed(0)
    logp, ref = torch.randn(2, 5, 1, 7, generator=g, dtype=torch.float64).log_softmax(-1)
    kl = f_divergence(logp, ref, REVERSE_KL)
    every = implied_td(logp[:, 0], ref[:, 0], kl.expand(5, 7), torch.ones(5, 7).bool(), 0.3)
    assert (logp[:, 0].exp() * every).sum(1).abs().max() < 1e-12 and every.abs().max() > 0.1


def _value_gradient(pi, reward, detached=True):
    """Value of L_V and its gradient to the logits, all four paths as one group."""
    logits = pi.log().clone().requires_grad_()
    logp, ref, kl = _columns(logits.softmax(-1))
    target = (reward - reward.mean())[:, None].expand(4, 2)
    columns = dict(logp=logp, ref_logp=ref, now_kl=kl.detach() if detached else kl, returns=target)
    loss = ImpliedValueLoss(beta=BETA)(Rollouts(columns | dict(mask=torch.ones(4, 2).bool()))).mean()
    return float(loss.detach()), torch.autograd.grad(loss, logits, retain_graph=True)[0], logits, logp, kl


def test_at_the_reference_it_is_reinforce_with_the_groups_mean():
    uniform = torch.full((3, 2), 0.5, dtype=torch.float64)
    _, gradient, logits, logp, _ = _value_gradient(uniform, REWARD)
    reinforce = -((REWARD - REWARD.mean())[:, None] * logp).sum() / 4
    (expected,) = torch.autograd.grad(reinforce, logits)
    torch.testing.assert_close(gradient, BETA * expected)
    assert gradient.abs().max() > 0.01


def test_the_kl_is_detached():
    pi = torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], dtype=torch.float64)
    value, gradient, *_ = _value_gradient(pi, REWARD)
    other_value, attached, logits, logp, kl = _value_gradient(pi, REWARD, detached=False)
    assert value == other_value
    residual = implied_td(logp, torch.full((4, 2), 0.5).double().log(), kl, torch.ones(4, 2).bool(), BETA).sum(1)
    residual = (residual - (REWARD - REWARD.mean())).detach()
    (extra,) = torch.autograd.grad(-(BETA * residual * kl.sum(1)).mean(), logits)
    torch.testing.assert_close(attached - gradient, extra)
    assert extra.abs().max() > 1e-3


def test_a_group_of_equal_rewards_still_teaches_once_the_policy_has_moved():
    """Unlike GRPO's: it pulls the sums to zero."""
    equal = torch.ones(4, dtype=torch.float64)
    uniform, moved = torch.full((3, 2), 0.5).double(), torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]).double()
    assert _value_gradient(uniform, equal)[1].abs().max() < 1e-12
    assert _value_gradient(moved, equal)[1].abs().max() > 1e-2


def _batch(lam=1.0, **more):
    n, t = 4, 3
    g = torch.Generator().manual_seed(1)
    mask = torch.arange(t) < torch.tensor([[3], [1], [2], [3]])
    logp, ref = torch.rand(2, n, t, generator=g).log().masked_fill(~mask, float("nan"))
    kl = torch.rand(n, t, generator=g).masked_fill(~mask, float("nan"))
    table = Rollouts(
        dict(mask=mask, group=torch.tensor([0, 0, 1, 1]), reward=torch.tensor([1.0, 0, 1, 1]))
        | dict(old_logp=logp, ref_logp=ref, old_kl=kl)
    )
    return table, ImpliedCredit(beta=0.5, lam=lam, **more)(table)


def test_credit_is_a_sum_of_terms_to_come_and_masked_steps_do_not_leak():
    table, single = _batch(lam=0.0, whitened=False)
    _, to_go = _batch(lam=1.0, whitened=False)
    term = (0.5 * (table.old_logp - table.ref_logp - table.old_kl)).where(table.mask, 0.0)
    torch.testing.assert_close(single["advantage"], term)
    torch.testing.assert_close(to_go["advantage"], term.flip(1).cumsum(1).flip(1).where(table.mask, 0.0))
    white = _batch()[1]["advantage"]
    assert white[table.mask].mean().abs() < 1e-6 and white[table.mask].std() == pytest.approx(1, abs=1e-4)
    assert (white[~table.mask] == 0).all()
    target = torch.tensor([0.5, -0.5, 0, 0])[:, None] * table.mask
    assert torch.equal(single["returns"], target)


def test_whitening_leaves_rounding_at_the_reference_alone():
    table, _ = _batch()
    noise = 1e-6 * torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    still = table.having(old_logp=table.ref_logp + noise, old_kl=torch.zeros(4, 3))
    assert ImpliedCredit()(still)["advantage"].abs().max() < 1e-4
    exact = table.having(old_logp=table.ref_logp, old_kl=torch.zeros(4, 3))
    assert (ImpliedCredit()(exact)["advantage"] == 0).all()


def test_the_actor_term_adds_its_own_gradient():
    """Token differences come from the actor alone: without it all tokens of a trajectory have one gradient."""
    states, actions = torch.tensor([[0, 1]]).expand(4, 2), torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]])
    gradients = {}
    for coef in (0.0, 0.3):
        table = Table(torch.zeros(2, 2))
        method = VIMPO.set("regularizers.term.coef", coef).set("surrogate.beta", 0.2)
        batch = trajectories(actions, torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.long))
        zero = torch.zeros(4, 2)
        batch = batch.having(
            ref_logp=zero - math.log(2),
            old_logp=zero - math.log(2),
            now_kl=zero,
            returns=zero + torch.tensor([0.75, -0.25, -0.25, -0.25])[:, None],
            advantage=torch.tensor([[1.0, -1.0], [0, 0], [0, 0], [0, 0]]),
        )
        value = tabular_loss(method, table, states, batch, set())
        gradients[coef] = torch.autograd.grad(value, table.weights)[0]
    actor = gradients[0.3] - gradients[0.0]
    assert actor[0].tolist() == pytest.approx([-0.3 / 8 / 2, 0.3 / 8 / 2])
    assert actor[1].tolist() == pytest.approx([-0.3 / 8 / 2, 0.3 / 8 / 2])


def test_the_first_step_of_the_trainer_is_dr_grpos_direction():
    moved = []
    for method in (VIMPO, DR_GRPO):
        method = method.but(prompts=Uniform(prompts=4, rollouts=4))
        trainer = Trainer(tiny_policy(), digits_task(), method, Settings(lr=1e-2, warmup=0, micro_tokens=400))
        gradient = gradient_of_step(trainer)
        moved.append(gradient / gradient.norm())
    torch.testing.assert_close(*moved, atol=1e-4, rtol=1e-2)
