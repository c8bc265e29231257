"""Agreement with TRL, through its trainers' own loss methods on a stub of the trainer.

docs/parity.md lists where it differs from us. TRL computes advantages inside its sampling method, where they cannot be
called alone; verl's are compared instead.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from surefoot.objective import preferences as P
from surefoot.objective.aggregation import ConstantLength, SequenceMean, TokenMean
from surefoot.objective.chunked import token_logp
from surefoot.objective.distillation import Distillation, generalized_js
from surefoot.objective.divergences import KL, k3
from surefoot.objective.ratios import SequenceRatio, SequenceTokenRatio, TokenRatio, TrajectoryRatio
from surefoot.objective.selection import Top
from surefoot.objective.surrogates import CISPO, SAPO, VESPO, Clip, GeometricMean, OffPolicyMasked
from surefoot.rollouts import Rollouts
from tests.parity.batch import agree, make, ours, theirs

pytest.importorskip("trl", reason="needs trl: pip install --no-deps trl, accelerate, datasets")
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RLOOTrainer  # noqa: E402
from trl.experimental.cpo import CPOTrainer  # noqa: E402
from trl.experimental.gkd import GKDTrainer  # noqa: E402
from trl.experimental.gmpo import GMPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOTrainer  # noqa: E402
from trl.trainer.distillation_trainer import _chunked_divergence_loss  # noqa: E402
from trl.trainer.utils import entropy_from_logits, selective_log_softmax  # noqa: E402


def _same(x, **_):
    return x


ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"), gather=_same, gather_for_metrics=_same, reduce=_same, num_processes=1
)
EVAL = SimpleNamespace(training=False)


# --- GRPO and its loss types --------------------------------------------------------------------------------------


def _grpo(table, trainer=GRPOTrainer, total=1.0, beta=0.0, **settings):
    """The loss of TRL's trainer as a function of the tokens' log-probabilities."""
    options = dict(delta=None, use_bias_correction_kl=False, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05)
    options |= dict(vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0)
    options |= {k: settings.pop(k) for k in list(settings) if k in options}
    defaults = dict(
        loss_type="grpo",
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.28,
        max_completion_length=20,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
    )
    mask = table.mask.double()
    inputs = dict(
        prompt_ids=torch.zeros(len(table), 1, dtype=torch.long),
        prompt_mask=torch.ones(len(table), 1, dtype=torch.long),
        completion_ids=torch.zeros(table.mask.shape, dtype=torch.long),
        completion_mask=mask,
        advantages=table.advantage[:, 0],
        old_per_token_logps=table.old_logp,
        ref_per_token_logps=table.ref_logp,
        num_items_in_batch=mask.sum() * total,
    )

    def loss_of(logp):
        stub = SimpleNamespace(
            **defaults | settings,
            beta=beta,
            args=SimpleNamespace(**options),
            model=EVAL,
            accelerator=ACCELERATOR,
            aux_loss_enabled=False,
            use_vllm=False,
            _entropy_bonus_enabled=False,
            _metrics=defaultdict(lambda: defaultdict(list)),
            _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
            get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
            get_gamma_weights=GRPOTrainer.get_gamma_weights,
        )
        return trainer._compute_loss(stub, None, inputs)

    return theirs(table, loss_of)


CLIP = Clip(0.2, 0.28)
CASES = {
    "grpo": (SequenceMean(), CLIP, {}),
    "bnpo": (TokenMean(), CLIP, {}),
    "dr_grpo": (ConstantLength(20.0), CLIP, {}),
    "dapo": (TokenMean(), CLIP, {}),
    "cispo": (TokenMean(), CISPO(high=0.28), {"epsilon_high": 1.28}),
    "sapo": (SequenceMean(), SAPO(), {}),
    "vespo": (TokenMean(), VESPO(), {}),
}


@pytest.mark.parametrize("spread", [0.3, 2.0])
@pytest.mark.parametrize("name", CASES)
def test_grpo_loss_types(name, spread):
    aggregate, surrogate, settings = CASES[name]
    table = make(spread=spread)
    agree(ours(table, aggregate, surrogate), _grpo(table, loss_type=name, **settings))


def test_dapo_counts_tokens_over_all_accumulated_batches():
    table = make()
    a = ours(table, TokenMean(), CLIP, total=lambda count: 3 * count)
    agree(a, _grpo(table, loss_type="dapo", total=3.0))


def test_two_sided_clipping_is_the_dual_clip():
    table = make(spread=2.0)
    agree(ours(table, SequenceMean(), Clip(0.2, 0.28, dual=2.0)), _grpo(table, delta=2.0))


@pytest.mark.parametrize("ratio", [SequenceRatio(), SequenceTokenRatio()])
def test_sequence_level_importance_sampling(ratio):
    table = make()
    agree(
        ours(table, SequenceMean(), Clip(0.05, 0.08, ratio=ratio)),
        _grpo(table, importance_sampling_level="sequence", epsilon_low=0.05, epsilon_high=0.08),
    )


def test_luspo_is_the_sequence_ratio_with_a_sum_over_tokens():
    table = make()
    agree(
        ours(table, ConstantLength(1.0), Clip(0.2, 0.28, ratio=SequenceRatio())),
        _grpo(table, loss_type="luspo", importance_sampling_level="sequence"),
    )


def test_kl_to_the_reference():
    table = make()
    agree(ours(table, SequenceMean(), CLIP, KL(k3, 0.1)), _grpo(table, beta=0.1))


def test_the_kl_with_its_bias_corrected():
    table = make()
    part = KL(k3, 0.1, ratio=TokenRatio())
    agree(ours(table, SequenceMean(), CLIP, part), _grpo(table, beta=0.1, use_bias_correction_kl=True))


def test_the_off_policy_sequence_mask():
    table, limit = make(spread=1.0), 0.0
    agree(ours(table, SequenceMean(), OffPolicyMasked(CLIP, limit)), _grpo(table, off_policy_mask_threshold=limit))
    assert not torch.allclose(ours(table, SequenceMean(), CLIP)[0], _grpo(table, off_policy_mask_threshold=limit)[0])


def test_rloo_clips_the_whole_trajectorys_ratio():
    table = make(holes=False)
    inputs = dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids"), torch.zeros(8, 7, dtype=torch.long))
    mask = table.mask.double()
    inputs |= {
        "completion_mask": mask,
        "old_logps": (table.old_logp * mask).sum(1),
        "advantages": table.advantage[:, 0],
    }

    def loss_of(logp):
        stub = SimpleNamespace(
            epsilon_low=0.2,
            epsilon_high=0.28,
            model=EVAL,
            accelerator=ACCELERATOR,
            aux_loss_enabled=False,
            _metrics=defaultdict(lambda: defaultdict(list)),
            _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
        )
        return RLOOTrainer._compute_loss(stub, None, inputs)

    agree(ours(table, SequenceMean(), Clip(0.2, 0.28, ratio=TrajectoryRatio())), theirs(table, loss_of))


def test_the_tokens_of_high_entropy():
    table, g = make(), torch.Generator().manual_seed(7)
    entropy = torch.rand(table.mask.shape, generator=g)
    stub = SimpleNamespace(accelerator=SimpleNamespace(gather=_same, pad_across_processes=lambda x, **_: x))
    expected = GRPOTrainer.get_high_entropy_mask(stub, entropy, table.mask, 0.8)
    count = int(expected.sum())
    found = Top(share=count / int(table.mask.sum()))(table.having(old_entropy=entropy))
    assert found.equal(expected) and count > 3


def test_gmpo():
    table = make(spread=1.0)
    surrogate = GeometricMean(0.4)
    agree(ours(table, SequenceMean(), surrogate), _grpo(table, GMPOTrainer, epsilon_low=0.4, epsilon_high=0.4))


def test_token_log_probabilities_and_entropies():
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(12, 5, generator=g).double(), torch.randn(30, 5, generator=g).double()
    tokens = torch.randint(0, 30, (12,), generator=g)
    logp, entropy = token_logp(hidden, weight, tokens, entropy=True, chunk=5)
    logits = hidden @ weight.t()
    torch.testing.assert_close(logp, selective_log_softmax(logits, tokens))
    torch.testing.assert_close(entropy, entropy_from_logits(logits))


# --- preferences --------------------------------------------------------------------------------------------------


def _pairs_table(seed=0):
    """Eight responses: rows 0-3 chosen, rows 4-7 rejected, as TRL lays them out."""
    table = make(seed, holes=False)
    v = 6
    logits = torch.randn(8, 7, v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)
    collision = (2 * logits).logsumexp(-1)
    return table.having(group=torch.arange(4).repeat(2), reward=(torch.arange(8) < 4).double(), collision=collision)


def _dpo(table, loss_type, beta=0.1, smoothing=0.0, **settings):
    """The loss of TRL's DPO trainer as a function of the tokens' log-probabilities."""
    mask = table.mask.long()
    with_prompt = torch.cat([torch.zeros(8, 1, dtype=torch.long), mask], 1)
    sums = (table.ref_logp * table.mask).sum(1)
    if (tail := settings.get("ld_alpha")) is not None:
        length = mask.sum(1)
        shared = torch.minimum(length[:4], length[4:]).repeat(2)
        sums = P.desensitised_logp(table.ref_logp, table.mask, shared, tail)
    inputs = dict(
        input_ids=torch.zeros(8, 8, dtype=torch.long),
        attention_mask=torch.ones(8, 8, dtype=torch.long),
        completion_mask=with_prompt,
        ref_chosen_logps=sums[:4],
        ref_rejected_logps=sums[4:],
    )

    def loss_of(logp):
        zeros = torch.zeros_like(logp)
        outputs = SimpleNamespace(
            log_probs=logp * mask,  # TRL's fused head gives 0 off the completion
            log_sum_sq_probs=table.collision,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )
        defaults = dict(f_divergence_type="reverse_kl", ld_alpha=None, use_weighting=False)
        stub = SimpleNamespace(
            **defaults | settings,
            loss_types=[loss_type],
            loss_weights=[1.0],
            beta=beta,
            label_smoothing=smoothing,
            args=SimpleNamespace(discopop_tau=0.05),
            model=EVAL,
            accelerator=ACCELERATOR,
            aux_loss_enabled=False,
            precompute_ref_logps=True,
            _total_train_tokens=0,
            _metrics=defaultdict(lambda: defaultdict(list)),
        )
        return DPOTrainer._compute_loss(stub, lambda **_: outputs, inputs, False)

    return theirs(table, loss_of)


DPO_CASES = {
    "sigmoid": (P.DPO, {}),
    "hinge": (P.RSO, {}),
    "ipo": (P.Preference(P.LogRatio(mean=True), P.Square(0.1)), {}),
    "sigmoid_norm": (P.Preference(P.LogRatio(mean=True)), {}),
    "exo_pair": (P.Preference(shape=P.ExactMatching(0.1, 0.05)), {"smoothing": 0.05}),
    "nca_pair": (P.NCA, {}),
    "robust": (P.Preference(shape=P.RobustLogistic(0.1, 0.2)), {"smoothing": 0.2}),
    "bco_pair": (P.Preference(shape=P.OfScores(P.binary)), {}),
    "sppo_hard": (P.Preference(shape=P.SelfPlay(0.1)), {}),
    "aot": (P.AOT_PAIRED, {}),
    "aot_unpaired": (P.Preference(shape=P.Transport(P.Logistic(0.1, 0.1))), {"smoothing": 0.1}),
    "apo_zero": (P.APO_ZERO, {}),
    "apo_down": (P.APO_DOWN, {}),
    "discopop": (P.Preference(shape=P.Modulated(0.1, 0.05)), {}),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", DPO_CASES)
def test_dpo_loss_types(name, seed):
    part, settings = DPO_CASES[name]
    table = _pairs_table(seed)
    agree(ours(table, SequenceMean(), part), _dpo(table, name, **settings), rtol=2e-6)


@pytest.mark.parametrize(("name", "link"), [("forward_kl", P.forward_kl_link), ("js_divergence", P.js_link)])
def test_f_divergence_links(name, link):
    table = _pairs_table()
    part = P.Preference(P.LogRatio(link=link))
    agree(ours(table, SequenceMean(), part), _dpo(table, "sigmoid", f_divergence_type=name))


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_alpha_divergence_links(alpha):
    """TRL's alpha is 1 minus ours (1 is the reverse KL there); it needs float32."""
    table = _pairs_table()
    table = table.having(logp=table.logp.float(), ref_logp=table.ref_logp.float())
    b = _dpo(table, "sigmoid", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=alpha)
    agree(ours(table, SequenceMean(), P.Preference(P.LogRatio(link=P.PowerLink(1 - alpha)))), b, rtol=1e-4)


