"""Chunked log-probabilities against the plain twin: values, gradients, and memory."""

import subprocess
import sys

import pytest
import torch

from surefoot.objective.chunked import token_logp, token_logp_plain


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_values_and_gradients_equal_the_plain_twin(bias, entropy, chunk):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 4, generator=g, dtype=torch.float64)
    weight, offset = torch.randn(11, 4, generator=g, dtype=torch.float64), torch.randn(11, generator=g).double()
    tokens, up = torch.randint(0, 11, (7,), generator=g), torch.randn(2, 7, generator=g)
    results = []
    for function, more in ((token_logp, {"chunk": chunk}), (token_logp_plain, {})):
        leaves = [x.clone().requires_grad_() for x in (hidden, weight, offset)]
        out = function(
            leaves[0], leaves[1], tokens, bias=leaves[2] if bias else None, temperature=0.7, entropy=entropy, **more
        )
        out = out if entropy else (out,)
        sum((u * o).sum() for u, o in zip(up, out, strict=False)).backward()
        results.append((out, [x.grad for x in leaves[: 3 if bias else 2]]))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_bfloat16_hidden_states_get_float32_probabilities():
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(50, 16, generator=g).bfloat16(), torch.randn(300, 16, generator=g).bfloat16()
    out = token_logp(hidden, weight, torch.zeros(50, dtype=torch.long), chunk=8)
    assert out.dtype == torch.float32
    exact = (hidden.double() @ weight.double().t()).log_softmax(-1)[:, 0]
    torch.testing.assert_close(out.double(), exact, atol=0.06, rtol=0.02)


PEAK = """
import resource, sys, torch
torch.set_num_threads(2)
from surefoot.objective.chunked import token_logp, token_logp_plain
n, v, d = 4096, 49152, 64
hidden = torch.randn(n, d, requires_grad=True)
weight = torch.randn(v, d, requires_grad=True)
weight.grad = torch.zeros_like(weight)
tokens = torch.randint(0, v, (n,))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
f = token_logp if sys.argv[1] == "chunked" else token_logp_plain
logp, entropy = f(hidden, weight, tokens, entropy=True)
(logp.sum() + entropy.sum()).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_peak_memory_is_a_third_of_the_plain_implementations():
    peak = {
        kind: int(subprocess.run([sys.executable, "-c", PEAK, kind], capture_output=True, text=True, check=True).stdout)
        for kind in ("chunked", "plain")
    }
    assert peak["chunked"] <= 0.35 * peak["plain"], peak
