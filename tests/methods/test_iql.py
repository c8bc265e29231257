"""IQL: the card's exact checks, its losses' gradients, data that are played back, and runs that resume."""

import numpy as np
import pytest
import torch

import surefoot as sf
from surefoot.claims.iql import LAYOUT, collected, maze
from surefoot.exact.mdp import MDP, evaluate, performance, value_iteration
from surefoot.exact.operators import Expectile, expectile
from surefoot.methods.offline.iql import IQL, InSampleWeighted, cloned, exact_iql
from surefoot.objective.values import ExpectileValue, TemporalDifference, expectile_loss
from surefoot.policies.gaussian import Gaussian
from surefoot.rollouts import Rollouts

UNIFORM = np.full((1, 4), 0.25)
VALUES = np.array([[0.0, 1.0, 2.0, 10.0]])


@pytest.mark.parametrize("tau, value", [(0.5, 3.25), (0.7, 4.9375), (0.9, 7.75), (0.99, 9.735294), (0.1, 1.05)])
def test_expectiles_of_the_card(tau, value):
    assert expectile(VALUES, UNIFORM, tau)[0] == pytest.approx(value, abs=1e-6)


def test_an_expectile_meets_its_first_order_condition_and_grows_with_tau():
    rng = np.random.default_rng(0)
    q, mu = rng.normal(size=(50, 6)), rng.dirichlet(np.ones(6), 50)
    mu[:, 2] = 0
    mu /= mu.sum(1, keepdims=True)
    before = np.full(50, -np.inf)
    for tau in (0.01, 0.3, 0.5, 0.8, 0.999):
        v = expectile(q, mu, tau)
        gap = q - v[:, None]
        assert np.abs((mu * np.where(gap < 0, 1 - tau, tau) * gap).sum(1)).max() < 1e-12
        inside = np.where(mu > 0, q, np.nan)
        assert (np.nanmin(inside, 1) <= v).all() and (v <= np.nanmax(inside, 1)).all() and (v > before).all()
        before = v


