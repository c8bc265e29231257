"""Preference losses: worked numbers, gradients, minimisers on enumerable problems, and properties of every loss."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.errors import InputError
from surefoot.method import Method
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.objective import preferences as P
from surefoot.objective.aggregation import SequenceMean
from surefoot.parts import Part
from surefoot.rollouts import MissingColumn, Rollouts

NAMED = {k: v for k, v in vars(P).items() if isinstance(v, Part) and k.isupper() and not k.startswith("_")}
NAMED = {k: v for k, v in NAMED.items() if "logp" in v.reads}  # of policies; a reward model's are in test_properties
PAIRED = {k: v for k, v in NAMED.items() if isinstance(v, P.Preference)}
MARGINS = {
    "logistic": P.logistic,
    "soft labels": lambda m: P.logistic(m, 0.2),
    "robust": lambda m: P.robust_logistic(m, 0.2),
    "square": lambda m: P.square(m, 5.0),
    "hinge": P.hinge,
    "exact": lambda m: P.exact_matching(m, 0.01),
    "modulated": P.modulated,
}


@pytest.fixture(autouse=True)
def forget():
    """The constants of the module start each test with no memory (BCO keeps a running mean)."""
    for part in NAMED.values():
        for _, inner in part.inside():
            inner.memory.clear()


def _table(n=6, t=5, v=7, dtype=torch.float64, seed=0):
    """`n` responses in groups of two, rewards 1 and 0, with garbage off the mask."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, t, v, generator=g, dtype=torch.float64).log_softmax(-1)
    length = torch.randint(1, t + 1, (n,), generator=g)
    mask = torch.arange(t) < length[:, None]
    tokens = torch.randint(0, v, (n, t), generator=g)
    logp = logits.gather(-1, tokens[..., None])[..., 0]
    ref = logp + 0.3 * torch.randn(n, t, generator=g, dtype=torch.float64)
    group = torch.arange(n // 2).repeat(2)[torch.randperm(n, generator=g)]
    reward, seen = torch.zeros(n), set()
    for i, k in enumerate(group.tolist()):
        reward[i] = float(k in seen)
        seen.add(k)
    return Rollouts(
        {
            "logp": logp.where(mask, torch.nan).to(dtype),
            "ref_logp": ref.where(mask, -torch.inf).to(dtype),
            "collision": (2 * logits).logsumexp(-1).to(dtype),
            "mask": mask,
            "group": group,
            "reward": reward,
        }
    )


# --- shapes -------------------------------------------------------------------------------------------------------


def test_the_gradient_of_dpo_weighs_pairs_by_how_wrong_the_implicit_reward_is():
    """arXiv 2305.18290, the gradient below eq. 7: -beta sigmoid(-beta margin) (grad log pi_w - grad log pi_l)."""
    beta, w = 0.3, torch.tensor([0.4, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    losing = torch.tensor([-0.3, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    P.Logistic(beta)(w, losing).sum().backward()
    weight = beta * torch.sigmoid(-beta * (w - losing)).detach()
    torch.testing.assert_close(w.grad, -weight)
    torch.testing.assert_close(losing.grad, weight)


def test_chi_po_worked_numbers():
    """l_w = .4, l_l = -.3, beta = .1: margins .0700 and .145101, losses .658760 and .623226, and their gradients."""
    for link, margin, loss, gradient in (
        (P.log_link, 0.07, 0.658760, (-0.0483, 0.0483)),
        (P.chi_squared_link, 0.145101, 0.623226, (-0.1156, 0.0807)),
    ):
        w, losing = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (0.4, -0.3))
        assert 0.1 * float((link(w) - link(losing)).detach()) == pytest.approx(margin, abs=5e-7)
        value = P.Logistic(0.1, limit=2.0)(link(w), link(losing))
        value.backward()
        assert float(value.detach()) == pytest.approx(loss, abs=5e-7)
        assert (float(w.grad), float(losing.grad)) == pytest.approx(gradient, abs=5e-5)


def test_the_clip_of_the_margin_stops_the_gradient():
    w = torch.tensor([50.0, 5.0], requires_grad=True)
    P.Logistic(0.1, limit=2.0)(w, torch.zeros(2)).sum().backward()
    assert w.grad[0] == 0 and w.grad[1] < 0


def test_chi_squared_link_above_its_hold_has_slope_one():
    x = torch.tensor([0.5, 30.0, 200.0], requires_grad=True)
    y = P.chi_squared_link(x)
    y.sum().backward()
    assert y.isfinite().all()
    torch.testing.assert_close(x.grad, torch.tensor([1 + math.exp(0.5), 1.0, 1.0]))


@pytest.mark.parametrize("flipped", [0.0, 0.1, 0.4])
def test_robust_logistic_is_unbiased_under_flips_and_conservative_is_not(flipped):
    m = torch.linspace(-3, 3, 7, dtype=torch.float64)
    expected = (1 - flipped) * P.robust_logistic(m, flipped) + flipped * P.robust_logistic(-m, flipped)
    torch.testing.assert_close(expected, P.logistic(m))
    smoothed = (1 - flipped) * P.logistic(m, flipped) + flipped * P.logistic(-m, flipped)
    assert torch.allclose(smoothed, P.logistic(m)) == (flipped == 0)


def _minimiser(loss, start=0.1):
    m = torch.tensor([start], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [m], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-14, tolerance_change=1e-18
    )

    def closure():
        solver.zero_grad()
        value = loss(m).sum()
        value.backward()
        return value

    solver.step(closure)
    return float(m.detach())


@pytest.mark.parametrize("p", [0.5, 0.7, 0.9, 1.0])
def test_the_minimiser_of_ipo_stays_finite_as_the_preference_becomes_certain(p):
    """(2p - 1) / (2 tau) with p the probability that the chosen wins; DPO's is logit(p) / beta, infinite at p = 1."""
    tau = 0.1
    shape = P.Square(tau)

    def loss(m):
        return p * shape(m, torch.zeros_like(m)) + (1 - p) * shape(torch.zeros_like(m), m)

    assert _minimiser(loss) == pytest.approx((2 * p - 1) / (2 * tau), abs=1e-8)
    if p < 1:
        assert _minimiser(lambda m: P.logistic(m, 1 - p)) == pytest.approx(math.log(p / (1 - p)), abs=1e-6)


def test_exact_matching_is_a_kl_with_its_zero_at_the_label():
    flipped, m = 0.2, torch.linspace(-4, 4, 9, dtype=torch.float64)
    ours, label = torch.stack([m.sigmoid(), (-m).sigmoid()]), torch.tensor([0.8, 0.2], dtype=torch.float64)
    torch.testing.assert_close(P.exact_matching(m, flipped), (ours * (ours.log() - label.log()[:, None])).sum(0))
    assert float(P.exact_matching(torch.tensor([math.log(4)], dtype=torch.float64), flipped)) == pytest.approx(0)


def test_shapes_of_two_scores_at_zero_and_their_directions():
    """Value at (0, 0), and the signs of the gradient with respect to the chosen and the rejected score."""
    log2 = math.log(2)
    for function, value, gradient in (
        (P.noise_contrast, 2 * log2, (-0.25, 0.25)),
        (P.binary, 2 * log2, (-0.5, 0.5)),
        (lambda w, r: P.self_play(w, r, 0.5), 0.5, (-1.0, 1.0)),
        (P.anchored_up, 1.0, (-0.25, 0.25)),
        (P.anchored_down, 1.0, (0.0, 0.25)),
    ):
        w, r = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
        out = function(w, r)
        out.backward()
        assert float(out.detach()) == pytest.approx(value)
        assert (float(w.grad), float(r.grad)) == pytest.approx(gradient)


def test_noise_contrast_holds_the_likelihood_of_the_chosen_where_dpo_does_not():
    """With the rejected far down, NCA's gradient vanishes at a finite chosen score (log 2), DPO's never does."""
    assert _minimiser(lambda w: P.noise_contrast(w, w.detach() * 0 - 50)) == pytest.approx(math.log(2), abs=1e-7)
    w = torch.tensor([math.log(2)], requires_grad=True)
    P.logistic(w - 0.0).backward()
    assert w.grad < -0.3


def test_prospect_saturates_on_both_sides():
    """KTO's value function: the gradient fades for very bad and very good responses alike, unlike the logistic's."""
    r = torch.tensor([-20.0, 0.0, 20.0], dtype=torch.float64, requires_grad=True)
    P.prospect(r, torch.tensor([True, True, True]), origin=0.0).sum().backward()
    assert r.grad[1] == -0.25 and r.grad[[0, 2]].abs().max() < 1e-8
    low = P.prospect(r, torch.tensor([False, True, False]), origin=torch.tensor(1.0), gain=3.0, loss=2.0).detach()
    torch.testing.assert_close(low[0], 2 * torch.tensor(-21.0, dtype=torch.float64).sigmoid())


@settings(max_examples=50, deadline=None)
@given(w=st.floats(-30, 30), losing=st.floats(-30, 30), shift=st.floats(-30, 30))
def test_a_classifier_bounds_the_logistic_loss_and_most_closely_at_the_mean_score(w, losing, shift):
    a, b = (torch.tensor([x], dtype=torch.float64) for x in (w, losing))
    mean = P.binary(a, b, (a + b) / 2)
    assert P.logistic(a - b) <= mean + 1e-12 and mean <= P.binary(a, b, shift) + 1e-12


def test_a_reward_models_score_is_the_value_at_the_last_chosen_step_also_after_a_tools():
    mask = torch.tensor([[True, False, True, False], [True, True, False, False]])
    value = torch.tensor([[1.0, 2.0, 3.0, float("nan")], [5.0, 6.0, 7.0, 8.0]])
    assert P.EndValue()(Rollouts({"value": value, "mask": mask})).tolist() == [3.0, 6.0]


def test_bco_shifts_by_a_running_mean_that_does_not_start_at_zero():
    part = P.Classifier(beta=0.5, decay=0.75).fresh()
    w, losing = torch.tensor([4.0, 8.0], requires_grad=True), torch.tensor([0.0, 4.0])
    torch.testing.assert_close(part(w, losing), P.binary(w / 2, losing / 2, 2.0))
    later = part(w + 8, losing + 8)  # means 2 and 6, of weights 0.75 / 4 and 1 / 4
    torch.testing.assert_close(later, P.binary(w / 2 + 4, losing / 2 + 4, (0.75 * 2 + 6) / 1.75))
    (grad,) = torch.autograd.grad(later.sum(), w)
    assert (grad < 0).all() and part(w[:0], losing[:0]).shape == (0,)
    resumed = P.Classifier(beta=0.5, decay=0.75).fresh()
    resumed.load_state_dict(part.state_dict())
    torch.testing.assert_close(resumed(w, losing), part(w, losing))


def test_power_links_run_from_the_reverse_to_the_forward_kl():
    u = torch.tensor([-2.0, -0.1, 0.0, 0.5, 3.0], dtype=torch.float64)
    torch.testing.assert_close(P.PowerLink(1.0)(u), P.forward_kl_link(u))
    assert P.PowerLink(0.0)(u) is u
    torch.testing.assert_close(P.PowerLink(1e-7)(u), u, atol=1e-6, rtol=0)
    torch.testing.assert_close(P.PowerLink(-1.0)(u) + u, P.chi_squared_link(u) - 1)
    assert P.PowerLink(0.5)(torch.tensor([-1e4])).isfinite()


def test_aot_paired_sorts_the_margins_of_both_and_with_one_pair_is_dpo():
    table = _table()
    one = table.rows(table.group == 0)
    torch.testing.assert_close(P.AOT_PAIRED(one), P.DPO(one))
    chosen, rejected = P.pairs(table.group, table.reward)
    mine, theirs = (P.sequence_logp(table[c], table.mask) for c in ("logp", "ref_logp"))
    a, b = (mine[chosen] - mine[rejected]).sort().values, (theirs[chosen] - theirs[rejected]).sort().values
    torch.testing.assert_close(P.AOT_PAIRED(table).sum() / 2, P.logistic(0.1 * (a - b)).sum())
    assert P.AOT_PAIRED.whole_batch and set(P.AOT_PAIRED.reads) == {"logp", "ref_logp", "mask", "group", "reward"}


def test_transport_compares_distributions_not_pairs():
    w, r = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 2.5, -1.0])
    shuffled = P.transport_margin(w[[2, 0, 1]], r[[1, 2, 0]])
    torch.testing.assert_close(P.transport_margin(w, r), shuffled)
    best = min(P.logistic(w - r[list(order)]).sum() for order in itertools.permutations(range(3)))
    # of all pairings, the sorted one has the least convex loss: it is optimal transport on the line
    torch.testing.assert_close(P.logistic(shuffled).sum(), best)


# --- minimisers on an enumerable problem --------------------------------------------------------------------------

REF = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
REWARD = torch.tensor([1.0, 0.0, 0.5, 2.0], dtype=torch.float64)


def _population_gradient(policy, link, beta, preference):
    """Gradient, in logits, of E over all pairs of the soft-labelled logistic loss."""
    logits = policy.log().requires_grad_()
    score = link(logits.log_softmax(0) - REF.log())
    i, j = torch.triu_indices(4, 4, 1)
    weight = REF[i] * REF[j]
    (weight * P.logistic(beta * (score[i] - score[j]), 1 - preference[i, j])).sum().backward()
    return logits.grad


@pytest.mark.parametrize(
    "link", [P.log_link, P.chi_squared_link, P.forward_kl_link, P.js_link, P.PowerLink(0.5), P.PowerLink(-0.5)]
)
def test_the_optimum_of_each_regulariser_is_stationary_for_its_link(link):
    """beta link(log pi/ref) + Z = r at the optimum of E[r] - beta D_f(pi || ref): so Bradley-Terry pairs are fitted."""
    beta = 2.0
    policy = _optimum(link, beta)
    assert float(policy.sum()) == pytest.approx(1.0, abs=1e-12)
    preference = torch.sigmoid(REWARD[:, None] - REWARD[None])
    assert _population_gradient(policy, link, beta, preference).abs().max() < 1e-10
    assert _population_gradient(REF, link, beta, preference).abs().max() > 1e-3


def _optimum(link, beta):
    """`pi = ref * e^l` with beta link(l) = r - Z; both l and Z by bisection."""

    def log_ratio(target):
        low, high = torch.full((4,), -19.0).double(), torch.full((4,), 19.0).double()
        for _ in range(100):
            middle = (low + high) / 2
            below = link(middle) < target
            low, high = middle.where(below, low), high.where(below, middle)
        return (low + high) / 2

    low, high = -20.0, 20.0
    for _ in range(100):
        z = (low + high) / 2
        mass = float((REF * log_ratio((REWARD - z) / beta).exp()).sum())
        low, high = (z, high) if mass > 1 else (low, z)
    return REF * log_ratio((REWARD - z) / beta).exp()


def test_the_minimiser_of_dpo_is_the_soft_optimum():
    beta = 0.5
    soft = (REF.log() + REWARD / beta).softmax(0)
    torch.testing.assert_close(_optimum(P.log_link, beta), soft)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    preference = torch.sigmoid(REWARD[:, None] - REWARD[None])
    i, j = torch.triu_indices(4, 4, 1)
    solver = torch.optim.LBFGS([logits], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-13)

    def closure():
        solver.zero_grad()
        score = logits.log_softmax(0) - REF.log()
        loss = P.logistic(beta * (score[i] - score[j]), 1 - preference[i, j]).sum()
        loss.backward()
        return loss

    solver.step(closure)
    torch.testing.assert_close(logits.detach().softmax(0), soft, atol=1e-6, rtol=1e-5)


def test_chi_po_card_optimum():
    """ref = (.5, .3, .2), r = (1, 0, .5), beta = .5: (.6893, .1395, .1711), Z = .150122."""
    ref, r = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([1.0, 0.0, 0.5]).double()
    rho = torch.tensor([0.6893, 0.1395, 0.1711]).double() / ref
    torch.testing.assert_close(0.5 * P.chi_squared_link(rho.log()) + 0.150122, r, atol=3e-4, rtol=0)


# --- lists --------------------------------------------------------------------------------------------------------


def test_plackett_luce_is_a_distribution_over_orders():
    score = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64)
    orders = torch.tensor(list(itertools.permutations(range(4))))
    total = (-P.plackett_luce(score[orders], torch.ones_like(orders, dtype=torch.bool))).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-12)


