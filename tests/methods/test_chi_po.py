"""chi-PO: the card's numbers, the loss through the method, its gradient, and its claim."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from surefoot import methods
from surefoot.claims.chi_po import KINDS, fitted, minimax, regret, rewards
from surefoot.exact.divergence import CHI2, CHI2_KL, KL, f_regularised_optimum
from surefoot.rollouts import Rollouts

CHI, DPO = methods.find("chi-po").surrogate, methods.find("dpo").surrogate


def _pair(chosen, rejected):
    """One pair of one token each whose log-ratios are given (the rejected first, to see that rewards decide)."""
    logp = torch.tensor([[rejected], [chosen]], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 1, dtype=torch.bool)
    columns = dict(ref_logp=torch.zeros(2, 1), mask=mask, group=torch.zeros(2).long())
    return logp, Rollouts(columns | {"logp": logp, "reward": torch.tensor([0.0, 1.0])})


def _loss_and_slopes(surrogate, chosen, rejected):
    logp, batch = _pair(chosen, rejected)
    loss = surrogate(batch)
    assert loss[0] == loss[1]
    (grad,) = torch.autograd.grad(loss.mean(), logp)
    return float(loss[0]), float(grad[1]), float(grad[0])


def test_worked_pair():
    dpo, chi = DPO, CHI.having(shape=CHI.shape.having(beta=0.1))
    assert _loss_and_slopes(dpo, 0.4, -0.3) == pytest.approx((0.658760, -0.0483, 0.0483), abs=5e-5)
    assert _loss_and_slopes(chi, 0.4, -0.3) == pytest.approx((0.623226, -0.1156, 0.0807), abs=5e-5)


def test_near_the_reference_the_margin_is_twice_dpos_and_far_below_it_is_dpos():
    beta = CHI.shape.beta
    slope = _loss_and_slopes(CHI, 1e-6, -1e-6)[1]
    assert slope == pytest.approx(-beta, rel=1e-4)  # beta sigma(0) (1 + 1), where DPO has beta sigma(0)
    loss, _, rejected = _loss_and_slopes(CHI, -30.0, -31.0)
    assert loss == pytest.approx(np.log1p(np.exp(-beta)), rel=1e-6)
    assert rejected == pytest.approx(beta / (1 + np.exp(beta)), rel=1e-6)


def test_outside_the_clip_there_is_no_gradient_and_the_share_is_reported():
    shape = CHI.shape
    assert shape.limit == 2.0 and shape.beta == 0.05  # R = 1
    far = np.log(2.5 / shape.beta)  # beta e^l alone is 2.5
    assert _loss_and_slopes(CHI, far, -1.0)[1:] == (0.0, 0.0)
    _, batch = _pair(far, -1.0)
    assert CHI.metrics(batch)["clipped"] == 1 and CHI.metrics(_pair(0.1, -1.0)[1])["clipped"] == 0
    assert "clipped" not in DPO.metrics(batch)


def test_the_optimum_of_the_card():
    ref, r = np.array([0.5, 0.3, 0.2]), np.array([1, 0, 0.5])
    pi = f_regularised_optimum(ref, r, 0.5, CHI2_KL)
    assert_allclose(pi, [0.6893, 0.1395, 0.1711], atol=5e-5)
    rho = pi / ref
    assert_allclose(r - 0.5 * (rho + np.log(rho)), 0.150122, atol=1e-6)
    assert_allclose(f_regularised_optimum(ref, r, 0.5, KL), [0.8141, 0.0661, 0.1198], atol=5e-5)


@pytest.mark.parametrize(("beta", "chi", "kl"), [(0.1, 8.81, 956.6), (0.05, 18.07, 1000)])
def test_a_rare_good_action(beta, chi, kl):
    ref, r = np.array([0.001, 0.999]), np.array([1.0, 0.0])
    ratio = f_regularised_optimum(ref, r, beta, CHI2_KL)[0] / ref[0]
    assert ratio == pytest.approx(chi, abs=5e-3) and ratio <= 1 + 1 / beta
    assert f_regularised_optimum(ref, r, beta, KL)[0] / ref[0] == pytest.approx(kl, abs=0.06)


def test_the_divergence_behind_the_link():
    """`d/dpi beta D = beta phi(rho)` up to a constant, and KL <= 2 D_chi2."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), 50), rng.dirichlet(np.ones(5), 50)
    assert_allclose(CHI2_KL(p, q), CHI2(p, q) / 2 + KL(p, q))
    assert (KL(p, q) <= CHI2(p, q)).all()
    step = rng.normal(size=(50, 5)) * 1e-6 * p
    step -= step.mean(-1, keepdims=True) * 1
    change = CHI2_KL(p + step, q) - CHI2_KL(p - step, q)
    rho = p / q
    assert_allclose(change, 2 * (step * (rho + np.log(rho))).sum(-1), rtol=1e-4, atol=1e-12)