def test_the_loss_is_least_at_the_expectile():
    v = torch.tensor(4.9375, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(expectile_loss(torch.from_numpy(VALUES[0]) - v, 0.7).sum(), v)
    assert abs(float(gradient)) < 1e-12


def test_half_is_the_behaviours_value_and_one_is_the_best_supported():
    model, mu = collected(maze(), 40, np.random.default_rng(0))
    _, v, q = exact_iql(model, mu, 0.5, 3.0)
    np.testing.assert_allclose(v, evaluate(model, mu)[0], atol=1e-7)
    supported = MDP(model.P, np.where(mu > 0, model.R, -1e6), model.gamma, model.mu)
    best = value_iteration(supported).V
    np.testing.assert_allclose(exact_iql(model, mu, 1 - 1e-9, 3.0)[1], best, atol=1e-5)
    assert (Expectile(0.9, mu).policy(q) * (mu == 0)).sum() == 0


def test_the_cards_maze():
    true = maze()
    assert LAYOUT[3] == ".#####." and performance(true, value_iteration(true).policy) == pytest.approx(2.296, abs=5e-4)


def test_the_cards_cloned_policy():
    q, mu = np.array([[1.0, 2.0, 0.0]]), np.array([[0.5, 0.25, 0.25]])
    v = expectile(q, mu, 0.7)
    assert v[0] == pytest.approx(1.25)
    np.testing.assert_allclose(cloned(q, v, mu, 3.0)[0], [0.090353, 0.907397, 0.002249], atol=1e-6)


def test_shifts_and_scales_that_change_nothing():
    rng = np.random.default_rng(1)
    q, mu = rng.normal(size=(5, 4)), rng.dirichlet(np.ones(4), 5)
    v = expectile(q, mu, 0.7)
    np.testing.assert_allclose(expectile(q + 7, mu, 0.7), v + 7)
    np.testing.assert_allclose(cloned(q + 7, v + 7, mu, 3.0), cloned(q, v, mu, 3.0))
    np.testing.assert_allclose(cloned(5 * q, expectile(5 * q, mu, 0.7), mu, 3.0 / 5), cloned(q, v, mu, 3.0))


def _batch(n=6, observations=3, actions=2, **changes):
    g = torch.Generator().manual_seed(0)
    mask = torch.ones(n, 1, dtype=torch.bool)
    mask[-1] = False
    columns = {
        "states": torch.randn(n, 1, observations, generator=g),
        "next_states": torch.randn(n, 1, observations, generator=g),
        "actions": torch.rand(n, 1, actions, generator=g) * 2 - 1,
        "ended": torch.tensor([True, False, False, True, False, False])[:, None],
        "step_reward": torch.randn(n, 1, generator=g),
        "mask": mask,
    }
    return Rollouts(columns | changes)


def _policy(**options):
    torch.manual_seed(0)
    policy = Gaussian(3, 2, hidden=(16,), activation="relu", squash=True, critics=2, **options)
    policy.critic()
    for i in range(2):  # targets of their own, so that taking the wrong network shows
        for p in policy.model[f"target_q{i}"].parameters():
            p.data.add_(0.3 * torch.randn_like(p))
    return policy


def test_each_loss_is_the_papers_and_moves_its_own_network_alone():
    policy, batch = _policy(), _batch()
    batch = batch.having(**policy.score(batch, set(policy.live)))
    value, q, target = batch.value[:, 0], batch.q[:, 0], batch.target_q[:, 0]
    u = (target.amin(-1) - value).detach()
    after = batch.next_value[:, 0] * (~batch.ended[:, 0])
    expected = {
        "value": (ExpectileValue(0.7), torch.where(u < 0, 0.3, 0.7) * u**2),
        "q": (TemporalDifference(0.99), ((batch.step_reward[:, 0] + 0.99 * after)[:, None] - q).square().sum(-1)),
        "mean": (InSampleWeighted(), -(3 * u).exp().clamp(max=100) * batch.logp[:, 0]),
    }
    for owner, (part, theirs) in expected.items():
        loss = part(batch)
        torch.testing.assert_close(loss[:-1, 0], theirs[:-1])
        assert float(loss[-1].detach()) == 0, "a masked transition counts nothing"
        policy.model.zero_grad()
        loss.sum().backward(retain_graph=True)
        moved = {n.split(".")[0] for n, p in policy.model.named_parameters() if p.grad is not None and p.grad.any()}
        assert {m.rstrip("01") for m in moved} - {"spread"} == {owner}


def test_the_weight_is_clipped_at_a_hundred_and_masked_rows_do_not_leak():
    one = torch.ones(2, 1)
    table = Rollouts(
        {
            "mask": torch.tensor([[True], [False]]),
            "logp": torch.tensor([[-1.0], [float("nan")]]),
            "value": 0 * one,
            "target_q": torch.tensor([[[10.0, 11.0]], [[float("nan"), 1.0]]]),
        }
    )
    first, masked = InSampleWeighted()(table)[:, 0].tolist()
    assert first == pytest.approx(100.0, rel=1e-6) and masked == 0.0


def test_the_gradient_on_the_logits_of_a_table():
    """`-(mu w - pi sum mu w)`: weighted cloning on a softmax, and none of it at actions that the data lack."""
    mu, w = torch.tensor([0.5, 0.25, 0.25, 0.0]).double(), torch.tensor([1.0, 4.0, 0.5, 9.0]).double()
    logits = torch.tensor([0.3, -1.0, 0.2, 0.9]).double().requires_grad_()
    rows = torch.tensor([0, 0, 1, 2])
    table = Rollouts(
        {
            "mask": torch.ones(4, 1, dtype=torch.bool),
            "logp": logits.log_softmax(0)[rows][:, None],
            "value": torch.zeros(4, 1).double(),
            "target_q": (w.log() / 3)[rows][:, None, None],
        }
    )
    (gradient,) = torch.autograd.grad(InSampleWeighted()(table).mean(), logits)
    pi = logits.detach().softmax(0)
    torch.testing.assert_close(gradient, -(mu * w - pi * (mu * w).sum()))


def test_targets_follow_at_rho():
    policy = _policy(rho=0.25)
    before = policy.model["target_q0"][0].weight.clone()
    policy.stepped()
    torch.testing.assert_close(policy.model["target_q0"][0].weight, 0.75 * before + 0.25 * policy.model["q0"][0].weight)
    assert not any(p.requires_grad for p in policy.model["target_q1"].parameters())


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    pytest.importorskip("gymnasium")
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


TINY = "offline:InvertedPendulum-v5:quality={},size=900,search=3000"


def test_qualities_differ_and_time_limits_are_no_ends(cache):
    from surefoot import tasks

    pytest.importorskip("mujoco")
    random, mixed = (tasks.load(TINY.format(quality)) for quality in ("random", "mixed"))
    assert mixed.data["returns"].max() > 5 * random.data["returns"].mean()
    for task in (random, mixed):
        d = task.data
        assert len(task.train) == 900 and d["actions"].abs().max() <= 1
        assert d["ended"].any() and d["ended"].sum() < len(d["returns"]) + 1
        angle = d["next_states"][:, 1].abs()
        assert torch.equal(d["ended"], angle > 0.2), "the pendulum's own end, and nothing else"
    again = tasks.load(TINY.format("mixed"))
    assert torch.equal(again.data["states"], mixed.data["states"])
    assert mixed.unit == pytest.approx(1000 / float(mixed.data["returns"].max() - mixed.data["returns"].min()))


def test_a_run_learns_and_resumes_bit_for_bit(cache, tmp_path):
    pytest.importorskip("mujoco")
    method = IQL.but(prompts=IQL.prompts.having(prompts=512), update=IQL.update.having(minibatches=4))
    quick = {"train.final_problems": 2, "train.eval_every": 0, "train.lr": 3e-3}
    args = dict(
        policy="gaussian:critics=2,squash=true,hidden=(16,)",
        task=TINY.format("mixed"),
        method=method,
        progress=False,
        report=False,
        set=quick,
        seed=1,
    )
    whole = sf.train(steps=6, out=tmp_path / "whole", **args)
    sf.train(steps=3, out=tmp_path / "half", **args)
    config = tmp_path / "half" / "config.toml"
    config.write_text(config.read_text().replace("steps = 3", "steps = 6"))
    half = sf.resume(tmp_path / "half", progress=False, report=False)
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "half")]
    assert lines[0] == lines[1]
    for a, b in zip(whole.policy.model.state_dict().values(), half.policy.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    drawn = {p.name for p in (tmp_path / "whole" / "pictures").iterdir()}
    assert len(drawn) == 2 and "episode_step_000000.png" in drawn, "before and after"
