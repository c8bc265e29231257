import math

import numpy as np
import pytest
from pytest import approx

from surefoot.errors import InputError
from surefoot.stability import from_samples as fs

REF = np.array([0.5, 0.3, 0.15, 0.05])
REWARD = np.array([1.0, 0.0, 1.0, 1.0])
POLICY = np.array([0.55, 0.15, 0.2, 0.1])
BETA = 0.5


def optimum(reward, beta=BETA, ref=REF):
    p = ref * np.exp(reward / beta)
    return p / p.sum()


def kl(p, q):
    return float(p @ np.log(p / q))


def distance(p, q):
    return 0.5 * float(np.abs(p - q).sum())


# 1


def test_a_tie_lists_its_classes_and_height():
    found = fs.tie(np.array([1, 1, 1, 1, 0.5]), ["a", "a", "a", "b", "c"])
    assert found.share == approx(0.8) and found.classes == approx({"a": 0.75, "b": 0.25})
    assert found.height == approx(0.75) and found.gap == 0


def test_the_gap_is_to_the_best_response_of_another_class():
    found = fs.tie(np.array([1, 0.9, 0.7, 0.2]), ["a", "a", "b", "c"])
    assert found.gap == approx(0.3) and found.classes == {"a": 1.0} and found.height == 0
    assert fs.tie(np.ones(3), ["a"] * 3).gap is None


def test_a_tolerance_widens_the_tie():
    assert set(fs.tie(np.array([1, 0.9995]), ["a", "b"], tol=1e-3).classes) == {"a", "b"}


# 2


@pytest.mark.parametrize(("n", "mass"), [(59, 0.0495), (299, 0.00997)])
def test_mass_of_what_never_occurred(n, mass):
    assert fs.zero_events(n) == approx(mass, abs=5e-5 if n == 59 else 5e-6)


def test_range_statement_and_its_inverse():
    assert fs.range_confidence(93, 0.05) == approx(0.950, abs=5e-4)
    assert fs.range_confidence(8, 0.05) == approx(0.057, abs=5e-4)
    assert fs.range_confidence(8, fs.outside_range(8)) == approx(0.95, abs=1e-9)
    assert fs.outside_range(1) == 1


def test_range_statement_by_simulation():
    rng = np.random.default_rng(0)
    u = rng.random((20000, 8))
    assert np.mean(1 - np.ptp(u, axis=1) <= 0.3) == approx(fs.range_confidence(8, 0.3), abs=0.01)


def test_good_turing_is_nearly_unbiased():
    rng, p = np.random.default_rng(1), np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    unseen, estimate = [], []
    for _ in range(3000):
        draw = rng.choice(6, 12, p=p)
        unseen.append(1 - p[np.unique(draw)].sum())
        estimate.append(fs.unseen_class_mass(draw))
    n = 12  # E[share of singletons of n] is the unseen mass after n - 1 draws
    assert np.mean(estimate) == approx(float(np.sum(p * (1 - p) ** (n - 1))), abs=0.005)
    assert np.mean(estimate) == approx(np.mean(unseen), abs=0.03)


# 3


def test_reference_shares_come_back_from_the_policys_own_samples():
    tie = [0, 2, 3]
    found = fs.slack_drift(tie, np.log(POLICY / REF)[tie], weight=POLICY[tie])
    shares = REF[tie] / REF[tie].sum()
    assert [found.reference[str(b)] for b in tie] == approx(list(shares))
    assert found.distance == approx(distance(POLICY[tie] / POLICY[tie].sum(), shares))


def test_the_optimum_does_not_drift():
    tie, star = [0, 2, 3], optimum(REWARD)
    assert fs.slack_drift(tie, np.log(star / REF)[tie], weight=star[tie]).distance == approx(0, abs=1e-12)


def test_effective_size():
    assert fs.effective_size(np.zeros(7)) == approx(7)
    assert fs.effective_size(np.array([0.0, -800.0])) == approx(1)


def test_drift_test_sees_movement_and_only_movement():
    rng = np.random.default_rng(0)
    prompt, late = np.repeat(np.arange(10), 20), np.tile(np.arange(20) >= 10, 10)
    still = rng.choice(["a", "b"], 200)
    moved = np.where(late, rng.choice(["a", "b"], 200, p=[0.1, 0.9]), rng.choice(["a", "b"], 200, p=[0.9, 0.1]))
    assert fs.drift_test(prompt, late, moved, 199)[1] == approx(1 / 200)
    assert fs.drift_test(prompt, late, still, 199)[1] > 0.05
    with pytest.raises(InputError, match="no prompt was answered at both"):
        fs.drift_test(prompt, np.zeros(200, bool), still)


