"""The two sides of the bench. Each serves one line at a time: it steps, and says what the step took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from surefoot import tasks
from surefoot.bench.cases import Case, trivial_reward
from surefoot.bench.limits import bandwidth, decode_bytes, decode_seconds, matmul_rates, step_flops
from surefoot.bench.worker import forget_peak, resident
from surefoot.method import Method, Update
from surefoot.methods import find as find_method
from surefoot.objective.divergences import KL, k3
from surefoot.objective.surrogates import Clip
from surefoot.parts import Part
from surefoot.policies import llama
from surefoot.policies.causal_lm import CausalLM, find
from surefoot.rollout import native
from surefoot.rollout.native import Sampling
from surefoot.rollout.prompts import Request
from surefoot.rollout.strategies import OnPolicy, World
from surefoot.tasks import Problem, TextTask
from surefoot.training.run import Run
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer

Say = Callable[[dict[str, Any]], None]
QUESTIONS = 256


def questions(case: Case) -> list[str]:
    """The first questions of the case's task, in order."""
    train = tasks.load(case.task).train
    return [train[i].question for i in range(QUESTIONS)]


# --- Surefoot -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InOrder(Part):
    """Problems in their own order, as many at a time as asked for, and around again."""

    prompts: int
    group: int

    def __call__(self, size: int, rng: Any) -> list[Request]:
        at = self.memory.get("at", 0)
        self.memory["at"] = at + self.prompts
        return [Request((at + i) % size, self.group) for i in range(self.prompts)]


@dataclass(frozen=True)
class NeverEnding(OnPolicy):
    """On-policy rollouts that may not say the tokens in `suppress`."""

    suppress: tuple[int, ...] = ()

    def sampling(self, world: World) -> Sampling:
        return replace(super().sampling(world), suppress=self.suppress)


def method_of(case: Case, stop: Iterable[int]) -> Method:
    """GRPO with the settings of the case."""
    return replace(
        find_method("grpo"),
        prompts=InOrder(case.prompts, case.group),
        rollout=NeverEnding(case.temperature, suppress=tuple(stop) if case.fixed else ()),
        surrogate=Clip(case.clip),
        regularizers=(KL(k3, case.beta),) if case.beta else (),
        update=Update(max_grad_norm=case.max_grad_norm),
    )


def make_trainer(case: Case, device: str, fast: bool = True) -> Trainer:
    """A trainer of the case on `device`."""
    policy = CausalLM.load(case.policy, fast=fast)
    policy.model.to(device)
    problems = [Problem(q, "") for q in questions(case)]
    task = TextTask(case.name, problems, problems[:1], trivial_reward, case.limit)
    settings = Settings(lr=case.lr, warmup=0, beta1=case.beta1, beta2=case.beta2, weight_decay=case.weight_decay)
    return Trainer(policy, task, method_of(case, policy.stop), settings)


def model_calls(trainer: Trainer) -> list[tuple[Any, str]]:
    """What computes the model, as (owner, name): the engine's forwards, scoring, backward, optimizer."""
    engines = (native._CompiledDecoder, native._PackedDecoder, native._HuggingFaceDecoder)
    return [
        (llama, "prefill"),
        (llama.FrozenStack, "__init__"),
        (llama.FrozenStack, "logits"),
        *((engine, "step") for engine in engines),
        (CausalLM, "score"),
        (torch.Tensor, "backward"),
        (torch.nn.utils, "clip_grad_norm_"),
        (trainer.optimizer, "step"),
    ]


class Arithmetic:
    """Seconds inside `model_calls`, each of which it replaces by one that is timed."""

    def __init__(self, trainer: Trainer):
        self.seconds = 0.0
        self._inside = False
        for owner, name in model_calls(trainer):
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, started = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds += time.perf_counter() - started

        return timed


