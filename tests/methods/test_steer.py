"""STEER: the card's exact checks."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from surefoot.methods.rlvr.grpo import GRPO
from surefoot.methods.rlvr.steer import (
    STEER,
    EntropyChangeWeighted,
    entropy_fall,
    exact_fall,
    exponential,
    linear,
    own_logit_fall,
)
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.entropy import entropy
from surefoot.rollout.prompts import Uniform
from surefoot.rollouts import Rollouts
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, tiny_policy


def _table(seed=0, sign=1.0):
    g = torch.Generator().manual_seed(seed)
    full = torch.randn(4, 5, 9, generator=g).log_softmax(-1)
    mask = torch.arange(5) < torch.tensor([[5], [3], [4], [1]])
    logp = full[..., 0].masked_fill(~mask, float("nan"))
    return Rollouts(
        {
            "mask": mask,
            "old_logp": logp,
            "now_logp": logp,
            "now_entropy": entropy(full),
            "advantage": sign * torch.randn(4, 5, generator=g),
        }
    )


def test_weights_of_one_are_the_base_methods_bit_for_bit():
    weights = EntropyChangeWeighted(low=1.0, high=1.0)(_table())
    assert torch.equal(weights, TokenMean()(_table()))
    moved = []
    for aggregate in (TokenMean(), EntropyChangeWeighted(low=1.0, high=1.0)):
        method = STEER.but(aggregate=aggregate, prompts=Uniform(prompts=4, rollouts=4))
        trainer = Trainer(tiny_policy(), digits_task(), method, Settings(lr=1e-2))
        trainer.train_step()
        moved.append(torch.cat([p.detach().flatten() for p in trainer.policy.parameters()]))
    assert torch.equal(*moved)


def test_the_two_shapes():
    change, mask = torch.tensor([[0.0, 0.1, 0.4, 1.0]]), torch.ones(1, 4, dtype=torch.bool)
    assert linear(change, mask, 0.8, 1.2)[0].tolist() == pytest.approx([1.2, 1.16, 1.04, 0.8])
    assert exponential(change, mask, 0.8)[0].tolist() == pytest.approx([1, 0.9779, 0.9146, 0.8], abs=5e-5)
    assert torch.equal(linear(torch.full((1, 4), 0.3), mask, 0.8, 1.2), torch.ones(1, 4)), "all alike: the middle"
    assert torch.isfinite(linear(change, ~mask, 0.8, 1.2)).all()


def test_worked_numbers_of_omega_and_of_the_exact_change():
    logp = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64).log_softmax(0)
    omega = entropy_fall(logp, logp, entropy(logp), torch.ones(4))
    exact = exact_fall(logp.expand(4, 4), torch.arange(4), torch.ones(4))
    assert omega.tolist() == pytest.approx([0.180659, -0.375952, -1.362577, -2.412742], abs=1e-6)
    assert exact.tolist() == pytest.approx([0.157871, -0.285518, -0.298894, -0.248728], abs=1e-6)


def test_the_exact_change_is_the_entropys_derivative():
    logits = torch.randn(6, 7, dtype=torch.float64)
    action, advantage, eta = torch.arange(6), torch.randn(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    eta.requires_grad_()
    push = torch.nn.functional.one_hot(action, 7) - logits.softmax(-1)
    after = entropy((logits + (eta * advantage)[:, None] * push).log_softmax(-1))
    (slope,) = torch.autograd.grad(after.sum(), eta)
    torch.testing.assert_close(exact_fall(logits.log_softmax(-1), action, advantage), -slope)


def test_a_token_at_the_average_surprise_gets_the_full_weight():
    table = _table()
    at = table.now_logp.clone()
    at[0, 0] = -table.now_entropy[0, 0]
    assert EntropyChangeWeighted().factor(table.having(now_logp=at))[0, 0] == pytest.approx(1.2)


def test_omega_is_odd_and_weights_are_even_in_the_advantage():
    table, turned = _table(), _table(sign=-1.0)
    columns = ("now_logp", "old_logp", "now_entropy", "advantage")
    omega, other = (entropy_fall(*(t[c][t.mask] for c in columns)) for t in (table, turned))
    assert torch.equal(omega, -other) and (omega != 0).any()
    assert torch.equal(EntropyChangeWeighted()(table), EntropyChangeWeighted()(turned))


def test_no_gradient_flows_through_the_weights_and_padding_does_not_leak():
    table = _table()
    live = table.now_logp.clone().requires_grad_()
    weights = EntropyChangeWeighted()(table.having(now_logp=live, old_logp=live))
    assert not weights.requires_grad and (weights[~table.mask] == 0).all() and torch.isfinite(weights).all()
    assert 0.8 / table.mask.sum() - 1e-6 <= weights[table.mask].min() < weights.max() <= 1.2 / table.mask.sum() + 1e-6


@pytest.mark.parametrize(
    ("estimate", "signs", "signed", "sizes"),
    [
        (entropy_fall, False, 0.84, 0.68),
        (own_logit_fall, False, 0.81, 0.63),
        (entropy_fall, True, None, 0.37),
        (own_logit_fall, True, None, 0.43),
    ],
)
def test_how_well_the_estimators_rank(estimate, signs, signed, sizes):
    """Softmaxes of 32 logits; with advantages of +-1 most of the ranking of |Omega| is gone: it was |A|.

    The card's numbers are of 4000 softmaxes, whose sampling error alone is .012 (four draws gave .607 to .642 where it
    says .63): here so many that its tolerance, .02, is eight standard errors.
    """
    rng, size = np.random.default_rng(0), 100_000
    logp = torch.from_numpy(rng.normal(0, 2, (size, 32))).log_softmax(-1)
    action = torch.multinomial(logp.exp(), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    advantage = torch.from_numpy(rng.choice([-1.0, 1.0], size) if signs else rng.normal(size=size))
    own = logp.gather(1, action[:, None])[:, 0]
    guess, exact = estimate(own, own, entropy(logp), advantage), exact_fall(logp, action, advantage)
    if signed:
        assert spearmanr(guess, exact).statistic == pytest.approx(signed, abs=0.02)
    assert spearmanr(guess.abs(), exact.abs()).statistic == pytest.approx(sizes, abs=0.02)


def test_the_weights_follow_the_policy_between_minibatches():
    """The trainer gives the policy as each minibatch finds it, not as the batch was made."""
    seen = []

    class Watching(EntropyChangeWeighted):
        def factor(self, rollouts):
            seen.append((rollouts.now_logp - rollouts.old_logp)[rollouts.mask].abs().max().item())
            return super().factor(rollouts)

    method = GRPO.but(aggregate=Watching(), prompts=Uniform(prompts=4, rollouts=4), regularizers=())
    trainer = Trainer(tiny_policy(), digits_task(), method.but(update=STEER.update), Settings(lr=1e-2, warmup=0))
    trainer.train_step()
    assert len(seen) == 4 and seen[0] < 1e-4 < min(seen[1:])
