"""Chunked log-probabilities against the plain twin: values, gradients, and memory."""

import doctest
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from surefoot.objective import chunked
from surefoot.objective.chunked import token_logp, token_logp_plain


def _inputs(n=7, v=11, d=4, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(k, d, generator=g, dtype=torch.float64).to(dtype) for k in (n, v))
    return hidden, weight, torch.randn(v, generator=g).to(dtype), torch.randint(0, v, (n,), generator=g)


def _upstream(n):
    return torch.randn(2, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _both(function, hidden, weight, bias, tokens, **more):
    """Outputs and gradients of a fixed random combination of them."""
    leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight, *([] if bias is None else [bias]))]
    out = function(leaves[0], leaves[1], tokens, bias=leaves[2] if bias is not None else None, **more)
    out = out if isinstance(out, tuple) else (out,)
    up = _upstream(len(hidden)).to(out[0].dtype)
    sum((u * o).sum() for u, o in zip(up, out, strict=False)).backward()
    return [o.detach() for o in out], [x.grad for x in leaves]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
def test_values_and_gradients_equal_the_plain_twin(bias, entropy, chunk, dtype, tolerance):
    hidden, weight, offset, tokens = _inputs(dtype=dtype)
    args = (hidden, weight, offset if bias else None, tokens)
    values, gradients = _both(token_logp, *args, temperature=0.7, entropy=entropy, chunk=chunk)
    plain_values, plain_gradients = _both(token_logp_plain, *args, temperature=0.7, entropy=entropy)
    assert len(values) == 1 + entropy and len(gradients) == 2 + bias
    for a, b in zip(values + gradients, plain_values + plain_gradients, strict=True):
        assert a.dtype == b.dtype == dtype
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_gradcheck_in_float64():
    hidden, weight, bias, tokens = _inputs(n=5, v=6, d=3)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]

    def f(h, w, b):
        return token_logp(h, w, tokens, bias=b, temperature=1.3, entropy=True, chunk=2)

    assert torch.autograd.gradcheck(f, leaves, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_an_input_without_gradient_costs_none_and_gets_none(frozen):
    hidden, weight, bias, tokens = _inputs()
    leaves = [x.clone().requires_grad_(i != frozen) for i, x in enumerate((hidden, weight, bias))]
    logp, entropy = token_logp(leaves[0], leaves[1], tokens, bias=leaves[2], entropy=True, chunk=3)
    (logp.sum() + entropy.sum()).backward()
    plain = _gradients_of_the_sum(hidden, weight, bias, tokens)
    for i, (leaf, expected) in enumerate(zip(leaves, plain, strict=True)):
        if i == frozen:
            assert leaf.grad is None
        else:
            torch.testing.assert_close(leaf.grad, expected)


def _gradients_of_the_sum(hidden, weight, bias, tokens):
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    logp, entropy = token_logp_plain(leaves[0], leaves[1], tokens, bias=leaves[2], entropy=True)
    (logp.sum() + entropy.sum()).backward()
    return [x.grad for x in leaves]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 9),
    v=st.integers(1, 12),
    chunk=st.integers(1, 10),
    scale=st.sampled_from([1e-3, 1.0, 1e2, 1e4]),
    temperature=st.sampled_from([0.05, 1.0, 3.0]),
)
def test_any_size_and_scale(n, v, chunk, scale, temperature):
    hidden, weight, _, tokens = _inputs(n, v)
    leaf = (hidden * scale).requires_grad_()
    logp, entropy = token_logp(leaf, weight, tokens, temperature=temperature, entropy=True, chunk=chunk)
    exact = (leaf.detach() @ weight.t() / temperature).log_softmax(-1)
    torch.testing.assert_close(logp.detach(), exact.gather(1, tokens[:, None])[:, 0], rtol=1e-9, atol=1e-9)
    assert ((entropy >= -1e-12) & (entropy <= torch.tensor(float(v)).log().double() + 1e-9)).all()
    (logp.sum() + entropy.sum()).backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("chunk", [2, 100])
