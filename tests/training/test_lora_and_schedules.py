"""LoRA: the reference is the policy with its adapters off. Schedules: worked numbers."""

import pytest
import torch

import surefoot as sf
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.policies.causal_lm import LoRAOff
from surefoot.pretraining.tokenizer import build
from surefoot.rollout.prompts import Uniform
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer
from tests.conftest import digits_task, tiny_llama

SMALL = GRPO.but(prompts=Uniform(prompts=4, rollouts=4))


@pytest.fixture
def folder(tmp_path):
    tiny_llama(vocab=104).save_pretrained(tmp_path / "tiny")
    build().save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


def test_the_reference_is_the_policy_with_its_adapters_off(folder):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    policy = sf.load_policy(folder, lora=4)
    assert policy.fast and len(policy.parameters()) < len(list(policy.model.parameters()))
    trainer = Trainer(policy, digits_task(), SMALL, Settings(lr=5e-2, warmup=0))
    assert isinstance(trainer._reference, LoRAOff)
    frozen = sf.load_policy(folder)
    for _ in range(3):
        batch = trainer.train_step().batch
    want = {"logp"}
    with torch.no_grad():
        reference, original = trainer._reference.score(batch, want)["logp"], frozen.score(batch, want)["logp"]
        moved = policy.score(batch, want)["logp"]
    torch.testing.assert_close(reference, original, atol=1e-5, rtol=1e-4)
    assert (moved - original).abs().max() > 1e-3


def test_a_lora_run_resumes_and_saves_merged_weights(folder, tmp_path):
    pytest.importorskip("peft")
    overrides = {
        "train.lora": 4,
        "train.lr": 5e-2,
        "train.eval_every": 0,
        "train.final_problems": 0,
        "train.checkpoint_seconds": 0,
    }
    for name in ("whole", "cut"):
        sf.train(
            folder, digits_task(), SMALL, steps=3, out=tmp_path / name, set=overrides, progress=False, report=False
        )
    lines = (tmp_path / "whole/metrics.jsonl").read_text()
    sf.resume(tmp_path / "cut/checkpoints/step-000002", task=digits_task(), progress=False, report=False)
    assert (tmp_path / "cut/metrics.jsonl").read_text() == lines
    merged = sf.load_policy(str(tmp_path / "whole/checkpoints/step-000003"))
    assert merged.fast and not hasattr(merged.model, "peft_config")


def test_learning_rates():
    linear = Settings(steps=12, warmup=2, schedule="linear", final_lr=0.0)
    assert [round(linear.lr_at(s, 1.0), 3) for s in (1, 2, 7, 12)] == [0.5, 1.0, 0.5, 0.0]
    cosine = Settings(steps=12, warmup=2, schedule="cosine", final_lr=0.1)
    assert cosine.lr_at(7, 1.0) == pytest.approx(0.55) and cosine.lr_at(12, 1.0) == pytest.approx(0.1)
    assert Settings(steps=12, warmup=0).lr_at(9, 0.3) == 0.3
