"""Knapsack RL: the card's exact checks."""

import itertools

import numpy as np
import pytest
import torch

from surefoot.errors import InputError
from surefoot.methods.rlvr.knapsack_rl import (
    KNAPSACK_RL,
    Knapsack,
    allocate,
    even_gain,
    expected_rollouts_to_mix,
    information_gain,
    mixed_chance,
    rise,
    rollouts_to_mix,
)
from surefoot.rollouts import Rollouts
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, tiny_policy

NAN = float("nan")


def _rates(*p):
    return torch.tensor(p, dtype=torch.float64)


def _value(n, p, gain=information_gain):
    return mixed_chance(n.double(), p) * gain(p)


def dynamic_programme(values, budget):
    """The plain twin: the best sum of `values[i, n_i]` with `sum n_i = budget`, any values."""
    best = {0: (0.0, ())}
    for row in values.tolist():
        step = {}
        for used, (total, taken) in best.items():
            for n, value in enumerate(row):
                if used + n <= budget and (used + n not in step or total + value > step[used + n][0]):
                    step[used + n] = (total + value, (*taken, n))
        best = step
    return best[budget]


def test_values_of_eight_rollouts():
    p = _rates(0.05, 0.1, 1 / 3, 0.5, 0.9)
    expected = [0.015188, 0.046132, 0.142345, 0.124023, 0.005126]
    assert _value(torch.tensor(8), p).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_value_rises_and_is_concave_in_the_rollouts():
    p, n = torch.arange(1, 100).double()[:, None] / 100, torch.arange(1, 101)
    rises = rise(n, p)
    torch.testing.assert_close(rises, mixed_chance(n + 1, p) - mixed_chance(n, p), atol=1e-14, rtol=0)
    assert (rises > 0).all() and (rises[:, 1:] < rises[:, :-1]).all()


def test_the_gain_is_largest_at_a_third_and_is_what_one_step_on_a_right_sample_adds():
    p = torch.linspace(0, 1, 3001, dtype=torch.float64)
    assert float(p[information_gain(p).argmax()]) == pytest.approx(1 / 3) and float(
        information_gain(p).max()
    ) == pytest.approx(4 / 27)
    z = torch.logit(_rates(0.05, 0.3, 0.8)).requires_grad_()
    (slope,) = torch.autograd.grad(z.sigmoid().sum(), z)  # dp/dz, and the right sample's step dz = d log p / dz = 1 - p
    torch.testing.assert_close(slope * (1 - z.sigmoid()), information_gain(z.sigmoid()))


def test_the_worked_allocation_and_the_honest_counter_example():
    p = _rates(0.02, 0.1, 0.5, 0.95)
    part = Knapsack(prompts=4, rollouts=8, low=2, high=24)
    counts = part.budgets(p)
    assert counts.tolist() == [2, 21, 7, 2]
    even = torch.full((4,), 8)
    assert float(_value(counts, p).sum()) == pytest.approx(0.196163, abs=1e-6)
    assert float(_value(even, p).sum()) == pytest.approx(0.173822, abs=1e-6)
    assert float(mixed_chance(even.double(), p).mean()) == pytest.approx(0.5119, abs=5e-5)
    assert float(mixed_chance(counts.double(), p).mean()) == pytest.approx(0.5023, abs=5e-5), "fewer mixed groups"


def test_forty_rollouts_more():
    p = _rates(0.1, 0.2, 0.3, 0.5)
    rises = information_gain(p)[:, None] * rise(torch.arange(2, 128), p[:, None])
    assert (2 + allocate(rises, 40)).tolist() == [17, 14, 10, 7]


