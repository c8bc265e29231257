"""GDSD: the card's exact checks, and the masked-diffusion policy."""

import math
import shutil

import numpy as np
import pytest
import torch

import surefoot as sf
from surefoot import policies
from surefoot.claims.gdsd import EVERY, REWARD, Denoisers, learn, verdict
from surefoot.errors import InputError
from surefoot.methods.diffusion.gdsd import GDSD
from surefoot.objective.advantages import GroupCentred, LeaveOneOut
from surefoot.objective.preferences import LogRatio
from surefoot.objective.surrogates import Regression
from surefoot.policies.masked_diffusion import MaskedDiffusion, mask_draw, set_weights
from surefoot.rollout.native import Sampling
from surefoot.rollouts import Rollouts
from surefoot.tasks.prefs import Preferences
from surefoot.tasks.two_hop import TwoHop

OLD = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
A = torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
MAIN = GDSD.surrogate.having(clamp=None)
PULL = GDSD.regularizers[0]


def _table(score, old, advantage=A, ref=None, mask=None):
    """Scores [n t], or [n] of one token."""
    score, old, ref = (x if x is None or x.ndim == 2 else x[:, None] for x in (score, old, ref))
    mask = torch.ones(score.shape, dtype=torch.bool) if mask is None else mask
    columns = dict(logp=score, old_logp=old, advantage=advantage[:, None].expand(score.shape), mask=mask)
    return Rollouts(columns | ({} if ref is None else {"ref_logp": ref}))


# --- the regression -----------------------------------------------------------------------------------------------


def test_at_the_old_policy_it_is_reinforce_times_twice_psi_over_length():
    z = OLD.log().requires_grad_()
    (gradient,) = torch.autograd.grad((OLD * MAIN(_table(z.log_softmax(0), OLD.log()))).sum(), z)
    assert gradient.tolist() == pytest.approx([-0.65, 0.51, 0.14], abs=1e-12)
    score = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = MAIN.having(psi=3.0)(_table(score, score.detach().clone())).sum()
    (gradient,) = torch.autograd.grad(loss, score)
    torch.testing.assert_close(gradient, (-2 * 3.0 / 4 * A)[:, None].expand(3, 4))


def _solved(scores, shift):
    """The minimiser as a policy, and its loss, of the one-token problem weighted by the old policy."""
    z = OLD.log().clone().requires_grad_()
    old = scores(OLD.log())
    optimizer = torch.optim.LBFGS([z], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16)

    def loss():
        optimizer.zero_grad()
        value = (OLD * MAIN(_table(scores(z), old, shift))).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return z.detach().softmax(0).tolist(), loss().item()


TILTED = (OLD.log() + A).softmax(0).tolist()


def test_centred_scores_reach_the_tilted_policy():
    assert TILTED == pytest.approx([0.78062, 0.10451, 0.11487], abs=5e-6)
    found, loss = _solved(lambda z: z - z.mean(), A - A.mean())
    assert found == pytest.approx(TILTED, abs=1e-6) and loss < 1e-12


@pytest.mark.parametrize(
    ("shift", "policy", "loss"),
    [
        (A, (0.7103, 0.1457, 0.1440), 0.2469),
        (A - (OLD * A).sum(), (0.7525, 0.1202, 0.1273), 0.0324),
        (A - (OLD * A.exp()).sum().log(), TILTED, 0.0),
    ],
)
def test_log_softmax_scores_miss_it_unless_the_normaliser_is_known(shift, policy, loss):
    found, least = _solved(lambda z: z.log_softmax(0), shift)
    assert found == pytest.approx(policy, abs=6e-5) and least == pytest.approx(loss, abs=6e-5)
    assert float((OLD * A.exp()).sum().log()) == pytest.approx(0.5545, abs=5e-5)


def test_the_two_squares_have_the_converted_minimiser():
    a, r, psi, beta = 0.3, -2.0, 0.7, 0.5
    main, pull = Regression(psi=psi, per=0.0), Regression(LogRatio(), psi=0.0, per=0.0, coef=beta)
    share = beta / (1 + beta)
    best = (1 - share) * torch.tensor([a]) + share * r + psi / (1 + beta) * torch.tensor([1.0])
    x = best.clone().requires_grad_()
    table = _table(x, torch.tensor([a]), torch.tensor([1.0]), torch.tensor([r]))
    (gradient,) = torch.autograd.grad((main(table) + pull(table)).sum(), x)
    assert gradient.abs().item() < 1e-6
    raw = (1 - beta) * a + beta * r + psi
    assert abs(raw - best.item()) > 0.1, "the teacher's own beta is another one"


