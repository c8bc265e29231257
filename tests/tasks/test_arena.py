"""The arena: preferences that go in circles, knock-outs drawn by them, and an opponent to be preferred to."""

import pytest
import torch

import surefoot as sf
from surefoot import policies, tasks
from surefoot.errors import InputError
from surefoot.tasks.arena import preference, tournament
from surefoot.tasks.play import act

SPEC = "arena:answers=2,rg:chain_sum:min_terms=2,max_terms=2,min_digits=2,max_digits=2"


def test_a_committee_can_go_in_circles():
    cycle = torch.tensor([[3.0, 1, 2], [2, 3, 1], [1, 2, 3]])
    P = preference(cycle, cycle)
    torch.testing.assert_close(P + P.T, torch.ones(3, 3))
    assert P[0, 1] > 0.5 and P[1, 2] > 0.5 and P[2, 0] > 0.5


@pytest.mark.parametrize("k", [2, 4, 8])
def test_a_transitive_knock_out_finds_best_and_worst(k):
    order = torch.randperm(k, generator=torch.Generator().manual_seed(k)).float()
    P = (order[:, None] > order).float() + 0.5 * torch.eye(k)
    rank = tournament(P, torch.full((k, 8), 0.5))
    assert rank[order.argmax()] == pytest.approx(1) and rank[order.argmin()] == pytest.approx(-1)
    assert rank.abs().sum() < k or k == 2
    assert rank.sum() == pytest.approx(0, abs=1e-6)


def test_labels_are_drawn_by_their_chance():
    P = torch.tensor([[0.5, 0.7], [0.3, 0.5]])
    u = torch.rand(4000, 2, 3, generator=torch.Generator().manual_seed(0))
    won = sum(float(tournament(P, x)[0] > 0) for x in u)
    assert won / 4000 == pytest.approx(0.7, abs=0.03)


def test_where_the_worst_beats_the_best_there_is_no_pair():
    P = torch.tensor([[0.5, 1, 0, 0], [0, 0.5, 0, 0], [1, 1, 0.5, 1], [1, 1, 0, 0.5]])
    P[1, 2], P[2, 1] = 1.0, 0.0  # 2 wins all but meets the worst, 1, who beats it
    assert tournament(P, torch.full((4, 4), 0.5)).tolist() == [0, 0, 0, 0]


def _answers(task, problems, group):
    pebble = policies.load("pebble")
    from surefoot.rollout.native import Sampling

    batch = act(pebble, task, problems, torch.tensor(group), torch.arange(len(group)) + 5, Sampling(max_new_tokens=40))
    return [problems[g] for g in group], batch


def test_training_answers_are_ranked_within_their_group_and_labels_repeat():
    task = tasks.load(SPEC)
    rows, batch = _answers(task, [task.train[0], task.train[1]], [0, 0, 0, 0, 1, 1, 1, 1])
    rank = task.judge(rows, batch).rewards["rank"]
    assert rank.equal(task.judge(rows, batch).rewards["rank"])
    for g in (rank[:4], rank[4:]):
        assert g.sum() == pytest.approx(0, abs=1e-6) and g.max() in (0, 1)


def test_an_opponent_of_equal_strength_wins_half():
    record = sf.evaluate("pebble", SPEC, problems=40, k=4)
    assert record["headline"] == "win_rate" and record["win_rate"] == pytest.approx(0.5, abs=0.08)
    assert 0 < record["accuracy"] < 1


def test_bad_specifications():
    with pytest.raises(InputError, match="expected arena:"):
        tasks.load("arena:answers=2,")
    with pytest.raises(InputError, match="no option 'opponents'; did you mean 'opponent'"):
        tasks.load("arena:opponents=x,rg:chain_sum")
