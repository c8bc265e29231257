"""Weights: the same loss under any split into microbatches or ranks; controllers: worked numbers and exact resume."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.objective import aggregation as agg
from surefoot.objective import controllers as c
from surefoot.objective.advantages import spread
from surefoot.objective.rewards import OverlongPenalty, Sum, overlong_penalty
from surefoot.objective.selection import All, NotTruncated
from surefoot.objective.surrogates import PolicyGradient
from surefoot.objective.values import ValueLoss
from surefoot.rollouts import Rollouts
from tests.objective.enumeration import Tree, groups

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
TURN = torch.tensor([[0, 0, 1, -1], [0, -1, -1, -1], [0, 1, -1, -1], [-1, -1, -1, -1]])
PARTS = [agg.TokenMean(), agg.SequenceMean(), agg.ConstantLength(7.0), agg.TurnMean(), agg.TokenBudget(10.0)]


def _table(mask=MASK, turn=TURN):
    return Rollouts(dict(mask=mask, turn=turn))


def test_worked_numbers():
    assert agg.TokenMean()(_table()).sum().item() == pytest.approx(1)
    weights = agg.SequenceMean()(_table())
    assert weights[:, 0].tolist() == pytest.approx([1 / 12, 1 / 4, 1 / 8, 0])
    assert agg.ConstantLength(7.0)(_table())[0, 0].item() == pytest.approx(1 / 28)
    assert agg.TurnMean()(_table())[:, 0].tolist() == pytest.approx([1 / 10, 1 / 5, 1 / 5, 0])
    assert agg.TokenBudget(10.0)(_table()).sum().item() == pytest.approx(0.6)


@settings(max_examples=30, deadline=None)
@given(part=st.sampled_from(PARTS), cuts=st.lists(st.integers(0, 4), max_size=3), seed=st.integers(0, 99))
def test_any_split_over_ranks_gives_the_same_loss(part, cuts, seed):
    loss = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
    whole = (part(_table()) * loss).sum()
    edges = [0, *sorted(cuts), 4]
    ranks = [_table(MASK[a:b], TURN[a:b]) for a, b in zip(edges, edges[1:], strict=False) if b > a]
    counts = []
    for rank in ranks:  # what each rank would contribute to the all-reduce
        part(rank, total=lambda n: counts.append(n) or n)
    total = sum(counts) if counts else None
    pieces, start = [], 0
    for rank in ranks:
        weights = part(rank, total=lambda n: total)
        pieces.append((weights * loss[start : start + len(rank)]).sum())
        start += len(rank)
    torch.testing.assert_close(sum(pieces), whole)


def _rank(rank: int, place: str, losses: torch.Tensor) -> None:
    """One of two processes: its rows' share of each loss, summed over both, is written by the first."""
    dist.init_process_group("gloo", init_method=f"file://{place}/rendezvous", rank=rank, world_size=2)
    rows = slice(0, 1) if rank == 0 else slice(1, 4)
    sums = torch.stack([(p(_table(MASK[rows], TURN[rows]), agg.over_ranks) * losses[rows]).sum() for p in PARTS])
    dist.all_reduce(sums)
    if rank == 0:
        torch.save(sums, f"{place}/sums")
    dist.destroy_process_group()


def test_two_processes_give_the_loss_of_one(tmp_path):
    losses = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_rank, args=(r, str(tmp_path), losses)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    whole = torch.stack([(part(_table()) * losses).sum() for part in PARTS])
    torch.testing.assert_close(torch.load(tmp_path / "sums"), whole)


def test_aggregates_that_divide_by_length_follow_another_gradient():
    """A tree whose first token 0 ends the sequence. A constant length is unbiased up to its factor, a mean over each
    sequence's own tokens is not: it prefers short ones that are right and long ones that are wrong."""
    tree, reward = Tree(), torch.tensor([1.0, 1, 1, 0.7, 0, 0.1, 0.3, 1.5, -0.4], dtype=torch.float64)
    table, weight = groups(tree, reward, 1)
    table = table.having(mask=torch.stack([torch.ones(9).bool(), table.tokens[:, 0] != 0], 1))
    loss = PolicyGradient()(table.having(advantage=spread(table.reward, table.mask)))
    for part, factor in ((agg.ConstantLength(7.0), 1 / 7), (agg.SequenceMean(), None), (agg.TurnMean(), None)):
        found = -9 * tree.gradient((weight[:, None] * part(table) * loss).sum())
        exact = tree.policy_gradient(reward)
        if factor:
            torch.testing.assert_close(found, factor * exact, atol=1e-7, rtol=1e-6)
        else:
            cosine = torch.nn.functional.cosine_similarity(found, exact, dim=0)
            assert 0.5 < cosine < 0.999


@pytest.mark.parametrize("part", PARTS)
def test_an_empty_mask_weighs_nothing(part):
    weights = part(_table(torch.zeros(2, 3, dtype=torch.bool), torch.full((2, 3), -1)))
    assert (weights == 0).all()