def test_the_released_numbers():
    """Two tokens: (d / 2 - psi A)^2, and beta / (2 L) (s - ref)^2 of the summed scores."""
    score = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    table = _table(score, score - 0.1, torch.tensor([0.5], dtype=torch.float64), score - torch.tensor([[0.3, -0.1]]))
    assert MAIN(table).item() == pytest.approx((0.2 / 2 - 0.5) ** 2)
    assert PULL(table).item() == pytest.approx(1e-3 / (2 * 2) * 0.2**2)
    assert Regression(per=0.0)(table).item() == pytest.approx((0.2 - 0.5) ** 2)


def test_equal_rewards_leave_the_old_policy_alone():
    score = torch.tensor([[-1.0, -2.0]] * 3).requires_grad_()
    table = _table(score, score.detach().clone(), torch.zeros(3))
    assert torch.autograd.grad(MAIN(table).sum(), score)[0].abs().max() == 0
    moved = _table(score, score.detach() - 0.2, torch.zeros(3))
    assert (torch.autograd.grad(MAIN(moved).sum(), score)[0] > 0).all(), "and pull back to it"


@pytest.mark.parametrize("sign", [1, -1])
def test_beyond_the_clamp_there_is_no_gradient_in_either_direction(sign):
    score = torch.zeros(4, 2, dtype=torch.float64).requires_grad_()
    shift = sign * torch.tensor([1e-4, 1e-4, 3e-4, 3e-4], dtype=torch.float64)  # summed: 2e-4, within; 6e-4, outside
    advantage = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
    table = _table(score, shift[:, None].expand(4, 2), advantage)
    (gradient,) = torch.autograd.grad(GDSD.surrogate(table).sum(), score)
    assert (gradient[:2].abs() > 0.9).all() and (gradient[2:] == 0).all()
    assert GDSD.surrogate.metrics(table) == {"clamped": 0.5}
    held = GDSD.surrogate(table)[2].item()
    assert held == pytest.approx((math.log1p(-sign * 4e-4) / 2 - 1) ** 2), "clamped in the sum, then divided"
    with pytest.raises(InputError, match="clamp"):
        Regression(clamp=1.0)


def test_what_is_fixed_has_no_gradient_and_masked_positions_do_not_leak():
    columns = [torch.full((2, 3), x).requires_grad_() for x in (-1.0, -1.2, -0.7)]
    mask = torch.tensor([[True, True, False], [False, False, False]])
    score, old, ref = (c.masked_fill(~mask, float("nan")) for c in columns)
    advantage = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]).masked_fill(~mask, float("nan")).requires_grad_()
    table = Rollouts(dict(logp=score, old_logp=old, ref_logp=ref, advantage=advantage, mask=mask))
    each = MAIN(table) + PULL(table)
    assert each[1].item() == 0 and each.isfinite().all()
    gradients = torch.autograd.grad(each.sum(), [*columns, advantage], allow_unused=True)
    assert gradients[0][mask].abs().min() > 0 and (gradients[0][~mask] == 0).all() and gradients[1:] == (None,) * 3
    assert Regression(coef=0.0).reads == ("mask",) and (Regression(coef=0.0)(table) == 0).all()


def test_advantages_are_centred_and_never_divided_by_a_deviation():
    reward = torch.tensor([1.0, 0, 0, 0])
    table = Rollouts(dict(reward=reward, group=torch.zeros(4).long(), mask=torch.ones(4, 2).bool()))
    assert isinstance(GDSD.advantage, LeaveOneOut)
    torch.testing.assert_close(GDSD.advantage(table)[:, 0], torch.tensor([1.0, -1 / 3, -1 / 3, -1 / 3]))
    torch.testing.assert_close(GDSD.advantage(table), 4 / 3 * GroupCentred()(table))


# --- the policy ---------------------------------------------------------------------------------------------------


def _policy(seed=0, **options):
    torch.manual_seed(seed)
    return MaskedDiffusion(**{"length": 5, "width": 16, "layers": 1, **options})


def _sampled(policy, n=12):
    return policy.sample(["ab", "cde"], torch.arange(n) % 2, torch.arange(n), Sampling(max_new_tokens=5))


