"""Agreement with verl's `core_algos`, called as it is.

docs/parity.md lists where verl differs from us, or from the paper that it names; each difference has a test here.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from surefoot.objective import advantages as A
from surefoot.objective import credit as C
from surefoot.objective.aggregation import ConstantLength, On, SequenceMean, TokenBudget, TokenMean
from surefoot.objective.controllers import AdaptiveKL
from surefoot.objective.divergences import KL, StraightThrough, absolute, k1, k2, k3
from surefoot.objective.entropy import EntropyBonus, entropy
from surefoot.objective.ratios import SequenceTokenRatio, TokenRatio, TrajectoryRatio
from surefoot.objective.rewards import KLInReward
from surefoot.objective.selection import (
    CovarianceBand,
    EngineMatch,
    HighCovariance,
    Not,
    max_of_steps,
    mean_of_steps,
    sum_of_steps,
)
from surefoot.objective.surrogates import (
    CISPO,
    SAPO,
    Clip,
    EngineCorrected,
    GeometricMean,
    PolicyGradient,
    TrustRegion,
    binary_kl,
    binary_tv,
)
from surefoot.objective.terms import Term
from surefoot.objective.values import ValueLoss
from surefoot.rollouts import Rollouts
from tests.parity.batch import agree, make, ours, theirs

core = pytest.importorskip(
    "verl.trainer.ppo.core_algos",
    reason="needs verl: pip install --no-deps verl, ray, tensordict, omegaconf>=2.4 (--pre), codetiming, ...",
    exc_type=ImportError,
)
from verl.trainer.ppo.rollout_corr_helper import (  # noqa: E402
    compute_rollout_correction_weights,
    compute_rollout_rejection_mask,
)
from verl.workers.config.actor import ActorConfig, PolicyLossConfig  # noqa: E402


def _rewards(table):
    """verl pays the trajectory's reward at its last step."""
    return C.reward_at_last_step(table.reward, table.mask)


def _index(table):
    return np.array([f"prompt-{g}" for g in table.group.tolist()])


def _close(a, b, rtol=1e-6, atol=1e-9):
    assert b.abs().max() > 0
    torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=atol)


# --- advantages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grpo", "grpo_vectorized"])
@pytest.mark.parametrize("scaled", [True, False])
def test_grpo(name, scaled):
    table = make()
    part = A.GroupNormalized(1e-6) if scaled else A.GroupCentred()
    function = core.get_adv_estimator_fn(name)
    _close(part(table), function(_rewards(table), table.mask.double(), _index(table), 1e-6, scaled)[0])


@pytest.mark.parametrize(
    ("name", "part"),
    [("rloo", A.LeaveOneOut()), ("rloo_vectorized", A.LeaveOneOut()), ("opo", A.OPO())],
)
def test_outcome_advantages(name, part):
    table = make()
    theirs_ = core.get_adv_estimator_fn(name)(_rewards(table), table.mask.double(), _index(table))[0]
    _close(part(table), theirs_)


@pytest.mark.parametrize(
    ("name", "part", "raw"),
    [
        ("grpo", A.GroupCentred(), True),
        ("rloo", A.LeaveOneOut(), True),
        ("opo", A.OPO(), True),
        ("rloo_vectorized", A.LeaveOneOut(), False),
    ],
)
def test_a_trajectory_alone_in_its_group(name, part, raw):
    """Ours: no contrast, no credit. verl: its raw reward."""
    table = make().having(group=torch.tensor([0, 0, 0, 1, 2, 2, 2, 2]), reward=torch.arange(1.0, 9.0).double())
    more = {"norm_adv_by_std_in_grpo": False} if name == "grpo" else {}
    b = core.get_adv_estimator_fn(name)(_rewards(table), table.mask.double(), _index(table), **more)[0]
    a = part(table)
    others = torch.arange(8) != 3
    _close(a[others], b[others])
    assert (a[3] == 0).all()
    torch.testing.assert_close(b[3], raw * 4.0 * table.mask[3].double())