def test_plackett_luce_of_two_is_the_logistic_loss():
    score = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    two = torch.ones(5, 2, dtype=torch.bool)
    torch.testing.assert_close(P.plackett_luce(score, two), P.logistic(score[:, 0] - score[:, 1]))


def test_padding_of_a_list_has_no_gradient():
    score = torch.tensor([[0.2, -1.0, float("nan")]], requires_grad=True)
    P.plackett_luce(score, torch.tensor([[True, True, False]])).sum().backward()
    torch.testing.assert_close(score.grad[0, :2], torch.tensor([-1.0, 1.0]) * torch.sigmoid(torch.tensor(-1.2)))
    assert score.grad[0, 2] == 0


def test_ranking_matches_pairs_and_skips_padding():
    table = _table()
    torch.testing.assert_close(P.Ranking(beta=0.1)(table), P.DPO(table))
    group = torch.tensor([0, 0, 0, 1, 1, 0])
    loss = P.Ranking()(table.having(group=group, reward=torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])))
    score = 0.1 * P.LogRatio()(table)
    one = torch.ones(1, 4, dtype=torch.bool)
    torch.testing.assert_close(loss[[0, 1, 2, 5]], P.plackett_luce(score[None, [5, 2, 0, 1]], one).expand(4))
    torch.testing.assert_close(loss[[3, 4]], P.logistic(score[4] - score[3]).expand(2))


