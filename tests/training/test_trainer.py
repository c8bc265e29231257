"""The trainer: signals on demand, splits that change nothing, learning, guards."""

import math
from dataclasses import dataclass

import pytest
import torch

from surefoot import methods
from surefoot.errors import GuardStop, InputError
from surefoot.method import Home, Update
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.methods.rlvr.ppo import PPO
from surefoot.objective.advantages import Reinforce
from surefoot.objective.aggregation import On, SequenceMean, TokenMean
from surefoot.objective.divergences import KL, absolute
from surefoot.objective.preferences import DPO, KTO, ChosenLikelihood
from surefoot.objective.references import Soup
from surefoot.objective.rewards import Ensemble
from surefoot.objective.selection import CovarianceBand, Everything, HighCovariance, Not
from surefoot.objective.surrogates import Clip
from surefoot.objective.terms import Term
from surefoot.parts import Part
from surefoot.rollout.prompts import Uniform
from surefoot.rollouts import MissingColumn
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from surefoot.training.world import Clock
from tests.conftest import digits_task, tiny_policy

SMALL = Uniform(prompts=4, rollouts=4)


def _trainer(method, policy=None, **settings):
    return Trainer(policy or tiny_policy(), digits_task(), method, Settings(**({"lr": 1e-2} | settings)))


class _Counting:
    """Counts the scoring passes of a policy, by the columns that were asked for."""

    def __init__(self, policy, log, label):
        self.policy, self.log, self.label = policy, log, label

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def reference(self):
        return _Counting(self.policy.reference(), self.log, "reference")

    def score(self, rollouts, want, temperature=1.0):
        self.log.append((self.label, "live" if torch.is_grad_enabled() else "fixed", *sorted(want)))
        return self.policy.score(rollouts, want, temperature)


def _passes(method, **settings):
    log = []
    trainer = _trainer(method, _Counting(tiny_policy(), log, "policy"), **settings)
    trainer.train_step()
    return log


def test_a_column_is_computed_once_and_only_if_a_part_reads_it():
    live = ("policy", "live", "logp")
    grpo = GRPO.but(prompts=SMALL)
    assert _passes(grpo) == [("reference", "fixed", "logp"), live]
    assert _passes(grpo.set("regularizers.kl.coef", 0.0)) == [live], "no reference pass where nothing reads it"
    several = grpo.but(regularizers=(), update=Update(epochs=2, minibatches=2))
    assert _passes(several, engine_logp=False) == [("policy", "fixed", "logp")] + [live] * 4
    assert _passes(several) == [live] * 4, "the engine's own log-probabilities serve as old_logp"
    ppo = PPO.but(prompts=Uniform(prompts=8, rollouts=1), update=Update())
    assert _passes(ppo) == [("policy", "fixed", "value"), ("policy", "live", "logp", "value")]


def test_a_reference_copy_is_made_only_if_it_is_read():
    assert _trainer(GRPO.but(prompts=SMALL))._reference is not None
    assert _trainer(GRPO.but(prompts=SMALL, regularizers=()))._reference is None


def test_engine_and_trainer_give_the_same_old_logp():
    trainer = _trainer(GRPO.but(prompts=SMALL))
    trainer.step, trainer._seconds = 1, Clock()
    batch = trainer.make_batch()
    with torch.no_grad():
        scored = trainer.policy.score(batch, {"logp"})["logp"]
    gap = (scored - batch.rollout_logp)[batch.mask].abs().max()
    assert gap < 1e-4, f"engine and trainer differ by {gap}"


@pytest.mark.parametrize("slug", ["grpo", "dr-grpo", "dapo", "cispo", "gspo"])
def test_microbatches_do_not_change_the_update(slug):
    weights = []
    for budget in (10**6, 60):
        trainer = _trainer(methods.find(slug).but(prompts=SMALL), micro_tokens=budget)
        trainer.train_step()
        trainer.train_step()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.policy.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=2e-4, rtol=1e-3)