def test_reinforce_plus_plus():
    table, config = make(), SimpleNamespace(gamma=1.0)
    b = core.compute_reinforce_plus_plus_outcome_advantage(_rewards(table), table.mask.double(), config)[0]
    _close(A.ReinforcePlusPlus()(table), b, rtol=1e-6, atol=1e-7)  # the place of the 1e-8


def test_reinforce_plus_plus_baseline():
    table = make()
    function = core.compute_reinforce_plus_plus_baseline_outcome_advantage
    b = function(_rewards(table), table.mask.double(), _index(table))[0]
    _close(A.ReinforcePlusPlus(group_baseline=True)(table), b, rtol=1e-6, atol=1e-7)  # the place of the 1e-8


def test_remax():
    table = make().having(baseline_reward=torch.linspace(-1, 1, 8).double())
    b = core.compute_remax_outcome_advantage(_rewards(table), table.baseline_reward, table.mask.double())[0]
    a = A.ReMax()(table)
    _close(a, b * table.mask)
    assert (b[~table.mask] != 0).any() and (a[~table.mask] == 0).all()


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.97, 0.9)])
def test_gae(gamma, lam):
    table = make()
    b, returns = core.compute_gae_advantage_return(
        _rewards(table), table.old_value, table.mask.double(), torch.tensor(gamma), torch.tensor(lam)
    )
    out = C.GAE(gamma, lam)(table)
    _close(out["advantage"], b * table.mask, rtol=1e-6, atol=1e-7)  # the place of the 1e-8
    _close(out["returns"], returns * table.mask, rtol=1e-5, atol=1e-6)  # verl's gamma and lambda are float32


def test_gpg_differs_by_a_factor_of_the_batch():
    reward = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 1]).double()  # one mixed group, one all right
    table = make().having(reward=reward)
    b = core.compute_gpg_outcome_advantage(_rewards(table), table.mask.double(), _index(table))[0]
    _close(A.GPG()(table) * (8 / 5) / (8 / 4), b)  # theirs N / #(r != 0), ours N / #(in a mixed group)
    mixed = table.having(reward=torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0]).double())  # every group has a signal
    b = core.compute_gpg_outcome_advantage(_rewards(mixed), mixed.mask.double(), _index(mixed))[0]
    _close(A.GPG()(mixed), A.GroupCentred()(mixed))
    _close(2 * A.GPG()(mixed), b)


def test_the_lift_of_the_best():
    table = make().having(reward=torch.tensor([0.3, 0.9, 0.1, 0.5, 2.0, 1.0, 1.0, 0.0]).double())
    function = core.get_adv_estimator_fn("grpo_passk")
    b = function(_rewards(table), table.mask.double(), _index(table), config={"norm_adv_by_std_in_grpo": False})[0]
    _close(A.LiftOfBest()(table), b)


def test_kl_in_the_reward():
    table = make()
    paid = KLInReward(coef=0.3)(table.having(rewards={"task": table.reward}))["step_reward"]
    b = core.compute_rewards(_rewards(table), table.old_logp, table.ref_logp, 0.3)
    _close(paid, b * table.mask)


def _gdpo(table, names):
    """verl reads the named rewards from the batch; their position in the response does not matter."""
    batch = {"prompts": torch.zeros(8, 1), "attention_mask": torch.ones(8, 1 + table.steps, dtype=torch.long)}
    config = {"gdpo_reward_keys": names, "gdpo_reward_weights": [1.0, 0.5]}
    rewards = {k: v.numpy() for k, v in table.rewards.items()}
    function = core.compute_gdpo_outcome_advantage
    return function(
        _rewards(table), table.mask.double(), _index(table), 1e-4, config=config, non_tensor_batch=rewards, batch=batch
    )[0]