# --- scores and weights -------------------------------------------------------------------------------------------


def test_length_desensitisation_lies_between_dpo_and_the_shared_prefix():
    table = _table()
    full, none = P.LD_DPO.having(score=P.LogRatio(tail=1.0))(table), P.LD_DPO.having(score=P.LogRatio(tail=0.0))(table)
    torch.testing.assert_close(full, P.DPO(table))
    length = table.mask.sum(1)
    chosen, rejected = P.pairs(table.group, table.reward)
    shared = length.clone()
    shared[chosen] = shared[rejected] = torch.minimum(length[chosen], length[rejected])
    cut = table.having(mask=table.mask & (torch.arange(table.steps) < shared[:, None]))
    torch.testing.assert_close(none, P.DPO(cut))
    assert not torch.allclose(none, full)


def test_on_policy_weight_has_mean_one_under_the_policy_at_every_step():
    p = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(0)
    collision = p.square().sum().log().expand(9, 1)
    weight = P.on_policy_weight(p.log()[:, None], collision, torch.ones(9, 1, dtype=torch.bool))
    assert float((p * weight).sum()) == pytest.approx(1.0)


def test_wpo_weighs_pairs_and_has_no_gradient_through_the_weight():
    table = _table()
    live = table.logp.clone().requires_grad_()
    table = table.having(logp=live)
    weighted, plain = P.WPO(table), P.DPO(table)
    one = P.OnPolicyWeight()(table)
    chosen, rejected = P.pairs(table.group, table.reward)
    product = torch.empty_like(one)
    product[chosen] = product[rejected] = one[chosen] * one[rejected]
    torch.testing.assert_close(weighted, plain * product)
    (a,) = torch.autograd.grad(weighted.sum(), live, retain_graph=True)
    (b,) = torch.autograd.grad((plain * product).sum(), live)
    torch.testing.assert_close(a, b)