def test_a_forbidden_candidate_counts_nothing(chunk):
    hidden, weight, bias, tokens = _inputs()
    allowed = torch.arange(11) != 4
    tokens = tokens.where(tokens != 4, 5)
    values, gradients = _both(
        token_logp, hidden, weight, bias.where(allowed, -torch.inf), tokens, entropy=True, chunk=chunk
    )
    renumbered = tokens - (tokens > 4).long()
    plain, expected = _both(token_logp_plain, hidden, weight[allowed], bias[allowed], renumbered, entropy=True)
    for a, b in zip(values, plain, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(gradients[0], expected[0])
    torch.testing.assert_close(gradients[1][allowed], expected[1])
    assert (gradients[1][4] == 0).all() and gradients[2][4] == 0


def test_bfloat16_hidden_states_get_float32_probabilities():
    hidden, weight, _, tokens = _inputs(50, 300, 16, torch.bfloat16)
    values, gradients = _both(token_logp, hidden, weight, None, tokens, entropy=True, chunk=8)
    assert values[0].dtype == values[1].dtype == torch.float32
    assert gradients[0].dtype == gradients[1].dtype == torch.bfloat16
    # beyond the rounding of the logits nothing is lost: the softmax of these logits, in float64
    logits = (hidden @ weight.t()).double().requires_grad_()
    logp, entropy = _logp_and_entropy(logits, tokens)
    torch.testing.assert_close(values[0].double(), logp.detach(), atol=3e-6, rtol=1e-6)
    torch.testing.assert_close(values[1].double(), entropy.detach(), atol=3e-6, rtol=1e-6)
    (_upstream(50) * torch.stack([logp, entropy])).sum().backward()
    for a, b in zip(gradients, (logits.grad @ weight.double(), logits.grad.t() @ hidden.double()), strict=True):
        assert (a.double() - b).abs().max() < 2**-8 * b.abs().max()  # bfloat16 keeps 8 bits


def _logp_and_entropy(logits, tokens):
    logp = logits.log_softmax(-1)
    return logp.gather(1, tokens[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def test_one_chunk_is_the_plain_path():
    hidden, weight, _, tokens = _inputs()
    hidden.requires_grad_()
    assert "_Chunked" not in type(token_logp(hidden, weight, tokens).grad_fn).__name__
    assert "_Chunked" in type(token_logp(hidden, weight, tokens, chunk=3).grad_fn).__name__


def test_what_is_kept_for_backward_does_not_grow_with_the_vocabulary():
    """Saved tensors, beyond the inputs themselves, hold a few numbers a row."""

    def saved(v):
        hidden, weight, _, tokens = _inputs(n=20, v=v)
        hidden.requires_grad_()
        sizes, inputs = [], {hidden.data_ptr(), weight.data_ptr(), tokens.data_ptr()}

        def pack(x):
            if x.data_ptr() not in inputs:
                sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            token_logp(hidden, weight, tokens, entropy=True, chunk=4)
        return sum(sizes)

    assert saved(30) == saved(3000) == 2 * 20


def test_worked_numbers_of_the_docstrings():
    assert doctest.testmod(chunked, extraglobs={"torch": torch}).failed == 0


def test_the_collision_of_chunks_is_the_plain_one():
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(7, 5, generator=g), torch.randn(11, 5, generator=g)
    bias = torch.randn(11, generator=g)
    plain = (2 * ((hidden @ weight.t() + bias) / 0.7).log_softmax(-1)).logsumexp(-1)
    for chunk in (None, 1, 3, 100):
        found = chunked.log_collision(hidden, weight, bias=bias, temperature=0.7, chunk=chunk)
        torch.testing.assert_close(found, plain)


WIDTH = 16


def _peak(function, rows: int, vocabulary: int) -> float:
    """KiB that torch holds at most, at one time, for a forward and backward pass of `function`, beyond its inputs.

    Counted from the allocator's own record, not from the process's resident memory: that also holds what other tests
    left behind and what a processor's library keeps for itself, so it differs from machine to machine.
    """
    hidden, weight = (torch.randn(n, WIDTH, requires_grad=True) for n in (rows, vocabulary))
    weight.grad = torch.zeros_like(weight)
    tokens = torch.randint(0, vocabulary, (rows,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        logp, entropy = function(hidden, weight, tokens, entropy=True)
        (logp.sum() + entropy.sum()).backward()
    changes = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes.sort(key=lambda e: e.start_ns())
    return max(accumulate(e.nbytes() for e in changes)) / 1024


@pytest.mark.slow
def test_peak_memory_is_a_third_of_the_plain_implementations():
    """At N*T = 4096, V = 49152. The plain one's [N, V] tensors are measured at 512 rows: they grow with the rows."""
    small, plain = _peak(token_logp_plain, 256, 49152), _peak(token_logp_plain, 512, 49152)
    assert plain == pytest.approx(2 * small, rel=0.01) and plain > 3 * 512 * 49152 * 4 / 1024
    chunked_peak, plain_peak = _peak(token_logp, 4096, 49152), 8 * plain
    assert chunked_peak <= 0.35 * plain_peak, (chunked_peak, plain_peak)


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_vocabulary():
    """Beyond the output matrix's gradient. Both make several full chunks; logits made at once would double."""
    small, large = (_peak(token_logp, 4096, v) - v * WIDTH * 4 / 1024 for v in (8192, 16384))
    assert large <= 1.1 * small, (small, large)
