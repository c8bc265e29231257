"""Pruned policies: which layers stay, what they are healed on, and that they are made once."""

import pytest
import torch

from surefoot import policies
from surefoot.errors import InputError
from surefoot.policies import pruned
from surefoot.policies.base import supervised
from surefoot.rollout.native import Sampling
from tests.conftest import digits_task, tiny_llama, tiny_policy


def _score(policy, rollouts):
    with torch.no_grad():
        return policy.score(rollouts, {"logp"})["logp"]


@pytest.mark.parametrize(("layers", "kept"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 3]), (4, [0, 1, 2, 3])])
def test_the_first_the_last_and_some_between_stay(layers, kept):
    larger = policies.load("pebble")
    smaller = pruned.cut(larger, layers)
    ours, theirs = smaller.model.model.layers, larger.model.model.layers
    for layer, k in zip(ours, kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), theirs[k].parameters(), strict=True))
    assert smaller.model.config.num_hidden_layers == layers and larger.model.config.num_hidden_layers == 4
    said = larger.sample(["gcd 6,4"], torch.zeros(3).long(), torch.arange(3), Sampling(max_new_tokens=12))
    assert torch.equal(_score(smaller, said), _score(larger, said)) == (layers == 4)
    out = smaller.sample(["gcd 6,4"], torch.zeros(3).long(), torch.arange(3), Sampling(max_new_tokens=12))
    torch.testing.assert_close(out.rollout_logp, _score(smaller, out), atol=1e-4, rtol=0)


def test_the_larger_one_is_left_alone():
    larger = tiny_policy()
    before = [p.detach().clone() for p in larger.parameters()]
    smaller = pruned.cut(larger, 1)
    drawn = pruned.samples(larger, digits_task(), 0)
    supervised(smaller.parameters(), lambda: pruned.surprise(smaller, next(drawn)), 2, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, larger.parameters(), strict=True))


def test_healing_makes_the_larger_ones_samples_likelier_on_training_questions_only(monkeypatch):
    monkeypatch.setattr(pruned, "BLOCK", 32)
    larger, task = policies.load("pebble"), digits_task()
    smaller, drawn, asked = pruned.cut(larger, 3), pruned.samples(larger, task, 0), set()
    sample = larger.sample
    monkeypatch.setattr(larger, "sample", lambda q, *a: asked.update(q) or sample(q, *a))
    losses = supervised(smaller.parameters(), lambda: pruned.surprise(smaller, next(drawn)), 12, 2e-3)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert asked and asked <= {p.question for p in task.train}
    table = next(drawn)
    assert len(table) == pruned.QUESTIONS * pruned.EACH and (table.group.bincount()[table.group] == pruned.EACH).all()


def test_it_is_made_once_of_any_model_and_loads_as_one(tmp_path, monkeypatch):
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path))
    monkeypatch.setattr(pruned, "BLOCK", 16)
    tiny_policy().save(tmp_path / "tiny")
    policy = policies.load("pruned:of=tiny,layers=1,steps=1", digits_task())
    monkeypatch.setattr(pruned, "cut", lambda *_: pytest.fail("made again"))
    again = policies.load("pruned:of=tiny,layers=1,steps=1", digits_task())
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))
    assert len(list((tmp_path / "pruned").iterdir())) == 1 and policy.name == "pruned:of=tiny,layers=1,steps=1"
    size = {name: p.describe()["parameters"] for name, p in (("pruned", policy), ("tiny", tiny_policy()))}
    assert size["pruned"] < size["tiny"]


def test_what_cannot_be_made_says_so():
    with pytest.raises(InputError, match="questions of a task"):
        policies.load("pruned")
    for layers in (0, 3):
        with pytest.raises(InputError, match=rf"layers={layers}, expected 1 to 2"):
            pruned.cut(tiny_policy(), layers)
    with pytest.raises(InputError, match="layer"):
        policies.load("pruned:layer=1", digits_task())


def test_a_cut_of_another_architectures_list_of_layer_kinds():
    model = tiny_llama(vocab=104)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    larger = tiny_policy()
    larger.model = model
    assert pruned.cut(larger, 1).model.config.layer_types == ["full_attention"]
