"""Credit over time: definitions, worked numbers and gradient identities by enumeration."""

import pytest
import torch

from surefoot.objective import credit
from surefoot.objective.rewards import KLInReward, PerStep, Shaped, shaped
from surefoot.objective.surrogates import PolicyGradient
from surefoot.rollouts import Rollouts
from tests.objective.enumeration import SEQUENCES, Tree, groups

GRADED = torch.tensor([1.0, 0.2, 0.0, 0.7, 0.0, 0.1, 0.3, 1.5, -0.4], dtype=torch.float64)


def test_gae_equals_its_definition_and_skips_tool_steps():
    torch.manual_seed(0)
    reward, value = torch.randn(2, 5), torch.randn(2, 5)
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]]).bool()
    gamma, lam = 0.9, 0.7
    found, returns = credit.gae(reward, value, mask, gamma, lam)
    for row in range(2):
        steps = mask[row].nonzero().flatten().tolist()
        values = [float(value[row, t]) for t in steps] + [0.0]
        ends = [*steps[1:], 5]  # what the environment pays counts for the step before
        paid = [float(reward[row, t:end].sum()) for t, end in zip(steps, ends, strict=True)]
        deltas = [paid[i] + gamma * values[i + 1] - values[i] for i in range(len(steps))]
        for i, t in enumerate(steps):
            expected = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(steps)))
            assert found[row, t].item() == pytest.approx(expected, abs=1e-5)
            assert returns[row, t].item() == pytest.approx(expected + values[i], abs=1e-5)
    assert (found[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_potential_shaping_leaves_the_return_up_to_the_first_potential():
    torch.manual_seed(0)
    reward, potential = torch.randn(3, 4), torch.randn(3, 4)
    mask = torch.ones(3, 4, dtype=torch.bool)
    gamma = 0.8
    discount = gamma ** torch.arange(4)
    before = (discount * reward).sum(1)
    after = (discount * shaped(reward, potential, mask, gamma)).sum(1)
    torch.testing.assert_close(after, before - potential[:, 0])


def test_rewards_to_go():
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1]]).bool()
    step = torch.tensor([[0.0, 1, 2, 0], [0, 0, 0, 4]])
    assert credit.reward_to_go(step, mask).tolist() == [[3, 3, 0, 0], [4, 4, 0, 4]]
    assert credit.reward_to_go(step, mask, 0.5).tolist() == [[1.5, 3, 0, 0], [1, 2, 0, 4]], "tools take no time"


def _turns():
    """Two trajectories of one group: turns of 2 and 1 tokens with a tool's token between, and a third, shorter."""
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    turn = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 1], [0, -1, -1, -1]])
    step = torch.tensor([[0.0, 1, 2, 4], [0, 0, 0, 1], [2, 9, 9, 9]])
    group = torch.zeros(3, dtype=torch.long)
    return Rollouts({"mask": mask, "turn": turn, "step_reward": step, "group": group})


def test_turn_level_credit_compares_turns_of_one_index():
    """By turns: 3 then 4; 0 then 1; 2. To go, discounted by 1/2: 5 and 4; .5 and 1; 2. Padding is not paid."""
    table = _turns()
    found = credit.TurnLevel(gamma=0.5, scale=None)(table)
    assert found.tolist() == [[2.5, 2.5, 0, 1.5], [-2.0, -2.0, 0, -1.5], [-0.5, 0, 0, 0]]
    scaled = credit.TurnLevel(gamma=0.5, eps=0.0)(table)
    first = torch.tensor([5, 0.5, 2])
    torch.testing.assert_close(scaled[:, 0], (first - first.mean()) / first.std())


def test_turn_level_credit_does_not_depend_on_how_many_tokens_a_turn_has():
    table = _turns()
    repeat = torch.tensor([0, 0, 1, 2, 3])
    longer = Rollouts(
        {
            "mask": table.mask[:, repeat],
            "turn": table.turn[:, repeat],
            "step_reward": table.step_reward[:, repeat] * torch.tensor([1, 0, 1, 1, 1]),
            "group": table.group,
        }
    )
    torch.testing.assert_close(credit.TurnLevel()(longer)[:, 1:], credit.TurnLevel()(table))


def test_a_turn_that_only_one_reached_is_not_credited():
    table = _turns().rows([0, 2])
    assert credit.TurnLevel()(table)[0, 3] == 0