def test_the_sets_are_spread_evenly_over_the_sizes_and_rows_draw_their_own():
    noise = mask_draw(torch.arange(60), 5)
    assert noise.sum(1).bincount(minlength=6).tolist() == [10] * 6
    assert torch.equal(noise, mask_draw(torch.arange(60), 5))
    ranks = torch.stack([mask_draw(torch.tensor([s, s]), 5) for s in range(20)])  # one stream, two sizes: nested
    assert not ((ranks[:, 0] & ~ranks[:, 1]).any(1) & (ranks[:, 1] & ~ranks[:, 0]).any(1)).any()


def test_the_weights_of_the_two_sets():
    noise = torch.arange(5) < torch.arange(6)[:, None]
    assert (set_weights(noise) == 0.5).all()
    level = set_weights(noise, "level")
    assert level.isfinite().all()
    for row, hidden in zip(level, noise, strict=True):
        for part in (row[hidden], row[~hidden]):
            assert len(part) == 0 or part.sum().item() == pytest.approx(6 / 2)


@pytest.mark.parametrize("centred", [False, True])
def test_every_token_is_scored_once_from_the_input_that_masks_its_set(centred):
    policy = _policy(centred=centred)
    batch = _sampled(policy)
    with torch.no_grad():
        found = policy.score(batch, {"logp"})["logp"]
        for i in range(len(batch)):
            for hidden in (batch.noise[i], ~batch.noise[i]):
                x = batch.tokens[i].masked_fill(hidden, policy.mask)[None]
                logits = policy.model(batch.prompt_tokens, batch.prompt_mask, x, batch.group[i : i + 1])[0]
                score = logits - logits.mean(-1, keepdim=True) if centred else logits.log_softmax(-1)
                own = 0.5 * score.gather(-1, batch.tokens[i, :, None])[:, 0]
                torch.testing.assert_close(found[i, hidden], own[hidden], atol=1e-5, rtol=1e-5)


def test_a_token_is_not_seen_where_it_is_scored_and_the_other_set_is():
    policy = _policy()
    batch = _sampled(policy)
    other = (batch.tokens + 7) % len(policy.tokenizer)
    with torch.no_grad():
        first = policy.score(batch, {"logp"})["logp"]
        swapped = batch.having(tokens=torch.where(batch.noise, other, batch.tokens))
        second = policy.score(swapped, {"logp"})["logp"]
    mixed = batch.noise.any(1) & ~batch.noise.all(1)
    context = first[mixed][~batch.noise[mixed]] - second[mixed][~batch.noise[mixed]]
    assert context.abs().min() > 0, "the masked set's tokens are the context of the others"
    x = batch.tokens.masked_fill(batch.noise, policy.mask), swapped.tokens.masked_fill(batch.noise, policy.mask)
    assert torch.equal(*x)


def test_old_reference_and_live_share_the_draw():
    policy = _policy()
    batch = _sampled(policy)
    with torch.no_grad():
        live, ref = (p.score(batch, {"logp"})["logp"] for p in (policy, policy.reference()))
        drawn_again = policy.score(batch.having(noise=~batch.noise.roll(1, 0)), {"logp"})["logp"]
    assert torch.equal(live, ref) and not torch.allclose(live, drawn_again)


def test_rows_are_their_own_and_what_sampling_records_is_the_chance_when_filled_in():
    policy = _policy()
    batch = _sampled(policy)
    alone = policy.sample(["ab", "cde"], torch.tensor([1]), torch.tensor([3]), Sampling(max_new_tokens=5))
    assert torch.equal(alone.tokens[0], batch.tokens[3])
    torch.testing.assert_close(alone.rollout_logp[0], batch.rollout_logp[3], atol=1e-5, rtol=1e-5)
    assert (batch.tokens < policy.mask).all() and (batch.rollout_logp < 0).all()
    greedy = policy.sample(["ab"], torch.zeros(2).long(), torch.tensor([1, 2]), Sampling(0.0, max_new_tokens=5))
    assert torch.equal(greedy.tokens[0], greedy.tokens[1])
    x = torch.full((1, 5), policy.mask)
    with torch.no_grad():
        logp = policy.model(greedy.prompt_tokens, greedy.prompt_mask, x, torch.tensor([0])).log_softmax(-1)[0]
    surest = logp.amax(1).argmax()
    assert greedy.tokens[0, surest] == logp[surest].argmax(), "the surest position is filled first"


