"""GRPO-Guard: the card's exact checks, the flow policy and its denoising step, digits, and a run that resumes."""

import math
from statistics import NormalDist

import pytest
import torch

import surefoot as sf
from surefoot.evaluation.evaluate import mean_rewards
from surefoot.methods.flow.grpo_guard import GRPO_GUARD
from surefoot.objective.aggregation import Per, TokenMean
from surefoot.objective.ratios import CentredRatio, TokenRatio
from surefoot.policies.flow import Flow, transition
from surefoot.rollouts import Rollouts
from surefoot.tasks.base import Problem


def _steps(s, dmu=0.02, n=200_000, d=4, seed=0, dtype=torch.float64):
    """n one-step trajectories from mu_old = 0, scored by a policy whose mean is dmu everywhere."""
    eps = torch.randn(n, 1, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    mean, std = torch.full_like(eps, dmu), torch.full((n, 1), s, dtype=dtype)
    logp = [-0.5 * ((s * eps - m) / s).square().mean(-1) - math.log(s) for m in (mean, 0 * mean)]
    columns = dict(mean=mean, step_mean=0 * mean, step_std=std, logp=logp[0], old_logp=logp[1])
    return eps, Rollouts(columns | dict(mask=torch.ones(n, 1, dtype=torch.bool)))


@pytest.mark.parametrize("s, raw_mean, raw_std", [(0.1, -0.02, 0.1), (0.3, -0.00222, 0.0333)])
def test_the_log_ratio_is_centred_and_its_spread_does_not_know_the_noise(s, raw_mean, raw_std):
    eps, table = _steps(s)
    log = CentredRatio().between(table)
    torch.testing.assert_close(log[:, 0], (eps * 0.02).mean(-1)[:, 0], atol=1e-9, rtol=0)
    assert float(log.mean()) == pytest.approx(0, abs=4 * 0.01 / len(log) ** 0.5)
    assert float(log.std()) == pytest.approx(0.01, rel=0.01)
    raw = TokenRatio().between(table)
    assert float(raw.mean()) == pytest.approx(raw_mean, abs=4 * raw_std / len(log) ** 0.5)
    assert float(raw.std()) == pytest.approx(raw_std, rel=0.01)


def test_the_shift_to_the_left_comes_from_the_mean_over_entries():
    _, table = _steps(0.1)
    raw = TokenRatio().between(table)
    error = 4 * float(raw.exp().std()) / len(raw) ** 0.5
    assert float(raw.exp().mean()) == pytest.approx(math.exp(-(0.2**2 / 2) * (1 - 1 / 4)), abs=error)
    assert math.exp(-(0.2**2 / 2) * 0.75) == pytest.approx(0.98511, abs=5e-6)
    summed = (4 * raw).exp()
    assert float(summed.mean()) == pytest.approx(1.0, abs=4 * float(summed.std()) / len(raw) ** 0.5)


@pytest.mark.parametrize("s, above, below", [(0.1, 0.3823, 0.5396), (0.3, 0.3575, 0.4072)])
def test_clips_of_the_card(s, above, below):
    _, table = _steps(s)
    n = len(table)
    fair, raw = CentredRatio().of(table), TokenRatio().of(table)
    normal = NormalDist(0, 0.01)
    expected = {"up": 1 - normal.cdf(math.log(1.01)), "down": normal.cdf(math.log(0.99))}
    assert expected["up"] == pytest.approx(0.1599, abs=1e-4) and expected["down"] == pytest.approx(0.1574, abs=1e-4)
    for share, value in (
        ((fair > 1.01), expected["up"]),
        ((fair < 0.99), expected["down"]),
        ((raw > 1.01), above),
        ((raw < 0.99), below),
    ):
        assert float(share.double().mean()) == pytest.approx(value, abs=4 * (value * (1 - value) / n) ** 0.5 + 1e-4)


def test_at_the_old_policy_the_gradient_is_the_raw_ones_times_s_and_away_the_bias_has_one():
    eps, table = _steps(0.3, dmu=0.0, n=5)
    mean = torch.zeros(5, 1, 4, dtype=torch.float64, requires_grad=True)
    logp = -0.5 * ((0.3 * eps - mean) / 0.3).square().mean(-1) - math.log(0.3)
    live = table.having(mean=mean, logp=logp)
    (fair,) = torch.autograd.grad(CentredRatio().of(live).sum(), mean, retain_graph=True)
    (raw,) = torch.autograd.grad(TokenRatio().of(live).sum(), mean)
    torch.testing.assert_close(fair, 0.3 * raw)
    torch.testing.assert_close(fair, eps / 4)
    far = (mean + 0.5).detach().requires_grad_()
    logp = -0.5 * ((0.3 * eps - far) / 0.3).square().mean(-1) - math.log(0.3)
    (log,) = torch.autograd.grad(CentredRatio().between(table.having(mean=far, logp=logp)).sum(), far)
    torch.testing.assert_close(log, eps / 4), "attached: the curvature of the raw ratio is gone"


def test_steps_off_the_mask_do_not_leak():
    _, table = _steps(0.1, n=2)
    broken = table.having(step_std=torch.tensor([[0.1], [0.0]]).double(), mask=torch.tensor([[True], [False]]))
    found = CentredRatio().of(broken)
    assert float(found[1]) == 1.0 and bool(found.isfinite().all())
    weights = Per(TokenMean(), "step_dt")(broken.having(step_dt=torch.tensor([[0.25], [0.0]])))
    assert weights[:, 0].tolist() == [4.0, 0.0]


def test_divided_by_dt_the_gradient_by_the_velocity_is_alike_at_every_step():
    a, d, times = 0.7, 5, torch.tensor([1.0, 0.8, 0.5, 0.3, 0.0]).double()
    for k in range(3):
        t, dt = times[k], times[k] - times[k + 1]
        x, eps = torch.randn(d).double(), torch.randn(d).double()
        v = torch.randn(d).double().requires_grad_()
        old = transition(x, v.detach(), t, dt, a)
        now = transition(x, v, t, dt, a)
        ratio = (eps * (now.mean - old.mean)).mean().exp()
        (gradient,) = torch.autograd.grad(ratio / dt, v)
        factor = 1.0 if t == 1 else 1 + a**2 / 2
        torch.testing.assert_close(gradient, -factor * eps / d)
        assert 1 + a**2 / 2 == pytest.approx(1.245)


def test_the_random_steps_keep_the_marginals():
    """Exact velocity of Gaussian data N(m, S): 400 small random steps end in N(m, S), as noiseless ones do."""
    m, S, n, g = 0.7, 0.3, 40_000, torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, generator=g).double()
    times = torch.linspace(1, 0, 401).double()
    for k in range(400):
        t, dt = times[k].expand(n), (times[k] - times[k + 1]).expand(n)
        slope = (t - (1 - t) * S) / (t**2 + (1 - t) ** 2 * S)
        v = -m + slope[:, None] * (x - (1 - t)[:, None] * m)
        step = transition(x, v, t, dt, 0.7)
        last = k == 399
        x = x - dt[:, None] * v if last else step.mean + step.std[:, None] * torch.randn(n, 1, generator=g).double()
    assert float(x.mean()) == pytest.approx(m, abs=0.015) and float(x.var()) == pytest.approx(S, rel=0.04)


