"""Distillation: divergences to a teacher, the top k with their tail, and the log-ratio advantage."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.method import Method
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective import distillation as D
from surefoot.objective import divergences as dv
from surefoot.objective.surrogates import PolicyGradient
from surefoot.rollouts import Rollouts

STUDENT = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
TEACHER = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
REF = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def _rows(n, v, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, v, generator=g, dtype=torch.float64).mul(2).log_softmax(-1)


def _table(dtype=torch.float64):
    student, teacher = (_rows(8, 6, seed).view(2, 4, 6) for seed in (0, 1))
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    tokens = torch.randint(0, 6, (2, 4), generator=torch.Generator().manual_seed(2))
    columns = {"logits": student, "teacher_logits": teacher.where(mask[..., None], torch.nan)}
    columns["logp"] = student.gather(-1, tokens[..., None])[..., 0].where(mask, torch.inf)
    columns["teacher_logp"] = teacher.gather(-1, tokens[..., None])[..., 0].where(mask, torch.nan)
    columns["old_logp"] = columns["logp"]
    columns = {k: x.to(dtype) for k, x in columns.items()}
    return Rollouts(columns | {"mask": mask})


# --- divergences --------------------------------------------------------------------------------------------------


def test_the_family_between_forward_and_reverse():
    p, q = STUDENT.log(), TEACHER.log()
    forward, reverse = (TEACHER * (q - p)).sum(), (STUDENT * (p - q)).sum()
    torch.testing.assert_close(dv.f_divergence(p, q, D.generalized_js(0.0)), forward)
    torch.testing.assert_close(dv.f_divergence(p, q, D.generalized_js(1.0)), reverse)
    for beta in (0.1, 0.5, 0.8):
        middle = beta * TEACHER + (1 - beta) * STUDENT
        teacher_side = (TEACHER * (q - middle.log())).sum()
        student_side = (STUDENT * (p - middle.log())).sum()
        value = dv.f_divergence(p, q, D.generalized_js(beta))
        torch.testing.assert_close(value, beta * teacher_side + (1 - beta) * student_side)
    for beta, limit in ((1e-5, forward), (1 - 1e-5, reverse)):
        value = dv.f_divergence(p, q, D.generalized_js(beta)) / min(beta, 1 - beta)
        torch.testing.assert_close(value, limit, rtol=1e-4, atol=0)


def test_gradients_of_forward_and_reverse_in_logits():
    """Forward: student - teacher. Reverse: p (log p/q - KL)."""
    for generator, expected in (
        (dv.FORWARD_KL, STUDENT - TEACHER),
        (dv.REVERSE_KL, STUDENT * ((STUDENT / TEACHER).log() - (STUDENT * (STUDENT / TEACHER).log()).sum())),
    ):
        logits = STUDENT.log().requires_grad_()
        dv.f_divergence(logits.log_softmax(-1), TEACHER.log(), generator).backward()
        torch.testing.assert_close(logits.grad, expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 8), beta=st.sampled_from([0.0, 0.3, 1.0]))
def test_top_k_with_tail_is_a_lower_bound_that_grows_with_k(seed, k, beta):
    student, teacher, generator = _rows(3, 8, seed), _rows(3, 8, seed + 1), D.generalized_js(beta)
    full = dv.f_divergence(student, teacher, generator)
    values = []
    for size in (k, min(8, k + 1)):
        top = teacher.topk(size, -1)
        values.append(dv.top_k_divergence(student, top.values, top.indices, generator))
    assert (values[0] >= -1e-12).all()
    assert (values[0] <= values[1] + 1e-6).all() and (values[1] <= full + 1e-6).all()
    if k >= 7:  # the tail is one candidate, or none
        torch.testing.assert_close(values[0], full, atol=2e-6, rtol=0)


def test_the_tail_keeps_mass_from_leaking():
    """A student that matches the kept ones' proportions but puts half its mass elsewhere is charged for it."""
    teacher = torch.tensor([0.6, 0.3, 0.05, 0.05], dtype=torch.float64).log()
    leaky = torch.tensor([0.3, 0.15, 0.275, 0.275], dtype=torch.float64).log()
    kept = torch.tensor([0, 1])
    renormalised = dv.f_divergence(leaky[:2].log_softmax(0), teacher[:2].log_softmax(0), dv.FORWARD_KL)
    assert float(renormalised) == pytest.approx(0.0, abs=1e-12)
    with_tail = dv.top_k_divergence(leaky, teacher[:2], kept, dv.FORWARD_KL)
    assert float(with_tail) == pytest.approx(0.9 * math.log(2) + 0.1 * math.log(0.1 / 0.55))