def test_a_prompts_padding_does_not_matter_and_the_text_ends_at_its_end_token():
    policy = _policy()
    wide = policy.sample(["ab", "c" * 30], torch.tensor([0]), torch.tensor([4]), Sampling(max_new_tokens=5))
    alone = policy.sample(["ab"], torch.tensor([0]), torch.tensor([4]), Sampling(max_new_tokens=5))
    assert torch.equal(wide.tokens, alone.tokens)
    five = policy.tokenizer("5", add_special_tokens=False)["input_ids"][0]
    assert policy.texts(torch.tensor([[five, policy.stop, five, five, five]])) == ["5"]
    with pytest.raises(InputError, match="at most 4"):
        policy.sample(["ab"], torch.tensor([0]), torch.tensor([4]), Sampling(max_new_tokens=4))
    with pytest.raises(InputError, match="prompt"):
        policy.encode(["c" * 200])


def test_supervision_teaches_a_denoiser_and_it_is_kept_and_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    losses = _policy(width=32).fit(TwoHop(), 60, 32, 3e-3, 0)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    with pytest.raises(InputError, match="no demonstrations"):
        policies.load("masked-diffusion:length=5", Preferences("pairs", [], []))
    policy = policies.load("masked-diffusion:length=5,width=16,layers=1,steps=3", TwoHop())
    monkeypatch.setattr(MaskedDiffusion, "fit", lambda *_: pytest.fail("made again"))
    again = policies.load("masked-diffusion:length=5,width=16,layers=1,steps=3,centred=true", TwoHop())
    assert torch.equal(policy.model.head.weight, again.model.head.weight) and again.centred
    again.save(tmp_path)
    assert policies.load(str(tmp_path)).centred


# --- training -----------------------------------------------------------------------------------------------------

SMALL = {
    "train.final_samples": 0,
    "train.eval_every": 0,
    "train.warmup": 0,
    "prompts.prompts": 4,
    "update.epochs": 2,
    "reference.every": 2,
}


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    def go(folder, **more):
        settings = SMALL | more
        return sf.train(_policy(), TwoHop(), "gdsd", steps=4, set=settings, out=folder, progress=False, report=False)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    go(whole)
    go(cut, **{"train.checkpoint_seconds": 0, "train.keep": 10})
    for step in (3, 4):
        shutil.rmtree(cut / f"checkpoints/step-{step:06d}")
    sf.resume(cut, policy=_policy(seed=1), task=TwoHop(), progress=False, report=False)
    assert (cut / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    ends = [(d / "checkpoints/step-000004/model.safetensors").read_bytes() for d in (whole, cut)]
    assert ends[0] == ends[1]
    assert '"kl"' not in (whole / "metrics.jsonl").read_text(), "scores are no likelihoods"


# --- the claim ----------------------------------------------------------------------------------------------------


def test_the_claims_law_is_one_and_at_the_first_step_is_the_denoisers():
    model = Denoisers.new([0, 1], [1e-3])
    law = model.law()
    assert law.exp().sum(1).tolist() == pytest.approx([1, 1], abs=1e-5) and int(REWARD.sum()) == 20
    blank = model.logits(torch.full((2, 1, 4), 4))[:, 0, 0].log_softmax(-1)
    for v in range(4):
        assert law[:, EVERY[:, 0] == v].exp().sum(1).tolist() == pytest.approx(blank[:, v].exp().tolist(), abs=1e-5)


def test_the_arms_start_alike_and_rewards_rise():
    curves = {arm: learn(arm, (0,), 4) for arm in ("GDSD", "ELBO ratio")}
    assert np.array_equal(curves["GDSD"][..., 0], curves["ELBO ratio"][..., 0])
    assert (curves["GDSD"][..., -1] > curves["GDSD"][..., 0]).all()


def test_the_claim_can_come_out_three_ways():
    flat, fallen = np.full((3, 3, 20), 0.9), np.concatenate([np.full((3, 3, 10), 0.9), np.full((3, 3, 10), 0.1)], -1)
    assert verdict({"GDSD": flat, "ELBO ratio": fallen}) == "reproduced"
    assert verdict({"GDSD": flat, "ELBO ratio": flat}) == "refuted"
    assert verdict({"GDSD": fallen, "ELBO ratio": flat}) == "refuted"
    better = flat + 0.05 + 0.01 * np.arange(3)[None, :, None]
    assert verdict({"GDSD": better, "ELBO ratio": flat}) == "not reproduced"
