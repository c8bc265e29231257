"""The engine: right distribution, right log-probabilities, rows independent of their batch mates."""

import pytest
import torch

from surefoot.errors import InputError
from surefoot.objective import products
from surefoot.objective.surrogates import Clip, EngineCorrected
from surefoot.rollout import native
from surefoot.rollout.native import Sampling, draw, generate, log_distribution, uniforms
from tests.conftest import tiny_llama, tiny_policy

GROUP = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
SEEDS = torch.arange(8) * 104729 + 17

pytestmark = pytest.mark.usefixtures("engine")


def _generate(model, prompts, group=GROUP, seeds=SEEDS, fast=True, **sampling):
    return generate(model, *prompts, group, seeds, Sampling(**({"max_new_tokens": 12} | sampling)), [1], fast=fast)


@pytest.mark.parametrize("length", [1, 16, 33, 80])
def test_long_and_short_prompts_agree_with_the_slow_decoder(length):
    """Whatever the longest prompt is to the width of the machine's registers, and however short the others are."""
    torch.manual_seed(0)
    model, lengths = tiny_llama(), torch.tensor([length, 1, (length + 1) // 2, length])
    prompts = torch.randint(2, 40, (4, length)), torch.arange(length) >= (length - lengths)[:, None]
    rows = torch.arange(4).repeat_interleave(5)
    engines = [native.decoder(model, *prompts, rows, fast, block=3) for fast in (True, False)]
    with torch.no_grad():
        for step in range(40):
            fast, slow = (e.step(torch.full((20,), 2 + step % 38)) for e in engines)
            torch.testing.assert_close(fast, slow, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_fast_and_slow_decoders_agree(prompts, kv_heads):
    model = tiny_llama(kv_heads=kv_heads)
    fast, slow = _generate(model, prompts), _generate(model, prompts, fast=False)
    assert torch.equal(fast.tokens, slow.tokens) and torch.equal(fast.present, slow.present)
    torch.testing.assert_close(fast.logp, slow.logp, atol=2e-5, rtol=1e-4)


def test_logp_is_that_of_the_full_forward(llama, prompts):
    out = _generate(llama, prompts, temperature=0.7)
    tokens, valid = prompts
    for i in range(len(GROUP)):
        prompt = tokens[GROUP[i]][valid[GROUP[i]]]
        said = out.tokens[i][out.present[i]]
        logits = llama(torch.cat([prompt, said])[None]).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1).gather(1, said[:, None])[:, 0]
        torch.testing.assert_close(out.logp[i][out.present[i]], expected.detach(), atol=2e-5, rtol=1e-4)


def test_a_row_does_not_depend_on_its_batch_mates(llama, prompts):
    whole = _generate(llama, prompts)
    for i in range(len(GROUP)):
        alone = _generate(llama, prompts, GROUP[i : i + 1], SEEDS[i : i + 1])
        assert alone.tokens[0][alone.present[0]].tolist() == whole.tokens[i][whole.present[i]].tolist()


def test_rows_end_at_a_stop_token_or_are_truncated(prompts):
    model = tiny_llama(seed=3)
    group, seeds = torch.arange(4).repeat_interleave(64), torch.arange(256)
    out = _generate(model, prompts, group, seeds, max_new_tokens=40)
    lengths = out.present.sum(1)
    last = out.tokens[torch.arange(256), lengths - 1]
    assert torch.equal(out.truncated, last != 1)
    assert not (out.tokens == 1)[:, :-1][out.present[:, 1:]].any(), "nothing follows a stop token"
    assert out.truncated.any() and (~out.truncated).any() and (lengths[out.truncated] == 40).all()


def test_samples_follow_the_distribution():
    logp = torch.tensor([[0.1, 0.2, 0.0, 0.3, 0.4]]).log().expand(40000, -1)
    u = uniforms(torch.arange(40000), 1)[:, 0]
    share = torch.bincount(draw(logp, u), minlength=5) / 40000
    torch.testing.assert_close(share, logp[0].exp(), atol=0.01, rtol=0)
    assert share[2] == 0


def test_uniforms_are_a_function_of_seed_and_step():
    u = uniforms(torch.tensor([5, 6]), 50)
    assert torch.equal(u[:, 10:], uniforms(torch.tensor([5, 6]), 40, offset=10))
    assert (u >= 0).all() and (u < 1).all() and not torch.equal(u[0], u[1])
    many = uniforms(torch.arange(2000), 50)
    assert abs(float(many.mean()) - 0.5) < 0.005 and abs(float(many.var()) - 1 / 12) < 0.002
    assert abs(float(torch.corrcoef(torch.stack([many[:, 0], many[:, 1]]))[0, 1])) < 0.08


def test_truncation_of_the_distribution():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert log_distribution(logits, Sampling(top_k=2)).exp()[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert log_distribution(logits, Sampling(top_p=0.8)).exp()[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])
    kept = [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]
    assert log_distribution(logits, Sampling(min_p=0.2)).exp()[0].tolist() == pytest.approx(kept)
    assert log_distribution(logits, Sampling(temperature=0)).exp()[0].tolist() == [1, 0, 0, 0]
    assert log_distribution(logits, Sampling(temperature=2)).exp()[0, 0] == pytest.approx(
        0.5**0.5 / sum(p**0.5 for p in (0.5, 0.3, 0.15, 0.05))
    )
    assert log_distribution(logits, Sampling(top_p=1e-9)).exp()[0].tolist() == [1, 0, 0, 0]


def test_greedy_rows_agree_with_hugging_face(llama, prompts):
    tokens, valid = prompts
    out = _generate(llama, prompts, torch.arange(4), SEEDS[:4], temperature=0, max_new_tokens=6)
    expected = llama.generate(tokens, attention_mask=valid.long(), max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(out.tokens, expected[:, 9:] * out.present)


@pytest.mark.parametrize("bad", [dict(temperature=-1), dict(top_p=0), dict(min_p=2), dict(max_new_tokens=0)])
def test_bad_sampling_is_refused(bad):
    with pytest.raises(InputError, match="sampling"):
        Sampling(**bad)


@pytest.mark.parametrize("copies", [0, 1 << 30])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_prompts_kept_once_or_once_a_row_give_the_same(prompts, monkeypatch, copies, kv_heads):
    """With ends at different steps, so that rows change places and groups become uneven."""
    model, group, seeds = tiny_llama(seed=3, kv_heads=kv_heads), torch.arange(4).repeat_interleave(8), torch.arange(32)
    slow = _generate(model, prompts, group, seeds, fast=False, max_new_tokens=30)
    monkeypatch.setattr(native, "COPIES", copies)
    out = _generate(model, prompts, group, seeds, max_new_tokens=30)
    assert out.present.sum(1).unique().numel() > 5, "rows end at different steps"
    assert torch.equal(out.tokens, slow.tokens) and torch.equal(out.present, slow.present)
    torch.testing.assert_close(out.logp, slow.logp, atol=5e-5, rtol=1e-4)


def test_the_last_rows_alive_take_the_free_seats(monkeypatch):
    monkeypatch.setattr(native, "SEATS", 2)
    done = torch.tensor([True, False, True, False, True, False])
    assert native._seats(done, 3).tolist() == [5, 1, 2, 3], "four seats: one of those that are done keeps its own"
    assert native._seats(torch.tensor([True, False, True, True, True]), 1).tolist() == [1]
    assert native._seats(torch.tensor([False, True, False]), 2).tolist() == [0, 2]
    assert native._seats(torch.tensor([False, False, True]), 2).tolist() == [0, 1]


def test_a_prefix_can_branch(llama, prompts):
    tokens, valid = prompts
    with torch.no_grad():
        whole = native.decoder(llama, tokens, valid, torch.tensor([2, 2, 2]))
        one = native.decoder(llama, tokens, valid, torch.tensor([2]))
        expected = [whole.step(torch.tensor([5, 5, 5])), whole.step(torch.tensor([7, 8, 9]))]
        assert torch.allclose(one.step(torch.tensor([5])), expected[0][:1], atol=1e-4)
        one.keep(torch.tensor([0, 0, 0]))
        torch.testing.assert_close(one.step(torch.tensor([7, 8, 9])), expected[1], atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not products.available(torch.zeros(1, 1)), reason="this torch has no oneDNN")
def test_an_engine_in_bfloat16_is_near_and_says_so(prompts):
    """Its log-probabilities are of its own distribution, near the model's; a surrogate can correct for the rest."""
    policy = tiny_policy()
    group, seeds = torch.zeros(64, dtype=torch.long), torch.arange(64)
    assert policy.engine_exact
    policy.engine_dtype = torch.bfloat16
    assert not policy.engine_exact
    batch = policy.sample(["say 7"], group, seeds, Sampling(max_new_tokens=12))
    with torch.no_grad():
        exact = policy.score(batch, {"logp"})["logp"]
    gap = (exact - batch.rollout_logp)[batch.mask]
    assert 1e-4 < gap.abs().mean() < 0.2, "not the same, and not far"
    factor = EngineCorrected(Clip(0.2)).factor(batch.having(old_logp=exact))
    assert torch.allclose(factor[batch.mask], gap.exp().clamp(max=2.0))
    for odd in (dict(fast=False), dict()):
        model = tiny_llama().double() if not odd else tiny_llama()
        with pytest.raises(InputError, match="engine in torch.bfloat16"):
            native.decoder(model, *prompts, torch.arange(4), dtype=torch.bfloat16, **odd)
