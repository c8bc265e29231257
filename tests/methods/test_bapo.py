"""BAPO: the card's exact checks."""

import pytest
import torch

from surefoot.methods.rlvr.bapo import BAPO, BalancedClip, walk
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.entropy import entropy, entropy_slope
from surefoot.objective.surrogates import Clip
from surefoot.rollout.prompts import Uniform
from surefoot.rollouts import Rollouts
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, gradient_of_step, tiny_policy

RATIO, CREDIT, PI = (
    torch.tensor(x, dtype=torch.float64)
    for x in ([2.5, 1, 0.4, 0.7, 1], [1.0, 1, -1, -1, -1], [0.1, 0.6, 0.1, 0.3, 0.5])
)
AS_RELEASED = BalancedClip(low=(0.6, 0.8), high=(1.2, 2.0), low_step=0.05, weighted=False, low_first=True)


def _table(ratio=RATIO, credit=CREDIT, pi=PI):
    """One trajectory of the worked example, and a masked step that must not count."""
    pad = torch.tensor([float("nan")], dtype=torch.float64)
    rollout = torch.cat([pi.log(), pad])[None]
    logp = torch.cat([(ratio * pi).log(), pad])[None]
    mask = torch.ones_like(logp, dtype=torch.bool)
    mask[0, -1] = False
    credit = torch.cat([credit, pad])[None]
    return Rollouts(dict(mask=mask, advantage=credit, rollout_logp=rollout, now_logp=logp, logp=logp))


def _found(part, table=None):
    part = part.fresh()
    part.prepare(_table() if table is None else table)
    return part.memory


def test_bounds_stay_where_the_share_is_met_and_the_loss_is_then_ppos():
    part = BalancedClip()
    part.prepare(_table())
    assert part.memory["steps"] == 0 and part.memory["share"] == pytest.approx(0.483221, abs=1e-6)
    table = _table()
    ppo = Clip(low=0.4, high=0.2)(table.having(old_logp=table.rollout_logp))
    torch.testing.assert_close(part(table)[table.mask], ppo[table.mask])


@pytest.mark.parametrize(
    ("part", "low", "high", "steps", "share"),
    [
        (BalancedClip(target=0.51), 0.6, 2.05, 17, 0.511111),
        (BalancedClip(target=0.51, weighted=False), 0.6, 1.40, 4, 0.510638),
        (BalancedClip(target=0.55), 0.9, 3.0, 51, 0.497076),
        (BalancedClip(target=0.55, low=(0.6, 0.6)), 0.6, 3.0, 36, 0.524691),
        (AS_RELEASED.having(target=0.98 / 1.98), 0.8, 1.55, 11, 0.980769 / 1.980769),
    ],
)
def test_worked_searches(part, low, high, steps, share):
    found = _found(part)
    assert (found["low"], found["high"], found["steps"]) == (pytest.approx(low), pytest.approx(high), steps)
    assert found["share"] == pytest.approx(share, abs=1e-6)
    assert found["exhausted"] == (share < part.target)


def test_by_value_a_higher_lower_bound_lowers_the_share_and_by_gradient_it_raises_it():
    def shares(measure, low=(0.6,), high=(1.2,)):
        return [
            _found(BalancedClip(target=0.0, low=(c, c), high=(d, d), measure=measure))["share"]
            for c in low
            for d in high
        ]

    lows = (0.6, 0.75, 0.9)
    assert shares("value", lows) == pytest.approx([0.483221, 0.473684, 0.455696], abs=1e-6)
    assert shares("gradient", lows) == pytest.approx([0.458015, 0.545455, 0.545455], abs=1e-6)
    for measure in ("value", "gradient"):
        rising = shares(measure, high=(1.2, 2.0, 2.6, 3.0))
        assert rising == sorted(rising) and rising[0] < rising[-1]