def test_two_anchors():
    table = _table()
    other = table.ref_logp + 1.0
    score = P.LogRatio(anchors=("ref_logp", "old_logp"), weights=(0.25, 0.75))(table.having(old_logp=other))
    torch.testing.assert_close(score, P.LogRatio()(table) - 0.75 * table.mask.sum(1))


def test_odds_and_mean_scores_read_no_reference():
    table = _table().without("ref_logp")
    mean = P.sequence_logp(table.logp, table.mask) / table.mask.sum(1)
    torch.testing.assert_close(P.LogOdds()(table), torch.logit(mean.exp()))
    torch.testing.assert_close(P.SIMPO.score(table), mean)
    with pytest.raises(MissingColumn):
        P.DPO(table)


# --- the part -----------------------------------------------------------------------------------------------------


def test_the_scalar_loss_is_the_mean_over_pairs():
    table = _table()
    chosen, rejected = P.pairs(table.group, table.reward)
    assert (table.reward[chosen] == 1).all() and (table.reward[rejected] == 0).all()
    assert (table.group[chosen] == table.group[rejected]).all() and len(chosen) == 3
    score = 0.1 * P.LogRatio()(table)
    scalar = (SequenceMean()(table).sum(1) * P.DPO(table)).sum()
    torch.testing.assert_close(scalar, P.logistic(score[chosen] - score[rejected]).mean())


