"""What the trainer offers any part: columns of the moving policy, exact KL, terms that add up alone, `observe`."""

import copy
from dataclasses import dataclass

import pytest
import torch

from surefoot.method import Update
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.aggregation import SequenceMean, TokenMean
from surefoot.objective.divergences import REVERSE_KL, f_divergence
from surefoot.objective.selection import Everything
from surefoot.objective.surrogates import PolicyGradient
from surefoot.objective.terms import Term
from surefoot.parts import Part
from surefoot.rollout.prompts import Uniform
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, gradient_of_step, tiny_policy

BASE = GRPO.but(prompts=Uniform(prompts=4, rollouts=4), regularizers=(), update=Update(max_grad_norm=0.0))


def _trainer(method, **settings):
    return Trainer(tiny_policy(), digits_task(), method, Settings(**({"lr": 1e-2, "warmup": 0} | settings)))


@dataclass(frozen=True)
class Watching(TokenMean):
    """Token means; keeps what it was shown."""

    reads = ("mask", "old_logp", "now_logp", "now_entropy", "now_kl")

    def __call__(self, rollouts, total=None):
        self.memory.setdefault("seen", []).append({c: rollouts[c] for c in self.reads})
        return super().__call__(rollouts)


def test_now_columns_follow_the_policy_from_minibatch_to_minibatch():
    trainer = _trainer(BASE.but(aggregate=Watching(), update=Update(epochs=2)))
    trainer.train_step()
    first, second = trainer.method.aggregate.memory["seen"]
    mask = first["mask"]
    assert torch.allclose(first["now_logp"][mask], first["old_logp"][mask], atol=1e-4)
    assert first["now_kl"][mask].abs().max() < 1e-5, "the policy starts at its reference"
    assert torch.equal(first["old_logp"], second["old_logp"])
    assert (second["now_logp"] - first["now_logp"])[mask].abs().max() > 1e-3
    assert second["now_kl"][mask].mean() > 1e-5
    assert trainer.signals.passes["policy"] == 2, "one pass with the batch, one before the second update"


def test_the_exact_kl_is_that_of_the_two_distributions():
    trainer = _trainer(BASE.but(aggregate=Watching()))
    trainer.train_step()
    policy = [p.detach().clone() for p in trainer.policy.parameters()]
    batch = trainer.train_step().batch
    seen = trainer.method.aggregate.memory["seen"][-1]["now_kl"]
    for p, before in zip(trainer.policy.parameters(), policy, strict=True):
        p.data.copy_(before)
    with torch.no_grad():
        mine, other = (p.score(batch, {"logits"})["logits"] for p in (trainer.policy, trainer._reference))
    torch.testing.assert_close(seen, f_divergence(mine, other, REVERSE_KL), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("budget", [60, 10**6])
def test_a_term_adds_up_by_its_own_aggregate(budget):
    """Token means and sequence means in one loss: the gradient is the sum of the two."""
    gradient = {}
    for name, method in {
        "tokens": BASE.but(surrogate=PolicyGradient(), aggregate=TokenMean()),
        "sequences": BASE.but(surrogate=PolicyGradient(), aggregate=SequenceMean()),
        "both": BASE.but(
            surrogate=PolicyGradient(),
            aggregate=TokenMean(),
            regularizers=(Term(PolicyGradient(), 1.0, SequenceMean()),),
        ),
    }.items():
        trainer = _trainer(method, micro_tokens=budget)
        gradient[name] = gradient_of_step(trainer)
    torch.testing.assert_close(gradient["both"], gradient["tokens"] + gradient["sequences"], atol=1e-6, rtol=1e-4)
    assert not torch.allclose(gradient["tokens"], gradient["sequences"], rtol=1e-2)


@dataclass(frozen=True)
class Counts(Part):
    """A regularizer of no effect that counts the batches it observed."""

    reads = ("mask", "old_entropy")

    def observe(self, rollouts):
        self.memory["batches"] = self.memory.get("batches", 0) + 1
        assert len(rollouts) == 16 and "old_entropy" in rollouts

    def __call__(self, rollouts):
        return torch.zeros_like(rollouts.mask, dtype=torch.float32)


def test_a_part_observes_every_whole_batch_once():
    method = BASE.but(regularizers=(Counts(),), update=Update(epochs=2, minibatches=2))
    trainer = _trainer(method, micro_tokens=60)
    for _ in range(2):
        trainer.train_step()
    assert trainer.forwards > 8 and trainer.method.state_dict()["regularizers.counts"] == {"batches": 2}


@dataclass(frozen=True)
class Looking(Everything):
    """Selects everything; keeps what it was shown of the last layer."""

    reads = ("mask", "old_hidden", "lr")

    def __call__(self, rollouts):
        self.memory["seen"] = {c: rollouts[c] for c in self.reads}
        return super().__call__(rollouts)


def test_the_last_layer_and_the_step_to_come_are_columns():
    trainer = _trainer(BASE.but(select=Looking()), schedule="linear", steps=2, lr=1e-2)
    trainer.train_step()
    policy = copy.deepcopy(trainer.policy)
    batch = trainer.train_step().batch
    seen, mask = trainer.method.select.memory["seen"], batch.mask
    with torch.no_grad():
        scored = policy.score(batch, {"hidden"})
    torch.testing.assert_close(seen["old_hidden"][mask], scored["hidden"][mask])
    assert seen["lr"].tolist() == pytest.approx([trainer.optimizer.param_groups[0]["lr"]] * len(batch))
    assert trainer.signals.passes["policy"] == 2