def test_wpo_weights():
    table = _pairs_table()
    agree(ours(table, SequenceMean(), P.WPO), _dpo(table, "sigmoid", use_weighting=True))


def test_length_desensitisation():
    table = _pairs_table()
    assert (table.mask.sum(1)[:4] != table.mask.sum(1)[4:]).any()
    agree(ours(table, SequenceMean(), P.LD_DPO), _dpo(table, "sigmoid", ld_alpha=0.5))


def test_the_default_ipo_is_not_trls():
    table = _pairs_table()
    a, b = ours(table, SequenceMean(), P.IPO), _dpo(table, "ipo")
    assert not torch.allclose(a[0], b[0], rtol=1e-2)


def test_sft_term_agrees_where_lengths_are_equal():
    table = _pairs_table()
    full = table.having(mask=torch.ones_like(table.mask))
    agree(ours(full, SequenceMean(), P.ChosenLikelihood()), _dpo(full, "sft"))
    assert not torch.allclose(ours(table, SequenceMean(), P.ChosenLikelihood())[0], _dpo(table, "sft")[0], rtol=1e-3)


def test_orpo_log_odds():
    table = _pairs_table()
    stub = SimpleNamespace(beta=0.1, accelerator=ACCELERATOR)

    def loss_of(logp):
        mean = (P.sequence_logp(logp, table.mask) / table.mask.sum(1)).float()
        return -ORPOTrainer.odds_ratio_loss(stub, mean[:4], mean[4:])[0].mean()  # TRL subtracts it from the likelihood

    agree(ours(table, SequenceMean(), P.ORPO), theirs(table, loss_of), rtol=1e-5)  # TRL casts to float32