@pytest.mark.parametrize("gain", [information_gain, even_gain])
def test_the_largest_rises_are_the_optimum(gain):
    """Against every allocation of a small knapsack, and against the dynamic programme of a larger one."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        p = torch.from_numpy(rng.uniform(0.01, 0.99, 3))
        values = torch.stack([_value(torch.tensor(2 + k), p, gain) for k in range(6)], 1)
        counts = allocate(gain(p)[:, None] * rise(torch.arange(2, 7), p[:, None]), 7)
        best = max(
            sum(values[i, k] for i, k in enumerate(c)) for c in itertools.product(range(6), repeat=3) if sum(c) == 7
        )
        assert int(counts.sum()) == 7 and float(values.gather(1, counts[:, None]).sum()) == pytest.approx(float(best))
    p = torch.from_numpy(rng.uniform(0.02, 0.98, 12))
    values = torch.stack([_value(torch.tensor(2 + k), p, gain) for k in range(31)], 1)
    counts = allocate(gain(p)[:, None] * rise(torch.arange(2, 32), p[:, None]), 72)
    assert tuple(counts.tolist()) == dynamic_programme(values, 72)[1]


def test_rollouts_needed():
    p = _rates(0.01, 0.1, 0.5)
    assert rollouts_to_mix(p).tolist() == pytest.approx([229.1, 21.85, 3.32], abs=5e-3, rel=1e-4)
    assert expected_rollouts_to_mix(p).tolist() == pytest.approx([100.0, 10.11, 3.0], abs=2e-2)


@pytest.mark.parametrize("seed", range(40))
def test_the_budget_is_kept_exactly_whatever_is_known(seed):
    rng = np.random.default_rng(seed)
    size, n = int(rng.integers(1, 30)), int(rng.integers(2, 20))
    kinds = rng.integers(0, 4, size)
    rates = torch.from_numpy(np.choose(kinds, [np.zeros(size), np.ones(size), np.full(size, NAN), rng.random(size)]))
    part = Knapsack(prompts=size, rollouts=n, low=int(rng.integers(1, n + 1)), high=n + int(rng.integers(0, 9)))
    counts = part.budgets(rates)
    assert int(counts.sum()) == n * size
    assert part.low <= int(counts.min()) and int(counts.max()) <= part.high
    assert (counts[rates.isnan()] == n).all(), "what was never posed gets the plain number"


def test_equal_rates_share_equally():
    counts = Knapsack(prompts=7, rollouts=8).budgets(torch.full((7,), 0.3, dtype=torch.float64))
    assert counts.tolist() == [8] * 7
    counts = Knapsack(prompts=5, rollouts=9).budgets(_rates(0.1, 0.1, 0.1, 1.0, 0.1))
    assert sorted(counts.tolist()) == [2, 10, 11, 11, 11] and counts[3] == 2


def test_what_the_mixed_do_not_need_goes_to_the_unsolved_and_then_to_the_solved():
    part = Knapsack(prompts=4, rollouts=8)
    # left 24 after four minima; p = .5 needs ceil(3.32) = 4; the other 20 go to p = 0 alone
    assert part.budgets(_rates(0.5, 0.0, 0.0, 1.0)).tolist() == [6, 12, 12, 2]
    assert part.budgets(_rates(0.5, 1.0, 1.0, 1.0)).tolist() == [6, 9, 9, 8]
    assert part.budgets(_rates(0.0, 1.0, 1.0, 1.0)).tolist() == [26, 2, 2, 2], "no mixed prompt: all to p = 0"
    assert part.budgets(_rates(1.0, 1.0, 1.0, 1.0)).tolist() == [8] * 4, "neither: uniform"
    assert part.budgets(_rates(0.5, 0.5, 0.5, 0.5)).tolist() == [8] * 4, "none settled: the mixed take it all"
    assert part.budgets(_rates(NAN, NAN, NAN, 0.0)).tolist() == [8] * 4


def test_bounds_are_checked():
    for bad in ({"low": 0}, {"low": 9}, {"high": 7}):
        with pytest.raises(InputError, match="low <= rollouts <= high"):
            Knapsack(rollouts=8, **bad)


def test_every_prompt_weighs_the_same_however_many_rollouts_it_has():
    group = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    mask = torch.rand(8, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    mask[:, 0] = True
    weights = KNAPSACK_RL.aggregate(Rollouts({"mask": mask, "group": group}))
    assert float(weights[:6].sum()) == pytest.approx(0.5) and float(weights[6:].sum()) == pytest.approx(0.5)
    assert (weights[~mask] == 0).all()


def test_training_spends_the_same_rollouts_and_remembers_rates_through_a_checkpoint(tmp_path):
    from surefoot.training import checkpoint

    method = KNAPSACK_RL.but(prompts=Knapsack(prompts=4, rollouts=4, pool=6))

    def half(completions):
        return [float(sum(c.isdigit() for c in text) % 2) for text in completions]

    def trainer():
        task = digits_task()
        task.reward, task._keywords = half, {"completions"}
        return Trainer(tiny_policy(), task, method, Settings(lr=1e-3))

    one = trainer()
    sizes = [one.train_step().batch.group.bincount() for _ in range(4)]
    assert all(int(s.sum()) == 16 for s in sizes) and any(s.max() > 4 for s in sizes), "groups of different sizes"
    saved = checkpoint.save(one, tmp_path)
    other = trainer()
    checkpoint.load(other, saved)
    assert other.method.prompts.rates.memory.keys() == {"prompt", "right", "seen"}
    for a, b in zip(one.train_step().batch.items(), other.train_step().batch.items(), strict=True):
        assert torch.equal(a[1], b[1]), a[0]