# 4


def test_residual_is_the_kl_to_the_optimum():
    found = fs.residual(REWARD, np.log(POLICY / REF), BETA, weight=POLICY)
    e = REWARD - BETA * np.log(POLICY / REF)
    assert e == approx([0.952345, 0.346574, 0.856159, 0.653426], abs=1e-6)
    assert found.kl == approx(0.0750058, abs=5e-8) == approx(kl(POLICY, optimum(REWARD)), abs=5e-8)
    assert found.small == approx(0.0924618, abs=5e-8)
    assert distance(POLICY, optimum(REWARD)) == approx(0.1276661, abs=5e-8)


def test_residual_vanishes_at_the_optimum():
    star = optimum(REWARD)
    found = fs.residual(REWARD, np.log(star / REF), BETA, weight=star)
    assert found.kl == approx(0, abs=1e-12) and found.spread == approx(0, abs=1e-7) and found.ess == approx(4)


def test_residual_from_a_sample():
    draw = np.random.default_rng(0).choice(4, 40000, p=POLICY)
    found = fs.residual(REWARD[draw], np.log(POLICY / REF)[draw], BETA)
    assert found.kl == approx(0.0750058, abs=2e-3) and found.ess > 10_000


# 5


def test_change_of_the_reward_moves_the_optimum_by_this_much():
    delta, star = np.array([0.1, 0, -0.1, 0]), optimum(REWARD)
    moved, share = fs.reward_change(delta, BETA, weight=star)
    assert moved == approx(0.0659144, abs=5e-8) == approx(distance(star, optimum(REWARD + delta)), abs=5e-8)
    assert share == approx(0.9786337, abs=1e-7)  # 0.97863365: the card's last digit is rounded up
    assert fs.reward_change_cap(np.ptp(delta), BETA) == approx(0.0996680, abs=5e-8) and moved <= 0.0996680
    assert fs.reward_change_cap(0.2, 0) == 1


def test_no_change_of_the_reward_exceeds_the_cap():
    rng = np.random.default_rng(0)
    for _ in range(200):
        ref, delta, beta = rng.dirichlet(np.ones(5)), rng.normal(size=5), rng.uniform(0.05, 2)
        moved, _ = fs.reward_change(delta, beta, weight=ref)
        assert moved <= fs.reward_change_cap(np.ptp(delta), beta) + 1e-12
        tilted = ref * np.exp(delta / beta) / (ref @ np.exp(delta / beta))
        assert moved == approx(distance(ref, tilted), abs=1e-10)


# 6


def test_total_variation_is_unbiased():
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    ratio = np.log(q / p)
    assert fs.total_variation(ratio, weight=p) == approx(0.4)
    draws = np.random.default_rng(0).choice(3, (4000, 5), p=p)
    assert np.mean([fs.total_variation(ratio[d]) for d in draws]) == approx(0.4, abs=0.01)
    assert fs.total_variation(np.array([-math.inf, 0.0]), weight=p[:2] / p[:2].sum()) == approx(2 / 3)


def test_hoeffding_half_width():
    assert fs.hoeffding(1000) == approx(0.043, abs=5e-4)


def test_class_distance_beside_its_bias():
    labels = np.random.default_rng(0).choice(list("abcdef"), 40)
    assert fs.class_distance(labels, labels) == 0
    assert 0.1 < fs.class_distance_null(labels) < 0.4
    assert fs.class_distance_null(["a"]) == 1


@pytest.mark.parametrize(("seeds", "p"), [(3, 0.100), (4, 0.029), (5, 0.008)])
def test_smallest_p_of_a_reward_effect(seeds, p):
    arm = np.arange(2 * seeds) < seeds
    apart = (arm[:, None] != arm[None, :]).astype(float)
    effect, found = fs.reward_effect(apart, arm)
    assert effect == 1 and found == approx(p, abs=5e-4)


