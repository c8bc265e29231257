"""The packed Llama against Hugging Face's own forward: hidden states, log-probabilities and gradients."""

import pytest
import torch

from surefoot.policies import llama as packed
from surefoot.policies.causal_lm import CausalLM
from surefoot.rollouts import Rollouts
from tests.conftest import tiny_llama

pytestmark = pytest.mark.usefixtures("engine")


class _Tokenizer:
    eos_token_id, pad_token_id, chat_template = 1, 0, None


def _rollouts(prompts):
    tokens, valid = prompts
    torch.manual_seed(2)
    lengths = torch.tensor([6, 1, 4, 5, 2, 6])
    present = torch.arange(6) < lengths[:, None]
    steps = torch.where(present, torch.randint(2, 40, (6, 6)), 0)
    return Rollouts(
        dict(
            tokens=steps,
            present=present,
            mask=present,
            group=torch.tensor([0, 0, 3, 3, 3, 1]),
            prompt_tokens=tokens,
            prompt_mask=valid,
        )
    )


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_values_and_gradients_equal_the_slow_twin(prompts, kv_heads):
    model, rollouts = tiny_llama(kv_heads=kv_heads), _rollouts(prompts)
    torch.manual_seed(0)
    weights = torch.randn(6, 6)
    results = []
    for fast in (True, False):
        policy = CausalLM(model, _Tokenizer(), fast=fast)
        model.zero_grad()
        out = policy.score(rollouts, {"logp", "entropy"}, temperature=0.9)
        (weights * (out["logp"] + 0.3 * out["entropy"])).sum().backward()
        results.append((out, {n: p.grad.clone() for n, p in model.named_parameters()}))
    (fast_out, fast_grad), (slow_out, slow_grad) = results
    for name in ("logp", "entropy"):
        torch.testing.assert_close(fast_out[name], slow_out[name], atol=3e-5, rtol=1e-4)
        assert (fast_out[name][~rollouts.present] == 0).all()
    for name, grad in slow_grad.items():
        torch.testing.assert_close(
            fast_grad[name], grad, atol=2e-4 * float(grad.abs().max()) + 1e-7, rtol=1e-3, msg=name
        )


def test_all_columns_of_one_pass_agree(prompts):
    policy, rollouts = CausalLM(tiny_llama(), _Tokenizer()), _rollouts(prompts)
    out = policy.score(rollouts, {"logp", "entropy", "collision", "logits", "value", "hidden"})
    chosen = out["logits"].gather(2, rollouts.tokens[..., None])[..., 0].where(rollouts.present, 0.0)
    torch.testing.assert_close(out["logp"], chosen)
    assert (out["value"] == 0).all(), "a new value head predicts zero"
    collision = (2 * out["logits"]).logsumexp(-1).where(rollouts.present, 0.0)
    torch.testing.assert_close(out["collision"], collision)
    assert not out["collision"].requires_grad
    again = policy.score(rollouts, {"logp", "entropy", "collision"})
    for name in again:
        torch.testing.assert_close(again[name], out[name], atol=1e-5, rtol=1e-5)


def test_a_prompt_is_computed_once_for_its_group(prompts, monkeypatch):
    """The dense layers see the prompts of the groups at hand once, and no padding."""
    policy, rollouts = CausalLM(tiny_llama(), _Tokenizer()), _rollouts(prompts)
    seen = []
    original = packed.Stack.__call__
    monkeypatch.setattr(
        packed.Stack, "__call__", lambda self, tokens, *rest: seen.append(len(tokens)) or original(self, tokens, *rest)
    )
    policy.score(rollouts, {"logp"})
    prompt_tokens = int(rollouts.prompt_mask[[0, 1, 3]].sum())
    fed = int((rollouts.present.sum(1) - 1).sum())  # the last step of a row is scored, never fed
    assert seen == [prompt_tokens + fed]


def test_other_architectures_take_the_slow_path(prompts):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=64, eos_token_id=1, bos_token_id=1)
    )
    policy = CausalLM(model, _Tokenizer())
    assert not policy.fast


def test_weights_lie_joined_and_stay_what_they_are(tmp_path):
    plain, model = tiny_llama(), tiny_llama()
    names = [n for n, _ in model.named_parameters()]
    before = list(model.parameters())
    packed.join(model)
    assert [n for n, _ in model.named_parameters()] == names
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    maps = packed._inward(model.model.layers[0])[0]
    whole = packed.joined([m.weight for m in maps])
    assert whole.data_ptr() == maps[0].weight.data_ptr(), "no copy"
    assert torch.equal(whole, torch.cat([m.weight for m in maps]))
    apart = [m.weight.clone() for m in maps]
    assert torch.equal(packed.joined(apart), whole) and packed.joined(apart).data_ptr() != apart[0].data_ptr()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(again[name], value), name


def test_rows_of_about_the_same_length_share_a_bucket():
    lengths = torch.tensor([1, 100, 0, 61, 20, 59, 12, 2])
    found = packed.buckets(lengths)
    assert sorted(torch.cat(found).tolist()) == [0, 1, 3, 4, 5, 6, 7], "each row once, and none without steps"
    for rows in found:
        assert lengths[rows].min() >= packed.ALIKE * lengths[rows].max()
    assert [len(b) for b in found] == [2, 1, 2, 1, 1]


def test_the_frozen_stack_gives_the_same_logits(prompts):
    """Folded norms, folded scale and re-ordered pairs change nothing that can be seen."""
    model = tiny_llama(attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        for _name, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(torch.randn_like(p) * 0.3)
    tokens, valid = prompts
    with torch.no_grad():
        results = []
        for stack in (packed.frozen(model, 8), packed.Stack(model)):
            hidden, _, values = packed.prefill(stack, tokens, valid)
            results.append((stack.logits(hidden), values[1]))
        slow = model(tokens, attention_mask=valid.long(), position_ids=(valid.cumsum(1) - 1).clamp_min(0)).logits[:, -1]
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(results[0][0], slow, atol=1e-4, rtol=1e-4)
