"""INPO: the card's numbers, the loss through the method's own part, and what must not hold off the policy's pairs."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from surefoot import methods
from surefoot.claims.inpo import CYCLE, inpo_step, play
from surefoot.errors import InputError
from surefoot.exact.games import preference_gap, preference_nash, preference_step
from surefoot.methods.preference.inpo import nash_square
from surefoot.objective.preferences import IPO, Square
from surefoot.rollout.native import Sampling
from surefoot.rollout.prompts import Request
from surefoot.rollout.strategies import BestAndWorst
from surefoot.rollouts import Rollouts

REF, NOW, TAU, ETA = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2]), 0.2, 0.5
NEXT = [0.506759, 0.324961, 0.168280]


def _batch(logp, ref, now, pairs):
    """One-token responses: each pair is (winner, loser)."""
    rows = [i for pair in pairs for i in pair]
    columns = {"logp": logp[rows][:, None], "mask": torch.ones(len(rows), 1, dtype=torch.bool)}
    columns |= {k: torch.as_tensor(np.log(v))[rows][:, None] for k, v in {"ref_logp": ref, "old_logp": now}.items()}
    group, reward = torch.arange(len(pairs)).repeat_interleave(2), torch.tensor([1.0, 0.0]).repeat(len(pairs))
    return Rollouts(columns | {"group": group, "reward": reward})


EVERY = [(i, j) for i in range(3) for j in range(3)]


def _expected(logits, part, drawn, P=CYCLE):
    """The loss in expectation: pairs from `drawn` with itself, labels by P."""
    loss = part(_batch(logits.log_softmax(-1), REF, NOW, EVERY))[::2]
    return sum(drawn[i] * drawn[j] * P[i, j] * loss[n] for n, (i, j) in enumerate(EVERY))


def _slope(policy, part, drawn):
    logits = torch.as_tensor(np.log(policy)).requires_grad_()
    return torch.autograd.grad(_expected(logits, part, drawn), logits)[0].abs().max()


def test_the_mirror_step_of_the_card():
    assert_allclose(CYCLE @ NOW, [0.58, 0.46, 0.42])
    step = preference_step(CYCLE, NOW, REF, TAU, ETA)
    assert_allclose(step, NEXT, atol=5e-7)
    h = np.log(step[0] / step[1]) - TAU / ETA * np.log(REF[0] / REF[1]) - (1 - TAU / ETA) * np.log(NOW[0] / NOW[1])
    assert h == pytest.approx(0.24)


def test_least_squares_on_labels_is_the_mirror_step_on_the_policys_own_pairs_only():
    wins = np.outer(NOW, NOW) * CYCLE
    assert_allclose(inpo_step(wins, NOW, REF, TAU, ETA), NEXT, atol=1e-6)
    other = np.array([0.2, 0.2, 0.6])
    assert_allclose(
        inpo_step(np.outer(other, other) * CYCLE, NOW, REF, TAU, ETA), [0.35799, 0.47162, 0.17039], atol=1e-5
    )


def test_the_methods_loss_is_least_at_the_mirror_step():
    part = nash_square(TAU, ETA)
    assert _slope(preference_step(CYCLE, NOW, REF, TAU, ETA), part, NOW) < 1e-10
    assert _slope(np.array([0.35799, 0.47162, 0.17039]), part, np.array([0.2, 0.2, 0.6])) < 1e-4
    assert _slope(NOW, part, NOW) > 1e-2


def test_at_the_start_the_loss_and_its_gradient():
    """pi = pi_t = ref: h = 0, loss 1 / (4 eta^2), gradient -(grad log pi_w - grad log pi_l) / eta."""
    logits = torch.as_tensor(np.log(REF)).requires_grad_()
    loss = nash_square(TAU, ETA)(_batch(logits.log_softmax(-1), REF, REF, [(2, 0)]))
    assert loss.tolist() == pytest.approx([1 / (4 * ETA**2)] * 2)
    (grad,) = torch.autograd.grad(loss.mean(), logits)
    assert_allclose(grad, [1 / ETA, 0, -1 / ETA], atol=1e-12)


def test_a_constant_on_both_responses_changes_nothing_and_anchors_are_frozen():
    batch = _batch(torch.as_tensor(np.log(NOW)), REF, NOW, EVERY)
    part = nash_square(TAU, ETA)
    torch.testing.assert_close(part(batch.having(logp=batch.logp + 0.7)), part(batch))
    leaf = batch.old_logp.clone().requires_grad_()
    assert not part(batch.having(old_logp=leaf)).requires_grad


def test_the_two_limits():
    batch = _batch(torch.as_tensor(np.log([0.2, 0.3, 0.5])), REF, NOW, EVERY)
    ipo = IPO.having(shape=Square(tau=ETA))
    torch.testing.assert_close(nash_square(ETA, ETA)(batch), ipo(batch))  # tau = eta: IPO
    moved = batch.having(ref_logp=batch.ref_logp * 3)
    torch.testing.assert_close(nash_square(0.0, ETA)(moved), nash_square(0.0, ETA)(batch))  # tau = 0: no reference
    assert_allclose(preference_step(CYCLE, NOW, REF, ETA, ETA), preference_step(CYCLE, np.array(NOW), REF, ETA, ETA))


def test_nash_is_the_fixed_point_and_has_no_gap():
    nash = preference_nash(CYCLE, TAU, REF)
    assert_allclose(nash, [0.555384, 0.211894, 0.232723], atol=1e-6)
    assert_allclose(preference_step(CYCLE, nash, REF, TAU, ETA), nash, atol=1e-9)
    assert preference_gap(CYCLE, nash, REF, TAU) == pytest.approx(0, abs=1e-9)
    best = preference_step(CYCLE, NOW, REF, TAU, TAU)

    def J(a, b):
        return a @ CYCLE @ b - TAU * (a @ np.log(a / REF)) + TAU * (b @ np.log(b / REF))

    assert preference_gap(CYCLE, NOW, REF, TAU) == pytest.approx(2 * (J(best, NOW) - 0.5)) and J(best, NOW) > 0.5


def test_gaps_of_the_card():
    tracks = play(3, 0.2, 20, seed=0)
    assert tracks["INPO"][[0, 4], 0] == pytest.approx([0.0086, 0.0014], abs=2e-3)
    twenty = np.mean([play(20, 0.2, 20, seed)["INPO"][[0, 4, 19], 0] for seed in range(5)], 0)  # other games
    assert_allclose(twenty[:2], [0.020, 0.0036], rtol=0.5)
    assert 0 < twenty[2] < 3e-4


def test_the_composition():
    method = methods.find("inpo").check()
    assert method.surrogate.score.weights == pytest.approx((1 / 3, 2 / 3)) and method.surrogate.shape.tau == 0.005
    assert "old_logp" in method.readers() and method.rollout.of == 8


def test_best_and_worst_of_each_prompt():
    class World:
        max_new_tokens = 1

        def sample(self, requests, sampling):
            assert isinstance(sampling, Sampling) and [r.rollouts for r in requests] == [4, 4]
            reward = torch.tensor([0.0, 3, -1, 1, 2, 2, 2, 2])
            return Rollouts({"group": torch.arange(2).repeat_interleave(4), "seed": torch.arange(8)}, {"r": reward})

    batch = BestAndWorst(of=4)(World(), [Request(5, 2), Request(6, 2)])
    assert batch.seed.tolist() == [1, 2, 4, 7] and batch.group.tolist() == [0, 0, 1, 1]


def test_the_square_of_the_wrong_size_is_refused():
    from surefoot.tasks.arena import tournament

    with pytest.raises(InputError, match="tournament of 6 answers; expected a power of two"):
        tournament(torch.full((6, 6), 0.5), torch.rand(6, 4))