def test_gdpo():
    g = torch.Generator().manual_seed(0)
    rewards = {"right": torch.randint(0, 2, (8,), generator=g).double(), "format": torch.rand(8, generator=g).double()}
    table = make().having(rewards=rewards)
    equal = table.having(mask=torch.ones_like(table.mask))
    part = A.GDPO({"right": 1.0, "format": 0.5}, eps=1e-4)
    a, b = part(equal), _gdpo(equal, ["right", "format"])
    _close(a / a.norm(), b / b.norm())
    tokens, rows = 8 * 7, 8
    bessel = math.sqrt((tokens - 1) / tokens * rows / (rows - 1))  # theirs counts tokens, ours trajectories
    assert float(b.norm() / a.norm()) == pytest.approx(bessel, rel=3e-4)  # our eps is 1e-4 there, theirs 1e-8
    difference = (part(table) - _gdpo(table, ["right", "format"])).abs().max()
    assert difference > 0.01  # unequal lengths: tokens or trajectories


@pytest.mark.parametrize("name", ["optimal_token_baseline", "tir_optimal_token_baseline"])
def test_optimal_token_baseline(name):
    table = make(holes=False)
    collision = torch.rand(8, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    function, reward, mask = core.get_adv_estimator_fn(name), _rewards(table), table.mask.double()
    b, returns = function(reward, mask, _index(table), table.old_logp, collision, handle_zero_tail=False)
    to_go = C.reward_to_go(reward, table.mask)
    energy = 1 - 2 * table.old_logp.exp() + collision
    baseline = C.optimal_token_baseline(to_go, energy, table.mask, table.group)
    _close(to_go, returns)
    _close(to_go - baseline, b, rtol=1e-6, atol=1e-6)  # verl adds 1e-8 to the denominator
    longest, _ = function(reward, mask, _index(table), table.old_logp, collision)
    changed = (longest - b).abs() > 1e-6
    alone = torch.stack([table.mask[table.group == g].sum(0) == 1 for g in table.group])
    assert changed.any() and (alone | ~changed).all()


# --- policy losses ------------------------------------------------------------------------------------------------


def _policy(table, name, mode="token-mean", old=None, loss=None, **settings):
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=4,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=PolicyLossConfig(**(loss or {})),
        **settings,
    )
    old = table.old_logp if old is None else old

    def loss_of(logp):
        return core.get_policy_loss_fn(name)(old, logp, table.advantage, table.mask.double(), mode, config)[0]

    return theirs(table, loss_of)


BOUNDS = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}


@pytest.mark.parametrize("spread", [0.3, 2.0])
@pytest.mark.parametrize(
    ("name", "mode", "aggregate", "surrogate"),
    [
        ("vanilla", "token-mean", TokenMean(), Clip(0.2, 0.28, dual=3.0)),
        ("vanilla", "seq-mean-token-mean", SequenceMean(), Clip(0.2, 0.28, dual=3.0)),
        ("gspo", "seq-mean-token-mean", SequenceMean(), Clip(0.2, 0.28, ratio=SequenceTokenRatio())),
        ("sapo", "seq-mean-token-mean", SequenceMean(), SAPO(1.0, 1.05)),
        ("cispo", "token-mean", TokenMean(), CISPO(high=0.28, low=0.2)),
        ("gpg", "token-mean", TokenMean(), PolicyGradient()),
        ("geo_mean", "token-mean", SequenceMean(), GeometricMean(0.3)),
    ],
)
def test_policy_losses(name, mode, aggregate, surrogate, spread):
    table = make(spread=spread)
    bounds = {"clip_ratio_low": 0.3, "clip_ratio_high": 0.3} if name == "geo_mean" else BOUNDS
    agree(ours(table, aggregate, surrogate), _policy(table, name, mode, **bounds))


@pytest.mark.parametrize(("name", "divergence"), [("dppo_tv", binary_tv), ("dppo_kl", binary_kl)])
def test_trust_regions_have_equal_gradients(name, divergence):
    table, limit = make(spread=1.0), 0.1
    a = ours(table, TokenMean(), TrustRegion(divergence, limit))
    b = _policy(table, name, clip_ratio_low=limit, clip_ratio_high=limit, clip_ratio_c=1e9)
    stopped = (b[1] == 0) & table.mask
    assert stopped.any() and (~stopped & table.mask).any()
    _close(a[1], b[1])
    assert not torch.allclose(a[0], b[0])


