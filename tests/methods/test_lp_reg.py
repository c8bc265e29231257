"""Lp-Reg: the card's exact checks."""

import math

import pytest
import torch

from surefoot.claims._tabular import Table, loss, trajectories
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.methods.rlvr.lp_reg import FILTERED, LP_REG, MinP, Sparks, bounded_k3, lp_reg
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.surrogates import Clip
from surefoot.rollout.prompts import Uniform
from surefoot.rollouts import Rollouts
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, tiny_policy

WORKED = torch.tensor([3.0, 2.0, 0.0, -1.0, -4.0], dtype=torch.float64).log_softmax(0)


def test_the_proxy_is_the_policy_without_implausible_tokens():
    assert WORKED.exp().tolist() == pytest.approx([0.695946, 0.256024, 0.034649, 0.012747, 0.000635], abs=1e-6)
    gap = MinP(0.02)(WORKED.float().expand(5, 5), torch.arange(5)) - WORKED
    assert gap[:3].exp().tolist() == pytest.approx([1.013563] * 3, abs=1e-6)
    assert (gap[3:].exp() == 0).all() and torch.isfinite(gap).all()


def test_worked_numbers_of_the_penalty():
    logp = WORKED[2:3].clone().requires_grad_()
    penalty = bounded_k3(logp, WORKED[2:3] - math.log(0.986619))
    assert penalty.item() == pytest.approx(9.115146e-5, rel=1e-3)
    assert float(torch.autograd.grad(penalty.sum(), logp)[0]) == pytest.approx(-0.0135628, abs=1e-6)


def test_the_penalty_is_bounded_and_then_has_no_gradient():
    logp = torch.tensor([-2.0, -2.0], dtype=torch.float64, requires_grad=True)
    penalty = bounded_k3(logp, logp.detach() + torch.tensor([13.6, 13.7]).log())
    (gradient,) = torch.autograd.grad(penalty.sum(), logp)
    assert penalty.tolist() == pytest.approx([13.6 - math.log(13.6) - 1, 10.0])
    assert gradient.tolist() == pytest.approx([1 - 13.6, 0])


