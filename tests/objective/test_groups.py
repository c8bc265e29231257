"""The statistics behind the advantages: exact zeros without contrast, bfloat16, members left out, any key."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.objective import advantages as adv
from surefoot.objective import groups
from surefoot.objective.selection import NonZeroAdvantage, NotTruncated
from surefoot.rollouts import Rollouts
from tests.conftest import label

PARTS = [
    adv.GroupNormalized(),
    adv.GroupCentred(),
    adv.LeaveOneOut(),
    adv.Reinforce(),
    adv.ReinforcePlusPlus(),
    adv.ReinforcePlusPlus(group_baseline=True),
    adv.BatchNormalized(),
    adv.OPO(),
    adv.GPG(),
    adv.GDPO(),
]


def table(reward, group=None, truncated=None, steps=3):
    reward = torch.as_tensor(reward)
    n = len(reward)
    group = torch.zeros(n, dtype=torch.long) if group is None else torch.as_tensor(group)
    truncated = torch.zeros(n, dtype=torch.bool) if truncated is None else torch.as_tensor(truncated)
    mask = torch.arange(steps) < 1 + torch.arange(n)[:, None] % steps
    return Rollouts(dict(reward=reward, group=group, truncated=truncated, mask=mask), rewards={"task": reward})


@pytest.mark.parametrize("part", PARTS, ids=label)
@settings(deadline=None, max_examples=40)
@given(value=st.floats(-100, 100, width=32), size=st.integers(1, 40))
def test_equal_rewards_give_exactly_nothing(part, value, size):
    """Not 1e-8: whitening would blow rounding up to order 1, and a selection by `advantage != 0` would keep it."""
    rollouts = table(torch.full((size,), value))
    credit = part(rollouts)
    assert (credit == 0).all()
    assert not NonZeroAdvantage()(rollouts.having(advantage=credit)).any()


@pytest.mark.parametrize("part", PARTS, ids=label)
def test_bfloat16_rewards_lose_nothing_but_their_own_rounding(part):
    """600 members: a count kept in bfloat16 stops at 256."""
    reward = (torch.arange(600) % 7 == 0).bfloat16()
    group = torch.arange(600) // 300
    low, full = part(table(reward, group)), part(table(reward.double(), group))
    assert low.dtype == torch.float32 and full.dtype == torch.float64
    assert torch.allclose(low.double(), full, atol=1e-5)


def test_members_left_out_may_hold_nan_and_do_not_count():
    reward = torch.tensor([1.0, 0.0, float("nan"), 4.0, float("inf")])
    rollouts = table(reward, [0, 0, 0, 7, 7], [False, False, True, False, True])
    part = adv.Relative(groups.group_mean, groups.group_std, eps=0.0, members=NotTruncated())
    assert {"truncated", "reward", "group", "mask"} <= set(part.reads)
    root = 0.5**0.5
    assert torch.allclose(part(rollouts)[:, 0], torch.tensor([root, -root, 0.0, 0.0, 0.0]))


def test_relative_composes_the_published_forms():
    reward, group = torch.tensor([1.0, 0.0, 0.5, 3.0, 1.0]), [0, 0, 0, 4, 4]
    rollouts = table(reward, group)
    for published, general in [
        (adv.GroupNormalized(), adv.Relative(groups.group_mean, groups.group_std)),
        (adv.GroupCentred(), adv.Relative()),
        (adv.LeaveOneOut(), adv.Relative(groups.leave_one_out_mean)),
        (adv.BatchNormalized(), adv.Relative(groups.group_mean, groups.batch_std)),
        (adv.Reinforce(), adv.Relative(groups.batch_mean)),
        (adv.Reinforce(baseline=False), adv.Relative(None)),
    ]:
        assert torch.equal(published(rollouts), general(rollouts))


def test_leave_one_out_among_members():
    x, group = torch.tensor([1.0, 2.0, 6.0]), torch.zeros(3, dtype=torch.long)
    found = groups.leave_one_out_mean(x, group, torch.tensor([True, True, False]))
    assert torch.equal(found, torch.tensor([2.0, 1.0, 1.5]))  # the row left out sees the mean of both members


def test_keys_may_be_sparse_negative_and_joint():
    x = torch.tensor([1.0, 3.0, 10.0, 20.0])
    assert torch.equal(
        groups.group_mean(x, torch.tensor([-5, -5, 10**12, 10**12])), torch.tensor([2.0, 2.0, 15.0, 15.0])
    )
    key = groups.joint_key(torch.tensor([0, 0, 0, 1]), torch.tensor([2, 2, 3, 2]))
    assert torch.equal(groups.group_sum(x, key), torch.tensor([4.0, 4.0, 10.0, 20.0]))


def test_population_and_sample_deviation():
    x, group = torch.tensor([1.0, 3.0, 9.0]), torch.tensor([0, 0, 1])
    assert torch.allclose(groups.group_std(x, group), torch.tensor([2.0**0.5, 2.0**0.5, 0.0]))
    assert torch.allclose(groups.group_population_std(x, group), torch.tensor([1.0, 1.0, 0.0]))


def test_an_empty_mask_and_an_empty_table():
    x = torch.randn(2, 3)
    assert torch.equal(adv.whiten(x, torch.zeros(2, 3, dtype=torch.bool)), torch.zeros(2, 3))
    assert adv.GroupNormalized()(table(torch.zeros(0))).shape == (0, 3)