@pytest.mark.parametrize(
    ("name", "part", "mean", "settings"),
    [
        ("sigmoid", P.Preference(P.LogRatio((), ()), P.Logistic(0.1, 0.1)), False, {"beta": 0.1}),
        ("hinge", P.Preference(P.LogRatio((), ()), P.Hinge(0.1)), False, {"beta": 0.1}),
        ("simpo", P.Preference(P.LogRatio((), (), mean=True), P.Logistic(2.0, 0.1, 1.0)), True, {"beta": 2.0}),
        (
            "simpo",
            P.Preference(P.LogRatio((), (), P.PowerLink(0.5), mean=True), P.Logistic(2.0, 0.1, 1.0)),
            True,
            {"beta": 2.0, "alpha": 0.5},  # AlphaPO
        ),
    ],
)
def test_cpo_and_simpo(name, part, mean, settings):
    table = _pairs_table()
    stub = SimpleNamespace(
        **{"loss_type": name, "label_smoothing": 0.1, "simpo_gamma": 1.0, "alpha": 0.0, "accelerator": ACCELERATOR}
        | settings
    )

    def loss_of(logp):
        total = P.sequence_logp(logp, table.mask)
        total = total / table.mask.sum(1) if mean else total
        return CPOTrainer.cpo_loss(stub, total[:4], total[4:])[0].mean()

    agree(ours(table, SequenceMean(), part), theirs(table, loss_of))


