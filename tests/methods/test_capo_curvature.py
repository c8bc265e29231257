"""CAPO (curvature): the card's exact checks."""

import math

import pytest
import torch

from surefoot.errors import InputError
from surefoot.methods.rlvr.capo_curvature import (
    CAPO_CURVATURE,
    CurvatureLimit,
    Tokens,
    batch_gradient,
    kept_tokens,
    mean_over_keepers,
    shifts,
)
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.rollout.prompts import Uniform
from surefoot.rollouts import Rollouts
from surefoot.training import checkpoint
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, tiny_policy

INF = math.inf
V, H = 4, 3


def _every_action(W, h, A, eta):
    """All actions of one state as tokens; their probabilities."""
    pi = (W @ h).softmax(0)
    n = len(pi)
    full = torch.full((n,), eta, dtype=torch.float64)
    tokens = Tokens(torch.arange(n).expand(n, n), pi.expand(n, n), torch.eye(n).double() - pi, h.expand(n, -1), A, full)
    return tokens, pi


def _state(seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(*size, generator=g, dtype=torch.float64) for size in ((V, H), (H,), (V,)))


def _sgd(tokens):
    return tokens.advantage[:, None] * tokens.v * tokens.h.square().sum(1, keepdim=True)


def test_the_mean_of_the_samples_hessian_is_the_objectives():
    W, h, A = _state()
    exact = torch.autograd.functional.hessian(lambda w: ((w @ h).softmax(0) * A).sum(), W)
    tokens, pi = _every_action(W, h, A, 1.0)
    F = torch.diag(pi) - torch.outer(pi, pi)
    mine = torch.zeros(V, H, V, H, dtype=torch.float64)
    for a in range(V):
        v = tokens.v[a]
        mine += pi[a] * A[a] * torch.einsum("ij,k,l->ikjl", torch.outer(v, v) - F, h, h)
    torch.testing.assert_close(mine, exact, atol=1e-15, rtol=1e-12)
    # and shifts() has that form: eta <g, D> + eta^2 / 2 <D, H_a D> for any direction D
    D = torch.randn(V, H, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    m_H, m_F = shifts(tokens, (D @ h).expand(V, V))
    for a in range(V):
        v = tokens.v[a]
        g, hessian = A[a] * torch.outer(v, h), A[a] * torch.einsum("ij,k,l->ikjl", torch.outer(v, v) - F, h, h)
        quadratic = torch.einsum("ik,ikjl,jl->", D, hessian, D)
        assert float(m_H[a]) == pytest.approx(float((g * D).sum() + 0.5 * quadratic))
        assert float(m_F[a]) == pytest.approx(0.5 * float(v @ D @ h) ** 2)


@pytest.mark.parametrize(
    ("action", "A", "m_H", "m_F"),
    [(2, 1.0, 0.0689465, 0.0022445), (0, 1.0, 0.0069665, 2.45e-5), (2, -1.0, 0.0650535, None)],
)
def test_worked_numbers(action, A, m_H, m_F):
    pi, h, A, eta = (torch.tensor(x, dtype=torch.float64) for x in ([[0.7, 0.2, 0.1]], [[1.0, 2.0]], [A], [0.01]))
    v = torch.eye(3, dtype=torch.float64)[action] - pi
    tokens = Tokens(torch.arange(3)[None], pi, v, h, A, eta)
    square, spread = v.square().sum(), (pi * v.square()).sum() - (pi * v).sum() ** 2
    if action == 2:
        assert float(square) == pytest.approx(1.34) and float(spread) == pytest.approx(0.2384)
    objective, policy = shifts(tokens, _sgd(tokens))
    assert float(objective) == pytest.approx(m_H, abs=5e-7)
    assert m_F is None or float(policy) == pytest.approx(m_F, rel=2e-3)
    closed = eta * A**2 * square * 5 + eta**2 / 2 * A**3 * 25 * (square**2 - spread)
    torch.testing.assert_close(objective, closed)
    torch.testing.assert_close(policy, eta**2 / 2 * A**2 * square**2 * 25)


def test_the_policy_shift_is_the_divergence_to_second_order_and_the_objective_shift_the_change():
    W, h, A = _state(1)
    errors = {}
    for eta in (1e-2, 5e-3):
        tokens, pi = _every_action(W, h, A, eta)
        D = torch.randn(V, H, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        m_H, m_F = shifts(tokens, (D @ h).expand(V, V))
        after = ((W + eta * D) @ h).softmax(0)
        kl = (pi * (pi.log() - after.log())).sum()
        errors[eta] = float((pi * m_F).sum() - kl), float(((after - pi) * A).sum() - (pi * m_H).sum())
    for big, small in zip(*errors.values(), strict=True):
        assert abs(big) > 1e-12 and big / small == pytest.approx(8, rel=0.1), "third order in eta"


def _table(n=6, t=4, k=5, d=3, seed=0, vocabulary=9, **changes):
    g = torch.Generator().manual_seed(seed)
    logp = torch.randn(n, t, vocabulary, generator=g).log_softmax(-1)
    mask = torch.rand(n, t, generator=g) < 0.8
    tokens = torch.randint(0, vocabulary, (n, t), generator=g)
    statistics = CurvatureLimit(kept=k).statistics
    columns = dict(
        mask=mask,
        tokens=tokens,
        advantage=torch.randn(n, t, generator=g),
        old_hidden=torch.randn(n, t, d, generator=g),
        old_top=statistics["old_top"](logp, tokens),
        old_top_logp=statistics["old_top_logp"](logp, tokens),
        lr=torch.full((n,), 0.5),
    )
    return Rollouts(columns | changes), logp


def test_a_token_outside_the_kept_candidates_takes_the_last_ones_place():
    table, logp = _table(k=4)
    tokens, likeliest = kept_tokens(table), logp.topk(4, -1).indices[table.mask]
    taken = table.tokens[table.mask][:, None]
    outside = ~(likeliest == taken).any(1)
    assert outside.any() and (~outside).any()
    assert torch.equal(tokens.ids[~outside], likeliest[~outside])
    assert torch.equal(tokens.ids[outside], torch.cat([likeliest[:, :3], taken], 1)[outside])
    p = logp.exp()[table.mask].gather(1, tokens.ids)
    torch.testing.assert_close(tokens.pi, p / p.sum(1, keepdim=True))
    torch.testing.assert_close(tokens.v.sum(1), torch.zeros(len(taken)), atol=1e-6, rtol=0)


def _plain(table, part, memory):
    """The slow twin: each token's whole matrices [V, H], one at a time."""
    tokens, found = kept_tokens(table), []
    for i in range(len(tokens)):
        g = torch.zeros(9, 3)
        g[tokens.ids[i]] = tokens.advantage[i] * torch.outer(tokens.v[i], tokens.h[i])
        step = memory.get("step", 0)
        D = g
        if part.adam and step:
            first, second = (torch.cat([memory[m], torch.zeros(9 - len(memory[m]), 3)]) for m in ("first", "second"))
            mean = (0.9 * first + 0.1 * g) / (1 - 0.9 ** (step + 1))
            square = (0.999 * second + 0.001 * g.square()) / (1 - 0.999 ** (step + 1))
            D = mean / (square.sqrt() + 1e-8)
        eta, v = tokens.eta[i], torch.zeros(9)
        v[tokens.ids[i]] = tokens.v[i]
        pi = torch.zeros(9)
        pi[tokens.ids[i]] = tokens.pi[i]
        u, F = D @ tokens.h[i], torch.diag(pi) - torch.outer(pi, pi)
        curved = 0.5 * eta**2 * tokens.advantage[i] * ((v @ u) ** 2 - u @ F @ u)
        found.append((eta * (g * D).sum() + curved, 0.5 * eta**2 * (v @ u) ** 2))
    return (torch.stack(x) for x in zip(*found, strict=True))


@pytest.mark.parametrize("row_gradient", [mean_over_keepers, batch_gradient])
def test_adam_is_simulated_by_rows_as_whole_matrices_do(row_gradient, monkeypatch):
    import surefoot.methods.rlvr.capo_curvature as module

    monkeypatch.setattr(module, "CELLS", 40)  # several chunks
    part = CurvatureLimit(INF, INF, kept=5, row_gradient=row_gradient)
    for seed in range(3):
        table, _ = _table(seed=seed)
        for mine, plain in zip(part.predict(kept_tokens(table)), _plain(table, part, part.memory), strict=True):
            torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-4)
        before = {k: v.clone() for k, v in part.memory.items() if k != "step"}
        assert torch.equal(part(table), table.mask)
        tokens = kept_tokens(table)
        total, keepers = torch.zeros(9, 3), torch.zeros(9)
        for i in range(len(tokens)):
            total[tokens.ids[i]] += tokens.advantage[i] * torch.outer(tokens.v[i], tokens.h[i])
            keepers[tokens.ids[i]] += 1
        gradient = row_gradient(total, keepers, len(tokens))
        past = torch.cat([before.get("first", total[:0]), torch.zeros(9 - len(before.get("first", total[:0])), 3)])
        expected = (0.9 * past + 0.1 * gradient).where((keepers > 0)[:, None], past)
        torch.testing.assert_close(part.memory["first"], expected[: len(part.memory["first"])], atol=1e-6, rtol=1e-5)
        assert part.memory["step"] == seed + 1


def test_only_accepted_tokens_reach_the_moments():
    table, _ = _table()
    everything, nothing = CurvatureLimit(INF, INF, kept=5), CurvatureLimit(1e-30, 0.0, kept=5)
    everything(table)
    assert not nothing(table).any() and nothing.memory == {} and everything.memory["step"] == 1


def test_a_zero_advantage_is_accepted_by_sgd_and_still_moves_the_policy_under_adam():
    table, _ = _table(advantage=torch.zeros(6, 4))
    m_H, m_F = CurvatureLimit(adam=False, kept=5).predict(kept_tokens(table))
    assert (m_H == 0).all() and (m_F == 0).all()
    adam = CurvatureLimit(INF, INF, kept=5)
    adam(_table(seed=3)[0])
    assert (adam.predict(kept_tokens(table))[1] > 0).any()


def test_limits_by_quantile_hold_after_the_calibration_and_off_stays_off():
    part = CurvatureLimit(policy_shift=1e-4, objective_shift=0.0, quantile=0.5, calibration=2, adam=False, kept=5)
    seen = []
    for seed in range(2):
        table, _ = _table(seed=seed)
        seen.append(part.predict(kept_tokens(table))[1])
        assert torch.equal(part(table), table.mask), "everything trains while limits are sought"
    table, _ = _table(seed=7)
    chosen = part(table)
    limit = float(torch.cat(seen).double().quantile(0.5))
    assert torch.equal(chosen[table.mask], part.predict(kept_tokens(table))[1] < limit)
    assert part.memory["limits"] == [limit, INF] and not chosen[~table.mask].any()


def test_masked_steps_may_hold_anything_and_nothing_may_be_there():
    table, _ = _table()
    bad = {
        c: table[c].masked_fill(~table.mask.view(6, 4, *[1] * (table[c].ndim - 2)), torch.nan)
        for c in ("advantage", "old_hidden", "old_top_logp")
    }
    part, other = (CurvatureLimit(1.0, 1.0, kept=5, adam=False) for _ in range(2))
    assert torch.equal(part(table), other(table.having(**bad)))
    empty = CurvatureLimit(kept=5)(table.having(mask=torch.zeros_like(table.mask)))
    assert not empty.any()


def test_bad_limits_are_refused():
    for bad in ({"quantile": 1.0}, {"policy_shift": -1.0}, {"kept": 0}):
        with pytest.raises(InputError, match="CurvatureLimit"):
            CurvatureLimit(**bad)


def _trained(method, steps=3):
    trainer = Trainer(tiny_policy(), digits_task(), method.but(prompts=Uniform(4, 4)), Settings(lr=1e-2, warmup=0))
    return [trainer.train_step().metrics for _ in range(steps)], trainer


def test_infinite_limits_are_the_base_method_bit_for_bit():
    base, _ = _trained(GRPO.but(regularizers=()), 2)
    assert _trained(CAPO_CURVATURE.but(select=CurvatureLimit(INF, INF)), 2)[0] == base


def test_training_rejects_some_and_resumes_exactly(tmp_path):
    method = CAPO_CURVATURE.but(select=CurvatureLimit(quantile=0.9, calibration=1, kept=16))
    logs, one = _trained(method)
    assert "selected" not in logs[1] and 0.3 < logs[2]["selected"] < 1
    other = Trainer(tiny_policy(), digits_task(), one.method, Settings(lr=1e-2, warmup=0))
    checkpoint.load(other, checkpoint.save(one, tmp_path))
    a, b = one.train_step(), other.train_step()
    assert a.metrics == b.metrics and torch.equal(a.batch.mask, b.batch.mask)