def test_equal_rewards_count_nothing():
    table = _table()
    tied = table.having(reward=torch.zeros(6))
    for part in (P.DPO, P.IPO, P.AOT, P.AOT_PAIRED, P.BCO):
        assert (part(tied) == 0).all()
    assert set(P.DPO.metrics(tied).values()) == {0.0}


def test_a_group_that_is_not_of_two_is_an_error():
    table = _table()
    with pytest.raises(InputError, match=r"group \d has 1 trajectories, expected 2.*prompts.rollouts"):
        P.DPO(table.rows([0, 1, 2, 3, 4]))


def test_the_likelihood_of_the_chosen():
    table = _table()
    chosen, rejected = P.pairs(table.group, table.reward)
    loss = P.ChosenLikelihood(0.5)(table)
    expected = -0.5 * P.sequence_logp(table.logp, table.mask)[chosen] / table.mask.sum(1)[chosen]
    torch.testing.assert_close(loss[chosen], expected)
    torch.testing.assert_close(loss[rejected], expected)
    assert P.ChosenLikelihood(0.0).reads == () and (P.ChosenLikelihood(0.0)(table) == 0).all()


def test_impossible_flip_rates_are_errors():
    for make in (lambda: P.RobustLogistic(flipped=0.5), lambda: P.ExactMatching(flipped=0.0)):
        with pytest.raises(InputError, match="flipped"):
            make()


