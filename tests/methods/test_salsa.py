"""SALSA: the card's exact checks."""

import pytest
import torch

from surefoot import policies
from surefoot.claims.salsa import SETTINGS, compare, expected, matched, optimum, worth
from surefoot.method import Update
from surefoot.methods.rlvr.ppo import PPO
from surefoot.methods.rlvr.salsa import SALSA
from surefoot.objective.credit import GAE, gae
from surefoot.objective.divergences import REVERSE_KL, f_divergence
from surefoot.objective.references import Soup, Start, weights
from surefoot.pretraining.tokenizer import build
from surefoot.rollout.prompts import Uniform
from surefoot.rollouts import Rollouts
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, tiny_llama, tiny_policy

SMALL = SALSA.but(prompts=Uniform(prompts=8, rollouts=1), update=Update())


def _of(*values):
    return torch.tensor(values, dtype=torch.float64)


def _saved(folder, model):
    model.save_pretrained(folder)
    build().save_pretrained(folder)
    return str(folder)


def test_linear_logits_give_the_geometric_mean():
    one, two = (z.log_softmax(-1) for z in (_of(2, 0, 0), _of(0, 2, 0)))
    soup = _of(1, 1, 0).softmax(-1)
    assert one.exp().tolist() == pytest.approx([0.7870, 0.1065, 0.1065], abs=5e-5)
    assert soup.tolist() == pytest.approx([0.4223, 0.4223, 0.1554], abs=5e-5)
    geometric = (one.exp() * two.exp()).sqrt()
    torch.testing.assert_close(soup, geometric / geometric.sum())


@pytest.mark.parametrize(
    ("reward", "start", "policy", "mean", "value", "kl"),
    [
        ((0, 1, 0.5), (2, 0, 0), (0.4223, 0.4223, 0.1554), 0.5, 0.311225, 0.377550),
        ((0, 1, 0.5), (1, 1, 0), (0.1065, 0.7870, 0.1065), 0.840240, 0.688775, 0.302929),
    ],
)
def test_worked_optima(reward, start, policy, mean, value, kl):
    anchor, reward = _of(*start).log_softmax(-1), _of(*reward)
    best = optimum(anchor, reward, 2.0)
    assert best.exp().tolist() == pytest.approx(policy, abs=5e-5)
    assert float(expected(best, reward)) == pytest.approx(mean, abs=1e-6)
    assert float(worth(anchor, reward, 0.5)) == pytest.approx(value, abs=1e-6)
    assert float(f_divergence(best, anchor, REVERSE_KL)) == pytest.approx(kl, abs=1e-6)
    assert float(expected(best, reward) - 0.5 * f_divergence(best, anchor, REVERSE_KL)) == pytest.approx(
        value, abs=1e-6
    )


def test_the_soup_is_the_worse_anchor_where_the_first_favours_what_is_paid():
    one, soup, reward = _of(2, 0, 0).log_softmax(-1), _of(1, 1, 0).log_softmax(-1), _of(1, 0, 0.5)
    assert worth(soup, reward, 0.5) < worth(one, reward, 0.5)


def test_matched_optima_have_the_reward_and_the_first_is_nearest_to_itself():
    g = torch.Generator().manual_seed(0)
    anchor, other, reward = (torch.randn(50, 6, generator=g, dtype=torch.float64) for _ in range(3))
    anchor, other = anchor.log_softmax(-1), other.log_softmax(-1)
    best = optimum(anchor, reward, 1.3)
    rival = matched(other, reward, expected(best, reward))
    torch.testing.assert_close(expected(rival, reward), expected(best, reward))
    torch.testing.assert_close(matched(anchor, reward, expected(best, reward)), best, atol=1e-8, rtol=0)
    assert (f_divergence(rival, anchor, REVERSE_KL) >= f_divergence(best, anchor, REVERSE_KL)).all()
    assert compare(SETTINGS[0], 500, 1).away > 0


