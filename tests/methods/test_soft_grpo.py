"""SofT-GRPO: the card's exact checks, and the soft-thinking policy."""

import numpy as np
import pytest
import torch

from surefoot.claims.soft_grpo import verdict
from surefoot.methods.rlvr.soft_grpo import SOFT_GRPO
from surefoot.objective.divergences import k3
from surefoot.objective.soft import (
    RELEASED,
    GaussianNoise,
    GumbelNoise,
    gaussian_logp,
    gumbel,
    gumbel_logp,
    mixture,
    normal,
    renormalized,
)
from surefoot.policies.soft_thinking import SoftThinking
from surefoot.rollout.native import Sampling
from surefoot.tasks.two_hop import TwoHop
from tests.conftest import tiny_policy

P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
NEW = torch.tensor([0.4, 0.35, 0.2, 0.05], dtype=torch.float64)
ALL = torch.ones(4, dtype=torch.bool)


def _noise(count, seed=1):
    return gumbel(torch.rand(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def _score(noise, bounds=None):
    """d log-density / d log p of every draw."""
    logp = P.log().expand_as(noise).clone().requires_grad_()
    gumbel_logp(logp, P.log() + noise, ALL, bounds=bounds).sum().backward()
    return logp.grad


def test_the_largest_slot_is_a_draw_from_p_and_a_cold_mixture_is_that_slot():
    perturbed = P.log() + _noise(400_000)
    share = torch.bincount(perturbed.argmax(-1), minlength=4) / 400_000
    torch.testing.assert_close(share.double(), P, atol=4e-3, rtol=0)
    cold = mixture(perturbed[:100], ALL, 1e-4)
    assert torch.equal(cold.argmax(-1), perturbed[:100].argmax(-1)) and (cold.amax(-1) > 0.99).float().mean() > 0.95


def test_the_score_is_one_minus_exp_of_the_noise_of_mean_0_and_variance_1():
    noise = _noise(400_000)
    score = _score(noise)
    torch.testing.assert_close(score, 1 - (-noise).exp())
    assert score.mean(0).abs().max() < 6e-3 and (score.var(0) - 1).abs().max() < 2e-2
    free = score - P * score.sum(-1, keepdim=True)  # in logit space
    assert float(free.var(0).sum()) == pytest.approx(4 - 2 + 4 * float(P.square().sum()), abs=0.03)  # 3.46
    assert 3.46 / (1 - float(P.square().sum())) == pytest.approx(5.45, abs=0.01)


def test_given_the_largest_slot_the_score_is_the_discrete_one():
    noise = _noise(2_000_000)
    perturbed = P.log() + noise
    mean = (1 - (-noise).exp())[perturbed.argmax(-1) == 1].mean(0)
    torch.testing.assert_close(mean, torch.tensor([-0.5, 0.7, -0.15, -0.05]).double(), atol=5e-3, rtol=0)


def test_ratios_average_to_one_with_the_sum_and_to_less_with_the_mean():
    perturbed = P.log() + _noise(1_000_000)

    def ratio(reduction):
        new, old = (gumbel_logp(p.log().expand_as(perturbed), perturbed, ALL, reduction) for p in (NEW, P))
        return float((new - old).exp().mean())

    gap, a = (NEW / P).log(), 0.25
    exact = float(((a * gap).exp() / (1 + a * gap.expm1())).prod())
    assert exact == pytest.approx(0.98521, abs=5e-6)
    assert ratio("sum") == pytest.approx(1.0, abs=2e-3) and ratio("mean") == pytest.approx(exact, abs=1e-3)


def test_the_kl_between_gumbel_laws_is_what_k3_estimates():
    old, new = P.log(), NEW.log()
    gap = old - new
    exact = (-gap).exp() - 1 + gap
    torch.testing.assert_close(exact, torch.tensor([0.02314, 0.01252, 0.04565, 0.0]).double(), atol=5e-6, rtol=0)
    perturbed = old + _noise(400_000)
    own, other = (gumbel_logp(x.expand_as(perturbed), perturbed, ALL) for x in (old, new))
    assert float(k3(own, other).mean()) == pytest.approx(float(exact.sum()), abs=3e-3)


def test_worked_numbers():
    g = torch.tensor([0.2, -0.5, -2.0], dtype=torch.float64)
    old, new = torch.tensor([0.6, 0.3, 0.1]).double(), torch.tensor([0.5, 0.3, 0.2]).double()
    there = torch.ones(3, dtype=torch.bool)
    for p, slots in ((old, (-1.202064, -1.198589, -1.041491)), (new, (-1.302513, -1.198589, -1.087249))):
        each = torch.stack([gumbel_logp(p.log(), g, there & (torch.arange(3) == i)) for i in range(3)])
        torch.testing.assert_close(each, torch.tensor(slots).double(), atol=1e-6, rtol=0)
    for reduction, ratio in (("sum", 0.863979), ("mean", 0.952433)):
        found = gumbel_logp(new.log(), g, there, reduction) - gumbel_logp(old.log(), g, there, reduction)
        assert float(found.exp()) == pytest.approx(ratio, abs=1e-6)
    y = mixture(g, there, 0.1)
    assert y.tolist() == pytest.approx([0.999089, 0.000911, 2.8e-10], abs=1e-6)
    torch.testing.assert_close(mixture(g + 3.0, there, 0.1), y)  # y forgets a constant, the density does not
    assert gumbel_logp(old.log(), g + 3.0, there) != gumbel_logp(old.log(), g, there)


def test_the_released_bounds_bias_the_score():
    score = _score(_noise(2_000_000), RELEASED).mean()
    assert float(score) == pytest.approx(0.00334, abs=1.5e-3), "zero outside the bounds"
    a, b = np.exp(-3), np.exp(1.5)
    kept = 1 - (a + np.exp(-a) - np.exp(-b))  # 1 - E[clip(X, a, b)], X exponential
    assert kept == pytest.approx(0.01010, abs=5e-6)
    assert b * np.exp(-b) - a * np.exp(-a) == pytest.approx(0.00334, abs=5e-6)


def test_slots_that_are_not_there_count_for_nothing():
    there = torch.tensor([True, True, False, False])
    junk = torch.tensor([0.0, 0.0, torch.nan, torch.inf]).double()
    logp = renormalized(P.log() + junk, there)
    assert logp[:2].exp().sum() == pytest.approx(1.0)
    noise = torch.zeros(4).double()
    assert float(gumbel_logp(logp, logp + noise + junk, there, "mean")) == pytest.approx(-1.0)
    assert mixture(junk, there, 0.1)[2:].tolist() == [0, 0]
    assert float(gumbel_logp(logp, logp, there & False, "mean")) == 0
    low = torch.tensor([0.99, 0.01]).double().log()
    assert float(gumbel_logp(low, low, there[:2], "sum", floor=-3.0)) == -1.0


# --- Gaussian noise on the mixture --------------------------------------------------------------------------------

VECTORS = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
LAW = GaussianNoise(tau=0.5, sigma=0.3, unit=2.0)


def _drawn(count, law=LAW, factor=1.0, p=P):
    """Actions [count, 6] and their noise in deviations."""
    uniform = torch.rand(count, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return law.draw(p.log(), ALL, VECTORS, uniform, factor), normal(uniform)


def test_the_gaussian_law_is_torchs_around_the_mixture_of_the_embeddings():
    action, _ = _drawn(5)
    share = P.square() / P.square().sum()  # tau = 1/2
    law = torch.distributions.Normal(share @ VECTORS, 0.6)
    each = law.log_prob(action)
    torch.testing.assert_close(LAW.logp(P.log(), ALL, VECTORS, action), each.sum(-1))
    torch.testing.assert_close(gaussian_logp(law.mean, action, 0.6, "mean"), each.mean(-1))
    assert torch.equal(LAW.fed(action, ALL, VECTORS), action), "what is fed back is the action itself"
    quiet, _ = _drawn(5, factor=0.0)
    torch.testing.assert_close(quiet, (share @ VECTORS).expand(5, 6))
    quantiles = torch.tensor([0.025, 0.5, 0.8413447460685429], dtype=torch.float64)
    assert normal(quantiles).tolist() == pytest.approx([-1.959963984540054, 0, 1], abs=1e-9)
    assert normal(torch.tensor([0.0, 1.0])).isfinite().all()


def test_the_gaussian_score_has_its_closed_form_of_mean_0_and_its_variance():
    action, noise = _drawn(200_000)
    logits = P.log().expand(len(action), 4).clone().requires_grad_()
    LAW.logp(renormalized(logits, ALL.expand_as(logits)), ALL, VECTORS, action).sum().backward()
    share = P.square() / P.square().sum()
    slope = share[:, None] * (VECTORS - share @ VECTORS) / (0.5 * 0.6)  # y_i (E[i] - m) / (tau sigma)
    torch.testing.assert_close(logits.grad, noise @ slope.T)
    assert logits.grad.mean(0).abs().max() < 5 * float(slope.norm(dim=1).max()) / 200_000**0.5
    torch.testing.assert_close(logits.grad.T.cov(), slope @ slope.T, atol=0.02, rtol=0.02)
    vectors = VECTORS.clone().requires_grad_()
    LAW.logp(P.log(), ALL, vectors, action[0]).backward()
    torch.testing.assert_close(vectors.grad, share[:, None] * noise[0] / 0.6)  # the table learns as well


def test_gaussian_ratios_average_to_one_with_the_sum_and_to_less_with_the_mean():
    action, _ = _drawn(400_000)
    means = [p.square() / p.square().sum() @ VECTORS for p in (P, NEW)]
    gap = float((means[1] - means[0]).square().sum()) / 0.6**2
    for reduction, a in (("sum", 1.0), ("mean", 1 / 6)):
        law = GaussianNoise(LAW.tau, LAW.sigma, LAW.unit, reduction)
        old, new = (law.logp(p.log(), ALL, VECTORS, action) for p in (P, NEW))
        exact = np.exp(-a * (1 - a) * gap / 2)
        assert float((new - old).exp().mean()) == pytest.approx(exact, abs=5e-3 if reduction == "sum" else 1e-3)
        if reduction == "sum":
            assert float((old - new).mean()) == pytest.approx(gap / 2, abs=5e-3), "the KL: |m - m'|^2 / 2 sigma^2"
    assert gap > 0.05, "the two laws differ, or nothing was tested"


@pytest.mark.parametrize("law", [GumbelNoise(), LAW])
def test_slots_that_are_not_there_change_no_law_and_no_gradient(law):
    there = torch.tensor([[True, True, False, False], [False] * 4])
    junk = torch.tensor([0.0, 0.0, torch.nan, torch.inf]).double()
    logits = (P.log() + junk).expand(2, 4).clone().requires_grad_()
    vectors = VECTORS.expand(2, 4, 6)
    own = renormalized(logits, there)
    uniform = torch.full((2, law.entries(4, 6)), 0.3).double()
    action = law.draw(own, there, vectors, uniform, 1.0).detach()
    law.logp(own, there, vectors, action).sum().backward()
    assert action.isfinite().all() and logits.grad.isfinite().all() and (logits.grad[~there] == 0).all()
    assert int(law.label(own, there, action)[0]) in (0, 1)
    two = there[0, :2]
    alone = law.logp(renormalized(P[:2].log(), two), two, VECTORS[:2], action[0, : law.entries(2, 6)])
    torch.testing.assert_close(law.logp(own, there, vectors, action)[0].detach(), alone)


# --- the policy ---------------------------------------------------------------------------------------------------


def _soft(**options):
    return SoftThinking(tiny_policy(), **{"end": "7", **options})


def _sampled(policy, n=6, length=10):
    return policy.sample(["ab", "c"], torch.arange(n) % 2, torch.arange(n), Sampling(max_new_tokens=length))


LAWED = [
    {},
    {"law": GumbelNoise(reduction="mean", released=True)},
    {"law": GumbelNoise(tau=0.5), "k": 3, "top_p": 0.6},
    {"law": GaussianNoise()},
    {"law": GaussianNoise(tau=1.0, sigma=1.0, reduction="mean"), "k": 3, "top_p": 0.6},
]


@pytest.mark.parametrize("options", LAWED)
def test_scoring_gives_what_sampling_recorded(options):
    policy = _soft(**options)
    batch = _sampled(policy)
    with torch.no_grad():
        scored = policy.score(batch, {"logp"})["logp"]
    torch.testing.assert_close(scored[batch.mask], batch.rollout_logp[batch.mask], atol=2e-3, rtol=2e-3)
    assert (scored[~batch.mask] == 0).all() and batch.soft.any()
    assert (batch.slots[~batch.soft] == -1).all() and (batch.slots[batch.soft][:, 0] >= 0).all()


def test_thinking_ends_with_its_token_and_the_answer_is_discrete():
    policy = _soft(k=3)
    batch = _sampled(policy, n=64, length=20)
    end = (batch.tokens == policy.end) & batch.soft
    assert end.any(), "some row finished thinking"
    after = end.int().cumsum(1) - end.int()
    assert torch.equal(batch.soft, batch.present & (after == 0))


@pytest.mark.parametrize("law", [GumbelNoise, GaussianNoise])
def test_without_noise_and_cold_it_is_the_likeliest_token(law):
    policy = _soft(noise=0.0, law=law(tau=1e-3))
    batch = _sampled(policy, length=5)
    greedy = tiny_policy().sample(
        ["ab", "c"], torch.arange(6) % 2, torch.arange(6), Sampling(temperature=0.0, max_new_tokens=5)
    )
    soft = batch.soft & batch.present
    assert torch.equal(batch.tokens[soft], greedy.tokens[:, : batch.steps][soft])


def test_the_action_is_data_and_rows_are_their_own():
    policy = _soft()
    batch = _sampled(policy)
    alone = policy.sample(["ab", "c"], torch.tensor([1]), torch.tensor([3]), Sampling(max_new_tokens=10))
    length = int(alone.present.sum())
    assert torch.equal(alone.tokens[0, :length], batch.tokens[3, :length])
    actions = batch.actions.clone().requires_grad_()
    policy.score(batch.having(actions=actions), {"logp"})["logp"].sum().backward()
    embeddings = policy.model.get_input_embeddings().weight
    assert embeddings.grad.abs().sum() > 0


@pytest.mark.parametrize("options", LAWED)
def test_the_density_is_the_same_in_any_batch_and_behind_any_padding(options):
    policy = _soft(**options)
    batch = _sampled(policy)
    whole = policy.score(batch, {"logp"})["logp"]
    for rows in (torch.tensor([4]), torch.tensor([0, 5, 2])):
        part = policy.score(batch.rows(rows), {"logp"})["logp"]
        torch.testing.assert_close(part, whole[rows][:, : part.shape[1]], atol=2e-4, rtol=2e-4)
    junk = {k: batch[k].clone() for k in ("tokens", "actions")}
    junk["tokens"][~batch.present], junk["actions"][~batch.present] = 3, 9.0
    torch.testing.assert_close(policy.score(batch.having(**junk), {"logp"})["logp"], whole)
    grads = torch.autograd.grad(whole.sum(), policy.parameters())
    assert all(g.isfinite().all() for g in grads) and sum(g.abs().sum() for g in grads) > 0


@pytest.mark.parametrize("options", LAWED)
def test_sampling_repeats_bit_for_bit_and_other_seeds_think_otherwise(options):
    policy = _soft(**options)
    once, again = _sampled(policy), _sampled(policy)
    assert all(torch.equal(once[k], again[k]) for k in ("tokens", "slots", "actions", "rollout_logp"))
    first = once.actions[::2, 0]  # one prompt, three seeds
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])


def test_a_law_by_name(tmp_path):
    from surefoot import policies
    from surefoot.errors import InputError

    policy = policies.load("soft-thinking:law=gaussian,sigma=0.2,k=4")
    table = policy.model.get_input_embeddings().weight
    scale = float(table.detach().square().mean().sqrt())
    assert policy.law == GaussianNoise(sigma=0.2, unit=scale) and policy.k == 4
    policy.save(tmp_path)
    with torch.no_grad():
        table.mul_(2)
    assert policies.load(str(tmp_path)).law == policy.law, "the unit is that of the start"
    for spec, said in (
        ("law=gausian", "no noise law 'gausian'; did you mean 'gaussian'?"),
        ("law=gaussian,released=true", "no option 'released'"),
        ("sigma=0.2", "no option 'sigma'"),
        ("law=gaussian,sigma=0", "expected tau, sigma and unit > 0"),
        ("reduction=meen", "reduction sum or mean"),
        ("reductoin=mean", "no option 'reductoin'; did you mean 'reduction'?"),
    ):
        with pytest.raises(InputError, match="soft-thinking|noise law") as e:
            policies.load(f"soft-thinking:{spec}")
        assert said in str(e.value) and "\n" not in str(e.value)


def test_it_is_saved_and_loaded(tmp_path):
    from surefoot import policies
    from surefoot.policies import soft_thinking

    policy = soft_thinking.load(None, k=4, tau=0.5)
    policy.save(tmp_path)
    again = policies.load(str(tmp_path))
    assert (again.k, again.law, again.kind) == (4, GumbelNoise(tau=0.5), "soft-thinking")


def test_the_method_is_grpo():
    assert {"logp", "old_logp", "ref_logp"} <= set(SOFT_GRPO.readers()) and "logits" not in SOFT_GRPO.readers()


def test_the_claim_can_come_out_three_ways():
    assert verdict([0.01, 0.02, 0.0], [0.3, 0.3, 0.3]) == "reproduced"
    assert verdict([-0.05, -0.06, -0.05], [0.3, 0.3, 0.3]) == "refuted"
    assert verdict([0.01, 0.02, 0.0], [0.0, -0.1, 0.0]) == "refuted"
    assert verdict([-0.1, 0.08, 0.0], [0.3, 0.3, 0.3]) == "not reproduced"


def test_the_two_hops_can_be_answered_from_the_training_side():
    task = TwoHop()
    assert not {p.question for p in task.train} & {p.question for p in task.heldout}
    first = {p.question[0]: p.data["thought"] for p in task.train}
    second = {(p.data["thought"], p.question[1]): p.answer for p in task.train}
    known = [second.get((first[p.question[0]], p.question[1])) == p.answer for p in task.heldout]
    assert np.mean(known) > 0.99
    (question, own), (said, says) = task.demonstrations(np.random.default_rng(0), 1)[0]
    assert (own, says) == (False, True) and said.endswith("</answer>") and len(question) == 2