def test_dro_is_the_score_function_and_a_quadratic_price():
    table = make()
    a = ours(table, TokenMean(), PolicyGradient(), KL(k2, 0.7, "old_logp"))
    agree(a, _policy(table, "dro", loss={"dro_beta": 0.7}, **BOUNDS))


def test_clip_cov_has_equal_gradients_where_policies_differ_by_a_constant():
    """With share 1 every token in the band of covariances is taken, so that chance plays no part."""
    table = make()
    old = table.logp + 0.05  # covariances do not see a constant; the ratio stays inside its clip
    band = {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.1, "clip_cov_ub": 5.0}
    b = _policy(table, "clip_cov", old=old, loss=band, **BOUNDS)
    chosen = CovarianceBand(1.0, floor=0.1, ceiling=5.0)
    agree(ours(table.having(old_logp=old), On(TokenMean(), Not(chosen)), Clip(0.2, 0.28)), b)
    assert ((b[1] == 0) & table.mask).sum() > 2


def test_kl_cov_where_policies_differ_by_a_constant():
    table = make()
    old = table.logp + 0.05
    b = _policy(table, "kl_cov", old=old, loss={"kl_cov_ratio": 0.3, "ppo_kl_coef": 0.7}, **BOUNDS)
    penalty = Term(KL(absolute, 0.7, "old_logp"), aggregate=On(TokenMean(), HighCovariance(0.3)))
    agree(ours(table.having(old_logp=old), TokenMean(), Clip(math.inf, math.inf), penalty), b)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    ("threshold", "part"), [(2.0, {"cap": 2.0}), ("0.6_1.5", {"cap": 1.5, "floor": 0.6, "masked": True})]
)
def test_engine_correction(level, threshold, part):
    """Truncated (TIS) and masked (IcePop) importance weights between engine and trainer."""
    table = make(spread=1.0)
    table = table.having(rollout_logp=table.ref_logp)
    theirs, _ = compute_rollout_correction_weights(
        table.old_logp - table.rollout_logp, table.mask.double(), level, threshold
    )
    corrected = EngineCorrected(
        PolicyGradient(), ratio=TrajectoryRatio() if level == "sequence" else TokenRatio(), **part
    )(table)
    plain = PolicyGradient()(table)
    _close((corrected / plain)[table.mask], theirs[table.mask])
    assert theirs[table.mask].unique().numel() >= 2  # some are cut, some are not


@pytest.mark.parametrize(
    ("name", "limits", "part"),
    [
        ("token_k1", "0.8_1.3", EngineMatch(k1, low=math.log(0.8), high=math.log(1.3))),
        ("token_k3", "0.05", EngineMatch(k3, high=0.05)),
        ("seq_sum_k1", "0.5_1.5", EngineMatch(k1, sum_of_steps, math.log(0.5), math.log(1.5))),
        ("seq_mean_k2", "0.1", EngineMatch(k2, mean_of_steps, high=0.1)),
        ("seq_max_k3", "0.2", EngineMatch(k3, max_of_steps, high=0.2)),
    ],
)
def test_rejection_of_what_the_engine_sees_otherwise(name, limits, part):
    table = make(spread=0.5)
    gap, mask = table.old_logp - table.ref_logp, table.mask.double()
    b = compute_rollout_rejection_mask(gap, mask, name, limits)[0].bool()
    a = part(table.having(rollout_logp=table.ref_logp))
    assert a.equal(b) and a.any() and not a[table.mask].all()