def test_process_supervision_normalises_first_and_sums_afterwards():
    table = _turns()
    paid = torch.tensor([3.0, 4, 0, 1, 2])
    z = (paid - paid.mean()) / paid.std()
    found = credit.ProcessSupervision(eps=0.0)(table)
    expected = [[z[0] + z[1]] * 2 + [0, z[1]], [z[2] + z[3]] * 2 + [0, z[3]], [z[4], 0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_step_level_credit_compares_all_steps_of_a_group():
    table = Rollouts(
        {
            "mask": torch.tensor([[1, 1], [1, 0]]).bool(),
            "step_reward": torch.tensor([[1.0, 2.0], [0.0, 5.0]]),
            "group": torch.tensor([4, 4]),
        }
    )
    to_go = torch.tensor([3.0, 2.0, 5.0])  # what stands off the mask belongs to the step before
    centred = (to_go - to_go.mean()).tolist()
    found = credit.StepLevel(scale=None)(table)
    torch.testing.assert_close(found, torch.tensor([centred[:2], [centred[2], 0.0]]))


def test_shaped_rewards_to_go_have_the_true_gradient_and_so_has_the_kl_in_the_reward():
    tree = Tree()
    table, weight = groups(tree, GRADED, 1)
    value = torch.stack([torch.full((9,), 0.3), tree.next.detach()[SEQUENCES[:, 0], 0]], 1).double()
    paid = Shaped()(table.having(old_value=value))
    assert paid["reward"].equal(table.reward)
    advantage = credit.reward_to_go(paid["step_reward"], table.mask)
    found = -tree.gradient((weight[:, None] * PolicyGradient()(table.having(advantage=advantage))).sum())
    torch.testing.assert_close(found, tree.policy_gradient(GRADED), atol=1e-12, rtol=0)

    table, _ = groups(tree, GRADED, 1)
    ref = Tree(seed=5).logp().detach()
    paid = KLInReward(coef=0.3)(table.having(ref_logp=ref))
    torch.testing.assert_close(paid["step_reward"].sum(1), paid["reward"])
    advantage = credit.reward_to_go(paid["step_reward"], table.mask)
    found = -tree.gradient((weight[:, None] * PolicyGradient()(table.having(advantage=advantage))).sum())
    p = tree.probabilities()
    kl = (p * (p.log() - ref.sum(1))).sum()
    torch.testing.assert_close(found, tree.gradient((p * GRADED).sum() - 0.3 * kl), atol=1e-12, rtol=0)


def test_rewards_of_steps_stay_and_those_of_trajectories_are_paid_at_the_end():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    rewards = {"end": torch.tensor([1.0, 2.0]), "step": torch.tensor([[0.5, 0, 0], [0, 0.0, 0]])}
    table = Rollouts({"mask": mask}, rewards)
    paid = PerStep({"end": 2.0})(table)
    assert paid["step_reward"].tolist() == [[0.5, 2, 0], [4, 0, 0]] and paid["reward"].tolist() == [2.5, 4.0]


def test_the_optimal_token_baseline_part_takes_its_energy_from_the_columns():
    tree = Tree()
    table, _ = groups(tree, GRADED, 2)
    square = torch.stack(
        [tree.root.softmax(-1).square().sum().expand(9), tree.next.softmax(-1).square().sum(-1)[SEQUENCES[:, 0]]], 1
    ).detach()
    rows = torch.tensor([[a, b] for a in range(9) for b in range(9)]).flatten()
    found = credit.OptimalTokenBaseline()(table.having(old_collision=square[rows].log()))
    i, j = 2 * (9 * 3 + 7), 2 * (9 * 3 + 7) + 1  # the group of sequences 3 and 7
    energy = (1 - 2 * tree.logp().detach().exp() + square).cumsum(1)[[3, 7]]
    baseline = (energy * GRADED[[3, 7], None]).sum(0) / energy.sum(0)
    torch.testing.assert_close(found[[i, j]], GRADED[[3, 7], None] - baseline)


def test_the_optimal_token_baseline_lowers_the_variance():
    tree = Tree()
    p = tree.probabilities().detach()
    old = tree.logp().detach()
    square = torch.stack(
        [tree.root.softmax(-1).square().sum().expand(9), tree.next.softmax(-1).square().sum(-1)[SEQUENCES[:, 0]]], 1
    ).detach()
    energy = 1 - 2 * old.exp() + square
    weight = energy.cumsum(1)
    to_go = GRADED[:, None].expand(9, 2)
    best = (p[:, None] * weight * to_go).sum(0) / (p[:, None] * weight).sum(0)

    def variance(baseline):
        rows = [tree.gradient(((to_go[i] - baseline) * tree.logp()[i]).sum()) for i in range(9)]
        rows = torch.stack(rows)
        mean = (p[:, None] * rows).sum(0)
        return (p * (rows - mean).square().sum(1)).sum()

    assert variance(best) < variance(torch.zeros(2)) and variance(best) < variance((p * GRADED).sum().expand(2))


def test_a_cut_episode_goes_on_and_an_ended_one_does_not():
    """Rows: ended by the environment, cut by a limit, cut after one step (what stands on padding must not leak)."""
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    table = Rollouts(
        {
            "step_reward": mask.float(),
            "old_value": torch.tensor([[2.0, 3.0]] * 3),
            "old_next_value": torch.tensor([[3.0, 5.0], [3.0, 5.0], [3.0, float("nan")]]),
            "ended": torch.tensor([[False, True], [False, False], [False, True]]),
            "mask": mask,
        }
    )
    found = credit.EpisodeGAE(gamma=0.5, lam=0.0, whitened=False)(table)
    expected = torch.tensor([[1 + 1.5 - 2, 1 - 3], [1 + 1.5 - 2, 1 + 2.5 - 3], [1 + 1.5 - 2, 0.0]])
    torch.testing.assert_close(found["advantage"], expected)
    torch.testing.assert_close(found["returns"], (expected + table.old_value).where(mask, 0.0))