@pytest.mark.parametrize(
    ("beta", "mass", "advantage", "settles"),
    [(1, 1, 0.2, 0.8541), (1, 1, 0.5, 0.7321), (1, 1, 1, 0.6180), (1, 1, 2, 0.5), (1, 0.9, 1, 0.6667)],
)
def test_where_a_spark_settles_within_a_batch(beta, mass, advantage, settles):
    """The gradient of its two terms to log pi vanishes at ratio c: `beta (1 / (Z c) - 1) = |A| c`."""
    log_c = torch.tensor([[math.log(settles)]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.bool)
    table = Rollouts(
        dict(
            logp=log_c,
            old_logp=torch.zeros(1, 1).double(),
            proxy_logp=torch.full((1, 1), -math.log(mass)).double(),
            advantage=torch.full((1, 1), -float(advantage)).double(),
            mask=one,
        )
    )
    terms = sum(part(table) for part in lp_reg(beta=beta).regularizers)
    assert float(torch.autograd.grad(terms.sum(), log_c)[0]) == pytest.approx(0, abs=1e-3)


def _table(n=40, seed=0):
    """One step a row: rare and common ones, some filtered, some rewarded, one masked that holds nonsense."""
    g = torch.Generator().manual_seed(seed)
    logp = (torch.rand(n, 1, generator=g) * 0.9 + 0.05).log()
    proxy = (logp + 0.01).masked_fill(torch.rand(n, 1, generator=g) < 0.3, FILTERED)
    advantage = torch.randn(n, 1, generator=g)
    mask = torch.ones(n, 1, dtype=torch.bool)
    mask[0] = False
    logp[0] = proxy[0] = advantage[0] = float("nan")
    return Rollouts(dict(now_logp=logp, proxy_logp=proxy, advantage=advantage, mask=mask))


def test_sparks_are_the_rarest_failed_steps_that_the_filter_kept():
    table = _table()
    chosen = Sparks(share=0.5)(table)[:, 0]
    failed = (table.mask & (table.advantage < 0))[:, 0]
    ranked = table.now_logp[failed, 0].sort().values
    limit = ranked[int(0.5 * failed.sum()) - 1]
    kept = table.proxy_logp[:, 0] > FILTERED
    assert torch.equal(chosen, failed & (table.now_logp[:, 0] <= limit) & kept)
    assert 0 < chosen.sum() < int(0.5 * failed.sum())
    above = table.having(proxy_logp=table.now_logp - 0.1)
    assert not Sparks(share=0.5)(above).any(), "a step above its proxy needs no help"


@pytest.mark.parametrize("share", [0.0, 1.5 / 25])
def test_none_is_chosen_where_there_would_be_one_at_most(share):
    assert not Sparks(share=share)(_table()).any()
    empty = _table()
    assert not Sparks(share=1.0)(empty.having(mask=empty.mask & False)).any()


def _gradient(method, logits, states, actions, advantage):
    table = Table(logits)
    batch = trajectories(actions, torch.zeros(len(actions)), torch.zeros(len(actions), dtype=torch.long))
    log_policy = table.log_policy(states).detach()
    taken = log_policy.gather(-1, actions[..., None])[..., 0]
    proxy = MinP()(log_policy, actions)
    batch = batch.having(old_logp=taken, now_logp=taken, proxy_logp=proxy, advantage=advantage)
    return torch.autograd.grad(loss(method, table, states, batch, set()), table.weights)[0], taken, proxy


def test_off_the_sparks_it_is_the_clipped_surrogate():
    """A dropped token is never selected; steps with a positive advantage have GRPO's gradient; sparks get the push."""
    logits = WORKED.float()[None]
    actions = torch.tensor([[2], [2], [4], [3], [0]])
    states, advantage = torch.zeros(5, 1, dtype=torch.long), torch.tensor([[-1.0], [-1.0], [-1.0], [-1.0], [2.0]])
    plain = GRPO.but(surrogate=Clip(1.0, 9.0), regularizers=(), aggregate=TokenMean())
    base, taken, proxy = _gradient(plain, logits, states, actions, advantage)
    none, *_ = _gradient(lp_reg(share=0.0), logits, states, actions, advantage)
    torch.testing.assert_close(none, base)
    dropped = lp_reg(share=0.5)  # the two rarest are those that the filter removed
    torch.testing.assert_close(_gradient(dropped, logits, states, actions, advantage)[0], base)
    every, *_ = _gradient(lp_reg(share=1.0), logits, states, actions, advantage)
    score = torch.nn.functional.one_hot(torch.tensor(2), 5) - WORKED.exp().float()
    push = (1 - (proxy - taken).exp())[0] * score * 2 / 5  # two sparks among five steps: both are token 2
    torch.testing.assert_close(every - base, push[None], atol=1e-6, rtol=1e-3)
    assert (every - base)[0, 2] < 0, "descent raises the spark"


def test_junk_changes_the_mass_and_not_which_sparks_are_chosen():
    more = torch.cat([WORKED, WORKED.new_full((50,), -9.0)]).log_softmax(0).float()
    before, after = (MinP()(p[None], torch.tensor([2])) - p[2] for p in (WORKED.float(), more))
    assert after > before > 0


def test_the_trainer_makes_the_proxy_in_the_batchs_own_pass():
    """`proxy_logp` is at least `old_logp` where the filter kept the token, and costs no further pass."""
    method = LP_REG.but(prompts=Uniform(prompts=4, rollouts=4))
    trainer = Trainer(tiny_policy(), digits_task(), method, Settings(lr=1e-2))
    batch = trainer.train_step().batch
    gap = (batch.proxy_logp - batch.now_logp)[batch.mask]
    kept = batch.proxy_logp[batch.mask] > FILTERED / 2
    assert kept.float().mean() > 0.5 and gap[kept].min() > -1e-4 and gap[kept].max() > 1e-3
    assert trainer.signals.passes["policy"] == 1