def test_the_gradient_is_r_a_where_no_bound_binds():
    table = _table()
    live = table.logp.clone().requires_grad_()
    part = BalancedClip(target=0.51)
    part.prepare(table)
    part(table.having(logp=live))[table.mask].sum().backward()
    expected = [0.0, -1.0, 0.0, 0.7, 1.0]  # -r A; 2.5 is above 2.05, 0.4 below 0.6
    assert live.grad[0].tolist() == pytest.approx([*expected, 0.0])


def test_fresh_data_gives_the_policy_gradient_even_when_the_search_is_exhausted():
    table = _table(ratio=torch.ones(5), credit=torch.tensor([0.1, -1, -1, -1, -1]))
    live = table.logp.clone().requires_grad_()
    part = BalancedClip()
    part.prepare(table)
    assert part.memory["exhausted"] and (part.memory["low"], part.memory["high"]) == pytest.approx((0.9, 3.0))
    part(table.having(logp=live))[table.mask].sum().backward()
    torch.testing.assert_close(live.grad[0, :5], -table.advantage[0, :5])


def test_nothing_to_balance_and_nothing_positive():
    zeros = _found(BalancedClip(), _table(credit=torch.zeros(5)))
    assert zeros["steps"] == 0 and zeros["share"] == 1
    negative = _found(BalancedClip(), _table(credit=-torch.ones(5)))
    assert negative["share"] == 0 and negative["exhausted"]
    empty = _table()
    assert _found(BalancedClip(), empty.having(mask=empty.mask & False))["steps"] == 0


def test_the_path_takes_one_grid_to_its_end_and_then_the_other():
    assert walk(16, 37)[36:38] == [(0, 36), (1, 36)] and len(walk(16, 37)) == 52
    assert walk(2, 2, low_first=True) == [(0, 0), (1, 0), (1, 1)]


def test_the_entropy_clip_rule_assumes_a_natural_gradient():
    """dH = -Cov(log pi, dz) for any step of the logits; `A X` gives the paper's rule, the plain gradient another."""
    g = torch.Generator().manual_seed(0)
    z, credit = torch.randn(2, 7, generator=g, dtype=torch.float64)
    pi = z.softmax(0)
    kept = credit * torch.tensor([1, 0, 1, 1, 0, 1, 1])
    plain = pi * (kept - (pi * kept).sum())
    slopes = []
    for push in (kept, plain):
        eta = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(entropy((z + eta * push).log_softmax(0)), eta)
        torch.testing.assert_close(entropy_slope(z.log_softmax(0), push), slope)
        slopes.append(float(slope))
    mean = (pi * pi.log()).sum()
    assert slopes[0] == pytest.approx(float(-(pi * (pi.log() - mean) * kept).sum()))
    assert abs(slopes[0] - slopes[1]) > 0.1


def test_the_trainer_searches_before_every_update_over_the_whole_minibatch():
    """The bounds do not depend on how a minibatch is cut into microbatches."""
    found = {}
    for budget in (60, 10**6):
        seen = found[budget] = []

        class Watching(BalancedClip):
            def prepare(self, minibatch, seen=seen):
                super().prepare(minibatch)
                seen.append((len(minibatch), *self.memory.values()))

        method = BAPO.but(surrogate=Watching(target=0.5), prompts=Uniform(prompts=4, rollouts=4))
        trainer = Trainer(tiny_policy(), digits_task(), method, Settings(lr=3e-2, warmup=0, micro_tokens=budget))
        trainer.train_step()
    small, large = (torch.tensor(seen) for seen in found.values())
    torch.testing.assert_close(small, large, rtol=1e-3, atol=0)
    assert small[:, 0].tolist() == [4] * 4 and small[:, 4].max() > 0, "four searches of four trajectories each"


def test_on_policy_it_is_grpo():
    gradients = []
    for surrogate in (BalancedClip(), Clip()):
        method = GRPO.but(
            surrogate=surrogate, regularizers=(), aggregate=TokenMean(), prompts=Uniform(prompts=4, rollouts=4)
        )
        trainer = Trainer(tiny_policy(), digits_task(), method, Settings(lr=1e-2))
        gradients.append(gradient_of_step(trainer))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)