def test_the_methods_part_finds_the_optimum_of_the_tilted_reward():
    """The chi-PO loss on exact Bradley-Terry labels is least at `W0`'s policy: its gradient vanishes there."""
    beta, ref, r = 0.5, torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([1.0, 0.0, 0.5]).double()
    surrogate = CHI.having(shape=CHI.shape.having(beta=beta))

    def gradient(pi):
        logits = torch.as_tensor(np.log(pi)).requires_grad_()
        logp, rows, weights = logits.log_softmax(-1), [], []
        for i in range(3):
            for j in range(3):
                rows += [i, j]
                weights.append(ref[i] * ref[j] * torch.sigmoid(r[i] - r[j]))
        mask = torch.ones(18, 1, dtype=torch.bool)
        batch = Rollouts(
            dict(
                logp=logp[rows][:, None],
                ref_logp=ref.log()[rows][:, None],
                mask=mask,
                group=torch.arange(9).repeat_interleave(2),
                reward=torch.tensor([1.0, 0.0]).repeat(9),
            )
        )
        loss = (surrogate(batch)[::2] * torch.stack(weights)).sum()
        return torch.autograd.grad(loss, logits)[0].abs().max()

    optimum = f_regularised_optimum(ref.numpy(), r.numpy(), beta, CHI2_KL)
    assert gradient(optimum) < 1e-8
    assert gradient(f_regularised_optimum(ref.numpy(), r.numpy(), beta, KL)) > 1e-3


@pytest.mark.parametrize(("n", "kl", "chi"), [(100, 0.114, 0.0681), (10**4, 0.040, 0.0070)])
def test_minimax_regret_of_the_card(n, kl, chi):
    assert minimax(n, KL) == pytest.approx(kl, rel=0.08)  # the card's grid of beta is coarser
    assert minimax(n, CHI2_KL) == pytest.approx(chi, rel=0.02)


def test_the_claim_is_not_one_sided():
    """At beta = .2 and n = 1e4 KL is better: chi-squared needs a smaller beta."""
    true = rewards(0.2)
    learned = np.array([true[0], true[1], 1.0])
    kl, chi = (float(regret(10**4, np.array([0.2]), learned, true, k)) for k in KINDS.values())
    assert (kl, chi) == pytest.approx((0.054, 0.075), abs=1e-3)


def test_fitted_rewards_are_the_most_likely_ones_in_the_box():
    from scipy.optimize import minimize
    from scipy.special import log_expit

    wins = np.random.default_rng(3).integers(0, 9, (4, 3, 3)).astype(float)
    wins[0, :, 2] = wins[0, 2, :] = 0.0
    wins[0, 2, 0] = 1.0  # won its only comparison

    def loss(r, w):
        return -(w * log_expit(r[:, None] - r)).sum() + 1e-3 * ((r - 0.5) ** 2).sum()

    found = fitted(wins)
    for r, w in zip(found, wins, strict=True):
        w = w * (1 - np.eye(3))
        best = minimize(loss, np.full(3, 0.5), (w,), bounds=[(0, 1)] * 3, tol=1e-12).x
        assert loss(r, w) <= loss(best, w) + 1e-8
    assert found[0, 2] == 1.0
