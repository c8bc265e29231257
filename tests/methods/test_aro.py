"""ARO: the card's exact checks, the optimizers as parts, and a run that resumes."""

import numpy as np
import pytest
import torch

from surefoot.method import Update
from surefoot.methods.optimizer.aro import ARO
from surefoot.objective.optimizers import (
    AdamW,
    Aro,
    Matrices,
    Muon,
    gain,
    is_inner,
    matched,
    polar,
    rotated,
    row_norm,
    sign,
    sinkhorn,
)
from surefoot.rollout.prompts import Uniform
from surefoot.training import checkpoint
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, tiny_policy

M = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 10)))
EYE = torch.eye(6, dtype=torch.float64)
LEFT, VALUES, RIGHT = torch.linalg.svd(M, full_matrices=False)
BASES = (row_norm, sign, sinkhorn)


def _orthogonal(m, seed=1):
    return torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).normal(size=(m, m)))[0])


def test_without_rotation_it_is_the_base_map():
    for base in BASES:
        assert torch.equal(Aro(base, rotate=False).direction(M, {}), base(M))


def test_in_the_singular_frame_rows_give_the_polar_factor():
    update = LEFT @ row_norm(LEFT.T @ M, eps=0)
    torch.testing.assert_close(update, 10**0.5 * LEFT @ RIGHT, atol=1e-14, rtol=0)
    assert (polar(M) - LEFT @ RIGHT).abs().max() < 0.4, "Newton-Schulz leaves singular values between .7 and 1.2"
    torch.testing.assert_close(polar(M).mT, polar(M.mT), atol=1e-9, rtol=0)


def test_the_singular_frame_minimises_the_gain_of_rows():
    assert float(gain(EYE, M, row_norm)) == pytest.approx(52.395, abs=1e-3)
    assert float(gain(LEFT, M, row_norm)) == pytest.approx(46.849, abs=1e-3)
    assert float(gain(LEFT, M, row_norm)) == pytest.approx(10**0.5 * float(VALUES.sum()), rel=1e-7)
    assert all(gain(_orthogonal(6, s), M, row_norm) >= gain(LEFT, M, row_norm) for s in range(20))


@pytest.mark.parametrize(
    "base, expected",
    [(row_norm, (49.80, 47.90, 47.22, 46.94, 46.87)), (sign, (41.34, 41.46, 43.26, 42.23, 42.23))],
)
def test_the_course_of_the_gain_while_the_momentum_stands_still(base, expected):
    rotation, seen = EYE, []
    for _ in expected:
        rotation = rotated(M, rotation, base)[1]
        seen.append(float(gain(rotation, M, base)))
    np.testing.assert_allclose(seen, expected, atol=5e-3)


@pytest.mark.parametrize("base", BASES)
def test_turning_the_rows_turns_the_update_and_signs_of_columns_do_not_matter(base):
    turn, rotation = _orthogonal(6), _orthogonal(6, 2)
    update, _ = rotated(M, rotation, base)
    flips = torch.tensor([1.0, -1, 1, -1, -1, 1]).double()
    torch.testing.assert_close(rotated(M, rotation * flips, base)[0], update, atol=1e-12, rtol=0)
    torch.testing.assert_close(rotated(turn @ M, turn @ rotation, base)[0], turn @ update, atol=1e-12, rtol=0)
    assert float((M * update).sum()) > 0, "a direction of descent"


def test_the_cards_worked_example():
    small = torch.tensor([[3.0, 1.0], [0.0, 2.0]]).double()
    update, rotation = rotated(small, torch.eye(2).double(), row_norm)
    torch.testing.assert_close(
        rotation, torch.tensor([[-0.9806, -0.1961], [-0.1961, 0.9806]]).double(), atol=5e-5, rtol=0
    )
    torch.testing.assert_close(update, torch.tensor([[1.3444, 0.3233], [-0.1872, 1.4329]]).double(), atol=5e-5, rtol=0)
    assert float((small * update).sum()) == pytest.approx(7.2221, abs=5e-5)


@pytest.mark.parametrize("base", BASES)
def test_every_step_has_the_same_size(base):
    assert float(matched(base(M)).square().mean().sqrt()) == pytest.approx(0.2)
    natural = float(base(M).square().mean().sqrt())
    assert natural == pytest.approx(6**-0.5 if base is sinkhorn else 1.0, abs=1e-6)
    assert torch.equal(matched(torch.zeros(2, 3)), torch.zeros(2, 3)), "no gradient, no step"


def test_tall_matrices_are_turned_and_the_rest_goes_by_adam():
    torch.manual_seed(0)
    tall, bias = (torch.nn.Parameter(torch.randn(*s)) for s in ((7, 3), (4,)))
    twin = torch.nn.Parameter(bias.detach().clone())
    ours = Aro()(
        [{"params": [tall, bias]}], {id(tall): "mlp.up", id(bias): "bias"}, lr=0.1, betas=(0.9, 0.95), weight_decay=0.01
    )
    theirs = AdamW()([{"params": [twin]}], {}, lr=0.1, betas=(0.9, 0.95), weight_decay=0.01)
    assert isinstance(ours, Matrices)
    for _ in range(3):
        tall.grad, bias.grad = torch.randn(7, 3), torch.randn(4)
        twin.grad = bias.grad.clone()
        before, momentum = tall.detach().clone(), ours.state[tall].get("momentum", torch.zeros(7, 3)).clone()
        rotation = ours.state[tall].get("rotation", torch.eye(3))
        ours.step(), theirs.step()
        update = rotated((0.95 * momentum + 0.05 * tall.grad).mT, rotation, row_norm)[0].mT
        torch.testing.assert_close(tall.detach(), before * (1 - 0.001) - 0.1 * matched(update), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(bias, twin, atol=1e-6, rtol=1e-5)


def test_which_matrices_count():
    square = torch.zeros(4, 4)
    assert is_inner(square, "model.layers.0.mlp.up_proj.weight")
    assert not is_inner(square, "model.embed_tokens.weight") and not is_inner(torch.zeros(4), "norm")
    assert not is_inner(torch.zeros(1, 4), "value_head.weight")


@pytest.mark.parametrize("optimizer", [Aro(), Aro(sinkhorn), Muon()])
def test_a_run_resumes_bit_for_bit(optimizer, tmp_path):
    method = ARO.but(prompts=Uniform(prompts=2, rollouts=4), update=Update(optimizer=optimizer))

    def fresh():
        return Trainer(tiny_policy(), digits_task(), method, Settings(lr=1e-2))

    whole, half = fresh(), fresh()
    expected = [whole.train_step().metrics for _ in range(4)]
    for _ in range(2):
        half.train_step()
    saved, again = checkpoint.save(half, tmp_path), fresh()
    checkpoint.load(again, saved)
    assert [again.train_step().metrics for _ in range(2)] == expected[2:]