# --- parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [0, 3, 6, 50])
@pytest.mark.parametrize("generator", [dv.FORWARD_KL, dv.REVERSE_KL, D.generalized_js(0.5)])
def test_distillation_part(top, generator):
    table = _table()
    live = table.logits.clone().requires_grad_()
    loss = D.Distillation(generator, coef=2.0, top=top)(table.having(logits=live))
    loss.sum().backward()
    assert (loss[~table.mask] == 0).all() and (live.grad[~table.mask] == 0).all()
    assert (loss[table.mask] > 0).all() and live.grad.isfinite().all()
    full = 2 * dv.f_divergence(table.logits[table.mask], table.teacher_logits[table.mask], generator)
    if top == 3:
        assert (loss[table.mask] <= full).all()
    else:
        torch.testing.assert_close(loss[table.mask].detach(), full, atol=2e-6, rtol=0)


def test_temperature_softens_both():
    table = _table()
    one = D.Distillation(temperature=2.0)(table)[0, 0]
    p, q = ((x[0, 0] / 2).softmax(-1) for x in (table.logits, table.teacher_logits))
    torch.testing.assert_close(one, (q * (q / p).log()).sum())
    assert (D.Distillation(temperature=2.0)(table) < D.Distillation()(table)).where(table.mask, True).all()


def test_a_coefficient_of_zero_reads_nothing():
    table = Rollouts({"mask": torch.ones(2, 3, dtype=torch.bool)})
    for part in (D.Distillation(coef=0.0), D.SequenceKD(0.0)):
        assert part.reads == () and (part(table) == 0).all()


def test_bfloat16_columns_give_float32_losses():
    low = _table(torch.bfloat16)
    loss = D.Distillation()(low)
    same = low.having(logits=low.logits.double(), teacher_logits=low.teacher_logits.double())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), D.Distillation()(same), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("part", [D.Distillation(top=4), D.SequenceKD()])
def test_parts_survive_toml(part):
    method = GRPO.but(surrogate=part, advantage=D.LogRatioAdvantage(clip=5.0))
    assert Method.from_dict(method.to_dict()) == method


# --- sequence KD and the log-ratio advantage: exact expectations ---------------------------------------------------


def test_sequence_kd_has_the_gradient_of_the_forward_kl_in_expectation():
    logits = STUDENT.log().requires_grad_()
    logp = logits.log_softmax(-1)
    table = Rollouts({"logp": logp[:, None], "mask": torch.ones(3, 1, dtype=torch.bool)})
    (TEACHER * D.SequenceKD()(table)[:, 0]).sum().backward()
    torch.testing.assert_close(logits.grad, STUDENT - TEACHER)


def _one_step(part):
    """Expected ascent direction in logits of the part's advantage under the student, one step."""
    logits = STUDENT.log().requires_grad_()
    logp = logits.log_softmax(-1)
    table = Rollouts(
        {
            "logp": logp[:, None],
            "old_logp": logp.detach()[:, None],
            "teacher_logp": TEACHER.log()[:, None],
            "ref_logp": REF.log()[:, None],
            "mask": torch.ones(3, 1, dtype=torch.bool),
        }
    )
    advantage = part(table)
    (STUDENT * PolicyGradient()(table.having(advantage=advantage))[:, 0]).sum().backward()
    return advantage[:, 0], -logits.grad


def test_extrapolation_card_numbers():
    """G-OPD: lambda = 1 and 1.25 at student (.4, .4, .2), teacher (.7, .2, .1), reference (.5, .3, .2)."""
    for scale, advantage, direction in (
        (1.0, (0.5596, -0.6931, -0.6931), (0.3007, -0.2004, -0.1002)),
        (1.25, (0.6437, -0.7945, -0.8664), (0.3509, -0.2244, -0.1266)),
    ):
        part = D.LogRatioAdvantage(towards=("teacher_logp", "ref_logp"), weights=(scale, 1 - scale))
        a, g = _one_step(part)
        torch.testing.assert_close(a, torch.tensor(advantage).double(), atol=5.1e-5, rtol=0)
        torch.testing.assert_close(g, torch.tensor(direction).double(), atol=5.1e-5, rtol=0)