def _run(method, steps=2):
    torch.manual_seed(0)
    trainer = Trainer(tiny_policy(), digits_task(), method, Settings(lr=1e-2, warmup=0))
    return [trainer.train_step().metrics for _ in range(steps)], trainer


def test_all_of_the_start_or_a_twin_of_it_is_ppo(tmp_path):
    twin, other = (
        _saved(tmp_path / "twin", tiny_llama(0, vocab=104)),
        _saved(tmp_path / "other", tiny_llama(5, vocab=104)),
    )
    ppo = _run(SMALL.but(reference=Start()))[0]
    assert _run(SMALL.but(reference=Soup(of=(other,), share=1.0)))[0] == ppo
    assert _run(SMALL.but(reference=Soup(of=(twin,), share=0.3)))[0][-1]["loss"] == pytest.approx(
        ppo[-1]["loss"], rel=1e-4
    )
    mixed, trainer = _run(SMALL.but(reference=Soup(of=(other,))))
    assert mixed[-1]["loss"] != pytest.approx(ppo[-1]["loss"], rel=1e-2), "the anchor matters"
    assert all(p.grad is None for p in trainer._reference.model.parameters()), "the soup gets no gradient"


def test_the_second_ingredient_is_trained_from_the_start_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    policy = tiny_policy()
    policy.name = str(tmp_path / "start")
    policy.save(tmp_path / "start")
    method = SMALL.but(reference=Soup(of=("trained:method=reinforce,steps=3",)))
    trainer = Trainer(policy, digits_task(), method, Settings())
    (made,) = (tmp_path / "cache" / "teachers").iterdir()
    own, other, soup = (dict(weights(p)) for p in (policy, policies.load(str(made)), trainer._reference))
    assert any(not torch.equal(own[name], other[name]) for name in own)
    for name in own:
        torch.testing.assert_close(soup[name], (own[name] + other[name]) / 2)


def test_permuted_units_keep_the_function_and_spoil_the_soup(tmp_path):
    """Ingredients must come from one start: the same function with its units in another order averages to nothing."""
    policy, model = tiny_policy(), tiny_llama(0, vocab=104)
    with torch.no_grad():
        for layer in model.model.layers:
            order = torch.randperm(layer.mlp.gate_proj.out_features, generator=torch.Generator().manual_seed(1))
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
                part.weight.copy_(part.weight[order])
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])
    folder = _saved(tmp_path / "permuted", model)
    trainer = Trainer(policy, digits_task(), SMALL.but(reference=Start()), Settings())
    batch = trainer.train_step().batch
    with torch.no_grad():
        own, permuted, soup = (
            p.score(batch, {"logp"})["logp"]
            for p in (trainer._reference, policies.load(folder), Soup(of=(folder,))(trainer._reference, policies.load))
        )
    torch.testing.assert_close(own, permuted, atol=1e-3, rtol=1e-3)
    assert (own - soup)[batch.mask].abs().mean() > 0.1


def test_the_penalty_is_paid_token_by_token():
    mask = torch.tensor([[True, True, True], [True, True, False]])
    old, ref = torch.randn(2, 3), torch.randn(2, 3)
    value, reward = torch.randn(2, 3), torch.tensor([1.0, 0.0])
    table = Rollouts(
        {"mask": mask, "old_logp": old, "ref_logp": ref, "old_value": value, "correct": reward > 0},
        {"accuracy": reward},
    )
    table = table.having(**SALSA.reward(table))
    expected = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]) - 0.05 * (old - ref).where(mask, 0.0)
    torch.testing.assert_close(table.step_reward, expected)
    got = GAE(stepwise=True, whitened=False)(table)["advantage"]
    torch.testing.assert_close(got, gae(expected, value, mask, 1.0, 0.95)[0])
    free = table.having(step_reward=torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), reward=reward)
    torch.testing.assert_close(GAE(stepwise=True)(free)["advantage"], PPO.advantage(free)["advantage"])