@pytest.mark.parametrize("name", NAMED)
def test_every_named_loss_ignores_what_is_off_the_mask_and_survives_toml(name):
    part, table = NAMED[name], _table(seed=1)
    live = table.logp.clone().requires_grad_()
    loss = part(table.having(logp=live))
    loss.sum().backward()
    assert loss.shape == (6,) and loss.isfinite().all() and live.grad.isfinite().all()
    assert (live.grad[~table.mask] == 0).all() and (live.grad[table.mask] != 0).any()
    other = table.having(logp=table.logp.where(table.mask, 3.0), ref_logp=table.ref_logp.where(table.mask, 7.0))
    torch.testing.assert_close(part(other), loss.detach())
    method = GRPO.but(surrogate=part)
    assert Method.from_dict(method.to_dict()).surrogate == part


@pytest.mark.parametrize("name", sorted(PAIRED.keys() - {"DISCOPOP"}))
def test_every_paired_loss_prefers_a_larger_margin(name):
    """Its gradient never lowers the chosen relative to the rejected, and raises it where the pair is wrongly ranked.

    DiscoPOP is the exception, by its own paper.
    """
    for table in (_table(), _table().having(reward=1 - _table().reward)):
        live = table.logp.clone().requires_grad_()
        NAMED[name](table.having(logp=live)).sum().backward()
        chosen, rejected = P.pairs(table.group, table.reward)
        mean = live.grad.where(table.mask, 0.0).sum(1) / table.mask.sum(1)
        score = NAMED[name].score(table)
        push = mean[chosen] - mean[rejected]
        assert (push <= 0).all() and (push[score[chosen] < score[rejected]] < 0).all()