def test_what_was_sampled_is_what_is_scored():
    torch.manual_seed(0)
    policy = Flow(6, labels=3, width=16, steps=5, shift=3.0)
    columns = policy.denoise(torch.tensor([0, 2]), torch.tensor([7, 8]))
    table = Rollouts(columns | dict(present=torch.ones(2, 5, dtype=torch.bool)))
    assert table.mask.tolist() == [[True] * 4 + [False]] * 2, "the last step has no noise and is no choice"
    with torch.no_grad():
        scored = policy.score(table, {"logp", "mean"})
    torch.testing.assert_close(scored["logp"][table.mask], table.rollout_logp[table.mask])
    torch.testing.assert_close(scored["mean"], table.step_mean)
    torch.testing.assert_close(policy.denoise(torch.tensor([2]), torch.tensor([8]))["actions"], columns["actions"][1:])


class _Pulled:
    """A tiny task: samples of a flow, paid for a large first entry."""

    name, max_new_tokens = "pulled", 10
    train = [Problem("one"), Problem("two")]
    heldout = [Problem("three")]

    def rollout(self, policy, problems, group, seeds, sampling):
        columns = policy.denoise(group, seeds)
        return Rollouts(columns | dict(present=torch.ones_like(columns["mask"]), group=group, seed=seeds))

    def judge(self, problems, rollouts):
        return rollouts.having(rewards={"first": rollouts.actions[:, -1, 0]})


def test_it_learns_and_resumes_bit_for_bit(tmp_path):
    quick = {
        "train.final_problems": 1,
        "train.final_samples": 64,
        "train.eval_every": 0,
        "train.lr": 3e-3,
        "train.warmup": 1,
    }
    args = dict(method=GRPO_GUARD, progress=False, report=False, seed=3)

    def policy():
        torch.manual_seed(0)
        return Flow(4, width=16, steps=4)

    whole = sf.train(policy(), _Pulled(), steps=12, out=tmp_path / "whole", set=quick, **args)
    sf.train(policy(), _Pulled(), steps=5, out=tmp_path / "half", set=quick, **args)
    config = tmp_path / "half" / "config.toml"
    config.write_text(config.read_text().replace("steps = 5", "steps = 12"))
    sf.resume(tmp_path / "half", policy=policy(), task=_Pulled(), progress=False, report=False)
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "half")]
    assert lines[0] == lines[1]
    assert whole.after["first"] > whole.before["first"] + 0.1


def test_digits_judge_and_measure_diversity(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    from surefoot.tasks.digits import Digits

    task = Digits()
    images, labels = task.examples()
    unseen, named = images[1::2], labels[1::2]
    assert float((task.chances(unseen).argmax(-1) == named).float().mean()) > 0.93
    batch = Rollouts(
        dict(actions=unseen[:400, None], group=torch.arange(400), mask=torch.ones(400, 1, dtype=torch.bool)),
        notes={"answer": [str(int(x)) for x in named[:400]]},
    )
    judged = task.judge([Problem("", data={"label": int(x)}) for x in named[:400]], batch)
    record = mean_rewards([judged], 1) | task.summarise([judged], 1)
    assert record["headline"] == "classifier" and record["classifier"] > 0.85 and "classifier_interval" in record
    assert record["diversity"] == pytest.approx(1, abs=0.05)
    assert 0.9 < record["second_classifier"] <= 1, "it knows the data too"
    assert not torch.equal(task.classifier, task.second_classifier)
    same = judged.having(actions=images[labels == 3][:1, None].expand(400, 1, 64))
    assert task.summarise([same], 1)["diversity"] < 1e-3