def test_kto_given_its_origin():
    table = _pairs_table()
    label = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0]).bool()
    mask = table.mask.long()
    kl_logp = torch.tensor([0.3, -0.1, 0.9, 0.5, -0.2, 0.4, 0.1, 0.3]).double()
    batch = dict(
        input_ids=torch.zeros(8, 8, dtype=torch.long),
        attention_mask=torch.ones(8, 8, dtype=torch.long),
        completion_mask=torch.cat([torch.zeros(8, 1, dtype=torch.long), mask], 1),
        label=label,
        ref_logps=(table.ref_logp * mask).sum(1),
        ref_KL_logps=torch.zeros(8).double(),
    )

    def trl_loss(logp, kind="kto"):
        zeros = torch.zeros_like(logp)
        stub = SimpleNamespace(
            loss_type=kind,
            beta=0.1,
            desirable_weight=1.0,
            undesirable_weight=1.5,
            calculate_KL=kind == "kto",
            precompute_ref_logps=True,
            aux_loss_enabled=False,
            model=EVAL,
            accelerator=ACCELERATOR,
            _total_train_tokens=0,
            _metrics=defaultdict(lambda: defaultdict(list)),
            _compute_kl_logps=lambda *_: kl_logp,
        )
        outputs = SimpleNamespace(log_probs=logp * mask, entropy=zeros, mean_logits=zeros)
        return KTOTrainer._compute_loss(stub, lambda **_: outputs, batch, False)

    def our_loss(logp):
        score = 0.1 * P.sequence_logp(logp - table.ref_logp, table.mask)
        return P.prospect(score, label, 0.1 * kl_logp.mean().clamp_min(0), 1.0, 1.5).mean()

    agree(theirs(table, our_loss), theirs(table, trl_loss))

    def anchored(logp):  # APO-zero of single responses is KTO with its origin at 0
        score = 0.1 * P.sequence_logp(logp - table.ref_logp, table.mask)
        return P.prospect(score, label, 0.0, 1.0, 1.5).mean()

    agree(theirs(table, anchored), theirs(table, lambda logp: trl_loss(logp, "apo_zero_unpaired")))