def test_no_reward_effect_and_too_few_seeds():
    noise = np.random.default_rng(3).random((8, 8))
    arm = np.arange(8) < 4
    assert fs.reward_effect(np.full((8, 8), 0.66), arm) == (approx(0), 1.0)
    assert fs.reward_effect(noise + noise.T, arm)[1] > 0.028
    with pytest.raises(InputError, match="expected at least two"):
        fs.reward_effect(noise, np.arange(8) < 1)


def test_collapse_counts():
    assert fs.collapse_test(10, 24, 14, 24) == approx(0.39, abs=5e-3)


# 7


def test_flip_margins():
    i, j, w = {"1": 1, "2": 0.2}, {"1": 0.9, "2": 0.6}, {"1": 0.9, "2": 0.1}
    found = fs.flip_margin(i, j, w)
    assert found.margin == approx(0.05) and found.all_err == approx(0.025)
    assert found.alone == approx({"1": 0.05 / 1.8, "2": 0.25}) and found.decisive == "1"
    assert found.weights == approx(0.2) and found.exact
    tied = {"1": 0.8, "2": 0.2}
    assert sum(tied[k] * (i[k] - j[k]) for k in tied) == approx(0)


def test_weights_cannot_flip_what_wins_everywhere():
    found = fs.flip_margin({"1": 1, "2": 1}, {"1": 0, "2": 0.5}, {"1": 0.5, "2": 0.5})
    assert found.weights == math.inf and not found.exact


def test_a_donor_without_enough_weight_makes_it_a_lower_bound():
    found = fs.flip_margin(
        {"1": 1.0, "2": 0.6, "3": 0.0}, {"1": 0.0, "2": 0.0, "3": 0.1}, {"1": 0.1, "2": 0.85, "3": 0.05}
    )
    assert not found.exact and found.weights > 0.2
    with pytest.raises(InputError, match="not negative"):
        fs.flip_margin({"1": 1}, {"1": 0}, {"1": -1})


# 8


@pytest.mark.parametrize(
    ("eps", "floor", "first"), [(1.0, 1e-6, 2.6457), (1e-3, 1e-6, 2.6378), (1e-3, 1e-4, 2.0315), (1e-5, 1e-4, 0.0847)]
)
def test_normalisation_blows_up_a_broken_tie(eps, floor, first):
    reward = np.ones(8)
    reward[0] += eps
    assert fs.normalized_advantage(reward, floor)[0] == approx(first, abs=6e-5)
    assert reward[0] - reward.mean() == approx(7 * eps / 8)


def test_normalised_advantage_is_root_seven_above_the_floor():
    reward = np.ones(8)
    reward[0] += 100
    assert fs.normalized_advantage(reward)[0] == approx(math.sqrt(7), abs=1e-6)


def test_tie_breaker_share():
    correct = np.array([1.0, 1, 0, 0])
    constant, length = np.ones(4), np.array([0.0, 1e-3, 2e-3, 3e-3])
    groups = [(correct - length, correct), (constant - length, constant), (constant, constant)]
    parts = [np.abs(fs.normalized_advantage(r)).sum() for r, _ in groups[:2]]
    assert fs.tie_breaker_share(groups) == approx(parts[1] / sum(parts)) and parts[1] > 3
    assert fs.tie_breaker_share([(constant, constant)]) == 0


# 9


def test_verifier_errors():
    found = fs.verifier(0.6, 0.05, 0.1)
    assert found.accuracy == approx(0.647059, abs=5e-7) and found.false_share == approx(0.029412, abs=5e-7)
    assert fs.verifier(0.01, 0.05, 0.1).accuracy == 0 and fs.verifier(0.99, 0.05, 0.1).accuracy == 1
    assert fs.verifier(0.0, 0.05, 0.1).false_share == 0
    with pytest.raises(InputError, match="sum below 1"):
        fs.verifier(0.5, 0.6, 0.4)


def test_systematic_errors_enter_the_tie():
    assert fs.wrong_share(0.2, 0.002, 0.01) == approx(0.009901, abs=5e-7)
    assert fs.wrong_share(0.2, 0.002, 0.01, bonus=0.05) == approx(0.597445, abs=5e-7)
    ref, reward = np.array([0.2, 0.002, 0.798]), np.array([1, 1.05, 0])
    star = optimum(reward, 0.01, ref)
    assert star[1] / star[:2].sum() == approx(fs.wrong_share(0.2, 0.002, 0.01, 0.05))


def test_an_audit_without_errors():
    assert fs.audit_limit(0, 59) == approx(0.05, abs=1e-3)
