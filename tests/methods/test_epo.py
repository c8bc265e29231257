"""EPO: the card's exact checks, on tables of several turns."""

import math

import pytest
import torch

from surefoot.errors import InputError
from surefoot.methods.rlvr.epo import EPO, EntropyBand, release, rising
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.aggregation import TokenMean
from surefoot.objective.entropy import EntropyBonus, entropy
from surefoot.rollout.prompts import Uniform
from surefoot.rollouts import Rollouts
from surefoot.training import checkpoint
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, tiny_policy

TURN = torch.tensor([[0, 0, 1, 1, 2, -1], [0, 1, 1, 1, -1, -1], [0, 0, 0, 1, 2, 2]])
MASK = torch.tensor(
    [[1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
).bool()  # 0: padding, or said by a tool


def _table(logits=None, old=None):
    z = logits if logits is not None else torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)).double() * 2
    live = entropy(z.log_softmax(-1))
    return Rollouts({"mask": MASK, "turn": TURN, "entropy": live, "old_entropy": live.detach() if old is None else old})


def _old(values, **more):
    """A phase whose old entropies are `values` everywhere (a number a turn)."""
    return _table(old=torch.tensor(values).double()[TURN.clamp_min(0)], **more)


def _gradient(part, table, logits):
    weights = TokenMean()(table)
    return torch.autograd.grad((weights * part(table)).sum(), logits)[0]


def _logits(seed=0):
    return (2 * torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(seed)).double()).requires_grad_()


def test_the_weights_phases():
    values = [release(e / 150) for e in (0, 30, 75, 76, 110, 150)]
    assert values == pytest.approx([1, 0.8899, 0.8271, 0.7686, 0.1973, 0.0398], abs=5e-5)
    assert rising(0) == 0 and rising(1) == pytest.approx(1 - math.exp(-3))


def test_the_schedule_has_step_e_at_w_of_e_and_stays_after_the_last():
    method = EPO.fresh()
    assert method.regularizers[0].weight == 0
    for e in range(1, 160):
        for target, value in method.controllers[0]({}).items():
            method = method.set(target, value)
        assert method.regularizers[0].weight == pytest.approx(rising(min(e, 150) / 150))


def test_a_turns_history_is_the_mean_of_the_phases_that_reached_it():
    part = EntropyBand()
    for _ in range(3):
        part.observe(_old([1.0, 2.0, 0.5]))
    assert part.history().tolist() == pytest.approx([1.0, 2.0, 0.5])
    phases = [_old([1.0, 2.0, 0.5]), _old([3.0, 0.0, 1.5]), _table().rows([1])]
    short = phases[2].old_entropy[0]
    expected = [(1 + 3 + float(short[0])) / 3, (2 + 0 + float(short[2:4].mean())) / 3, 1.0]  # turn 2: two phases
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        part = EntropyBand()
        for i in order:
            part.observe(phases[i])
        assert part.history().tolist() == pytest.approx(expected), "no phase counts more for its place"
    windowed = EntropyBand(window=1)
    for i in (1, 0):
        windowed.observe(phases[i])
    assert windowed.history().tolist() == pytest.approx([1.0, 2.0, 0.5])


def test_masked_steps_do_not_count_whatever_they_hold():
    poisoned = _table().old_entropy.masked_fill(~MASK, torch.nan)
    clean, dirty = EntropyBand(), EntropyBand()
    clean.observe(_table())
    dirty.observe(_table(old=poisoned))
    assert torch.equal(clean.history(), dirty.history())
    z = _logits()
    bad = z.masked_fill(~MASK[..., None], torch.nan)
    grad = _gradient(dirty, _table(bad), z)
    assert grad.isfinite().all() and (grad[~MASK] == 0).all() and (grad[MASK] != 0).any()
    empty = _table().having(mask=torch.zeros_like(MASK))
    nothing = EntropyBand()
    nothing.observe(empty)
    nothing.observe(_old([1.0, 2.0, 0.5]))
    assert nothing.history().tolist() == pytest.approx([1.0, 2.0, 0.5])
    assert (nothing(empty) == 0).all()


@pytest.mark.parametrize("alpha", [0.05, 1.0, 100.0])
def test_as_released_the_gradient_is_the_plain_bonus(alpha):
    z = _logits()
    part = EntropyBand(coef=0.3, alpha=alpha, soft=False)
    part.observe(_old([1.0, 0.6, 1.2]))
    table = _table(z)
    assert (part.penalty(table) == alpha).any() and (part.penalty(table)[MASK] == 0).any()
    torch.testing.assert_close(
        _gradient(part, table, z), _gradient(EntropyBonus(0.3), _table(z), z), atol=1e-12, rtol=0
    )
    loss, bonus = ((TokenMean()(table) * p(table)).sum().detach() for p in (part, EntropyBonus(0.3)))
    assert float(loss - bonus) == pytest.approx(0.3 * alpha * float((part.penalty(table)[MASK] > 0).double().mean()))