def test_rewards():
    table = Rollouts(
        {"mask": MASK, "truncated": torch.tensor([True, False, False, False])},
        rewards={"a": torch.tensor([1.0, 2, 3, 4]), "b": torch.ones(4, 4)},
    )
    assert Sum({"b": 0.5})(table).tolist() == [3, 4, 5, 6]
    assert overlong_penalty(torch.tensor([70, 80, 90, 100, 200]), 100, 20).tolist() == [0, 0, -0.5, -1, -1]
    assert OverlongPenalty(limit=3, share=1 / 3)(table).tolist() == [4, 6, 7, 8]
    with pytest.raises(ValueError, match="did you mean 'a'|known"):
        Sum({"aa": 1.0})(table)


def test_masks_compose():
    table = _table().having(truncated=torch.tensor([True, False, False, False]))
    chosen = All((NotTruncated(),))(table)
    assert not chosen[0].any() and torch.equal(chosen[1:], MASK[1:])


def test_the_value_loss_takes_the_worse_of_two():
    table = Rollouts(
        dict(
            value=torch.tensor([[1.0]]),
            old_value=torch.tensor([[0.0]]),
            returns=torch.tensor([[1.0]]),
            mask=torch.ones(1, 1, dtype=torch.bool),
        )
    )
    assert ValueLoss(coef=1.0, clip=0.2)(table).item() == pytest.approx(0.5 * 0.64)
    assert ValueLoss(coef=1.0, clip=None)(table).item() == 0


def test_controllers_numbers():
    assert c.AdaptiveKL(target=0.1, start=1.0)({"kl": 0.3}) == {"regularizers.kl.coef": pytest.approx(1.02)}
    assert c.DoublingKL(target=0.1, start=1.0)({"kl": 0.3}) == {"regularizers.kl.coef": 2.0}
    assert c.DoublingKL(target=0.1, start=1.0)({"kl": 0.1}) == {"regularizers.kl.coef": 1.0}
    dual = c.DualAscent(budget=0.1, rate=0.5)
    assert dual({"kl": 0.3})["regularizers.kl.coef"] == pytest.approx(0.1)
    assert dual({"kl": 0.0})["regularizers.kl.coef"] == pytest.approx(0.05)
    assert dual({"kl": -9.0})["regularizers.kl.coef"] == 0
    switch = c.Hysteresis(low=0.2, high=0.4)
    values = [switch({"entropy": e})["regularizers.entropybonus.coef"] for e in (0.3, 0.1, 0.3, 0.5, 0.3)]
    assert values == [0.0, 0.01, 0.01, 0.0, 0.0]
    ramp = c.Scheduled(start=1.0, end=0.0, steps=4, delay=1)
    assert [ramp({})["regularizers.kl.coef"] for _ in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert c.cosine(0.5) == pytest.approx(0.5) and c.last_fifth(0.9) == pytest.approx(0.5)


def test_pid_reaches_its_target_and_does_not_wind_up():
    pid, x = c.PID(target=0.5, kp=-0.5, ki=-0.3, low=0.0, high=1.0, metric="x", field="f.f"), 0.0
    for _ in range(60):
        x = 0.5 * x + 0.5 * pid({"x": x})["f.f"]
    assert x == pytest.approx(0.5, abs=0.01)
    stuck = c.PID(target=0.5, ki=-0.3, high=1.0, metric="x", field="f.f")
    for _ in range(100):
        stuck({"x": -10.0})
    assert abs(stuck.memory.get("integral", 0.0)) < 50


@pytest.mark.parametrize(
    "controller",
    [
        c.AdaptiveKL(),
        c.DoublingKL(),
        c.DualAscent(),
        c.PID(),
        c.Hysteresis(metric="kl", low=0.05, high=0.2),
        c.Scheduled(),
        c.Smoothed(c.DualAscent(), decay=0.5),
    ],
)
def test_a_resumed_controller_goes_on_exactly(controller):
    inputs = [{"kl": x} for x in (0.3, 0.01, 0.15, 0.6, 0.02, 0.09)]
    whole = controller.fresh()
    expected = [whole(m) for m in inputs]
    first, second = controller.fresh(), controller.fresh()
    found = [first(m) for m in inputs[:3]]
    second.load_state_dict(first.state_dict())
    assert found + [second(m) for m in inputs[3:]] == expected


def test_smoothing_corrects_its_bias_and_keeps_still_in_the_dead_band():
    steady = c.Smoothed(c.DualAscent(budget=0.0, rate=1.0), decay=0.9)
    assert steady({"kl": 0.2})["regularizers.kl.coef"] == pytest.approx(0.2)
    lazy = c.Smoothed(c.AdaptiveKL(), decay=0.0, dead_band=10.0)
    assert lazy({"kl": 5.0}) and lazy({"kl": 5.0}) == {}
