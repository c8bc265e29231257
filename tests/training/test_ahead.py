"""Sampling ahead: the next batch is made beside the update, one update old, and ratios correct for it."""

import json
import threading

import pytest
import torch

import surefoot as sf
from surefoot import methods
from surefoot.errors import InputError
from surefoot.method import Update
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.methods.rlvr.reinforce import REINFORCE
from surefoot.objective.surrogates import Clip, EngineCorrected, PolicyGradient
from surefoot.rollout.prompts import Uniform
from surefoot.rollout.stages import Stages
from surefoot.rollout.store import Replay
from surefoot.training import checkpoint
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, tiny_policy

METHOD = GRPO.but(prompts=Uniform(prompts=3, rollouts=4))


def _trainer(method=METHOD, task=None, **settings):
    told = {"lr": 1e-2, "steps": 4, "ahead": 1} | settings
    return Trainer(tiny_policy(), task or digits_task(), method, Settings(**told))


def _weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])


@pytest.mark.parametrize("sampling", [{}, {"rollout.top_p": 0.9}])
def test_a_batch_is_one_update_old_and_its_ratios_are_to_who_sampled_it(sampling):
    """Also where the engine's numbers are of a truncated distribution: the ratio is of whole ones."""
    method = METHOD
    for path, value in sampling.items():
        method = method.set(path, value)
    trainer = _trainer(method)
    first = trainer.train_step().batch
    assert not first.age.any() and "old_logp" not in first
    before = trainer.policy.frozen()  # who samples the batch of step 3
    batch = trainer.train_step().batch
    assert (batch.age == 1).all()
    third = trainer.train_step().batch
    with torch.no_grad():
        scored = before.score(third, {"logp"})["logp"]
        now = trainer.policy.score(third, {"logp"})["logp"]
    torch.testing.assert_close(third.old_logp[third.mask], scored[third.mask], atol=1e-4, rtol=1e-4)
    assert (now - scored)[third.mask].abs().max() > 1e-3, "the policy has moved since"


def test_a_surrogate_that_weighs_by_the_engine_keeps_the_learners_own_old_logp():
    corrected = METHOD.but(surrogate=EngineCorrected(PolicyGradient()), regularizers=(), update=Update(minibatches=3))
    trainer = _trainer(corrected)
    trainer.train_step()
    learner = trainer.policy.frozen()
    batch = trainer.train_step().batch
    with torch.no_grad():
        scored = learner.score(batch, {"logp"})["logp"]
    torch.testing.assert_close(batch.old_logp[batch.mask], scored[batch.mask], atol=1e-4, rtol=1e-4)
    assert (batch.old_logp - batch.rollout_logp)[batch.mask].abs().max() > 1e-3


def test_the_next_batch_is_judged_while_this_one_is_learnt_from():
    judged, calls, task = threading.Event(), [], digits_task()
    plain = task.judge

    def judge(problems, batch):
        calls.append(threading.current_thread().name)
        if len(calls) == 2:
            judged.set()
        return plain(problems, batch)

    object.__setattr__(task, "judge", judge)

    class Waits(Clip):
        def __call__(self, rollouts):
            assert judged.wait(30), "the update waits for a batch that waits for the update"
            return super().__call__(rollouts)

    trainer = _trainer(METHOD.but(surrogate=Waits()), task, steps=2)
    trainer.train_step()
    trainer.train_step()
    assert calls[0] == "MainThread" and calls[1].startswith("surefoot-ahead") and len(calls) == 2, (
        "and none after the last"
    )


def test_runs_repeat_and_a_resumed_one_equals_an_uninterrupted_one(tmp_path):
    def run(out, **more):
        told = {"train.ahead": 1, "train.lr": 1e-2, "train.eval_every": 2, "train.final_problems": 0} | more
        method = METHOD.but(update=Update(epochs=2, minibatches=3))
        sf.train(tiny_policy(), digits_task(), method, steps=6, out=out, set=told, progress=False, report=False)
        return (out / "metrics.jsonl").read_text()

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "again") == whole
    assert run(tmp_path / "plain", **{"train.ahead": 0}) != whole
    cut = tmp_path / "cut"
    run(cut, **{"train.checkpoint_seconds": 0, "train.keep": 10})
    for saved in checkpoint.checkpoints(cut / "checkpoints")[3:]:
        for file in saved.iterdir():
            file.unlink()
        saved.rmdir()
    state = json.loads((checkpoint.checkpoints(cut / "checkpoints")[-1] / "trainer.json").read_text())
    assert state["step"] == 3 and state["ahead"]["step"] == 4
    sf.resume(cut, policy=tiny_policy(), task=digits_task(), progress=False, report=False)
    assert (cut / "metrics.jsonl").read_text() == whole


def test_an_error_of_a_batch_that_is_made_ahead_is_raised_at_its_step():
    task, plain, calls = digits_task(), digits_task().judge, []

    def judge(problems, batch):
        calls.append(1)
        if len(calls) == 2:
            raise InputError("reward: no such column")
        return plain(problems, batch)

    object.__setattr__(task, "judge", judge)
    trainer = _trainer(task=task)
    trainer.train_step()
    trainer.settle()
    with pytest.raises(InputError, match="no such column"):
        trainer.train_step()


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (REINFORCE, "nothing in 'reinforce' corrects"),
        (METHOD.but(rollout=Stages()), "changes the policy"),
        (METHOD.but(rollout=Replay(of=Stages())), "changes the policy"),
    ],
)
def test_what_cannot_be_corrected_is_refused(method, said):
    with pytest.raises(InputError, match=said):
        _trainer(method)
    _trainer(method, ahead=0)


def test_a_wrong_number_is_refused():
    with pytest.raises(InputError, match="train.ahead: 2, expected 0 or 1"):
        Settings(ahead=2)


def test_it_learns():
    """The mean reward of the last steps is above that of the first, as on policy."""
    trainer = _trainer(methods.find("grpo").but(prompts=Uniform(prompts=8, rollouts=8)), steps=25)
    rewards = [trainer.train_step().metrics["reward"] for _ in range(25)]
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 0.5
