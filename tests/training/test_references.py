"""The reference slot: start, moving average, snapshot, soup; weights, columns, checkpoints."""

import pytest
import torch

from surefoot.errors import InputError
from surefoot.method import Method
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective.references import EMA, Fixed, Snapshot, Soup, Start, average, weights
from surefoot.pretraining.tokenizer import build
from surefoot.rollout.prompts import Uniform
from surefoot.training import checkpoint
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, tiny_llama, tiny_policy

SMALL = GRPO.but(prompts=Uniform(prompts=4, rollouts=4))


def _trainer(reference, policy=None):
    settings = Settings(lr=2e-2, warmup=0)
    return Trainer(policy or tiny_policy(), digits_task(), SMALL.but(reference=reference), settings)


def _flat(policy):
    return torch.cat([w.detach().flatten() for _, w in weights(policy)]).double()


def _folder(path, seed, **changes):
    tiny_llama(seed, vocab=104, **changes).save_pretrained(path)
    build().save_pretrained(path)
    return str(path)


def test_the_start_stays_where_it_was():
    trainer = _trainer(Start())
    before = _flat(trainer.policy)
    for _ in range(2):
        trainer.train_step()
    assert torch.equal(_flat(trainer._reference), before) and not torch.equal(_flat(trainer.policy), before)
    assert trainer.moved_reference == {}, "what can be made again is not saved"


def test_another_policy_as_the_reference_need_not_be_kin_and_stays(tmp_path):
    folder = _folder(tmp_path / "other", 3, heads=2, kv_heads=1)
    trainer = _trainer(Fixed(of=folder))
    from surefoot import policies

    other, first = policies.load(folder), trainer.train_step()
    with torch.no_grad():
        expected = other.score(first.batch, {"logp"})["logp"]
    torch.testing.assert_close(first.batch.ref_logp, expected)
    trainer.train_step()
    assert torch.equal(_flat(trainer._reference), _flat(other)) and trainer.moved_reference == {}
    assert all(not w.requires_grad for _, w in weights(trainer._reference))
    start = _trainer(Fixed())
    assert torch.equal(_flat(start._reference), _flat(start.policy)), "none named: the start"


def test_a_moving_average_follows_by_its_recursion():
    trainer = _trainer(EMA(decay=0.75))
    expected = _flat(trainer.policy)
    for _ in range(3):
        trainer.train_step()
        expected = 0.75 * expected + 0.25 * _flat(trainer.policy)
        torch.testing.assert_close(_flat(trainer._reference), expected, atol=1e-6, rtol=1e-6)


def test_a_snapshot_moves_in_jumps_and_the_kl_is_measured_from_it():
    trainer = _trainer(Snapshot(every=2))
    first = trainer.train_step()
    start = _flat(trainer._reference)
    second = trainer.train_step()
    assert torch.equal(_flat(trainer._reference), _flat(trainer.policy)) and not torch.equal(
        start, _flat(trainer.policy)
    )
    third = trainer.train_step()
    assert first.metrics["kl"] == pytest.approx(0, abs=1e-6) and third.metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert second.metrics["kl"] > 1e-4


def test_no_gradient_reaches_a_reference():
    for reference in (EMA(), Snapshot()):
        trainer = _trainer(reference)
        trainer.train_step()
        assert all(not w.requires_grad and w.grad is None for _, w in weights(trainer._reference))


@pytest.mark.parametrize("reference", [EMA(decay=0.5), Snapshot(every=2)])
def test_a_reference_that_moves_is_resumed_exactly(reference, tmp_path):
    one = _trainer(reference)
    for _ in range(3):
        one.train_step()
    saved, other = checkpoint.save(one, tmp_path), _trainer(reference)
    checkpoint.load(other, saved)
    assert torch.equal(_flat(other._reference), _flat(one._reference))
    a, b = one.train_step(), other.train_step()
    assert a.metrics == b.metrics and torch.equal(a.batch.ref_logp, b.batch.ref_logp)
    assert torch.equal(_flat(other._reference), _flat(one._reference))


