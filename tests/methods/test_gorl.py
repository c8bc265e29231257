"""GoRL: the card's exact checks, stages that resume, and PPO with a Gaussian on an environment."""

import math

import pytest
import torch

import surefoot as sf
from surefoot.claims.gorl import quantile_map, run_arm, verdict
from surefoot.errors import InputError
from surefoot.methods.control.continuous_ppo import CONTINUOUS_PPO
from surefoot.methods.control.gorl import GORL, LatentNorm, staged
from surefoot.objective.surrogates import Clip
from surefoot.policies.flow import Velocity, euler, fit, flow_matching
from surefoot.policies.gaussian import Gaussian, log_density
from surefoot.policies.latent import Latent
from surefoot.rollout.stages import Stages, absorb
from surefoot.rollouts import Rollouts

M, S = 0.7, 0.3


def optimum(x, label, t):
    """The card's v* for data N(m, S)."""
    t = t[:, None]
    return -M + (t - (1 - t) * S) / (t**2 + (1 - t) ** 2 * S) * (x - (1 - t) * M)


def _policies(**options):
    torch.manual_seed(0)
    latent = Latent(3, 2, hidden=(16,), width=16, depth=2, **options)
    plain = Gaussian(3, 2, hidden=(16,), log_std=0.0)
    plain.model["mean"].load_state_dict(latent.model["mean"].state_dict())
    return latent, plain


def _batch(n=6, t=4):
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(n, t, dtype=torch.bool)
    mask[0, 2:] = False
    return Rollouts(
        {
            "states": torch.randn(n, t, 3, generator=g),
            "actions": torch.randn(n, t, 2, generator=g),
            "advantage": torch.randn(n, t, generator=g),
            "old_logp": -3 + 0.1 * torch.randn(n, t, generator=g),
            "mask": mask,
        }
    )


def _ppo_gradient(policy, batch):
    live = policy.score(batch, {"logp"})
    policy.model.zero_grad()
    Clip(0.15)(batch.having(**live))[batch.mask].mean().backward()
    return {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}


