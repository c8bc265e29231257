"""What every part of the algebra keeps: masks, padding, order, splits, extreme ratios, bfloat16, empty masks."""

import inspect
import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.objective import advantages as A
from surefoot.objective import credit as C
from surefoot.objective import distillation, entropy, terms, values
from surefoot.objective import divergences as D
from surefoot.objective import preferences as P
from surefoot.objective import ratios as R
from surefoot.objective import surrogates as S
from surefoot.parts import Part
from surefoot.rollouts import COLUMNS, Rollouts
from tests.conftest import label

RATIOS = [R.TokenRatio(), R.TurnRatio(), R.SequenceRatio(), R.SequenceTokenRatio(), R.TrajectoryRatio()]
GENERATORS = [D.REVERSE_KL, D.FORWARD_KL, D.JEFFREYS, D.CHI_SQUARED, D.TOTAL_VARIATION, D.SQUARED_HELLINGER]
GENERATORS += [D.SkewedJS(0.3), D.Alpha(0.5), D.Alpha(2.0)]
SURROGATES = [S.Clip(0.2, 0.3, 3.0, ratio) for ratio in RATIOS]
SURROGATES += [S.PolicyGradient(), S.Clip(math.inf), S.GeometricMean(), S.CISPO(), S.SAPO(), S.VESPO(), S.TOPR()]
SURROGATES += [S.TrustRegion(), S.TrustRegion(S.binary_kl, 0.05), S.AdvantageWeighted(), S.OffPolicyMasked()]
SURROGATES += [S.EngineCorrected(masked=m, ratio=r, floor=0.5) for m in (False, True) for r in RATIOS[::4]]
SURROGATES += [S.Regression(), S.Regression(clamp=0.5, psi=0.0, per=0.5)]
SURROGATES += [terms.Term(S.Clip(), 0.5), distillation.SequenceKD(), values.ValueLoss(), values.ValueLoss(clip=None)]
REGULARIZERS = [D.KL(k) for k in (D.k1, D.k2, D.k3, D.absolute, D.StraightThrough())]
REGULARIZERS += [D.KL(D.Sampled(g)) for g in GENERATORS] + [D.KL(ratio=r) for r in RATIOS]
REGULARIZERS += [D.FullDivergence(g, top=k) for g in GENERATORS for k in (0, 3)] + [distillation.Distillation()]
REGULARIZERS += [entropy.EntropyBonus(1.0, kind) for kind in (None, entropy.Nucleus(0.8), entropy.Tsallis())]
REGULARIZERS += [entropy.EntropyBonus(1.0, entropy.Buckets((0, 0, 1, 1, 2, 2)))]
PAIRED = [v for k, v in vars(P).items() if isinstance(v, Part) and k.isupper() and k[0] != "_"]
PAIRED += [P.ChosenLikelihood(), P.Ranking(), P.Preference(P.LogRatio(link=P.PowerLink()))]
UPDATE = SURROGATES + REGULARIZERS + PAIRED
CREDIT = [A.Relative(), A.GroupNormalized(), A.LeaveOneOut(), A.Reinforce(), A.BatchNormalized(), A.OPO(), A.GPG()]
CREDIT += [
    A.ReinforcePlusPlus(True),
    A.ReMax(),
    A.SuccessWeighted(),
    A.Pairwise(),
    A.PassAtK(1),
    A.PassAtK(2, A.pass_at_k_reward),
]
CREDIT += [A.LiftOfBest(), A.GDPO(), C.GAE(), C.StepLevel(), C.TurnLevel(), C.ProcessSupervision()]
CREDIT += [C.OptimalTokenBaseline(), C.GAE(stepwise=True), entropy.EntropyAdvantage(A.GroupCentred())]
CREDIT += [distillation.LogRatioAdvantage(gamma=0.5)]
V = 6