def test_discopop_pushes_the_wrong_way_between_its_local_minimum_and_maximum():
    """At beta = temperature = .05 these are at rho = -2.3714 and 1.44012 (arXiv 2406.08414, section 6)."""
    rho = torch.linspace(-6, 6, 240001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(P.modulated(0.05 * rho, 0.05).sum(), rho)
    turns = rho.detach()[1:][(slope[1:] > 0) != (slope[:-1] > 0)]
    torch.testing.assert_close(turns, torch.tensor([-2.3714, 1.4401]).double(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", NAMED)
def test_bfloat16_columns_give_float32_losses(name):
    exact, rounded = NAMED[name](_table()), NAMED[name](_table(dtype=torch.bfloat16))
    assert rounded.dtype == torch.float32
    table, low = _table(), _table(dtype=torch.bfloat16)
    same = table.having(**{k: low[k].double() for k in ("logp", "ref_logp", "collision")})
    torch.testing.assert_close(rounded.double(), NAMED[name](same), rtol=2e-4, atol=2e-4)
    assert exact.dtype == torch.float64


# --- properties ---------------------------------------------------------------------------------------------------

numbers = st.floats(-50, 50)


@pytest.mark.parametrize("name", MARGINS)
@settings(max_examples=25, deadline=None)
@given(m=st.floats(-1e4, 1e4))
def test_extreme_margins_are_finite_with_finite_gradients(name, m):
    x = torch.tensor([m], dtype=torch.float32, requires_grad=True)
    loss = MARGINS[name](x)
    loss.backward()
    assert loss.isfinite().all() and x.grad.isfinite().all()


@settings(max_examples=50, deadline=None)
@given(m=numbers, e=st.floats(0, 0.49))
def test_swapping_chosen_and_rejected(m, e):
    """The logistic's odd part is linear: l(m) - l(-m) = -(1 - 2e) m; swapping is also flipping the label."""
    x = torch.tensor([m], dtype=torch.float64)
    torch.testing.assert_close(P.logistic(x, e) - P.logistic(-x, e), -(1 - 2 * e) * x)
    torch.testing.assert_close(P.logistic(-x, e), P.logistic(x, 1 - e))
    torch.testing.assert_close(P.robust_logistic(x, e) - P.robust_logistic(-x, e), -x / (1 - 2 * e))


OF_MARGINS = {
    k: v for k, v in PAIRED.items() if isinstance(v.score, P.LogRatio) and not isinstance(v.shape, P.Classifier)
}


@pytest.mark.parametrize("name", sorted(OF_MARGINS))
@settings(max_examples=10, deadline=None)
@given(w=numbers, losing=numbers, shift=numbers)
def test_losses_of_a_margin_ignore_a_common_shift_of_scores_and_the_others_do_not(name, w, losing, shift):
    shape = PAIRED[name].shape
    a, b = torch.tensor([w], dtype=torch.float64), torch.tensor([losing], dtype=torch.float64)
    if not isinstance(shape, (P.OfScores, P.SelfPlay)):
        torch.testing.assert_close(shape(a + shift, b + shift), shape(a, b), rtol=1e-7, atol=1e-7)
    else:  # one pair: at some others (equal scores, or mirrored ones) a shift happens to change nothing
        a, b = torch.tensor([0.7], dtype=torch.float64), torch.tensor([-0.4], dtype=torch.float64)
        assert not torch.allclose(shape(a + 1.5, b + 1.5), shape(a, b), rtol=1e-7, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_rows_does_not_matter(seed):
    table = _table()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    for part in (P.DPO, P.LD_DPO, P.AOT, P.AOT_PAIRED, P.BCO, P.Ranking(), P.KTO):
        torch.testing.assert_close(part(table.rows(order)), part(table)[order])