def test_a_zero_decoder_is_the_identity_bit_for_bit_and_its_ppo_is_the_gaussians():
    latent, plain = _policies()
    states, noise = torch.randn(50, 3), torch.randn(50, 2)
    z, logp, done = latent.act(states, noise)
    assert torch.equal(z, done)
    for ours, theirs in zip((z, logp, done), plain.act(states, noise), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = (_ppo_gradient(p, _batch()) for p in (latent, plain))
    assert ours.keys() == theirs.keys() and any(g.abs().max() > 1e-3 for g in ours.values())
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_the_ratio_in_latents_is_that_of_actions_for_an_affine_decoder():
    g = torch.Generator().manual_seed(0)
    z, old, new = (torch.randn(20, 3, generator=g).double() for _ in range(3))
    old_std, new_std = (0.3 * torch.randn(3, generator=g).double() for _ in range(2))
    A, b = torch.randn(3, 3, generator=g).double() + 2 * torch.eye(3), torch.randn(3, generator=g).double()

    def in_actions(mean, log_std):
        spread = A @ torch.diag((2 * log_std).exp()) @ A.T
        return torch.distributions.MultivariateNormal(mean @ A.T + b, spread).log_prob(z @ A.T + b)

    latent = log_density(z, new, new_std) - log_density(z, old, old_std)
    torch.testing.assert_close(latent, in_actions(new, new_std) - in_actions(old, old_std), atol=1e-6, rtol=0)
    assert (log_density(z, new, new_std) - in_actions(new, new_std)).abs().min() > 0.1, "the Jacobian is not 1"


def test_the_decoder_does_not_train_and_has_no_gradient():
    latent, _ = _policies()
    torch.nn.init.normal_(latent.model["decoder"].net[0].weight)
    before = {k: v.clone() for k, v in latent.model["decoder"].state_dict().items()}
    optimizer = torch.optim.Adam(latent.parameters(), 0.1)
    names = _ppo_gradient(latent, _batch())
    optimizer.step()
    assert names and not any("decoder" in n for n in names)
    assert not {id(p) for p in latent.model["decoder"].parameters()} & {id(p) for p in latent.parameters()}
    assert all(torch.equal(before[k], v) for k, v in latent.model["decoder"].state_dict().items())


@pytest.mark.parametrize("steps, slope", [(10, 0.4743), (100, 0.5399), (1000, 0.5469)])
def test_eulers_map_of_the_optimal_velocity(steps, slope):
    """The card has .5401 for 100 steps; the product of the factors `1 - v' / K`, in fractions, is .53993."""
    z = torch.tensor([[-1.0], [0.0], [1.0]]).double()
    x = euler(optimum, z, z[:, :0], steps)[:, 0]
    assert float(x[2] - x[0]) / 2 == pytest.approx(slope, abs=5e-5)
    assert float(x[1]) == pytest.approx(M, abs=1e-9)
    assert 0 < math.sqrt(S) - slope < 1 / steps, "sqrt S is the exact slope; the error falls as 1 / steps"


def test_flow_matching_is_least_at_the_optimum():
    """At v* the loss has no slope along 1 and along x, at every time; beside it, it has."""
    n, g = 400_000, torch.Generator().manual_seed(0)
    data = M + math.sqrt(S) * torch.randn(n, 1, generator=g)
    noise = torch.randn(n, 1, generator=g)
    for time in (0.1, 0.5, 0.9):
        t, c = torch.full((n,), time), torch.zeros(2, requires_grad=True)
        for shift, bound in ((0.0, 0.01), (0.1, None)):
            loss = flow_matching(
                lambda x, label, t: optimum(x, label, t) + shift + c[0] + c[1] * x,  # noqa: B023
                data,
                data[:, :0],
                noise,
                t,
            )
            (slope,) = torch.autograd.grad(loss, c)
            assert slope.abs().max() < bound if bound else slope[0] > 0.15


def test_refitted_from_fresh_noise_the_decoder_acts_as_before():
    """Two modes in one state, a third in the other: MMD below its permutation level, with 100 steps of Euler."""
    torch.manual_seed(0)
    latent = Latent(1, 1, hidden=(8,), denoise=100, updates=1200, rows=512, decoder_lr=3e-3)
    latent.model["mean"][-1].bias.data.fill_(3.0)
    latent.model["spread"]["log_std"].data.fill_(-1.0)
    kept = list(latent.parameters())

    def behaviour(n):
        states = torch.randint(0, 2, (n, 1)).float()
        modes = 0.8 * torch.randint(0, 2, (n, 1)) * 2 - 0.8
        return states, torch.where(states > 0, 0.5 + 0.3 * torch.randn(n, 1), modes + 0.25 * torch.randn(n, 1))

    latent.absorb(*behaviour(8000), seed=3)
    assert all(a is b for a, b in zip(kept, latent.parameters(), strict=True))
    states, old = behaviour(300)
    encoder_mean = latent.law(latent.seen(states))[0].detach()
    assert encoder_mean.abs().max() < 0.05 and float(latent.model["spread"]["log_std"].detach()) == 0.0
    new = latent.executed(states, torch.randn(300, 1))
    x = torch.cat([torch.cat([states, old], 1), torch.cat([states, new], 1)])
    kernel = (-torch.cdist(x, x).square() / (2 * 0.3**2)).exp()

    def mmd(rows):
        sign = torch.ones(600)
        sign[rows[300:]] = -1
        return float(sign @ kernel @ sign)

    level = torch.tensor([mmd(torch.randperm(600)) for _ in range(200)]).quantile(0.95)
    assert mmd(torch.arange(600)) < level
    shifted = torch.cat([x[:300], x[300:] + 0.2])
    kernel = (-torch.cdist(shifted, shifted).square() / (2 * 0.3**2)).exp()
    assert mmd(torch.arange(600)) > level, "the test sees a shift of .2"


def test_the_same_fit_is_the_same_decoder_and_leaves_the_global_stream_alone():
    data, label = torch.randn(64, 2), torch.randn(64, 3)
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        nets.append(Velocity(2, 3, 8, 1))
        fit(nets[-1], data, label, 5, torch.Generator().manual_seed(1), rows=16)
    assert torch.equal(nets[0].net[0].weight, nets[1].net[0].weight)
    latent, _ = _policies(updates=3, rows=16)
    state = torch.get_rng_state()
    latent.absorb(torch.randn(9, 3, generator=torch.Generator()), torch.zeros(9, 2), 0)
    assert torch.equal(state, torch.get_rng_state())


def test_the_latent_norm_and_its_gradient():
    mean = torch.randn(2, 3, 4, dtype=torch.float64).requires_grad_()
    deviation = torch.rand(2, 3, 4, dtype=torch.float64).requires_grad_()
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[1, 2] = False
    table = Rollouts({"mean": mean, "deviation": deviation, "mask": mask})
    LatentNorm(0.01)(table).sum().backward()
    for x in (mean, deviation):
        torch.testing.assert_close(x.grad, 2 * 0.01 * x.detach() / 4 * mask[..., None])
    empty = table.having(mask=torch.zeros_like(mask), actions=mean.detach())
    assert float(LatentNorm()(empty).detach().sum()) == 0 and float(LatentNorm().metrics(empty)["latent"]) == 0


class _World:
    """Two batches of two episodes, of returns 1 to 4; the policy says what it was shown."""

    max_new_tokens = 2

    def __init__(self):
        self.policy, self.made, self.renewed, self.shown = self, 0, 0, []

    def sample(self, requests, sampling):
        first = 2 * self.made + 1
        self.made += 1
        value = torch.tensor([float(first), float(first + 1)])[:, None]
        mask = torch.tensor([[True, True], [True, False]])
        states = value[..., None].expand(2, 2, 1)
        columns = {"states": states, "actions": states, "mask": mask, "seed": torch.tensor([7, 8]) + self.made}
        return Rollouts(columns, rewards={"return": value * torch.tensor([0.5, 0.5])})

    def more(self):
        return []

    def executed(self, states, actions):
        return 10 * actions

    def absorb(self, states, done, seed):
        self.shown.append((states.flatten().tolist(), done.flatten().tolist(), seed))
        return {}

    def renew_optimizer(self):
        self.renewed += 1


def test_a_stage_shows_the_policy_what_it_did_and_training_goes_on():
    world, part = _World(), Stages(starts=(2,), collect=2, keep=0.5).fresh()
    part(world, [])
    assert not world.shown and world.made == 1
    world.made = 0
    part(world, [])
    assert world.made == 3 and world.renewed == 1
    assert world.shown == [([3.0, 3.0, 4.0], [30.0, 30.0, 40.0], 8)], "the better half, without padding"
    part(world, [])
    assert len(world.shown) == 1
    absorb(world, [world.sample([], None)])
    assert len(world.shown[-1][0]) == 3, "all of it"


def test_what_changes_with_the_second_stage_changes_when_it_begins():
    controllers = GORL.fresh().controllers
    for step in range(1, GORL.rollout.starts[0] - 1):
        assert [c({}) for c in controllers] == [{}] * 3, f"after step {step}"
    assert [c({}) for c in controllers] == [
        {"surrogate.low": 0.3},
        {"regularizers.latentnorm.coef": 0.001},
        {"update.max_grad_norm": 1.0},
    ]
    assert staged(Stages(starts=(5, 9)), {"surrogate.low": 0.3})["controllers"][0].starts == (5,)


def test_stages_refuse_what_cannot_work():
    with pytest.raises(InputError, match="keep=0"):
        Stages(keep=0.0)
    plain = type("World", (), {"policy": Gaussian(3, 2)})()
    with pytest.raises(InputError, match="cannot absorb"):
        absorb(plain, [])


def test_modes_come_from_the_filter_alone():
    plain, exact, filtered = (run_arm(keep, 0, 150) for keep in (None, 1.0, 1 / 3))
    assert abs(exact["kurtosis"][0]) < 0.1 and abs(exact["returns"][-1] - plain["returns"][-1]) < 0.004
    assert filtered["kurtosis"][0] < -1 and min(filtered["peaks"]) > 0.3
    assert filtered["returns"] == pytest.approx([0.149, 0.222, 0.317], abs=0.01)


def test_the_verdict_follows_the_card():
    assert verdict((0.0, 0.001), (0.17, 0.01), [0.4, 0.4]) == "not reproduced"
    assert verdict((0.01, 0.001), (0.17, 0.01), [0.4, 0.4]) == "reproduced"
    assert verdict((0.01, 0.001), (0.17, 0.01), [0.4, 0.1]) == "refuted"
    assert verdict((0.01, 0.001), (-0.02, 0.01), [0.4, 0.4]) == "refuted"
    g = quantile_map(torch.randn(1000).numpy())
    assert g(torch.zeros(1).numpy())[0] == pytest.approx(0, abs=0.15)


QUICK = {"train.final_problems": 2, "train.eval_every": 0, "prompts.prompts": 4, "update.minibatches": 2}


def test_a_run_of_stages_resumes_bit_for_bit(tmp_path):
    pytest.importorskip("gymnasium")
    method = GORL.but(rollout=Stages(starts=(2, 4), collect=2))
    args = dict(
        policy="latent:hidden=(16,),width=16,updates=20,rows=64",
        task="gym:Pendulum-v1:steps=20",
        method=method,
        progress=False,
        report=False,
        set=QUICK,
        seed=1,
    )
    whole = sf.train(steps=5, out=tmp_path / "whole", **args)
    sf.train(steps=3, out=tmp_path / "half", **args)
    config = tmp_path / "half" / "config.toml"
    config.write_text(config.read_text().replace("steps = 3", "steps = 5", 1))
    half = sf.resume(tmp_path / "half", progress=False, report=False)
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "half")]
    assert lines[0] == lines[1] and '"step": 5' in lines[0] and "latent" in lines[0]
    a, b = (run.policy.model.state_dict() for run in (whole, half))
    assert all(torch.equal(a[k], b[k]) for k in a) and a["decoder.net.0.weight"].any()
    again = sf.policies.load(str(tmp_path / "whole"))
    assert all(torch.equal(a[k], v) for k, v in again.model.state_dict().items())


def test_ppo_learns_an_environment(tmp_path):
    pytest.importorskip("gymnasium")
    quick = {"train.final_problems": 8, "train.eval_every": 0}
    found = sf.train(
        method=CONTINUOUS_PPO,
        task="gym:Pendulum-v1",
        steps=10,
        out=tmp_path / "run",
        progress=False,
        report=False,
        set=quick | {"prompts.prompts": 16},
    )
    assert found.after["return"] > found.before["return"] + 200


def test_ppo_learns_to_reach_in_mujoco(tmp_path):
    pytest.importorskip("mujoco")
    found = sf.train(
        method=CONTINUOUS_PPO,
        steps=8,
        out=tmp_path / "run",
        progress=False,
        report=False,
        set={"train.final_problems": 16, "train.eval_every": 0, "prompts.prompts": 32},
    )
    assert found.after["return"] > found.before["return"] + 1
