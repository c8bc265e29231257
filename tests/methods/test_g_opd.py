"""G-OPD: the card's exact checks."""

import numpy as np
import pytest
import torch

import surefoot as sf
from surefoot.claims.g_opd import LAMBDAS, students, verdict, world
from surefoot.exact.tree import TokenTree
from surefoot.methods.distillation.g_opd import G_OPD, Extrapolated
from surefoot.rollouts import Rollouts
from surefoot.training import teachers
from tests.conftest import digits_task, tiny_policy

REF, TEACHER, STUDENT = (torch.tensor(p).double() for p in ((0.5, 0.3, 0.2), (0.7, 0.2, 0.1), (0.4, 0.4, 0.2)))


def _table(logp, ref=REF):
    columns = {"logp": logp, "old_logp": logp.detach(), "rollout_logp": logp.detach()}
    columns |= {"teacher_logp": TEACHER.log(), "ref_logp": ref.log()}
    return Rollouts({k: v[:, None] for k, v in columns.items()} | {"mask": torch.ones(3, 1, dtype=torch.bool)})


@pytest.mark.parametrize(
    ("lam", "advantage", "direction"),
    [
        (1.0, (0.5596, -0.6931, -0.6931), (0.3007, -0.2004, -0.1002)),
        (1.25, (0.6437, -0.7945, -0.8664), (0.3509, -0.2244, -0.1266)),
    ],
)
def test_worked_numbers_through_the_methods_own_parts(lam, advantage, direction):
    logits = STUDENT.log().requires_grad_()
    method = G_OPD.set("advantage.lam", lam)
    table = _table(logits.log_softmax(-1))
    table = table.having(advantage=method.advantage(table))
    torch.testing.assert_close(table.advantage[:, 0], torch.tensor(advantage).double(), atol=5.1e-5, rtol=0)
    (STUDENT * method.surrogate(table)[:, 0]).sum().backward()
    torch.testing.assert_close(-logits.grad, torch.tensor(direction).double(), atol=5.1e-5, rtol=0)


@pytest.mark.parametrize(
    ("lam", "optimum"),
    [
        (0.0, (0.5, 0.3, 0.2)),
        (0.5, (0.6049, 0.2505, 0.1446)),
        (1.0, (0.7, 0.2, 0.1)),
        (1.25, (0.7420, 0.1761, 0.0819)),
        (2.0, (0.8424, 0.1146, 0.0430)),
    ],
)
def test_the_fixed_point_of_the_expected_update(lam, optimum):
    """Where the policy is ref (T / ref)^lambda, all advantages are the same number: nothing moves."""
    optimum = torch.tensor(optimum).double()
    logits = torch.zeros(3).double()
    for _ in range(300):
        leaf = logits.clone().requires_grad_()
        table = _table(leaf.log_softmax(-1))
        table = table.having(advantage=Extrapolated(lam)(table))
        (leaf.detach().softmax(-1) * G_OPD.surrogate(table)[:, 0]).sum().backward()
        logits = logits - leaf.grad
    torch.testing.assert_close(logits.softmax(-1), optimum, atol=6e-5, rtol=0)


def test_at_lambda_one_the_reference_is_neither_read_nor_felt():
    part = Extrapolated(1.0)
    assert "ref_logp" not in part.reads and "ref_logp" in Extrapolated(1.25).reads
    tables = [_table(STUDENT.log(), ref) for ref in (REF, torch.zeros(3).double())]
    assert torch.equal(part(tables[0]), part(tables[1]))


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.25, 3.0])
def test_a_teacher_that_is_the_reference_pulls_to_it_for_every_lambda(lam):
    table = _table(STUDENT.log()).having(teacher_logp=REF.log()[:, None])
    torch.testing.assert_close(Extrapolated(lam)(table)[:, 0], (REF / STUDENT).log())


def test_the_advantage_is_affine_in_lambda_and_detached():
    table = _table(STUDENT.log().requires_grad_())
    at = {lam: Extrapolated(lam)(table) for lam in (0.0, 1.0, 2.5)}
    torch.testing.assert_close(at[2.5], at[0.0] + 2.5 * (at[1.0] - at[0.0]))
    assert not at[2.5].requires_grad


def test_a_token_that_the_engine_gave_another_probability_weighs_at_most_five():
    table = _table(STUDENT.log()).having(advantage=torch.ones(3, 1))
    table = table.having(rollout_logp=table.old_logp - torch.tensor([[0.0], [1.0], [9.0]]))
    weight = G_OPD.surrogate(table)[:, 0] / -STUDENT.log()
    torch.testing.assert_close(weight, torch.tensor([1.0, float(np.e), 5.0]).double())


def test_two_tokens_the_fixed_points_of_tokens_and_of_sequences_differ():
    leaves = np.array([0.6 * 0.7, 0.6 * 0.3, 0.4 * 0.2, 0.4 * 0.8])
    taught = np.array([0.7 * 0.9, 0.7 * 0.1, 0.3 * 0.5, 0.3 * 0.5])
    tree = TokenTree(2, 2, np.eye(4)[0], leaves)
    base, teacher = (np.log(tree.node_policy(x)) for x in (leaves, taught))
    by_token, _, by_sequence = students(tree, base, teacher)[:, LAMBDAS.index(2.0)]
    assert (by_token, by_sequence) == pytest.approx((0.7620, 0.7139), abs=5e-5)
    same = students(tree, base, teacher)[:, LAMBDAS.index(1.0)]
    assert same[0] == pytest.approx(same[2], abs=1e-12) == pytest.approx(0.63)


def test_the_claim_can_be_refuted():
    found = [world(seed) for seed in range(3)]
    assert verdict(found) == "reproduced"
    upside_down = [{k: v[:, ::-1] for k, v in f.items()} for f in found]
    assert verdict(upside_down) == "refuted"


def test_a_teacher_is_made_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path))
    tiny_policy().save(tmp_path / "tiny")
    spec = "trained:policy=tiny,steps=1,method=reinforce"
    first = teachers.load(spec, digits_task())
    kept = list((tmp_path / "teachers").iterdir())
    assert len(kept) == 1 and kept[0].name.startswith("tiny-reinforce-1-")
    written = (kept[0] / "model.safetensors").stat().st_mtime_ns
    second = teachers.load(spec, digits_task())
    assert (kept[0] / "model.safetensors").stat().st_mtime_ns == written
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    start = tiny_policy().model.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(first.model.parameters(), start, strict=True))
    with pytest.raises(sf.InputError, match="no option 'step'"):
        teachers.load("trained:step=1", digits_task())


def test_the_student_ends_near_its_teacher(tmp_path):
    """On policy, lambda = 1: the reverse KL to a teacher falls."""
    from surefoot.training.trainer import Settings, Trainer

    teacher, method = tiny_policy(1), G_OPD.set("advantage.lam", 1.0).set("prompts.prompts", 32)
    trainer = Trainer(tiny_policy(0), digits_task(length=6), method, Settings(lr=3e-3, warmup=1), teacher)
    gaps = [float(-trainer.train_step().batch.advantage[:, :6].mean()) for _ in range(12)]
    assert np.mean(gaps[-3:]) < 0.5 * np.mean(gaps[:2]), gaps