@cache
def _make(seed=0, n=8, t=5, spread=0.4, dtype=torch.float64, garbage=math.nan) -> Rollouts:
    """Pairs of trajectories in two turns with a tool's step between, all columns; `garbage` stands off the mask."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)  # noqa: E731
    length = torch.randint(1, t + 1, (n,), generator=g)
    present = torch.arange(t) < length[:, None]
    mask = present & (torch.arange(t) != 2)
    base = draw(n, t, V)
    full = {k: (base + spread * draw(n, t, V)).log_softmax(-1) for k in ("logits", "ref_logits", "teacher_logits")}
    tokens = torch.randint(0, V, (n, t, 1), generator=g)
    own = {k.replace("logits", "logp"): v.gather(-1, tokens)[..., 0] for k, v in full.items()}
    logp = own["logp"]
    columns = full | own
    columns |= {k: (logp + spread * draw(n, t)).clamp(max=-1e-3) for k in ("old_logp", "rollout_logp")}
    columns |= {k: draw(n, t) for k in ("value", "old_value", "returns")}
    columns |= {k: -(full["logits"].exp() * full["logits"]).sum(-1) for k in ("entropy", "old_entropy")}
    columns |= {k: (2 * full["logits"]).logsumexp(-1) for k in ("collision", "old_collision")}
    off = {k: v.where(mask.view(n, t, *[1] * (v.ndim - 2)), garbage).to(dtype) for k, v in columns.items()}
    reward = torch.rand(n, generator=g, dtype=torch.float64).to(dtype)
    paid = (draw(n, t) * mask).to(dtype)
    return Rollouts(
        off
        | {
            "mask": mask,
            "present": present,
            "turn": (torch.arange(t) > 2).long().expand(n, t).where(present, -1),
            "group": torch.arange(n // 2).repeat(2),
            "reward": reward,
            "baseline_reward": torch.rand(n, generator=g, dtype=torch.float64).to(dtype),
            "step_reward": paid,
            "advantage": (draw(n, 1) * mask).to(dtype),
        },
        rewards={"a": reward, "b": paid},
    )


LIVE = ("logp", "logits", "value", "entropy")


def _loss(part: Part, table: Rollouts) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses on the mask (or of trajectories), and the gradient of their sum in each live column."""
    part = part.fresh()
    leaves = {k: table[k].clone().requires_grad_() for k in LIVE if k in part.reads}
    term = part(table.having(**leaves))
    term = term.where(table.mask, 0.0) if term.ndim == 2 else term
    grads = torch.autograd.grad(term.sum(), list(leaves.values()), allow_unused=True)
    return term.detach(), {k: g for k, g in zip(leaves, grads, strict=True) if g is not None}


def _credit(part: Part, table: Rollouts) -> torch.Tensor:
    found = part.fresh()(table)
    return found["advantage"] if isinstance(found, dict) else found


def _close(a, b, **kw):
    torch.testing.assert_close(a, b, **({"rtol": 1e-6, "atol": 1e-7} | kw))


def test_the_list_holds_every_part():
    """A new surrogate, regularizer, preference or advantage is held to these properties too."""
    listed = {type(inner) for part in UPDATE + CREDIT for _, inner in part.inside()}
    bases = {S.OffPolicy, S.Corrected, A.GroupCentred, P.LogOdds}
    for module in (S, D, A, P):
        for name, found in vars(module).items():
            if inspect.isclass(found) and issubclass(found, Part) and found.__module__ == module.__name__:
                assert found in listed | bases or name[0] == "_", f"{name}: not in the list of this file"


@pytest.mark.parametrize("part", UPDATE, ids=label)
def test_what_is_off_the_mask_does_not_leak_into_loss_or_gradient(part):
    clean, dirty = _loss(part, _make(garbage=0.0)), _loss(part, _make(garbage=math.nan))
    _close(clean[0], dirty[0])
    mask = _make().mask
    for name, grad in dirty[1].items():
        _close(grad[mask], clean[1][name][mask])
        assert (grad[~mask] == 0).all()


@pytest.mark.parametrize("part", CREDIT, ids=label)
def test_credit_is_zero_off_the_mask_whatever_stands_there(part):
    mask = _make().mask
    found = _credit(part, _make(garbage=math.nan))
    _close(found, _credit(part, _make(garbage=0.0)))
    assert (found[~mask] == 0).all() and found[mask].abs().max() > 0 and not found.requires_grad


def _padded(table: Rollouts, extra: int) -> Rollouts:
    def pad(name, x):
        if COLUMNS[name].axes.split()[1:2] != ["t"]:
            return x
        filler = {"turn": -1, "step_reward": 0, "advantage": 0}.get(name, math.nan if x.is_floating_point() else 0)
        return torch.cat([x, x.new_full((len(x), extra, *x.shape[2:]), filler)], 1)

    rewards = {k: torch.cat([r, r.new_zeros(len(r), extra)], 1) if r.ndim == 2 else r for k, r in table.rewards.items()}
    return Rollouts({k: pad(k, table[k]) for k in table}, rewards)


@pytest.mark.parametrize("part", UPDATE + CREDIT, ids=label)
def test_padding_changes_nothing(part):
    run = _credit if part in CREDIT else lambda p, x: _loss(p, x)[0]
    found, plain = run(part, _padded(_make(), 3)), run(part, _make())
    _close(found[:, :5] if found.ndim == 2 else found, plain)


