"""The compiled loops against plain torch: values, gradients, and what is there when no compiler is."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from surefoot import kernels
from surefoot.policies import pieces
from surefoot.rollout import native
from surefoot.rollout.native import Sampling

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no C compiler here")


def _leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize(("n", "d"), [(1, 3), (7, 16), (600, 130)])
def test_norm_of_a_sum_and_its_gradients(n, d):
    torch.manual_seed(0)
    tensors = torch.randn(n, d), torch.randn(n, d), torch.randn(d)
    weigh = torch.randn(n, d), torch.randn(n, d)
    found = []
    for form in (pieces.add_norm, lambda x, y, w, eps: (x + y, F.rms_norm(x + y, (d,), w, eps))):
        leaves = _leaves(*tensors)
        total, out = form(*leaves, 1e-5)
        (total * weigh[0] + out * weigh[1]).sum().backward()
        found.append([total, out, *(x.grad for x in leaves)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)
    x, _, w = _leaves(*tensors)
    kept, out = pieces.add_norm(x, None, w, 1e-5)
    assert torch.equal(kept, x)
    out.sum().backward()
    assert x.grad.isfinite().all() and w.grad.abs().max() > 0


@pytest.mark.parametrize(("n", "f"), [(1, 1), (5, 24), (300, 352)])
def test_gate_and_its_gradient(n, f):
    torch.manual_seed(0)
    both = torch.randn(n, 2 * f) * 6
    both[0, 0] = -200.0  # far out, where exp overflows
    ours, plain = _leaves(both, both)
    y, z = pieces.swiglu(ours), F.silu(plain[:, :f]) * plain[:, f:]
    weigh = torch.randn_like(y)
    (y * weigh).sum().backward()
    (z * weigh).sum().backward()
    torch.testing.assert_close(y, z, atol=1e-6, rtol=2e-6)
    torch.testing.assert_close(ours.grad, plain.grad, atol=1e-5, rtol=1e-5)


def _sequences(prompts, rows, group):
    length = torch.tensor([*prompts, *rows])
    first = F.pad(torch.bincount(group, minlength=len(prompts)).cumsum(0), (1, 0))
    member = group.argsort(stable=True) + len(prompts)
    return length.cumsum(0) - length, length, first, member


def _plain_attention(y, p):
    """One sequence after another, with torch's own attention."""
    h, g, w = p.queries, p.keys, p.cos.shape[1]
    q, k, v = pieces.heads(y, p.cos, p.sin, h, g)
    out = y.new_zeros(len(y), h, w)
    at = {i: torch.arange(s, s + n) for i, (s, n) in enumerate(zip(p.start.tolist(), p.length.tolist(), strict=True))}
    m = len(p.first) - 1
    before = {int(r): i for i in range(m) for r in p.member[p.first[i] : p.first[i + 1]]}
    for i, own in at.items():
        seen = torch.cat([at[before[i]], own]) if i >= m else own
        causal = torch.ones(len(own), len(seen), dtype=torch.bool).tril(len(seen) - len(own))
        qi, ki, vi = (x[rows].transpose(0, 1) for x, rows in ((q, own), (k, seen), (v, seen)))
        ki, vi = (x.repeat_interleave(h // g, 0) for x in (ki, vi))
        if len(own):
            weight = (qi @ ki.transpose(1, 2) * p.scale).masked_fill(~causal, -torch.inf).softmax(-1)
            out = out.index_copy(0, own, (weight @ vi).transpose(0, 1))
    return out.flatten(1)


@pytest.mark.parametrize(("heads", "keys", "width"), [(4, 4, 32), (6, 2, 8), (2, 1, 64), (2, 2, 6), (1, 1, 48)])
def test_attention_of_packed_sequences_and_its_gradient(heads, keys, width):
    torch.manual_seed(0)
    prompts, rows = [5, 70, 1], [3, 0, 90, 17, 1, 33]
    group = torch.tensor([1, 0, 1, 1, 2, 0])
    lie = _sequences(prompts, rows, group)
    size = int(lie[1].sum()) + 3  # and tokens of no sequence
    angle = torch.randn(size, width // 2).repeat(1, 2)
    p = kernels.Packed(*lie, angle.cos(), angle.sin(), heads, keys, width**-0.5)
    tensors = torch.randn(size, (heads + 2 * keys) * width)
    weigh = torch.randn(size, heads * width)
    ours, plain = _leaves(tensors, tensors)
    a, b = pieces.attention(ours, p), _plain_attention(plain, p)
    torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)
    (a * weigh).sum().backward()
    (b * weigh).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, atol=2e-5, rtol=1e-4)
    assert (a[-3:] == 0).all() and (ours.grad[-3:] == 0).all()


def test_sharp_scores_neither_overflow_nor_vanish():
    lie = _sequences([4], [3], torch.tensor([0]))
    p = kernels.Packed(*lie, torch.ones(7, 4), torch.zeros(7, 4), 1, 1, 1.0)
    y = torch.randn(7, 12, generator=torch.Generator().manual_seed(0)) * 30
    torch.testing.assert_close(pieces.attention(y, p), _plain_attention(y, p), atol=1e-5, rtol=1e-5)


def test_threads_do_not_change_a_number():
    code = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[1])); torch.manual_seed(0);"
        "from surefoot.policies import pieces;"
        "x, y, w = (torch.randn(*s, requires_grad=True) for s in ((3000, 64), (3000, 64), (64,)));"
        "t, h = pieces.add_norm(x, y, w, 1e-5); (t.sin() + h.cos()).sum().backward();"
        "print(x.grad.double().sum().item(), w.grad.double().sum().item())"
    )
    said = {subprocess.run([sys.executable, "-c", code, n], capture_output=True, text=True).stdout for n in ("1", "2")}
    assert len(said) == 1 and len(said.pop().split()) == 2


