"""Which prompts are posed, and what is remembered of them."""

import numpy as np
import pytest
import torch

from surefoot.errors import InputError
from surefoot.rollout.prompts import PassRates, Uniform
from surefoot.rollouts import Rollouts


def judged(prompts, correct):
    return Rollouts({"prompt": torch.tensor(prompts), "correct": torch.tensor(correct).bool()})


def test_a_pool_is_the_first_problems_of_the_task():
    drawn = [r.prompt for s in range(50) for r in Uniform(4, 2, pool=6)(1000, np.random.default_rng(s))]
    assert set(drawn) == set(range(6))
    assert len(Uniform(8, 2, pool=6)(1000, np.random.default_rng(0))) == 8, "a small pool repeats its prompts"
    assert max(r.prompt for r in Uniform(4, 2, pool=50)(10, np.random.default_rng(0))) < 10
    with pytest.raises(InputError, match="pool"):
        Uniform(pool=-1)


def test_the_last_visit_is_what_is_known():
    rates = PassRates()
    assert rates(torch.tensor([3, 5])).isnan().all()
    rates.observe(judged([5, 5, 9, 5, 5], [1, 0, 1, 0, 0]))
    rates.observe(judged([9, 9, 2], [0, 1, 0]))
    found = rates(torch.tensor([9, 2, 5, 3, 100]))
    assert found[:3].tolist() == [0.5, 0.0, 0.25] and found[3:].isnan().all()


def test_earlier_visits_count_by_decay_and_a_prior_never_says_never():
    visits = judged([1, 1], [1, 1]), judged([1, 1, 1, 1], [0, 0, 1, 0])
    for decay, prior, expected in ((1.0, 0.0, 3 / 6), (0.5, 0.0, 2 / 5), (0.0, 1.0, 2 / 6), (0.0, 0.0, 1 / 4)):
        rates = PassRates(decay, prior)
        for visit in visits:
            rates.observe(visit)
        assert float(rates(torch.tensor([1]))) == pytest.approx(expected)
    for bad in ({"decay": 1.5}, {"decay": -0.1}, {"prior": -1.0}):
        with pytest.raises(InputError, match="rates"):
            PassRates(**bad)