# --- distillation -------------------------------------------------------------------------------------------------


def _distillation_table():
    g = torch.Generator().manual_seed(3)
    mask = torch.rand(3, 5, generator=g) > 0.3
    logits = [torch.randn(3, 5, 9, generator=g, dtype=torch.float64) for _ in range(2)]
    return Rollouts({"logits": logits[0], "teacher_logits": logits[1], "mask": mask})


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_generalized_js(beta, temperature):
    table = _distillation_table()
    labels = torch.zeros(3, 5, dtype=torch.long).masked_fill(~table.mask, -100)

    def loss_of(logits):
        return GKDTrainer.generalized_jsd_loss(logits, table.teacher_logits, labels, beta, temperature)

    part = Distillation(generalized_js(beta), temperature=temperature)
    agree(ours(table, TokenMean(), part, live="logits"), theirs(table, loss_of, live="logits"))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_chunked_distillation_trainer(beta):
    g = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(2, 6, 4, generator=g) for _ in range(2))
    heads = [torch.randn(11, 4, generator=g) for _ in range(2)]
    mask = torch.rand(2, 6, generator=g) > 0.3
    loss, _, _ = _chunked_divergence_loss(student, teacher, heads[0], heads[1], mask.long(), beta)
    columns = {"logits": student @ heads[0].t(), "teacher_logits": teacher @ heads[1].t(), "mask": mask}
    value, _ = ours(Rollouts(columns), TokenMean(), Distillation(generalized_js(beta)), live="logits")
    torch.testing.assert_close(value, loss, rtol=1e-5, atol=1e-6)  # float32 on both sides