def surefoot(case: Case, device: str, requests: Iterable[str], say: Say) -> None:
    """Serve as the Surefoot side: a step is the trainer's, and the writing of the run folder."""
    trainer = make_trainer(case, device)
    arithmetic = Arithmetic(trainer)
    loaded = resident()["now"]
    batch, peak = None, 0.0
    with TemporaryDirectory() as scratch:
        run = Run.create(Path(scratch) / "run", {"case": case.name})
        say(surefoot_settings(trainer) | {"threads": torch.get_num_threads(), "loaded_mb": loaded})
        for request in requests:
            if request.strip() == "step":
                before, started, cpu = arithmetic.seconds, time.perf_counter(), time.process_time()
                result = trainer.train_step()
                run.step(result.step, result.metrics, result.seconds, result.batch)
                total = time.perf_counter() - started
                cpu = time.process_time() - cpu
                batch, peak = result.batch, max(peak, resident()["peak"])
                scoring = result.seconds["score"]
                say(
                    {
                        "total": total,
                        "cpu": cpu,
                        "generation": result.seconds["rollout"],
                        "scoring": scoring,
                        "update": result.seconds["update"],
                        "other": total - result.seconds["rollout"] - scoring - result.seconds["update"],
                        "arithmetic": arithmetic.seconds - before,
                        "tokens": int(batch.present.sum()),
                        "longest": int(batch.steps),
                        "prompt_tokens": int(batch.prompt_mask[batch.group].sum()),
                        "passes": dict(trainer.signals.passes),
                    }
                )
            elif request.strip() == "limits":
                assert batch is not None
                model = trainer.policy.model
                flops, rates = step_flops(model.config, batch), matmul_rates(device)
                say(
                    {
                        "flops": flops,
                        "matmul_flops_per_s": rates,
                        "step_limit": flops["step"] / rates["best"],
                        "step_limit_torch": flops["step"] / rates["torch"],
                        "decode_limit": decode_seconds(model, batch),
                        "decode_memory_limit": decode_bytes(model, batch) / bandwidth(device),
                    }
                )
                forget_peak()  # what the limits took is not the trainer's
            else:
                say(resident() | {"peak": peak})
        run.flush()


def surefoot_settings(trainer: Trainer) -> dict[str, Any]:
    """What the trainer in hand is set to, read from it."""
    group, method = trainer.optimizer.param_groups[0], trainer.method
    return {
        "optimizer": "AdamW",
        "lr": group["lr"],
        "betas": list(group["betas"]),
        "eps": group["eps"],
        "weight_decay": group["weight_decay"],
        "max_grad_norm": method.update.max_grad_norm,
        "beta": sum(r.coef for r in method.regularizers),  # pyright: ignore[reportAttributeAccessIssue]
        "clip": method.surrogate.low,  # pyright: ignore[reportAttributeAccessIssue]
        "temperature": method.rollout.temperature,  # pyright: ignore[reportAttributeAccessIssue]
        "max_new_tokens": trainer.task.max_new_tokens,
        "suppressed_tokens": sorted(method.rollout.suppress),  # pyright: ignore[reportAttributeAccessIssue]
        "prompts": method.prompts.prompts,  # pyright: ignore[reportAttributeAccessIssue]
        "group": method.prompts.group,  # pyright: ignore[reportAttributeAccessIssue]
        "updates_per_batch": method.update.epochs * method.update.minibatches,
        "dtype": str(next(trainer.policy.model.parameters()).dtype),
        "parameters": sum(p.numel() for p in trainer.policy.parameters()),
        "passes": ["generation", "reference" if trainer._reference else "", "update forward and backward"],
    }


# --- TRL ------------------------------------------------------------------------------------------------------------


def trl(case: Case, device: str, requests: Iterable[str], say: Say) -> None:
    """Serve as TRL's side: its `GRPOTrainer`, halted between steps by a callback.

    A step lasts from the moment it is let go until the trainer comes to begin the next one.
    """
    from transformers import TrainerCallback

    lines: Iterator[str] = iter(requests)
    clock = _Clock()

    class Gate(TrainerCallback):
        def __init__(self):
            self.first = True

        def on_step_begin(self, args, state, control, **_):
            if not self.first:
                say(clock.record(trainer))
            else:
                say(trl_settings(trainer) | {"threads": torch.get_num_threads(), "loaded_mb": resident()["now"]})
                self.first = False
            for line in lines:
                if line.strip() == "step":
                    clock.start()
                    return
                say(resident())
            raise SystemExit(0)

    with TemporaryDirectory() as scratch:
        trainer = make_trl(case, device, scratch, Gate())
        clock.watch(trainer)
        trainer.train()


