"""oneDNN's products against torch's own: values, gradients, and the gradient's gradient."""

import pytest
import torch
import torch.nn.functional as F

from surefoot.objective import products
from surefoot.objective.products import Frozen, product

needs_onednn = pytest.mark.skipif(not products.available(torch.zeros(1, 1)), reason="this torch has no oneDNN")


def _operands(rows=37, inputs=24, outputs=50):
    torch.manual_seed(0)
    x, w = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    return [t.requires_grad_() for t in (x, w, torch.randn(outputs))]


@needs_onednn
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_equal_torch(monkeypatch, with_bias):
    x, w, b = _operands()
    calls, made = [], products._linear
    monkeypatch.setattr(products, "_linear", lambda *args: calls.append(1) or made(*args))
    wanted = [x, w, b] if with_bias else [x, w]
    y, plain = product(*wanted), F.linear(*wanted)
    torch.testing.assert_close(y, plain, atol=1e-5, rtol=1e-5)
    found, expected = (torch.autograd.grad(v.sin().sum(), wanted) for v in (y, plain))
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-4, rtol=1e-4)
    assert len(calls) == 3, "forward, for x and for the weight"


@needs_onednn
def test_second_derivative():
    x, w, _ = _operands()
    second = []
    for f in (product, F.linear):
        (g,) = torch.autograd.grad(f(x, w).pow(3).sum(), x, create_graph=True)
        second.append(torch.autograd.grad(g.square().sum(), w)[0])
    torch.testing.assert_close(second[0], second[1], rtol=1e-3, atol=1e-3 * float(second[1].abs().max()))


def test_other_types_and_no_rows_take_torchs_own():
    x, w, b = (t.detach().double() for t in _operands())
    assert torch.equal(product(x, w, b), F.linear(x, w, b))
    assert product(x[:0].float(), w.float()).shape == (0, 50)


@pytest.mark.parametrize("size", [(50, 24), (600, 500)])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_a_frozen_weight(size, rows):
    torch.manual_seed(1)
    w, x = torch.randn(size), torch.randn(rows, size[1])
    torch.testing.assert_close(Frozen(w, w[:, 0])(x), F.linear(x, w, w[:, 0]), atol=1e-4, rtol=1e-4)


@needs_onednn
def test_a_frozen_weight_in_bfloat16():
    """Within the rounding of its operands; so for a row of zeros, and for one beside large ones."""
    torch.manual_seed(3)
    w, b, x = torch.randn(300, 96), torch.randn(300), torch.randn(32, 96)
    x[0], x[1] = 0.0, 1e3 * x[1]
    found, exact = Frozen(w, b, dtype=torch.bfloat16)(x), F.linear(x, w, b)
    error = (found - exact).norm(dim=1) / (exact - b).norm(dim=1).clamp_min(1e-6)
    assert 2.0**-11 < error[1:].mean() < 2.0**-7
    assert (found[0] - b).abs().max() <= 2.0**-8 * b.abs().max()


@needs_onednn
def test_numbers_may_lie_anyhow():
    """Strided, transposed and expanded operands, forward and backward."""
    torch.manual_seed(2)
    big = torch.randn(80, 60)
    for x in (big[::2, :24], big.t()[:40, :24], big[0, :24].expand(40, 24)):
        for w in (big[:50, 3:27], big.t()[:50, :24], big[7, 0].expand(50, 24)):
            wanted = [x.detach().requires_grad_(), w.detach().requires_grad_()]
            y, plain = product(*wanted, big[:50, 1]), F.linear(*wanted, big[:50, 1])
            torch.testing.assert_close(y, plain, atol=1e-4, rtol=1e-4)
            found, expected = (torch.autograd.grad(v.sum(), wanted) for v in (y, plain))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