@cache
def _whole(index: int) -> torch.Tensor:
    part = (UPDATE + CREDIT)[index]
    return _credit(part, _make()) if part in CREDIT else _loss(part, _make())[0]


@settings(max_examples=100, deadline=None)
@given(index=st.integers(0, len(UPDATE + CREDIT) - 1), order=st.permutations(range(8)))
def test_the_order_of_rows_does_not_matter(index, order):
    part, table = (UPDATE + CREDIT)[index], _make().rows(order)
    found = _credit(part, table) if part in CREDIT else _loss(part, table)[0]
    _close(found, _whole(index)[order][:, : table.steps] if found.ndim == 2 else _whole(index)[order])


@settings(max_examples=100, deadline=None)
@given(index=st.integers(0, len(UPDATE) - 1), cut=st.integers(1, 3), seed=st.integers(0, 99))
def test_microbatches_of_whole_groups_give_the_same_losses(index, cut, seed):
    part, table = UPDATE[index], _make()
    if any(inner.whole_batch for _, inner in part.inside()):
        return
    names = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    for groups in (names[:cut], names[cut:]):
        rows = torch.isin(table.group, groups).nonzero().flatten()
        found = _loss(part, table.rows(rows))[0]
        whole = _whole(index)[rows]
        _close(found, whole[:, : found.shape[1]] if found.ndim == 2 else whole)


@pytest.mark.parametrize("part", UPDATE + CREDIT, ids=label)
def test_an_empty_mask_is_finite_and_weighs_nothing(part):
    table = _make(garbage=math.nan)
    table = table.having(
        mask=torch.zeros_like(table.mask), **{k: torch.zeros_like(table[k]) for k in ("advantage", "step_reward")}
    )
    if part in CREDIT:
        assert (_credit(part, table) == 0).all()
        return
    loss, grads = _loss(part, table)
    assert loss.isfinite().all() and all((g == 0).all() for g in grads.values())


@pytest.mark.parametrize("part", UPDATE + CREDIT, ids=label)
def test_bfloat16_columns_give_float32_results_without_more_rounding(part):
    low = _make(dtype=torch.bfloat16, garbage=0.0)
    exact = low.having(
        rewards={k: r.double() for k, r in low.rewards.items()},
        **{k: low[k].double() for k in low if low[k].is_floating_point()},
    )
    run = _credit if part in CREDIT else lambda p, x: _loss(p, x)[0]
    found = run(part, low)
    assert found.dtype == torch.float32
    _close(found.double(), run(part, exact).double(), rtol=1e-4, atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(part=st.sampled_from(UPDATE), seed=st.integers(0, 99), size=st.sampled_from([5.0, 46.0]))
def test_ratios_from_1e_minus_20_to_1e20_are_finite_with_finite_gradients(part, seed, size):
    """All policies up to e^46 apart, at random, in float32."""
    g = torch.Generator().manual_seed(seed)
    table = _make(dtype=torch.float32)
    names = ("logp", "old_logp", "ref_logp", "teacher_logp", "rollout_logp")
    far = {k: -size * torch.rand(table.mask.shape, generator=g).where(table.mask, math.nan) - 1e-3 for k in names}
    logits = ("logits", "ref_logits", "teacher_logits")
    wide = {k: (size * torch.rand(8, 5, V, generator=g)).log_softmax(-1) for k in logits}
    loss, grads = _loss(part, table.having(**far, **wide))
    assert loss.isfinite().all() and all(x.isfinite().all() for x in grads.values())


@pytest.mark.parametrize("part", [p for p in UPDATE if "logits" in p.reads], ids=label)
def test_a_forbidden_candidate_counts_nothing_and_has_no_gradient(part):
    """One that no policy may take (log-probability -inf) against a vocabulary without it."""
    table, logits = _make(), ("logits", "ref_logits", "teacher_logits")
    less = table.having(**{k: table[k][..., :-1].log_softmax(-1) for k in logits})
    more = less.having(**{k: torch.cat([less[k], torch.full_like(less[k][..., :1], -math.inf)], -1) for k in logits})
    if isinstance(getattr(part, "kind", None), entropy.Buckets):
        less = table.having(**{k: more[k] for k in logits})  # a map of all candidates: only finiteness is compared
    (loss, grads), (plain, _) = _loss(part, more), _loss(part, less)
    _close(loss, plain)
    assert grads["logits"].isfinite().all() and (grads["logits"][..., -1] == 0).all()