def test_small_moves_are_not_lost_in_bfloat16():
    policy = tiny_policy()
    policy.model.bfloat16()
    reference, part = EMA(decay=0.999)(policy, None), EMA(decay=0.999)
    before = _flat(reference)
    with torch.no_grad():
        for _, w in weights(policy):
            w.add_(w.abs().clamp_min(1e-2) * 0.25)
    for step in range(10):
        part.follow(reference, policy, step)
    share = (_flat(reference) - before) / (_flat(policy) - before)
    assert share.mean() == pytest.approx(1 - 0.999**10, rel=1e-3), (
        "ten thousandths of the way, though each is lost in bf16"
    )


def test_a_soup_is_the_mean_and_ties_and_buffers_stay(tmp_path):
    policy = tiny_policy(0, tie_word_embeddings=True)
    other = _folder(tmp_path / "other", 1, tie_word_embeddings=True)
    from surefoot import policies

    for share in (0.5, 0.25, 1.0):
        soup = Soup(of=(other,), share=share)(policy, policies.load)
        expected = share * _flat(policy) + (1 - share) * _flat(policies.load(other))
        torch.testing.assert_close(_flat(soup), expected, atol=1e-7, rtol=1e-6)
        assert soup.model.get_output_embeddings().weight is soup.model.get_input_embeddings().weight
    assert torch.equal(_flat(Soup(of=(other,), share=1.0)(policy, policies.load)), _flat(policy))
    three = Soup(of=(other, other), share=0.5)(policy, policies.load)
    torch.testing.assert_close(_flat(three), _flat(Soup(of=(other,))(policy, policies.load)))


def test_bad_references_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"reference\.of names no policy"):
        _trainer(Soup())
    tiny_llama(0, vocab=96).save_pretrained(tmp_path / "small")
    build().save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="does not fit the policy"):
        _trainer(Soup(of=(str(tmp_path / "small"),)))
    for bad in (lambda: EMA(decay=1.5), lambda: EMA(every=0), lambda: Soup(share=2.0)):
        with pytest.raises(InputError, match="reference"):
            bad()


def test_a_controller_may_move_the_decay_and_toml_keeps_it():
    method = SMALL.but(reference=EMA(0.9)).set("reference.decay", "0.5")
    assert method.reference == EMA(0.5) and Method.from_dict(method.to_dict()) == method
    assert SMALL.set("reference", "Snapshot").reference == Snapshot()
    old = {k: v for k, v in SMALL.to_dict().items() if k != "reference"}
    assert Method.from_dict(old).reference == Start(), "what was written before there was a choice"


def test_with_adapters_a_soup_and_an_average_are_of_merged_weights(tmp_path):
    pytest.importorskip("peft")
    import surefoot as sf

    folder = _folder(tmp_path / "base", 0)
    torch.manual_seed(0)
    policy = sf.load_policy(folder, lora=4)
    trainer = _trainer(EMA(decay=0.5), policy)
    start = _flat(sf.load_policy(folder))
    trainer.train_step()
    torch.testing.assert_close(_flat(trainer._reference), 0.5 * start + 0.5 * _flat(policy.frozen()))
    assert not torch.equal(_flat(policy.frozen()), start)
    soup = Soup(of=(folder,))(policy, sf.load_policy)
    torch.testing.assert_close(_flat(soup), _flat(trainer._reference), atol=1e-6, rtol=1e-5)


def test_an_average_is_taken_before_it_is_rounded():
    one, two, mean = tiny_policy(0), tiny_policy(1), tiny_policy(2)
    average([(0.5, one), (0.5, two)], into=mean)
    expected = (_flat(one) + _flat(two)) / 2
    assert torch.equal(_flat(mean), expected.float().double())
