"""Pieces with their own backward passes against autograd's."""

import pytest
import torch
import torch.nn.functional as F

from surefoot.policies import pieces


def _turned(qkv, cos, sin, queries, keys):
    x = qkv.unflatten(-1, (queries + 2 * keys, -1))
    qk, v = x[:, : queries + keys], x[:, queries + keys :]
    half = qk.shape[-1] // 2
    qk = qk * cos[:, None] + torch.cat((-qk[..., half:], qk[..., :half]), -1) * sin[:, None]
    return torch.cat([qk, v], 1)


def _cases():
    torch.manual_seed(0)
    x = torch.randn(7, 16, dtype=torch.float64)
    angle = torch.randn(7, 2, dtype=torch.float64).repeat(1, 2)
    rows = torch.tensor([3, 0, 5])
    many = torch.tensor([3, 0, 3, 3])
    w = torch.randn(16, dtype=torch.float64)
    return {
        "rms_norm": (lambda x: pieces.rms_norm(x, w, 1e-5), lambda x: F.rms_norm(x, (16,), w, 1e-5), x),
        "weight of rms_norm": (lambda w: pieces.rms_norm(x, w, 1e-5), lambda w: F.rms_norm(x, (16,), w, 1e-5), w),
        "swiglu": (pieces.swiglu, lambda y: F.silu(y[:, :8]) * y[:, 8:], x),
        "heads": (
            lambda y: torch.cat(pieces.heads(y, angle.cos(), angle.sin(), 2, 1), 1),
            lambda y: _turned(y, angle.cos(), angle.sin(), 2, 1),
            x,
        ),
        "take": (lambda y: pieces.take(y, rows), lambda y: y[rows], x),
        "put": (
            lambda y: pieces.put(y, torch.arange(7) * 2, 14),
            lambda y: torch.stack([y, 0 * y], 1).flatten(0, 1),
            x,
        ),
        "repeat": (lambda y: pieces.repeat(y, many), lambda y: y[many], x),
    }


@pytest.mark.parametrize("name", _cases())
def test_value_and_gradient(name):
    ours, plain, x = _cases()[name]
    results = []
    for f in (ours, plain):
        leaf = x.clone().requires_grad_()
        y = f(leaf)
        torch.manual_seed(3)
        (y * torch.randn_like(y)).sum().backward()
        results.append((y, leaf.grad))
    torch.testing.assert_close(results[0], results[1])