class _Clock:
    """Seconds of a TRL step by phase: `_generate`, the rest of making the batch, everything after."""

    prompts: list[Any]
    completions: list[Any]

    def watch(self, trainer: Any) -> None:
        for name in ("_generate", "_generate_and_score_completions"):
            setattr(trainer, name, self._timed(name, getattr(trainer, name)))

    def _timed(self, name: str, function: Callable) -> Callable:
        def timed(*args: Any) -> Any:
            with self._span(name):
                result = function(*args)
            if name == "_generate":
                self.prompts, self.completions = result[0], result[1]
            return result

        return timed

    @contextmanager
    def _span(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spans[name] = time.perf_counter() - started

    def start(self) -> None:
        self.spans: dict[str, float] = {}
        self.started, self.cpu = time.perf_counter(), time.process_time()

    def record(self, trainer: Any) -> dict[str, Any]:
        total, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu
        generation, made = self.spans["_generate"], self.spans["_generate_and_score_completions"]
        lengths = [len(c) for c in self.completions]
        return {
            "total": total,
            "cpu": cpu,
            "generation": generation,
            "scoring": made - generation,
            "update": total - made,
            "tokens": sum(lengths),
            "longest": max(lengths),
            "prompt_tokens": sum(len(p) for p in self.prompts),
        }


def make_trl(case: Case, device: str, folder: str, callback: Any) -> Any:
    """TRL's trainer with the settings of the case: full precision, no recomputation, nothing saved."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage, reportMissingImports]

    where = str(find(case.policy))
    policy = CausalLM.load(case.policy)
    prompts = [policy.prompt_text(q) for q in questions(case)]
    config = GRPOConfig(
        output_dir=folder,
        model_init_kwargs={"dtype": "float32"},
        use_cpu=device == "cpu",
        per_device_train_batch_size=case.rows,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_generations=case.group,
        max_completion_length=case.limit,
        temperature=case.temperature,
        top_p=1.0,
        top_k=0,
        beta=case.beta,
        epsilon=case.clip,
        num_iterations=1,
        loss_type="grpo",
        scale_rewards="group",
        learning_rate=case.lr,
        lr_scheduler_type="constant",
        adam_beta1=case.beta1,
        adam_beta2=case.beta2,
        weight_decay=case.weight_decay,
        max_grad_norm=case.max_grad_norm,
        bf16=False,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        generation_kwargs={"suppress_tokens": policy.stop} if case.fixed else None,
        max_steps=100_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    del policy
    return GRPOTrainer(
        model=where,
        reward_funcs=trivial_reward,  # pyright: ignore[reportArgumentType]
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        callbacks=[callback],
    )


def trl_settings(trainer: Any) -> dict[str, Any]:
    """What TRL's trainer in hand is set to, read from it in Surefoot's words."""
    args, optimizer = trainer.args, trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    group = optimizer.param_groups[0]
    return {
        "optimizer": type(optimizer).__name__,
        "lr": group["lr"],
        "betas": list(group["betas"]),
        "eps": group["eps"],
        "weight_decay": group["weight_decay"],
        "max_grad_norm": args.max_grad_norm,
        "beta": trainer.beta,
        "clip": args.epsilon,
        "temperature": trainer.temperature,
        "max_new_tokens": trainer.max_completion_length,
        "suppressed_tokens": sorted((trainer.generation_kwargs or {}).get("suppress_tokens", [])),
        "prompts": args.per_device_train_batch_size // trainer.num_generations,
        "group": trainer.num_generations,
        "updates_per_batch": trainer.num_iterations,
        "dtype": str(next(trainer.model.parameters()).dtype),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "passes": ["generation", "reference" if trainer.ref_model else "", "update forward and backward"],
    }