def test_without_scale_or_weight_it_is_the_plain_bonus_and_without_coefficient_nothing():
    z = _logits()
    for off in ({"alpha": 0.0}, {"weight": 0.0}):
        part = EntropyBand(coef=0.3, **off)
        part.observe(_old([1.0, 0.6, 1.2]))
        assert torch.equal(part(_table(z)), EntropyBonus(0.3)(_table(z)))
    none = EntropyBand(coef=0.0)
    none.observe(Rollouts({"mask": MASK}))
    assert (
        none.reads == ()
        and (none(Rollouts({"mask": MASK})) == 0).all()
        and none.metrics(Rollouts({"mask": MASK})) == {}
    )


def test_the_penaltys_gradient_is_that_of_the_entropy_signed_by_the_side():
    z, alpha = _logits(1), 0.7
    part = EntropyBand(coef=1.0, low=0.8, high=1.2, alpha=alpha)
    part.observe(_old([1.0, 0.6, 1.2]))
    table = _table(z)
    (got,) = torch.autograd.grad(part.penalty(table).sum(), z)
    pi = z.softmax(-1).detach()
    H = table.entropy.detach()
    slope = -pi * (pi.log() + H[..., None])
    usual = torch.tensor([1.0, 0.6, 1.2]).double()[TURN.clamp_min(0)]
    side = (H > 1.2 * usual).double() - (H < 0.8 * usual).double()
    side = side.where(MASK, 0.0)
    assert set(side[MASK].tolist()) == {-1.0, 0.0, 1.0}, "above, inside and below are all there"
    torch.testing.assert_close(got, alpha * side[..., None] * slope)


def test_a_bound_is_outside():
    part = EntropyBand(coef=1.0, low=0.5, high=2.0, soft=False)
    part.observe(_old([1.0, 1.0, 1.0]))
    for value, outside in ((0.5, 1.0), (2.0, 1.0), (0.501, 0.0), (1.999, 0.0)):
        table = _table().having(entropy=torch.full((3, 6), value).double())
        assert set(part.penalty(table)[MASK].tolist()) == {outside}
        assert float(part.metrics(table)["outside_band"]) == outside


def test_bad_bands_are_refused():
    for bad in ({"low": 1.3}, {"low": -0.1}, {"window": -1}):
        with pytest.raises(InputError, match="EntropyBand"):
            EntropyBand(**bad)


def _trained(method, steps=3):
    trainer = Trainer(tiny_policy(), digits_task(), method.but(prompts=Uniform(4, 4)), Settings(lr=1e-2, warmup=0))
    return [trainer.train_step().metrics for _ in range(steps)], trainer


def test_in_the_trainer_one_turn_has_one_history_and_as_released_it_trains_as_the_bonus_does():
    base = GRPO.but(aggregate=TokenMean())
    released = EPO.but(regularizers=(EntropyBand(coef=0.1, soft=False, low=1.0, high=1.0),), controllers=())
    bonus, epo = _trained(base.but(regularizers=(EntropyBonus(0.1),))), _trained(released)
    assert [m["grad_norm"] for m in bonus[0]] == pytest.approx([m["grad_norm"] for m in epo[0]], rel=1e-4)
    soft, trainer = _trained(
        EPO.but(regularizers=(EntropyBand(coef=0.1, alpha=5.0, low=0.999, high=1.001),), controllers=())
    )
    assert soft[1]["grad_norm"] != pytest.approx(bonus[0][1]["grad_norm"], rel=1e-3)
    assert trainer.method.regularizers[0].memory["phases"].shape == (3, 1)
    assert 0 < soft[0]["outside_band"] < 1 and epo[0][0]["outside_band"] == 1


def test_the_history_and_the_phase_are_resumed(tmp_path):
    _, one = _trained(EPO)
    saved = checkpoint.save(one, tmp_path)
    other = Trainer(tiny_policy(), digits_task(), EPO.but(prompts=Uniform(4, 4)), Settings(lr=1e-2, warmup=0))
    checkpoint.load(other, saved)
    assert other.method.regularizers[0].weight == pytest.approx(rising(3 / 150))
    assert one.train_step().metrics == other.train_step().metrics
