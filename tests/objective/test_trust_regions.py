"""Ratios and surrogates: at ratio 1 all are the policy gradient; beyond it, each does what its paper says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.objective import ratios, surrogates
from surefoot.objective.advantages import LeaveOneOut
from surefoot.objective.aggregation import On, TokenMean
from surefoot.objective.divergences import k1, k2
from surefoot.objective.selection import (
    CovarianceBand,
    EngineMatch,
    HighCovariance,
    Not,
    covariance,
    max_of_steps,
    mean_of_steps,
    sum_of_steps,
)
from surefoot.rollouts import Rollouts
from tests.conftest import label
from tests.objective.enumeration import Tree, expected_gradient

REWARD = torch.tensor([1.0, 0.2, 0.0, 0.7, 0.0, 0.1, 0.3, 1.5, -0.4], dtype=torch.float64)
AT_ONE = [
    surrogates.PolicyGradient(),
    surrogates.Clip(),
    surrogates.Clip(dual=3.0),
    surrogates.CISPO(),
    surrogates.SAPO(),
    surrogates.GeometricMean(),
    surrogates.TOPR(),
    surrogates.VESPO(),
    surrogates.TrustRegion(),
    surrogates.TrustRegion(surrogates.binary_kl, 0.05),
    surrogates.OffPolicyMasked(surrogates.PolicyGradient()),
    surrogates.Clip(ratio=ratios.SequenceRatio()),
    surrogates.Clip(ratio=ratios.SequenceTokenRatio()),
    surrogates.Clip(ratio=ratios.TurnRatio()),
    surrogates.Clip(math.inf),
]


def _table(log_ratio, advantage, **columns):
    gap = torch.tensor(log_ratio, dtype=torch.float64)
    old = torch.full_like(gap, -1.3)
    logp = (old + gap).requires_grad_()
    mask = columns.pop("mask", torch.ones(gap.shape, dtype=torch.bool))
    a = torch.tensor(advantage, dtype=torch.float64)
    return Rollouts(
        dict(logp=logp, old_logp=old, advantage=a, mask=mask, turn=torch.zeros(gap.shape, dtype=torch.long), **columns)
    ), logp


def _gradient(surrogate, table, logp):
    return torch.autograd.grad(surrogate(table).sum(), logp)[0]


@pytest.mark.parametrize("surrogate", AT_ONE, ids=label)
def test_at_the_first_update_every_surrogate_is_the_policy_gradient(surrogate):
    tree = Tree()
    found = expected_gradient(tree, REWARD, 2, LeaveOneOut(), surrogate)
    torch.testing.assert_close(found, tree.policy_gradient(REWARD), atol=1e-9, rtol=1e-9)


OFF_POLICY = {  # on samples of another policy: exact, or biased
    surrogates.Clip(math.inf, ratio=ratios.TrajectoryRatio()): True,
    surrogates.EngineCorrected(surrogates.PolicyGradient(), math.inf, ratio=ratios.TrajectoryRatio()): True,
    surrogates.Clip(math.inf): False,
    surrogates.Clip(math.inf, ratio=ratios.SequenceRatio()): False,
    surrogates.Clip(0.2): False,
    surrogates.GeometricMean(): False,
    surrogates.CISPO(): False,
    surrogates.SAPO(): False,
    surrogates.VESPO(): False,
    surrogates.TOPR(): False,
    surrogates.TrustRegion(): False,
    surrogates.PolicyGradient(): False,
    surrogates.EngineCorrected(surrogates.PolicyGradient(), math.inf): False,
    surrogates.EngineCorrected(surrogates.PolicyGradient(), 1.2, ratio=ratios.TrajectoryRatio()): False,
}


@pytest.mark.parametrize("surrogate", OFF_POLICY, ids=label)
def test_only_the_whole_trajectorys_ratio_is_unbiased_off_policy(surrogate):
    """Expected gradient on samples of a policy whose logits are about 0.2 away, against the true one at the current.

    The bias of the others is real (above a thousandth of the gradient), their direction within 60 degrees.
    """
    tree, old = Tree(seed=0), Tree(seed=1)
    with torch.no_grad():
        for mine, other in zip(old.parameters, tree.parameters, strict=True):
            mine.mul_(0.3).add_(other)
    before, mask, live = old.logp().detach(), torch.ones(9, 2, dtype=torch.bool), tree.logp()
    advantage = (REWARD - (before.sum(1).exp() * REWARD).sum())[:, None].expand(9, 2)
    engine = isinstance(surrogate, surrogates.EngineCorrected)
    columns = {"logp": live, "old_logp": live.detach() if engine else before, "rollout_logp": before}
    loss = surrogate(Rollouts(columns | {"advantage": advantage, "mask": mask}))
    if getattr(surrogate, "ratio", None) == ratios.TrajectoryRatio() and not engine:
        loss = loss[:, :1]  # the same on every step, and counted once
    found, exact = -tree.gradient((before.sum(1).exp()[:, None] * loss).sum()), tree.policy_gradient(REWARD)
    gap = (found - exact).norm() / exact.norm()
    assert gap < 1e-9 if OFF_POLICY[surrogate] else gap > 1e-3
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 0.5


def test_clip_takes_the_gradient_of_what_would_go_further_and_only_of_that():
    table, logp = _table([[0.5, -0.5, 0.5, -0.5]], [[1.0, 1.0, -1.0, -1.0]])
    grad = _gradient(surrogates.Clip(0.2, 0.28), table, logp)[0]
    assert grad[0] == 0 and grad[3] == 0
    assert grad[1].item() == pytest.approx(-math.exp(-0.5)) and grad[2].item() == pytest.approx(math.exp(0.5))
    assert surrogates.Clip(0.2, 0.28).metrics(table)["clipped"] == pytest.approx(0.5)


def test_dual_clip_bounds_the_loss_of_negative_advantages():
    table, logp = _table([[math.log(10.0)]], [[-1.0]])
    assert surrogates.Clip(0.2)(table).item() == pytest.approx(10)
    assert surrogates.Clip(0.2, dual=3.0)(table).item() == pytest.approx(3)
    assert _gradient(surrogates.Clip(0.2, dual=3.0), table, logp).item() == 0


def test_cispo_keeps_every_gradient_at_a_bounded_weight():
    table, logp = _table([[math.log(4.0), 0.0]], [[1.0, -2.0]])
    assert _gradient(surrogates.CISPO(high=0.28), table, logp)[0].tolist() == pytest.approx([-1.28, 2.0])


def test_sapo_fades_smoothly_and_faster_for_negative_advantages():
    x = [[-2.0, -1, 0, 1, 2]]
    for sign in (1.0, -1.0):
        table, logp = _table(x, [[sign] * 5])
        grad = _gradient(surrogates.SAPO(), table, logp)[0] * -sign
        assert grad[2].item() == pytest.approx(1) and (grad >= 0).all() and grad[4] < math.exp(2.0)
    positive, negative = (surrogates.soft_gate(torch.tensor(3.0, requires_grad=True), t) for t in (1.0, 1.05))
    assert positive > negative


def test_gspo_gives_each_token_the_length_normalised_ratio():
    table, logp = _table([[0.3, -0.1, 9.0]], [[1.0, 1.0, 1.0]], mask=torch.tensor([[True, True, False]]))
    log = ratios.SequenceRatio().log(table.logp, table.old_logp, table.mask)
    assert log[0, 0].item() == pytest.approx(0.1)
    token = ratios.SequenceTokenRatio().log(table.logp, table.old_logp, table.mask)
    torch.testing.assert_close(token[:, :2], log[:, :2])


def test_gmpo_clips_tokens_pessimistically():
    table, _ = _table([[1.0, -1.0]], [[1.0, 1.0]])
    assert surrogates.GeometricMean()(table)[0, 0].item() == pytest.approx(-math.exp((0.4 - 1.0) / 2))
    table, _ = _table([[1.0, -1.0]], [[-1.0, -1.0]])
    assert surrogates.GeometricMean()(table)[0, 0].item() == pytest.approx(math.exp((1.0 - 0.4) / 2))


def test_turn_ratios_average_within_turns():
    turn = torch.tensor([[0, 0, 1, -1]])
    gap = torch.tensor([[0.2, 0.4, 1.0, 5.0]])
    mask = torch.tensor([[True, True, True, False]])
    log = ratios.TurnRatio().log(gap, torch.zeros_like(gap), mask, turn)
    assert log[0, :3].tolist() == pytest.approx([0.3, 0.3, 1.0])


def test_two_anchors_make_one_ratio():
    a, b, logp = torch.tensor([[0.1]]), torch.tensor([[0.5]]), torch.tensor([[0.7]])
    assert (logp - ratios.anchored([a, b], [0.25, 0.75])).item() == pytest.approx(0.7 - 0.4)


def test_topr_tapers_only_what_went_wrong():
    table, logp = _table([[-1.0, -1.0], [-1.0, -1.0], [1.0, 1.0]], [[1.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]])
    grad = _gradient(surrogates.TOPR(), table, logp)
    assert grad[:, 0].tolist() == pytest.approx([-1, math.exp(-2), 1])


def test_the_trust_region_lets_a_rare_token_move_and_holds_a_common_one():
    for prob, held in ((0.001, False), (0.4, True)):
        old = torch.tensor([[math.log(prob)]], dtype=torch.float64)
        logp = (old + math.log(1.6)).requires_grad_()
        one = torch.ones(1, 1, dtype=torch.float64)
        table = Rollouts(dict(logp=logp, old_logp=old, advantage=one, mask=torch.ones(1, 1, dtype=torch.bool)))
        grad = _gradient(surrogates.TrustRegion(), table, logp)
        assert (grad.item() == 0) == held
        back = _gradient(surrogates.TrustRegion(), table.having(advantage=-one), logp)
        assert back.item() != 0, "a token outside may always come back"


def test_binary_divergences_are_below_the_full_ones():
    torch.manual_seed(0)
    p, q = torch.randn(20, 6).log_softmax(-1), torch.randn(20, 6).log_softmax(-1)
    tv = 0.5 * (p.exp() - q.exp()).abs().sum(-1, keepdim=True)
    kl = (q.exp() * (q - p)).sum(-1, keepdim=True)
    assert (surrogates.binary_tv(p, q) <= tv + 1e-6).all() and (surrogates.binary_kl(p, q) <= kl + 1e-6).all()


def test_kl_cov_and_clip_cov_touch_the_tokens_of_highest_covariance():
    torch.manual_seed(0)
    old = torch.tensor([[-0.1, -3.0, -0.2, -2.9]], dtype=torch.float64)
    advantage = torch.tensor([[2.0, -2.0, -1.0, 1.0]], dtype=torch.float64)
    logp = (old + 0.05).requires_grad_()
    table = Rollouts(dict(logp=logp, old_logp=old, advantage=advantage, mask=torch.ones(1, 4, dtype=torch.bool)))
    cov = covariance(old, advantage, table.mask)[0]
    assert cov.sum() > 0 and set(cov.topk(2).indices.tolist()) == {0, 1}
    assert HighCovariance(0.5)(table).tolist() == [[True, True, False, False]]
    assert CovarianceBand(0.5)(table).tolist() == [[True, True, False, False]]
    assert CovarianceBand(0.25)(table).sum() == 1
    assert CovarianceBand(0.5, floor=100.0, ceiling=200.0)(table).sum() == 0
    clip_cov, kl_cov = On(TokenMean(), Not(CovarianceBand(0.5))), On(TokenMean(), HighCovariance(0.5))
    assert clip_cov(table)[0].tolist() == [0, 0, 0.25, 0.25] and kl_cov(table)[0].tolist() == [0.25, 0.25, 0, 0]
    assert set(kl_cov.reads) == {"mask", "old_logp", "advantage"}
    empty = table.having(mask=torch.zeros_like(table.mask))
    assert (clip_cov(empty) == 0).all() and (kl_cov(empty) == 0).all()


def test_the_engine_correction_truncates_or_masks():
    table, _ = _table([[0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]])
    engine = table.old_logp - torch.tensor([[0.0, math.log(3), -math.log(2)]], dtype=torch.float64)
    table = table.having(rollout_logp=engine)
    base = surrogates.Clip()(table)
    cut = surrogates.EngineCorrected(cap=2.0)(table) / base
    assert cut[0].tolist() == pytest.approx([1, 2, 0.5])
    masked = surrogates.EngineCorrected(cap=2.0, floor=0.6, masked=True)(table) / base
    assert masked[0].tolist() == pytest.approx([1, 0, 0])
    whole = surrogates.EngineCorrected(cap=2.0, ratio=ratios.TrajectoryRatio())(table) / base
    assert whole[0].tolist() == pytest.approx([1.5] * 3)


@settings(max_examples=40, deadline=None)
@given(
    gap=st.floats(-1e3, 1e3),
    advantage=st.floats(-10, 10),
    surrogate=st.sampled_from(
        [
            surrogates.Clip(dual=3.0),
            surrogates.CISPO(),
            surrogates.SAPO(),
            surrogates.TOPR(),
            surrogates.VESPO(),
            surrogates.TrustRegion(),
            surrogates.GeometricMean(),
            surrogates.OffPolicyMasked(),
            surrogates.Clip(ratio=ratios.TrajectoryRatio()),
            surrogates.AdvantageWeighted(),
            surrogates.Clip(ratio=ratios.SequenceRatio()),
        ]
    ),
)
def test_extreme_ratios_and_garbage_under_the_mask_stay_finite(gap, advantage, surrogate):
    """Ratios of e^-1000 .. e^1000, with inf and nan where nothing trains."""
    old = torch.tensor([[-1.0, float("nan"), -2.0]])
    logp = torch.tensor([[-1.0 + gap, float("inf"), -2.0]], requires_grad=True)
    mask = torch.tensor([[True, False, True]])
    table = Rollouts(dict(logp=logp, old_logp=old, advantage=torch.tensor([[advantage, 0.0, 1.0]]), mask=mask))
    loss = surrogate(table)
    loss = loss.where(mask, 0.0)
    (grad,) = torch.autograd.grad(loss.sum(), logp)
    assert loss.isfinite().all() and grad.isfinite().all() and grad[0, 1] == 0


@pytest.mark.parametrize("surrogate", AT_ONE, ids=label)
def test_an_empty_mask_is_zero_not_nan(surrogate):
    table, logp = _table([[0.1, 0.2]], [[0.0, 0.0]], mask=torch.zeros(1, 2, dtype=torch.bool))
    loss = surrogate(table)
    assert loss.isfinite().all() and (loss == 0).all()


def test_vespo_weighs_whole_trajectories_and_fades_at_both_ends():
    table, logp = _table([[1.0, 1.0], [0.0, 0.0], [-9.0, -9.0]], [[1.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]])
    grad = _gradient(surrogates.VESPO(), table, logp)
    w = math.exp(2.0)
    assert grad[0].tolist() == pytest.approx([-(w**2) * math.exp(3 * (1 - w))] * 2) and grad[1].tolist() == [1, 1]
    assert grad[2].abs().max() < 1e-7
    log = torch.linspace(-3, 3, 601, dtype=torch.float64)
    assert log[surrogates.gamma_kernel(log, 2.0, 3.0).argmax()].exp().item() == pytest.approx(2 / 3, abs=0.01)


def test_the_off_policy_mask_drops_what_went_wrong_and_is_far():
    table, _ = _table(
        [[-1.0, -0.5], [-1.0, -0.5], [1.0, 2.0], [-0.2, 0.1]], [[1.0] * 2, [-1.0] * 2, [-1.0] * 2, [-1.0] * 2]
    )
    kept = surrogates.OffPolicyMasked(surrogates.PolicyGradient(), limit=0.5)(table) != 0
    assert kept[:, 0].tolist() == [True, False, True, True]


def test_the_engine_match_judges_steps_or_trajectories():
    engine = torch.tensor([[-1.0, -2.0, -1.0], [-1.0, -1.0, float("nan")]])
    trainer = torch.tensor([[-1.0, -1.0, -1.0], [-1.1, -1.1, 7.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    table = Rollouts(dict(rollout_logp=engine, old_logp=trainer, mask=mask))
    steps = EngineMatch(k1, low=-0.5, high=0.5)(table)
    assert steps.tolist() == [[True, False, True], [True, True, False]]
    for pool, high, kept in (
        (max_of_steps, 0.3, [False, True]),
        (mean_of_steps, 0.2, [True, True]),
        (sum_of_steps, 0.3, [False, True]),
    ):
        assert EngineMatch(k2, pool, high=high)(table).any(1).tolist() == kept
