"""What a run is besides its policy, task and method."""

from __future__ import annotations

import math
from dataclasses import dataclass

from surefoot.errors import InputError, nearest


@dataclass(frozen=True)
class Settings:
    """Settings of the trainer; `--set train.<name>=value` changes one.

    Attributes:
        steps: batches to train on.
        seed: of everything random.
        lr: peak learning rate; none takes the policy's own suggestion.
        schedule: `constant`, `linear` or `cosine` decay to `final_lr` * lr.
        warmup: steps of linear warm-up.
        weight_decay, beta1, beta2: of AdamW.
        micro_tokens: tokens (prompt and response) in one forward and backward pass; a larger minibatch is accumulated.
        engine_logp: take the engine's log-probabilities for `old_logp` where the policy has not moved and nothing
            was truncated, instead of a second forward pass.
        engine_dtype: of the products in sampling (and evaluation): `float32`, or `bfloat16`, which samples faster from
            a slightly different policy; `EngineCorrected` surrogates correct for it.
        ahead: 1 samples the next batch before the update of this one and judges it beside that update (one step off
            policy; `old_logp` is then the sampling policy's, so that ratios correct for it). It pays where something
            waits (tools, sandboxes, a judge over the network); 0 samples after the update.
        eval_every: steps between held-out evaluations; 0 for none.
        eval_problems: held-out problems in each of them, one sample each.
        final_problems, final_samples: held-out problems and samples of the evaluation before and after; 0 for none.
        checkpoint_seconds: at most this long between checkpoints.
        keep: checkpoints kept (the newest).
        log_rollouts: write what was sampled to `rollouts/`.
        lora: rank of LoRA adapters; 0 trains all weights.
    """

    steps: int = 80
    seed: int = 0
    lr: float | None = None
    schedule: str = "constant"
    final_lr: float = 0.1
    warmup: int = 5
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    micro_tokens: int = 32768
    engine_logp: bool = True
    engine_dtype: str = "float32"
    ahead: int = 0
    eval_every: int = 10
    eval_problems: int = 128
    final_problems: int = 512
    final_samples: int = 16
    checkpoint_seconds: float = 60.0
    keep: int = 3
    log_rollouts: bool = True
    lora: int = 0

    def __post_init__(self):
        schedules = ("constant", "linear", "cosine")
        if self.schedule not in schedules:
            raise InputError(f"train.schedule: {self.schedule!r}{nearest(self.schedule, schedules)}")
        dtypes = ("float32", "bfloat16")
        if self.engine_dtype not in dtypes:
            raise InputError(f"train.engine_dtype: {self.engine_dtype!r}{nearest(self.engine_dtype, dtypes)}")
        if self.ahead not in (0, 1):
            raise InputError(f"train.ahead: {self.ahead}, expected 0 or 1")
        for name in ("steps", "eval_problems", "micro_tokens", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name}: {getattr(self, name)}, expected at least 1")

    def lr_at(self, step: int, peak: float) -> float:
        """Learning rate of step `step` (from 1)."""
        if step <= self.warmup:
            return peak * step / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        fall = {"constant": 0.0, "linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2}[self.schedule]
        return peak * (1 - (1 - self.final_lr) * fall)