def test_one_step_direction_is_that_of_the_reverse_kl_and_of_k2():
    _, direction = _one_step(D.LogRatioAdvantage())
    logits = STUDENT.log().requires_grad_()
    dv.f_divergence(logits.log_softmax(-1), TEACHER.log(), dv.REVERSE_KL).backward()
    torch.testing.assert_close(direction, -logits.grad)
    leaf = STUDENT.log().requires_grad_()
    (STUDENT * dv.k2(leaf.log_softmax(-1), TEACHER.log())).sum().backward()
    torch.testing.assert_close(direction, -leaf.grad)


def test_two_steps_reward_to_go_is_exact_and_discount_zero_is_not():
    """The card's two-token case, lambda = 2: z1 (.1063, -.1063) with reward to go, (.2696, -.2696) without."""
    ref1, ref2 = torch.tensor([0.6, 0.4]).double(), torch.tensor([[0.7, 0.3], [0.2, 0.8]]).double()
    t1, t2 = torch.tensor([0.7, 0.3]).double(), torch.tensor([[0.9, 0.1], [0.5, 0.5]]).double()
    z1 = torch.tensor([0.1, -0.1]).double().requires_grad_()
    z2 = torch.tensor([[0.3, 0.0], [-0.2, 0.4]]).double().requires_grad_()

    def leaves(first, second):  # four trajectories of two tokens
        return torch.stack([first[[0, 0, 1, 1]], second.flatten()], 1)

    logp = leaves(z1.log_softmax(0), z2.log_softmax(1))
    p = logp.detach().sum(1).exp()
    columns = {"logp": logp, "old_logp": logp.detach(), "mask": torch.ones(4, 2, dtype=torch.bool)}
    table = Rollouts(columns | {"teacher_logp": leaves(t1.log(), t2.log()), "ref_logp": leaves(ref1.log(), ref2.log())})
    total = leaves(2 * (t1 / ref1).log() + ref1.log(), 2 * (t2 / ref2).log() + ref2.log())
    exact = torch.autograd.grad((logp.sum(1).exp() * (total - logp).sum(1)).sum(), (z1, z2), retain_graph=True)
    for gamma, first in ((1.0, 0.1063), (0.0, 0.2696)):
        part = D.LogRatioAdvantage(("teacher_logp", "ref_logp"), (2.0, -1.0), gamma=gamma)
        loss = (p[:, None] * PolicyGradient()(table.having(advantage=part(table)))).sum()
        gradient = [-g for g in torch.autograd.grad(loss, (z1, z2), retain_graph=True)]
        torch.testing.assert_close(gradient[0], torch.tensor([first, -first]).double(), atol=5e-5, rtol=0)
        torch.testing.assert_close(gradient[1], exact[1])
        assert torch.allclose(gradient[0], exact[0]) == (gamma == 1.0)


def test_log_ratio_advantage_is_detached_masked_and_clipped():
    table = _table()
    a = table.teacher_logp.clone().requires_grad_()
    out = D.log_ratio_advantage(a, table.old_logp, table.mask, scale=3.0, clip=0.5)
    assert not out.requires_grad and out.isfinite().all()
    assert (out[~table.mask] == 0).all() and out.abs().max() == 0.5
    gap = (table.teacher_logp - table.old_logp).where(table.mask, 0.0)
    torch.testing.assert_close(D.LogRatioAdvantage()(table), gap)
    to_go = D.LogRatioAdvantage(gamma=1.0)(table)
    torch.testing.assert_close(to_go[:, 0], gap.sum(1))


@settings(max_examples=30, deadline=None)
@given(value=st.sampled_from([-1e4, -460.5, 0.0]), other=st.sampled_from([-1e4, -460.5, 0.0]))
def test_extreme_ratios_stay_finite(value, other):
    mask = torch.ones(1, 3, dtype=torch.bool)
    out = D.log_ratio_advantage(torch.full((1, 3), value), torch.full((1, 3), other), mask, clip=10.0, gamma=1.0)
    assert out.isfinite().all() and out.abs().max() <= 30