# --- aggregation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "part", "more"),
    [
        ("token-mean", TokenMean(), {}),
        ("token-sum", TokenBudget(1.0), {}),
        ("seq-mean-token-mean", SequenceMean(), {}),
        ("seq-mean-token-sum", ConstantLength(1.0), {}),
        ("seq-mean-token-sum-norm", ConstantLength(30.0), {"loss_scale_factor": 30}),
    ],
)
def test_aggregation(mode, part, more):
    table = make()
    weights = part(table)
    loss = torch.randn(8, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    _close((weights * loss).sum(), core.agg_loss(loss, table.mask.double(), mode, **more))
    empty = table.having(mask=table.mask & (torch.arange(8) > 1)[:, None])  # two rows without a step
    a, b = (part(empty) * loss).sum(), core.agg_loss(loss, empty.mask.double(), mode, **more)
    rows = 8 / 6 if mode.startswith("seq-mean") else 1.0  # ours counts all rows, verl those with a step
    _close(rows * a, b)


def test_aggregation_over_ranks():
    """verl multiplies by dp_size because ranks are averaged afterwards; our weights already sum over them."""
    table = make()
    loss = torch.randn(8, 7, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    tokens = int(table.mask.sum())
    b = core.agg_loss(loss, table.mask.double(), "token-mean", dp_size=2, batch_num_tokens=3 * tokens)
    _close((TokenMean()(table, lambda count: 3 * count) * loss).sum(), b / 2)


# --- the rest -----------------------------------------------------------------------------------------------------


ESTIMATORS = {"k1": k1, "kl": k1, "k2": k2, "mse": k2, "low_var_kl": k3, "abs": absolute}
ESTIMATORS |= {f"k{n}+": StraightThrough(k, k2) for n, k in ((1, k1), (3, k3))}


@pytest.mark.parametrize(("name", "estimator"), ESTIMATORS.items(), ids=ESTIMATORS)
def test_kl_penalties(name, estimator):
    table = make()
    b = theirs(
        table,
        lambda logp: core.agg_loss(core.kl_penalty(logp, table.ref_logp, name), table.mask.double(), "token-mean"),
    )
    agree(ours(table, TokenMean(), KL(estimator, 1.0)), b)


def test_k3_is_held_at_ten_by_verl_alone():
    near, far = torch.tensor([-1.0, -1.0]).double(), torch.tensor([-3.2, -9.0]).double()
    for logp, ref, held in ((near, far, False), (far, near, True)):
        a, b = k3(logp, ref), core.kl_penalty(logp, ref, "k3")
        torch.testing.assert_close(a.clamp(max=10), b)
        assert bool((a > 10).any()) == held


@pytest.mark.parametrize("clip", [0.2, 0.5])
def test_value_loss(clip):
    table = make()

    def loss_of(value):
        return core.compute_value_loss(value, table.returns, table.old_value, table.mask.double(), clip)[0]

    agree(ours(table, TokenMean(), ValueLoss(1.0, clip), live="value"), theirs(table, loss_of, live="value"))


def test_entropy():
    g = torch.Generator().manual_seed(0)
    mask = make().mask
    table = Rollouts({"logits": torch.randn(8, 7, 5, generator=g, dtype=torch.float64), "mask": mask})
    leaf = table.logits.clone().requires_grad_()
    per_token = entropy(leaf.log_softmax(-1))
    mine = (-(TokenMean()(table)) * EntropyBonus(1.0)(table.having(entropy=per_token))).sum()
    mine.backward()
    b = theirs(table, lambda logits: core.compute_entropy_loss(logits, mask.double()), live="logits")
    agree((mine.detach(), leaf.grad), b)


def test_adaptive_kl_controller():
    """verl's gain is n_steps / horizon."""
    part = AdaptiveKL(target=0.1, gain=64 / 1000, start=0.04).fresh()
    other = core.AdaptiveKLController(0.04, 0.1, 1000)
    for kl in (0.05, 0.11, 0.3, 0.0, 0.1):
        value = part({"kl": kl})[part.field]
        other.update(kl, 64)
        assert value == pytest.approx(other.value, rel=1e-12)