def test_groups_without_contrast_cost_nothing_and_change_nothing():
    """Dropping rows whose advantage is zero leaves the gradient as it is."""
    method = GRPO.but(prompts=SMALL, regularizers=())
    assert method.surrogate.vanishes_with_advantage

    @dataclass(frozen=True)
    class KeepAll(type(method.surrogate)):
        vanishes_with_advantage = False

    losses, forwards = [], []
    for surrogate in (method.surrogate, KeepAll(0.2)):
        trainer = _trainer(method.but(surrogate=surrogate))
        trainer.task.reward = _half_constant
        trainer.task._keywords = {"completions"}
        result = trainer.train_step()
        losses.append(result.metrics["grad_norm"])
        forwards.append(len(trainer._learnable(result.batch)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0] > 0
    assert forwards[0] == 8 and forwards[1] == 16


def _half_constant(completions):
    return [1.0 if i < 8 else i % 3 for i, _ in enumerate(completions)]


def _stands_alone(method):
    """Needs no policy, task or ingredient but the toy's (another policy's weights, reward models)."""
    return method.home == Home() and not isinstance(method.reference, Soup) and not isinstance(method.reward, Ensemble)


ALONE = [slug for slug in methods.names() if _stands_alone(methods.find(slug))]


@pytest.mark.parametrize("slug", ALONE)
def test_every_method_learns_the_toy_task(slug):
    method = methods.find(slug)
    group = method.prompts.rollouts
    trainer = _trainer(method.but(prompts=Uniform(prompts=max(2, 32 // group), rollouts=group)), warmup=1)
    rewards = [trainer.train_step().metrics["reward"] for _ in range(25)]
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 0.25, rewards


def test_same_seed_same_run_bit_for_bit():
    runs = []
    for _ in range(2):
        trainer = _trainer(GRPO.but(prompts=SMALL))
        runs.append([trainer.train_step().metrics for _ in range(3)])
    assert runs[0] == runs[1]
    other = _trainer(GRPO.but(prompts=SMALL), seed=1)
    assert other.train_step().metrics != runs[0][0]


def test_a_missing_column_names_the_part_and_the_column():
    @dataclass(frozen=True)
    class Needs(Everything):
        reads = ("step_reward",)

    with pytest.raises(MissingColumn, match=r"select \(Needs\) reads column 'step_reward'"):
        _trainer(GRPO.but(prompts=SMALL, select=Needs())).train_step()


def test_a_teacher_column_without_a_teacher_is_refused():
    @dataclass(frozen=True)
    class Needs(Everything):
        reads = ("teacher_logp",)

    with pytest.raises(InputError, match="--teacher"):
        _trainer(GRPO.but(prompts=SMALL, select=Needs())).train_step()


def test_a_loss_that_is_not_finite_stops_before_the_weights_move():
    @dataclass(frozen=True)
    class Broken(Part):
        reads = ("logp",)

        def __call__(self, rollouts):
            return rollouts.logp * float("nan")

    trainer = _trainer(GRPO.but(prompts=SMALL, surrogate=Broken()))
    before = [p.detach().clone() for p in trainer.policy.parameters()]
    with pytest.raises(GuardStop, match="step 1: the loss is nan, first at"):
        trainer.train_step()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.policy.parameters(), strict=True))


def test_controllers_move_a_field():
    @dataclass(frozen=True)
    class Double(Part):
        def __call__(self, metrics):
            self.memory["calls"] = self.memory.get("calls", 0) + 1
            return {"regularizers.kl.coef": 0.1 * self.memory["calls"]}

    trainer = _trainer(GRPO.but(prompts=SMALL, controllers=(Double(),)))
    trainer.train_step()
    trainer.train_step()
    assert trainer.method.regularizers[0].coef == pytest.approx(0.2)
    assert GRPO.regularizers[0].coef == 0.04


def test_preference_losses_train_online_and_microbatches_never_split_a_pair():
    """DPO on the policy's own samples, judged by the task; the smallest microbatch is a pair."""
    method = GRPO.but(
        name="online-dpo",
        prompts=Uniform(prompts=6, rollouts=2),
        advantage=Reinforce(baseline=False),
        surrogate=DPO,
        aggregate=SequenceMean(),
        regularizers=(ChosenLikelihood(0.1),),
    )
    after = {}
    for budget in (1, 10**6):
        trainer = _trainer(method, micro_tokens=budget)
        metrics = [trainer.train_step().metrics for _ in range(2)][-1]
        assert 0 <= metrics["preference_accuracy"] <= 1 and metrics["grad_norm"] > 0
        assert trainer.forwards == (12 if budget == 1 else 2)
        after[budget] = torch.cat([p.flatten() for p in trainer.policy.parameters()])
    torch.testing.assert_close(after[1], after[10**6], atol=1e-4, rtol=1e-3)
    with pytest.raises(InputError, match="group 0 has 4 trajectories, expected 2"):
        _trainer(method.but(prompts=SMALL)).train_step()


KL_COV = Term(KL(absolute, 1.0, "old_logp"), aggregate=On(TokenMean(), HighCovariance(0.1)))


@pytest.mark.parametrize(
    "method",
    [
        GRPO.but(aggregate=On(steps=Not(CovarianceBand(0.2, floor=-10.0, ceiling=10.0))), regularizers=()),
        GRPO.but(surrogate=Clip(math.inf, math.inf), regularizers=(KL_COV,), update=Update(epochs=2)),
        GRPO.but(surrogate=KTO, regularizers=(), update=Update(epochs=2)),
    ],
    ids=["clip-cov", "kl-cov", "kto"],
)
def test_what_is_chosen_or_compared_over_the_minibatch_does_not_depend_on_its_microbatches(method):
    weights = []
    for budget in (10**6, 60):
        trainer = _trainer(method.but(prompts=SMALL), micro_tokens=budget)
        trainer.train_step()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.policy.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=2e-4, rtol=1e-3)


def test_random_draws_of_a_part_are_repeated_by_a_resumed_run():
    method = GRPO.but(prompts=SMALL, aggregate=On(steps=Not(CovarianceBand(0.2, floor=-10.0, ceiling=10.0))))
    straight = _trainer(method)
    straight.train_step()
    weights = [p.detach().clone() for p in straight.policy.parameters()]
    state, optimizer = straight.method.state_dict(), straight.optimizer.state_dict()
    expected = straight.train_step().metrics
    resumed = _trainer(method)
    for p, w in zip(resumed.policy.parameters(), weights, strict=True):
        p.data.copy_(w)
    torch.rand(7)  # the global generator is somewhere else
    resumed._reference = straight._reference
    resumed.method.load_state_dict(state)
    resumed.optimizer.load_state_dict(optimizer)
    resumed.step = 1
    assert resumed.train_step().metrics["grad_norm"] == expected["grad_norm"]