def test_draws_are_the_quantiles_of_the_distribution():
    torch.manual_seed(0)
    logits = torch.randn(200, 77) * 3
    logits[:, 5] = -torch.inf
    u = torch.rand(200, dtype=torch.float64)
    u[0], u[1] = 0.0, 1 - 2**-53
    tokens, logp = kernels.draw(logits, u, 0.7)
    expected = (logits / 0.7).log_softmax(-1)
    torch.testing.assert_close(logp, expected.gather(1, tokens[:, None])[:, 0], atol=1e-5, rtol=1e-5)
    cdf = expected.double().exp().cumsum(1)
    low = torch.where(tokens > 0, cdf.gather(1, (tokens - 1).clamp_min(0)[:, None])[:, 0], 0.0)
    high = cdf.gather(1, tokens[:, None])[:, 0]
    assert (low - 1e-5 <= u).all() and (u <= high + 1e-5).all(), "each token's share of [0, 1) is its probability"
    assert not (tokens == 5).any()
    logits[3, 4] = torch.nan
    assert kernels.draw(logits, u)[1][3].isnan(), "a number that is not finite stays to be seen"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.6, suppress=(0, 3))])
def test_both_samplers_say_the_same(sampling, monkeypatch):
    torch.manual_seed(0)
    logits, u = torch.randn(64, 50), torch.rand(64, dtype=torch.float64)
    fast = native.sampled(logits, u, sampling)
    monkeypatch.setattr(kernels, "applies", lambda _: False)
    slow = native.sampled(logits, u, sampling)
    assert torch.equal(fast[0], slow[0])
    torch.testing.assert_close(fast[1], slow[1], atol=1e-5, rtol=1e-5)


def test_without_a_compiler_there_is_no_library_and_nothing_breaks(tmp_path):
    code = (
        "import torch; from surefoot import kernels; from surefoot.policies import pieces;"
        "assert kernels.library() is None and not kernels.applies(torch.zeros(2, 2));"
        "print(pieces.swiglu(torch.ones(1, 2)).item())"
    )
    for odd in ({"SUREFOOT_KERNELS": "off"}, {"PATH": str(tmp_path), "CC": "nothing"}):
        env = os.environ | odd
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
        assert run.stdout.startswith("0.731"), run.stderr


def test_a_library_is_built_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path))
    compiler = __import__("shutil").which("cc")
    made = kernels._built(compiler)
    stamp = made.stat().st_mtime_ns
    assert kernels._built(compiler) == made and made.stat().st_mtime_ns == stamp
    assert ctypes.CDLL(str(made)).gated
