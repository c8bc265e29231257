"""Advantages of trajectories: worked numbers, and what their expected gradients are, against enumeration."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.errors import InputError
from surefoot.objective import advantages as adv
from surefoot.objective import credit
from surefoot.objective.groups import group_mean, group_std, leave_one_out_mean
from surefoot.objective.rewards import reward_at_last_step
from surefoot.objective.surrogates import PolicyGradient
from surefoot.rollouts import Rollouts
from tests.conftest import label
from tests.objective.enumeration import SEQUENCES, Tree, expected_gradient, groups

BINARY = torch.tensor([1, 0, 0, 1, 0, 0, 0, 1, 0], dtype=torch.float64)
GRADED = torch.tensor([1.0, 0.2, 0.0, 0.7, 0.0, 0.1, 0.3, 1.5, -0.4], dtype=torch.float64)
ZERO = torch.zeros(4, dtype=torch.long)


def _table(reward, group, lengths=None, **columns):
    lengths = torch.tensor(lengths or [3] * len(reward))
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return Rollouts({"reward": reward, "group": group, "mask": mask, **columns}, rewards={"accuracy": reward})


# --- gradient identities ---------------------------------------------------------------------------------------------


CENTRED = {  # parts whose expected gradient is the true one times (G - 1)/G, for any rewards
    adv.GroupCentred(),
    adv.Reinforce(),
    adv.GPG(),
    adv.OPO(),  # lengths being equal
    adv.Pairwise(adv.identity),
    adv.SuccessWeighted(adv.even),
    adv.Relative(),
    credit.StepLevel(scale=None),
    credit.TurnLevel(scale=None),
}
SCALED = [  # divided by what depends on the group's own rewards: parallel to the true one for binary rewards only
    adv.GroupNormalized(eps=1e-9),
    adv.BatchNormalized(eps=1e-9),
    adv.ReinforcePlusPlus(),
    adv.ReinforcePlusPlus(group_baseline=True),
    adv.GDPO(eps=1e-9),
    adv.SuccessWeighted(),
    adv.SuccessWeighted(adv.inverse_success),
    adv.Pairwise(),
    adv.Pairwise(torch.tanh),
    credit.StepLevel(eps=1e-9),
    credit.TurnLevel(eps=1e-9),
    credit.ProcessSupervision(eps=1e-9),
]


def _credited(part, size):
    """The part on each group as a batch of its own, with the reward at the last step for parts that read it there."""

    def advantage(table):
        if isinstance(part, (adv.Reinforce, adv.GPG, adv.BatchNormalized, adv.ReinforcePlusPlus, adv.GDPO)):
            return torch.cat([part(table.rows(rows)) for rows in torch.arange(len(table)).split(size)])
        found = part(table.having(step_reward=reward_at_last_step(table.reward, table.mask)))
        return found["advantage"] if isinstance(found, dict) else found

    return advantage


@pytest.mark.parametrize("reward", [BINARY, GRADED], ids=["binary", "graded"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "part", [adv.Reinforce(baseline=False), adv.LeaveOneOut(), *sorted(CENTRED, key=label)], ids=label
)
def test_unbiased_advantages(reward, part, size):
    if isinstance(part, adv.SuccessWeighted):
        reward = reward.clamp(0, 1)
    tree, factor = Tree(), (size - 1) / size if part in CENTRED else 1.0
    found = expected_gradient(tree, reward, size, _credited(part, size), PolicyGradient())
    torch.testing.assert_close(found, factor * tree.policy_gradient(reward), atol=1e-12, rtol=0)


@pytest.mark.parametrize("part", SCALED, ids=label)
def test_advantages_with_a_scale_of_their_own_group_are_biased_unless_rewards_are_binary(part):
    tree = Tree()
    for reward, parallel in ((BINARY, True), (GRADED.clamp(0, 1), False)):
        found = expected_gradient(tree, reward, 3, _credited(part, 3), PolicyGradient())
        cosine = torch.nn.functional.cosine_similarity(found, tree.policy_gradient(reward), dim=0)
        assert (1 - cosine < 1e-9) == parallel and cosine > 0.5, cosine


@pytest.mark.parametrize("k", [1, 2, 3])
def test_normalised_pass_at_k_is_parallel_to_the_gradient_of_pass_at_k(k):
    tree, size = Tree(), 3
    p = (tree.probabilities() * BINARY).sum()
    found = expected_gradient(tree, BINARY, size, adv.PassAtK(k), PolicyGradient())
    exact = tree.gradient(1 - (1 - p) ** k)
    if k == size:  # all k-subsets alike: the group is the subset, and has no contrast
        assert (found == 0).all()
    else:
        assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 1 - 1e-9


@pytest.mark.parametrize("kernel", [adv.win_rate, torch.tanh])
def test_a_kernel_of_gaps_has_the_gradient_of_its_mean_against_the_policy_itself(kernel):
    tree = Tree()
    p = tree.probabilities()
    against = kernel(GRADED[:, None] - GRADED[None]) @ p.detach()
    found = expected_gradient(tree, GRADED, 3, adv.Pairwise(kernel), PolicyGradient())
    torch.testing.assert_close(found, 2 / 3 * tree.gradient((p * against).sum()), atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [2, 3])
def test_the_lift_of_the_best_is_unbiased_for_the_expected_maximum(size):
    tree = Tree()
    found = size * expected_gradient(tree, GRADED, size, adv.LiftOfBest(), PolicyGradient())
    combos = torch.cartesian_prod(*[torch.arange(9)] * size)
    best = GRADED[combos].amax(1)
    torch.testing.assert_close(found, tree.gradient((tree.probabilities()[combos].prod(1) * best).sum()))


def test_gae_is_unbiased_at_lambda_one_with_any_critic_and_at_any_lambda_with_the_true_one():
    tree, first = Tree(), SEQUENCES[:, 0]
    after = (tree.next.softmax(1) * GRADED.view(3, 3)).sum(1)[first]
    exact = torch.stack([(tree.probabilities() * GRADED).sum().expand(9), after], 1).detach()
    wild = torch.stack([torch.full((9,), 3.0), first * -2.0], 1).double()
    table, weight = groups(tree, GRADED, 1)
    for critic in (wild, exact):
        for lam in (1.0, 0.5, 0.0):
            advantage = credit.GAE(lam=lam, whitened=False)(table.having(old_value=critic))["advantage"]
            loss = PolicyGradient()(table.having(advantage=advantage))
            found = -tree.gradient((weight[:, None] * loss).sum())
            right = torch.allclose(found, tree.policy_gradient(GRADED), atol=1e-12)
            assert right == (lam == 1.0 or critic is exact)


def test_the_optimal_token_baseline_contains_its_own_trajectory_and_is_biased():
    """With two in the group it weighs each pair's gap by the partner's share of the score norms: another direction."""
    tree = Tree()
    first, second = tree.root.softmax(0).square().sum(), tree.next.softmax(1).square().sum(1)

    def advantage(table):
        collision = torch.stack([first.expand(len(table)), second[table.tokens[:, 0]]], 1).detach().log()
        return credit.OptimalTokenBaseline()(table.having(old_collision=collision))

    found = expected_gradient(tree, GRADED, 2, advantage, PolicyGradient())
    cosine = torch.nn.functional.cosine_similarity(found, tree.policy_gradient(GRADED), dim=0)
    assert 0.9 < cosine < 1 - 1e-4


def test_a_greedy_baseline_is_unbiased():
    tree, size = Tree(), 2
    table, weight = groups(tree, GRADED, size)
    table = table.having(baseline_reward=torch.full_like(table.reward, 0.37))
    loss = PolicyGradient()(table.having(advantage=adv.ReMax()(table)))
    found = -tree.gradient((weight[:, None] * loss).sum() / size)
    torch.testing.assert_close(found, tree.policy_gradient(GRADED), atol=1e-12, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_pkpo_rewards_are_unbiased_for_pass_at_k(k):
    tree, size = Tree(), 3
    found = size * expected_gradient(tree, BINARY, size, adv.PassAtK(k, adv.pass_at_k_reward), PolicyGradient())
    p = (tree.probabilities() * BINARY).sum()
    torch.testing.assert_close(found, tree.gradient(1 - (1 - p) ** k), atol=1e-6, rtol=1e-6)


# --- worked numbers --------------------------------------------------------------------------------------------------


def test_grpo_numbers():
    reward = torch.tensor([1.0, 0, 0, 1])
    assert adv.group_normalized(reward, ZERO, 0.0).tolist() == pytest.approx(
        [0.8660254, -0.8660254, -0.8660254, 0.8660254]
    )
    assert adv.group_normalized(torch.ones(4), ZERO).tolist() == [0] * 4


def test_pass_at_k_advantage_matches_brute_force():
    correct = torch.tensor([True, False, False, True, False, False])
    group, k = torch.zeros(6, dtype=torch.long), 2
    found = adv.pass_at_k_normalized(correct, group, k)
    subsets = list(itertools.combinations(range(6), k))
    value = {s: float(any(correct[i] for i in s)) for s in subsets}
    mean = sum(value.values()) / len(subsets)
    dev = math.sqrt(mean * (1 - mean))
    for i in range(6):
        mine = [(v - mean) / dev for s, v in value.items() if i in s]
        assert found[i].item() == pytest.approx(sum(mine) / len(mine), abs=1e-5)


def test_gdpo_does_not_let_the_widest_reward_decide():
    a, b = torch.tensor([1.0, 0, 1, 0]), torch.tensor([0.0, 0, 100, 100])
    table = Rollouts({"group": ZERO, "mask": torch.ones(4, 1, dtype=torch.bool)}, rewards={"a": a, "b": b})
    found = adv.GDPO(eps=0.0)(table)[:, 0]
    assert found[0] == pytest.approx(float(found[3]), abs=1e-4) and found[2] > 1 and found[1] < -1


def test_success_weights_and_kernels_are_one_family():
    reward = torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 1])
    group = torch.tensor([0] * 4 + [1] * 4)
    centred = adv.group_centred(reward, group)
    torch.testing.assert_close(adv.success_weighted(reward, group, adv.even), centred)
    torch.testing.assert_close(adv.pairwise(reward, group, adv.identity), centred)
    grpo = adv.success_weighted(reward, group, adv.inverse_deviation)
    population = centred / group_std(reward, group, correction=0)
    torch.testing.assert_close(grpo, population)


@pytest.mark.parametrize("weight", [adv.even, adv.inverse_deviation, adv.inverse_success])
def test_success_weights_are_finite_for_rates_and_refuse_other_rewards(weight):
    """Up to the ends: one right of 1000; rewards inside (0, 1). A negative "rate" would turn 1/p round."""
    rare = torch.zeros(1000).index_fill(0, torch.tensor([0]), 1.0)
    for reward in (rare, 1 - rare, rare * 1e-20, torch.linspace(0.2, 0.9, 1000)):
        assert adv.success_weighted(reward, torch.zeros(1000, dtype=torch.long), weight).isfinite().all()
    for wrong in (-0.5, 1.5, float("nan")):
        with pytest.raises(InputError, match="success_weighted: rewards between .*expected between 0 and 1"):
            adv.success_weighted(torch.tensor([1.0, wrong]), torch.zeros(2, dtype=torch.long), weight)


def test_a_win_rate_sees_only_the_order():
    group = torch.tensor([0, 0, 0, 1, 1])
    reward = torch.tensor([0.1, 0.2, 0.2, 5.0, -1.0])
    found = adv.pairwise(reward, group)
    assert found.tolist() == pytest.approx([-1 / 3, 1 / 6, 1 / 6, 0.25, -0.25])
    torch.testing.assert_close(adv.Pairwise()(_table(reward.exp() * 100, group, [1] * 5))[:, 0], found)


def test_inverse_success_is_the_gradient_of_the_log_success_rate():
    """Over large groups: w(p) = 1/p. Here with p exact, for the enumerated policy."""
    tree = Tree()
    p = (tree.probabilities() * BINARY).sum()
    weight = adv.inverse_success(p.detach())
    torch.testing.assert_close(weight * tree.policy_gradient(BINARY), tree.gradient(p.log()))


@pytest.mark.parametrize("part", [adv.PassAtK(2), adv.PassAtK(2, adv.pass_at_k_reward)])
def test_pass_at_k_refuses_a_group_smaller_than_k(part):
    with pytest.raises(InputError, match="group of 1 trajectories, expected at least k = 2"):
        part(_table(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 1])))


def test_a_tie_for_the_best_lifts_nothing():
    found = adv.lift_of_best(torch.tensor([1.0, 1.0, 0.0, -5.0]), torch.tensor([0, 0, 0, 1]))
    assert found.tolist() == [0, 0, 0, -5] and adv.lift_of_best(torch.zeros(0), torch.zeros(0).long()).shape == (0,)


# --- properties ------------------------------------------------------------------------------------------------------

PARTS = [
    adv.GroupNormalized(),
    adv.GroupCentred(),
    adv.LeaveOneOut(),
    adv.BatchNormalized(),
    adv.OPO(),
    adv.GPG(),
    adv.SuccessWeighted(),
    adv.SuccessWeighted(adv.even),
    adv.Pairwise(),
    adv.Pairwise(torch.tanh),
    adv.GDPO(),
    adv.ReinforcePlusPlus(),
    adv.Reinforce(),
]


@settings(max_examples=25, deadline=None)
@given(
    rewards=st.lists(st.sampled_from([0.0, 0.5, 1.0, -2.0]), min_size=6, max_size=6),
    order=st.permutations(range(6)),
    part=st.sampled_from(PARTS),
)
def test_the_order_of_trajectories_does_not_matter(rewards, order, part):
    reward, group = torch.tensor(rewards), torch.tensor([0, 0, 0, 1, 1, 2])
    if isinstance(part, adv.SuccessWeighted):
        reward = reward.clamp_min(0)
    plain = part(_table(reward, group, [1, 3, 2, 3, 1, 2]))
    lengths = torch.tensor([1, 3, 2, 3, 1, 2])[list(order)].tolist()
    moved = part(_table(reward[list(order)], group[list(order)], lengths))
    torch.testing.assert_close(moved, plain[list(order)], atol=1e-5, rtol=1e-5)
    assert plain.isfinite().all()


@pytest.mark.parametrize("part", PARTS)
def test_constant_rewards_single_members_and_padding(part):
    group = torch.tensor([0, 0, 1])
    table = _table(torch.tensor([1.0, 1.0, 1.0]), group, [2, 3, 1])
    found = part(table)
    assert found.isfinite().all() and (found[~table.mask] == 0).all()
    assert found.abs().max() < 1e-3, "equal rewards teach nothing"
    longer = table.having()
    wide = Rollouts(
        {"reward": longer.reward, "group": group, "mask": torch.nn.functional.pad(longer.mask, (0, 2))},
        rewards=longer.rewards,
    )
    torch.testing.assert_close(part(wide)[:, :3], found)


def test_group_statistics_against_loops():
    torch.manual_seed(0)
    x, group = torch.randn(7), torch.tensor([2, 0, 0, 2, 2, 1, 0])
    member = torch.tensor([1, 1, 0, 1, 1, 1, 1]).bool()
    for i in range(7):
        mates = [j for j in range(7) if group[j] == group[i]]
        counted = x[[j for j in mates if member[j]]]
        assert group_mean(x, group, member)[i].item() == pytest.approx(float(counted.mean()), abs=1e-6)
        expected = float(counted.std()) if len(counted) > 1 else 0.0
        assert group_std(x, group, member)[i].item() == pytest.approx(expected, abs=1e-6)
        others = [j for j in mates if j != i]
        expected = float(x[others].mean()) if others else float(x[i])
        assert leave_one_out_mean(x, group)[i].item() == pytest.approx(expected, abs=1e-6)
