"""Guided policies: what they sample is what they score, experts stay in step, and the command reaches them."""

import json

import pytest
import torch

from surefoot.cli import main
from surefoot.errors import InputError
from surefoot.rollout.native import Sampling
from surefoot.search.guided import Guided, mixed
from tests.conftest import tiny_policy

GROUP, SEEDS = torch.tensor([0, 0, 0, 1, 1]), torch.arange(5)
QUESTIONS = ["say 1", "say what you like 22"]


def _experts(fast=True):
    found = [tiny_policy(seed) for seed in (0, 1, 2)]
    for i, policy in enumerate(found):
        policy.name, policy.fast = f"tiny{i}", fast
        policy.stop = [1, *range(40, 46)]
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_is_sampled_is_what_is_scored(temperature):
    base, a, b = _experts()
    guided = Guided(base, [(a, 0.8), (b, -0.3)])
    said = guided.sample(QUESTIONS, GROUP, SEEDS, Sampling(temperature, max_new_tokens=20))
    scored = guided.score(said, {"logp", "entropy"}, temperature)
    torch.testing.assert_close(scored["logp"], said.rollout_logp, atol=2e-4, rtol=1e-4)
    assert said.present.sum(1).unique().numel() > 1, "rows end, and leave, at different steps"
    mixture = mixed([e.score(said, {"logits"})["logits"] for e in (base, a, b)], [1, 0.8, -0.3]) / temperature
    p = mixture.log_softmax(-1)
    torch.testing.assert_close(scored["entropy"], -(p.exp() * p).sum(-1).where(said.present, 0.0), atol=1e-4, rtol=1e-4)


def test_weight_zero_is_the_base_and_two_paths_agree():
    base, a, _ = _experts()
    sampling = Sampling(max_new_tokens=16)
    plain = base.sample(QUESTIONS, GROUP, SEEDS, sampling)
    off = Guided(base, [(a, 0.0)]).sample(QUESTIONS, GROUP, SEEDS, sampling)
    assert off.tokens.equal(plain.tokens) and off.notes == plain.notes
    slow_base, slow_a, _ = _experts(fast=False)
    fast, slow = (
        Guided(x, [(y, 1.0)]).sample(QUESTIONS, GROUP, SEEDS, sampling) for x, y in ((base, a), (slow_base, slow_a))
    )
    assert fast.tokens.equal(slow.tokens) and not fast.tokens.equal(plain.tokens)


def test_the_guided_policy_is_frozen():
    base, a, _ = _experts()
    guided = Guided(base, [(a, 1.0)])
    assert guided.parameters() == [] and not guided.score(_said(guided), {"logp"})["logp"].requires_grad
    assert guided.stop == base.stop and guided.name == "tiny0 x tiny1^1"


def _said(policy):
    return policy.sample(QUESTIONS, GROUP, SEEDS, Sampling(max_new_tokens=4))


def test_other_tokens_are_refused():
    base, a, _ = _experts()
    a.tokenizer.add_tokens(["<new>"])
    with pytest.raises(InputError, match="guide 'tiny1': its tokens are not those of 'tiny0'"):
        Guided(base, [(a, 1.0)])
    with pytest.raises(InputError, match=r"policy 'tiny0 x tiny2\^1' \(guided\) cannot give column 'value'"):
        guide = _experts()[2]
        Guided(base, [(guide, 1.0)]).score(_said(base), {"value"})


def test_the_command(capsys):
    asked = ["eval", "pebble", "--k", "2", "--problems", "8", "--json"]
    assert main(asked) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main([*asked, "--guide", "pebble=0"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["pass@1_interval"] == plain["pass@1_interval"] and same["entropy"] == pytest.approx(plain["entropy"])
    assert main([*asked, "--guide", "pebble=2"]) == 0
    sharper = json.loads(capsys.readouterr().out)
    assert sharper["entropy"] < 0.7 * plain["entropy"]  # pebble^3 is pebble at temperature 1/3
    assert main([*asked, "--guide", "pebble=much"]) == 2
    assert "weight 'much'; expected a number" in capsys.readouterr().err
