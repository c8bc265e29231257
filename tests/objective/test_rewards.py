"""Named rewards into one: soft minima, running scales, and what is refused."""

import math

import pytest
import torch

from surefoot.errors import InputError
from surefoot.objective import rewards as R
from surefoot.rollouts import Rollouts

MASK = torch.ones(2, 1, dtype=torch.bool)


def _table(**named):
    return Rollouts({"mask": MASK}, {k: torch.tensor(v) for k, v in named.items()})


@pytest.mark.parametrize("part", [R.Sum(), R.SoftMin(), R.SelfNormalized(), R.PerStep()])
def test_no_reward_and_unknown_weights_are_refused(part):
    with pytest.raises(InputError, match="the task gives no reward"):
        part(Rollouts({"mask": MASK}))
    with pytest.raises(InputError, match="weight for 'corect', which the task does not give.*correct"):
        part.having(weights={"corect": 1.0})(_table(correct=[1.0, 0.0]))


def test_soft_min_lies_between_the_worst_and_the_mean():
    table = _table(a=[0.0, 1.0], b=[1.0, 3.0])
    assert R.SoftMin(temperature=1e-3)(table).tolist() == pytest.approx([0.0, 1.0], abs=1e-2)
    assert R.SoftMin(temperature=1e4)(table).tolist() == pytest.approx([0.5, 2.0], abs=1e-3)
    assert R.SoftMin(temperature=0.1)(_table(a=[0.0, 1.0], b=[1.0, 1.0])).tolist() == pytest.approx(
        [-0.1 * math.log((1 + math.exp(-10)) / 2), 1.0]
    )


def test_self_normalised_rewards_remember_all_batches_and_resume():
    part, batches = R.SelfNormalized(eps=0.0).fresh(), torch.randn(3, 2).double() * 50 + 7
    for batch in batches:
        found = part(Rollouts({"mask": MASK}, {"r": batch}))
    seen = batches.flatten()
    torch.testing.assert_close(found, (batches[-1] - seen.mean()) / seen.std())
    resumed = R.SelfNormalized(eps=0.0).fresh()
    resumed.load_state_dict(part.state_dict())
    more = Rollouts({"mask": MASK}, {"r": torch.tensor([1.0, 2.0])})
    assert part(more).equal(resumed(more))


def test_scales_do_not_matter_to_self_normalised_rewards():
    a, b = [1.0, 3.0], [0.0, 5.0]
    small, large = R.SelfNormalized(eps=0.0).fresh(), R.SelfNormalized(eps=0.0).fresh()
    torch.testing.assert_close(small(_table(a=a, b=b)), large(_table(a=a, b=[1000 * x for x in b])))
