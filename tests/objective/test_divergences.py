"""Divergences and entropies: worked numbers, unbiased values, and the gradient each estimator really has."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.errors import InputError
from surefoot.method import Method
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective import divergences as d
from surefoot.objective import entropy as h
from surefoot.objective.ratios import TokenRatio
from surefoot.objective.surrogates import PolicyGradient
from surefoot.rollouts import Rollouts
from tests.conftest import label
from tests.objective.enumeration import SEQUENCES, Tree

P = torch.tensor([0.9, 0.1, 0.0], dtype=torch.float64)
Q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
NAMED = [
    d.REVERSE_KL,
    d.FORWARD_KL,
    d.JEFFREYS,
    d.CHI_SQUARED,
    d.TOTAL_VARIATION,
    d.SQUARED_HELLINGER,
    d.SkewedJS(0.5),
    d.SkewedJS(0.1),
    d.Alpha(0.5),
    d.Alpha(2.0),
]


def _softmax(seed, n=5):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def _kl(p, q):
    return (p.exp() * (p - q)).sum()


def test_the_estimators_values_and_gradients_on_one_state():
    """k1: unbiased value, no gradient. k2: the reverse KL's gradient. k3: unbiased value, the forward KL's gradient."""
    theta = _softmax(0)
    ref = _softmax(1).detach().log_softmax(-1)
    logp = theta.log_softmax(-1)
    p = logp.exp().detach()
    reverse, forward = _kl(logp, ref), _kl(ref, logp)
    values = {k: (p * k(logp, ref)).sum() for k in (d.k1, d.k2, d.k3)}
    assert values[d.k1].item() == pytest.approx(reverse.item(), abs=1e-12)
    assert values[d.k3].item() == pytest.approx(reverse.item(), abs=1e-12)
    assert abs(values[d.k2].item() - reverse.item()) > 1e-3, "k2 is biased as a value"
    grads = {k: torch.autograd.grad(v, theta, retain_graph=True)[0] for k, v in values.items()}
    zero = torch.zeros_like(theta)
    torch.testing.assert_close(grads[d.k1], zero, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        grads[d.k2], torch.autograd.grad(reverse, theta, retain_graph=True)[0], atol=1e-12, rtol=0
    )
    torch.testing.assert_close(
        grads[d.k3], torch.autograd.grad(forward, theta, retain_graph=True)[0], atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("g", [*NAMED, d.Alpha(1.0), d.Alpha(0.0)], ids=label)
def test_a_sampled_divergence_has_the_right_value_and_the_right_gradient(g):
    theta, ref = _softmax(0), _softmax(1).detach().log_softmax(-1)
    logp = theta.log_softmax(-1)
    found = (logp.exp().detach() * d.Sampled(g)(logp, ref)).sum()
    exact = d.f_divergence(logp, ref, g)
    torch.testing.assert_close(found, exact, atol=1e-12, rtol=1e-12)
    ours, theirs = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in (found, exact))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)
    assert theirs.abs().max() > 1e-3


def test_a_sampled_divergence_of_whole_sequences():
    tree, other = Tree(), Tree(seed=5)
    logp, ref = tree.logp().sum(1), other.logp().sum(1).detach()
    for g in (d.CHI_SQUARED, d.SkewedJS(0.3)):
        found = (logp.exp().detach() * d.Sampled(g)(logp, ref)).sum()
        exact = d.f_divergence(logp, ref, g)
        torch.testing.assert_close(found, exact)
        torch.testing.assert_close(tree.gradient(found), tree.gradient(exact), atol=1e-12, rtol=1e-9)


def test_the_sum_over_steps_is_the_divergence_of_sequences_for_kl_only():
    tree, other = Tree(), Tree(seed=5)
    p = tree.probabilities()
    rows = SEQUENCES[:, 0]
    for g, same in ((d.REVERSE_KL, True), (d.TOTAL_VARIATION, False)):
        first = d.f_divergence(tree.root.log_softmax(0), other.root.log_softmax(0), g)
        second = d.f_divergence(tree.next.log_softmax(1), other.next.log_softmax(1), g)[rows]
        steps = torch.stack([first.expand(9), second], 1)
        summed = (p * d.sequence_divergence(steps, torch.ones(9, 2).bool())).sum()
        whole = d.f_divergence(tree.logp().sum(1), other.logp().sum(1), g)
        assert torch.allclose(summed, whole) == same


def test_straight_through_has_one_value_and_another_gradient():
    theta, ref = _softmax(0), _softmax(1).detach().log_softmax(-1)
    logp = theta.log_softmax(-1)
    p, estimator = logp.exp().detach(), d.StraightThrough()
    assert estimator(logp, ref).equal(d.k3(logp, ref))
    found = torch.autograd.grad((p * estimator(logp, ref)).sum(), theta, retain_graph=True)[0]
    torch.testing.assert_close(found, torch.autograd.grad(_kl(logp, ref), theta)[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("estimator", [d.k1, d.k3])
def test_a_kl_weighted_by_its_live_ratio_has_the_true_gradient_even_off_policy(estimator):
    theta, ref, old = _softmax(0), _softmax(1).detach().log_softmax(-1), _softmax(2).detach().log_softmax(-1)
    logp = theta.log_softmax(-1)
    columns = {"logp": logp, "ref_logp": ref, "old_logp": old}
    table = Rollouts({k: v[:, None] for k, v in columns.items()} | {"mask": torch.ones(5, 1, dtype=torch.bool)})
    part = d.KL(estimator, 1.0, ratio=TokenRatio())
    assert "old_logp" in part.reads and d.KL(coef=0.0, ratio=TokenRatio()).reads == ()
    found = (old.exp() * part(table)[:, 0]).sum()
    torch.testing.assert_close(found, _kl(logp, ref), atol=1e-12, rtol=0)
    ours, exact = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in (found, _kl(logp, ref)))
    torch.testing.assert_close(ours, exact, atol=1e-12, rtol=0)


def test_the_policys_tail_keeps_its_gradient_where_next_to_nothing_is_left_of_one():
    """A student with 1e-9 in the tail and a teacher with 0.3 there: what is left of 1 has no digits in float32."""
    logits = torch.tensor([20.0, 19.0, -1.0], requires_grad=True)
    teacher = torch.tensor([0.4, 0.3]).log()
    d.top_k_divergence(logits.log_softmax(-1), teacher, torch.tensor([0, 1]), d.FORWARD_KL).backward()
    torch.testing.assert_close(logits.grad[2], torch.tensor(-0.3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("g", [d.CHI_SQUARED, d.SkewedJS(0.3), d.Alpha(2.0)])
def test_a_divergence_of_any_kind_survives_toml(g):
    method = GRPO.but(regularizers=(d.FullDivergence(g), d.KL(d.Sampled(g), ratio=TokenRatio())))
    assert Method.from_dict(method.to_dict()) == method


def test_a_kl_in_the_reward_has_the_true_gradient():
    theta, ref = _softmax(0), _softmax(1).detach().log_softmax(-1)
    logp = theta.log_softmax(-1)
    p = logp.exp().detach()
    score = (p * d.k1(logp, ref).detach() * logp).sum()
    expected = torch.autograd.grad(_kl(logp, ref), theta, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(score, theta)[0], expected, atol=1e-12, rtol=0)


def test_worked_numbers():
    p, q = P.log(), Q.log()
    value = {getattr(g, "name", repr(g)): d.f_divergence(p, q, g).item() for g in NAMED}
    assert value["KL(p||q)"] == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(1 / 3))
    assert value["TV(p, q)"] == pytest.approx(0.4)
    assert value["chi^2(p||q)"] == pytest.approx(0.16 / 0.5 + 0.04 / 0.3 + 0.2)
    assert value["H^2(p, q)"] == pytest.approx(1 - (math.sqrt(0.45) + math.sqrt(0.03)))
    m = 0.5 * (P + Q)
    js = 0.5 * sum(x * math.log(x / y) for x, y in zip(P.tolist(), m.tolist(), strict=True) if x) + 0.5 * sum(
        x * math.log(x / y) for x, y in zip(Q.tolist(), m.tolist(), strict=True) if x
    )
    assert value["SkewedJS(weight=0.5)"] == pytest.approx(js, abs=1e-9)
    assert d.f_divergence(q, p, d.REVERSE_KL) == torch.inf, "mass where the other has none"
    assert d.f_divergence(q, p, d.TOTAL_VARIATION).item() == pytest.approx(0.4)
    assert d.f_divergence(p, q, d.FORWARD_KL) == torch.inf, "no mass where the other has some"
    assert d.f_divergence(p, q, d.JEFFREYS) == torch.inf and d.f_divergence(q, p, d.FORWARD_KL).isfinite()
    assert d.renyi(p, q, 2.0).item() == pytest.approx(math.log(0.81 / 0.5 + 0.01 / 0.3))


@settings(max_examples=40, deadline=None)
@given(a=st.integers(0, 10**6), b=st.integers(0, 10**6), g=st.sampled_from(NAMED))
def test_divergences_are_zero_on_equal_and_positive_on_others(a, b, g):
    p, q = _softmax(a).detach().log_softmax(-1), _softmax(b).detach().log_softmax(-1)
    assert d.f_divergence(p, p, g).abs() < 1e-9
    value = d.f_divergence(p, q, g)
    assert value >= -1e-12 and value.isfinite()
    if g in (d.JEFFREYS, d.TOTAL_VARIATION, d.SQUARED_HELLINGER):
        assert value.item() == pytest.approx(d.f_divergence(q, p, g).item(), abs=1e-9)


def test_limits_and_inequalities():
    p, q = _softmax(3).detach().log_softmax(-1), _softmax(4).detach().log_softmax(-1)
    kl = _kl(p, q).item()
    assert d.f_divergence(p, q, d.Alpha(1 - 1e-5)).item() == pytest.approx(kl, rel=1e-3)
    assert d.renyi(p, q, 1 + 1e-6).item() == pytest.approx(kl, rel=1e-3)
    assert d.f_divergence(p, q, d.TOTAL_VARIATION).item() <= math.sqrt(kl / 2), "Pinsker"
    coarse = d.f_divergence(d.with_tail(p.topk(2).values), d.with_tail(q[p.topk(2).indices]), d.REVERSE_KL).item()
    assert 0 <= coarse <= kl, "merging outcomes cannot raise a divergence"


@pytest.mark.parametrize("g", [*NAMED, d.SkewedJS(0.3), d.Alpha(0.4), d.Alpha(-1.0)], ids=label)
def test_the_price_of_missing_mass_is_the_limit_of_f(g):
    """f(t) as t -> 0, and f(t) / t as t -> infinity, where they are finite; growing without bound where not."""
    u = torch.tensor([30.0, 40.0], dtype=torch.float64)
    for limit, (near, far) in ((g.at_zero, g.f(-u)), (g.slope_at_infinity, g.over(u))):
        if math.isinf(limit):
            assert far > near + 5
        else:
            assert far.item() == pytest.approx(limit, abs=1e-5)


@pytest.mark.parametrize("g", [*NAMED, d.Alpha(1.0), d.Alpha(0.0)], ids=label)
def test_both_forms_of_a_generator_are_one_function(g):
    u = torch.linspace(-9, 9, 61, dtype=torch.float64)
    torch.testing.assert_close(g.over(u), g.f(u) * (-u).exp(), rtol=1e-9, atol=1e-12)
    assert g.f(torch.zeros(1).double()).abs() < 1e-15


@pytest.mark.parametrize("g", NAMED, ids=label)
def test_nothing_overflows_that_the_divergence_itself_does_not(g):
    """Log-ratios of 100 on both sides, in float32, against float64."""
    p, q = torch.tensor([0.0, -100.0, -101.0]), torch.tensor([-100.0, 0.0, -101.0])
    exact = d.f_divergence(p.double(), q.double(), g)
    found = d.f_divergence(p, q, g)
    if exact < 3e38:
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
    else:
        assert found == torch.inf


def test_the_gradient_of_a_full_divergence():
    theta, ref = _softmax(0), _softmax(1).detach().log_softmax(-1)
    for g in NAMED:
        torch.autograd.gradcheck(lambda t, g=g: d.f_divergence(t.log_softmax(-1), ref, g), (theta,))


def test_parts_read_nothing_at_coefficient_zero_and_ignore_what_is_masked():
    assert d.KL(d.k3, 0.0).reads == () and h.EntropyBonus(0.0).reads == () and d.FullDivergence(coef=0.0).reads == ()
    logp = torch.tensor([[-1.0, float("nan")]], requires_grad=True)
    table = Rollouts(dict(logp=logp, ref_logp=torch.tensor([[-2.0, float("inf")]]), mask=torch.tensor([[True, False]])))
    loss = d.KL(d.k3, 0.5)(table)
    assert loss[0].tolist() == pytest.approx([0.5 * (math.exp(-1) - 1 + 1), 0.0])
    (grad,) = torch.autograd.grad(loss.sum(), logp)
    assert grad.isfinite().all()
    assert (d.KL(d.k3, 0.0)(table) == 0).all()


def test_entropies():
    half = torch.tensor([0.5, 0.25, 0.25]).log()
    assert h.entropy(half).item() == pytest.approx(1.5 * math.log(2))
    assert h.entropy(torch.tensor([1.0, 0.0]).log()).item() == 0
    assert h.nucleus_entropy(half, 0.5).item() == pytest.approx(0)
    assert h.nucleus_entropy(half, 0.7).item() == pytest.approx(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    assert h.nucleus_entropy(half, 1.0).item() == pytest.approx(1.5 * math.log(2), abs=1e-6)
    assert h.tsallis_entropy(half, 2.0).item() == pytest.approx(1 - 0.375)
    assert h.tsallis_entropy(half, 1 + 1e-4).item() == pytest.approx(1.5 * math.log(2), rel=1e-3)
    assert h.bucket_entropy(half, torch.tensor([0, 1, 1]), 2).item() == pytest.approx(math.log(2))


def test_a_bonus_never_turns_an_advantages_sign():
    advantage = torch.tensor([[1.0, -1.0, 0.0]])
    bonus = h.clipped_bonus(torch.tensor([[5.0, 5.0, 5.0]]), advantage, kappa=2.0)
    assert bonus[0].tolist() == [0.5, 0.5, 0.0] and ((advantage + bonus).sign() == advantage.sign()).all()


def test_an_entropy_target_moves_its_coefficient_the_right_way():
    controller = h.EntropyTarget(target=0.5)
    up = controller({"entropy": 0.1})["regularizers.entropybonus.coef"]
    assert up > 1e-3 and controller({"entropy": 2.0})["regularizers.entropybonus.coef"] < up
    assert controller({}) == {}


def test_policy_gradient_ignores_what_is_masked():
    logp = torch.tensor([[float("nan"), -1.0]], requires_grad=True)
    table = Rollouts(dict(logp=logp, advantage=torch.tensor([[0.0, 2.0]]), mask=torch.tensor([[False, True]])))
    loss = PolicyGradient()(table)
    assert loss[0].tolist() == [0, 2]


def test_an_entropy_bonus_of_any_kind():
    logp = torch.tensor([[[0.5, 0.3, 0.2], [0.25, 0.25, 0.5]]]).log()
    table = Rollouts({"logits": logp, "mask": torch.tensor([[True, False]])})
    for kind, value in (
        (h.Tsallis(2.0), 1 - 0.25 - 0.09 - 0.04),
        (h.Nucleus(0.7), -(0.625 * math.log(0.625) + 0.375 * math.log(0.375))),
        (h.Buckets((0, 0, 1)), -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))),
    ):
        part = h.EntropyBonus(2.0, kind)
        assert set(part.reads) == {"logits", "mask"}
        assert part(table)[0].tolist() == pytest.approx([-2 * value, 0.0])
    with pytest.raises(InputError, match="2 entries, expected one a candidate"):
        h.EntropyBonus(1.0, h.Buckets((0, 1)))(table)


def test_the_absolute_price_of_rounding_is_nothing():
    """A policy that has not moved differs from itself by float32's noise: the sign of that is no gradient."""
    ref = torch.tensor([-3.0, -3.0, -3.0, -3.0])
    logp = (ref + torch.tensor([2e-6, -2e-6, 1e-3, -1e-3])).requires_grad_()
    found = d.absolute(logp, ref)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 1e-3, 1e-3]), atol=1e-6, rtol=0)
    (grad,) = torch.autograd.grad(found.sum(), logp)
    assert grad.tolist() == [0.0, 0.0, 1.0, -1.0]
