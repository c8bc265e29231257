"""SimpleTIR: the card's exact checks."""

import numpy as np
import pytest
import torch

from surefoot.claims.simpletir import AsManyAtRandom, Course, verdict
from surefoot.methods.agents.simpletir import SIMPLETIR, logit_gradient_norm
from surefoot.objective.groups import group_mean
from surefoot.objective.selection import Everything, NoVoidTurn
from surefoot.rollout.prompts import Uniform
from surefoot.rollouts import Rollouts
from surefoot.tasks.tools import Python, calculator
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import tiny_policy

V = 5


@pytest.mark.parametrize(
    ("pi", "norms"),
    [((0.7, 0.2, 0.1), (0.374166, 1.067708, 1.157584)), ((0.999, 0.0005, 0.0005), (0.001225, 1.413153, 1.413153))],
)
def test_the_norm_of_a_tokens_gradient(pi, norms):
    pi = torch.tensor(pi, dtype=torch.float64)  # (the card's .001221 is .0012247 in float32)
    found = logit_gradient_norm(pi.log(), pi.square().sum().log())
    torch.testing.assert_close(found, torch.tensor(norms).double(), atol=5e-7, rtol=0)
    for a in range(3):
        z = pi.log().requires_grad_()
        (-2.5 * z.log_softmax(0)[a]).backward()
        torch.testing.assert_close(z.grad.norm(), 2.5 * found[a], atol=1e-9, rtol=0)


def _batch(void, n=8, t=6, seed=0):
    """Two groups of four; steps 2 and 3 are the tool's; logits with gradient."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, t, V, generator=rng, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(V, (n, t), generator=rng)
    mask = torch.tensor([True, True, False, False, True, True]).expand(n, t)
    logp = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    reward = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 1], dtype=torch.float64)
    columns = dict(tokens=tokens, mask=mask, present=torch.ones_like(mask), group=torch.arange(n) // 4, reward=reward)
    columns |= dict(void=torch.tensor(void), truncated=torch.zeros(n, dtype=torch.bool), logp=logp)
    columns["old_logp"] = logp.detach() + 0.1 * torch.randn(n, t, generator=rng)
    return logits, Rollouts(columns)


def _loss(method, batch):
    """As the trainer does it: statistics first, then the selection."""
    batch = batch.having(advantage=method.advantage(batch))
    chosen = method.select(batch)
    batch = batch.having(mask=batch.mask & (chosen if chosen.ndim == 2 else chosen[:, None]))
    weights = method.aggregate(batch)
    return (weights * method.surrogate(batch).where(weights != 0, 0.0)).sum(), batch


def test_without_void_turns_it_is_masked_grpo_and_the_tool_gets_no_gradient():
    logits, batch = _batch([False] * 8)
    loss, _ = _loss(SIMPLETIR, batch)
    plain, _ = _loss(SIMPLETIR.but(select=Everything()), batch)
    assert torch.equal(loss, plain)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    assert torch.equal(gradient, torch.autograd.grad(plain, logits)[0])
    assert (gradient[:, 2:4] == 0).all() and (gradient[:, [0, 1, 4, 5]] != 0).any()


def test_a_void_trajectory_leaves_its_mates_advantages_alone_and_its_tokens_leave_the_denominator():
    void = [True] + [False] * 7
    logits, batch = _batch(void)
    loss, seen = _loss(SIMPLETIR, batch)
    _, other = _batch([False] * 8)
    torch.testing.assert_close(seen.advantage, SIMPLETIR.advantage(other), atol=0, rtol=0)
    kept = batch.rows(list(range(1, 8)))
    wrong = SIMPLETIR.advantage(kept)  # statistics after dropping: the right one of the group is gone
    assert not torch.allclose(wrong[:3], seen.advantage[1:4])
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[0] == 0).all() and (gradient[1:, 0] != 0).any()
    assert float(SIMPLETIR.aggregate(seen)[1, 0]) == pytest.approx(1 / (7 * 4))


def test_nothing_but_void_is_a_loss_of_zero():
    logits, batch = _batch([True] * 8)
    loss, _ = _loss(SIMPLETIR, batch)
    assert loss.item() == 0 and (torch.autograd.grad(loss, logits)[0] == 0).all()


def test_a_step_whose_trajectories_are_all_void_moves_nothing():
    """A random policy calls no tool: every first turn is void, and even the optimizer's momentum stays out of it."""
    policy = tiny_policy()
    before = [p.detach().clone() for p in policy.parameters()]
    trainer = Trainer(policy, calculator(), SIMPLETIR.but(prompts=Uniform(4, 4)), Settings(lr=1e-2, warmup=0))
    found = trainer.train_step()
    assert found.metrics["void"] == 1.0 and found.metrics["loss"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


@pytest.mark.parametrize(
    ("said", "void"),
    [
        ("```py\nprint(1)\n```", False),
        ("\\boxed{3}", False),
        ("```py\nprint(1)", True),
        ("", True),
        ("```\nprose\n```", False),
    ],
)
def test_what_a_void_turn_is(said, void):
    tool = Python()
    assert (tool.call(said) is None and tool.answer(said) is None) == void


def test_the_dual_clip_bounds_the_gradient_of_what_went_wrong():
    def norm(ratio, dual):
        z = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        logp = z.log_softmax(0)[:1][None]
        table = Rollouts(
            {
                "logp": logp,
                "old_logp": logp.detach() - np.log(ratio),
                "advantage": torch.full((1, 1), -1.0).double(),
                "mask": torch.ones(1, 1, dtype=torch.bool),
            }
        )
        part = SIMPLETIR.surrogate if dual else SIMPLETIR.set("surrogate.dual", None).surrogate
        return float(torch.autograd.grad(part(table).sum(), z)[0].norm())

    at_one = norm(1.0, dual=False)
    for ratio in (2.0, 10.0, 1000.0):
        assert norm(ratio, dual=False) == pytest.approx(ratio * at_one)
    assert norm(2.9, dual=True) == pytest.approx(2.9 * at_one) and norm(3.1, dual=True) == 0


def test_the_control_leaves_out_as_many_others():
    _, batch = _batch([True, True, False, False, False, True, False, False])
    part = AsManyAtRandom(3)
    kept = [part(batch) for _ in range(20)]
    assert all(int((~k).sum()) == 3 for k in kept) and len({tuple(k.tolist()) for k in kept}) > 5
    assert torch.equal(NoVoidTurn()(batch), ~batch.void)
    assert group_mean(batch.reward, batch.group)[0] == 0.25


def test_the_claim_can_come_out_three_ways():
    calm, wild = Course(np.ones(30), np.ones(30)), Course(np.ones(30), np.r_[np.ones(28), 9, 9])
    low = Course(np.full(30, 0.1), wild.norm)
    arms = {"no filter": [low] * 3, "random filter": [low] * 3, "void filter": [calm] * 3}
    assert verdict([1.0, 1.1, 1.2], arms) == "reproduced"
    assert verdict([-1.0, 1.1, 0.2], arms) == "refuted"
    assert verdict([1.0, 1.1, 1.2], arms | {"void filter": [wild] * 3}) == "not reproduced"
    fallen = Course(np.r_[np.ones(20), np.zeros(20)], np.ones(40))
    assert fallen.collapsed() and not calm.collapsed()
