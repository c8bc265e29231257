"""Trajectories that outlive their step."""

import pytest
import torch

from surefoot.errors import InputError
from surefoot.method import Update
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.rollout.native import Sampling
from surefoot.rollout.prompts import Request, Uniform
from surefoot.rollout.store import Partial, Replay
from surefoot.rollout.strategies import OnPolicy
from surefoot.rollouts import Rollouts
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, tiny_policy


class Numbered:
    """A world whose trajectories carry the number of the call that made them (as their prompt)."""

    max_new_tokens = 2

    def __init__(self):
        self.calls = 0

    def sample(self, requests, sampling):
        self.calls += 1
        m, n = len(requests), 2 * len(requests)
        return Rollouts(
            dict(
                tokens=torch.full((n, self.calls), self.calls),
                present=torch.ones(n, self.calls, dtype=torch.bool),
                mask=torch.ones(n, self.calls, dtype=torch.bool),
                group=torch.arange(m).repeat_interleave(2),
                prompt=torch.full((n,), self.calls),
                prompt_tokens=torch.full((m, 1), self.calls),
                prompt_mask=torch.ones(m, 1, dtype=torch.bool),
                age=torch.zeros(n, dtype=torch.long),
            ),
            rewards={"accuracy": torch.arange(n).float()},
            notes={"completion": [f"{self.calls}.{i}" for i in range(n)]},
        )


def _steps(part, count, requests=4):
    world, part = Numbered(), part.fresh()
    return [part(world, [Request(i, 2) for i in range(requests)]) for _ in range(count)], part


def test_half_of_each_batch_is_replayed_and_never_too_old():
    batches, _ = _steps(Replay(replayed=0.5, max_age=2), 12)
    assert not batches[0].age.any() and len(batches[0]) == 8, "nothing stored yet: all fresh"
    oldest = set()
    for step, batch in enumerate(batches[1:], 2):
        assert len(batch) == 8 and (batch.age == 0).sum() == 4
        assert torch.equal(batch.age, step - batch.prompt), "the age is the number of steps since"
        assert torch.equal(batch.prompt_tokens[batch.group][:, 0], batch.prompt), "each with its own prompt"
        assert (batch.tokens.where(batch.present, 0).max(1).values == batch.prompt).all()
        assert [int(c.split(".")[0]) for c in batch.notes["completion"]] == batch.prompt.tolist()
        assert batch.group.unique().tolist() == [0, 1, 2, 3] and batch.group.bincount().tolist() == [2] * 4
        oldest |= set(batch.age.tolist())
    assert oldest == {0, 1, 2}


def test_without_a_share_it_is_the_part_inside():
    batches, _ = _steps(Replay(replayed=0.0), 3)
    assert all(not b.age.any() and len(b) == 8 for b in batches)


def test_the_store_resumes_exactly():
    whole, _ = _steps(Replay(), 6)
    world, first = Numbered(), Replay()
    for _ in range(3):
        first(world, [Request(i, 2) for i in range(4)])
    second = Replay()
    second.load_state_dict(first.state_dict())
    rest = [second(world, [Request(i, 2) for i in range(4)]) for _ in range(3)]
    for a, b in zip(whole[3:], rest, strict=True):
        assert a.notes == b.notes and all(torch.equal(a[c], b[c]) for c in a)


def test_old_trajectories_keep_the_sampling_policys_probabilities():
    method = GRPO.but(
        rollout=Replay(), prompts=Uniform(prompts=4, rollouts=4), regularizers=(), update=Update(minibatches=2)
    )
    trainer = Trainer(tiny_policy(), digits_task(), method, Settings(lr=1e-2, warmup=0))
    first, second = trainer.train_step().batch, trainer.train_step().batch
    assert torch.equal(first.old_logp, first.rollout_logp)
    gap = (second.old_logp - second.rollout_logp)[second.mask & (second.age[:, None] == 1)].abs()
    same = (second.old_logp - second.rollout_logp)[second.mask & (second.age[:, None] == 0)].abs()
    assert gap.max() > 1e-2 and same.max() < 1e-3
    stored = {c: i for i, c in enumerate(first.notes["completion"])}
    for i in (second.age == 1).nonzero().flatten().tolist():
        row = stored[second.notes["completion"][i]]
        length = int(first.present[row].sum())
        assert torch.equal(second.tokens[i, :length], first.tokens[row, :length])


@pytest.mark.parametrize("wrong", [{"replayed": 1.0}, {"replayed": -0.1}, {"max_age": 0}])
def test_bad_input_is_refused(wrong):
    with pytest.raises(InputError, match="replayed"):
        Replay(**wrong)


@pytest.mark.parametrize("fast", [True, False])
def test_a_trajectory_made_in_pieces_is_the_one_made_at_once(fast):
    policy = tiny_policy()
    policy.fast = policy.fast and fast
    group, seeds = torch.tensor([0, 0, 1, 1, 1]), torch.arange(5)
    questions = ["say 1", "hold on to 22"]
    whole = policy.sample(questions, group, seeds, Sampling(max_new_tokens=12))
    pieces = policy.sample(questions, group, seeds, Sampling(max_new_tokens=5))
    for _ in range(4):  # the last one has nothing left to do
        pieces = policy.extend(pieces, Sampling(max_new_tokens=5), 12)
    assert whole.notes == pieces.notes and whole.present.sum(1).max() > 10
    for column in ("tokens", "present", "mask", "turn", "truncated"):
        assert torch.equal(whole[column], pieces[column]), column
    torch.testing.assert_close(whole.rollout_logp, pieces.rollout_logp, atol=1e-4, rtol=1e-4)


def test_partial_rollouts_come_out_whole_and_judged_some_steps_later():
    method = GRPO.but(rollout=Partial(budget=5), prompts=Uniform(prompts=3, rollouts=2), regularizers=())
    stops = list(range(1, 15))  # many, so that lengths differ
    trainer = Trainer(tiny_policy(), digits_task(), method, Settings(lr=0.0, warmup=0))
    trainer.policy.stop = stops
    out = [trainer.train_step().batch for _ in range(5)]
    ages = torch.cat([b.age for b in out])
    assert ages.max() >= 1 and sum(len(b) for b in out[1:]) >= 12
    waiting = trainer.method.state_dict()["rollout"].get("waiting", {"columns": {"group": torch.zeros(0)}})
    assert sum(len(b) for b in out) + len(waiting["columns"]["group"]) == 30, "none is lost, none comes twice"
    for b in out:
        length = b.present.sum(1)
        assert (~b.truncated | (length == 12)).all() and b.group.bincount().tolist() == [2] * (len(b) // 2)
        said = [sum(ch.isdigit() for ch in c) / max(1, len(c)) for c in b.notes["completion"]]
        assert b.reward.tolist() == pytest.approx(said)
    plain = Trainer(tiny_policy(), digits_task(), method.but(rollout=OnPolicy()), Settings(lr=0.0, warmup=0))
    plain.policy.stop = stops
    said = {c for _ in range(5) for c in plain.train_step().batch.notes["completion"]}
    assert {c for b in out for c in b.notes["completion"]} <= said, "a policy that does not move says the same"
