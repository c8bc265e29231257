"""The loop: sample, judge, give credit, update. It runs any Method on any Policy and Task, and knows none by name."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surefoot.errors import InputError
from surefoot.method import BATCH_SLOTS, UPDATE_SLOTS, Method
from surefoot.objective.references import weights
from surefoot.rollouts import LIVE, Rollouts
from surefoot.tasks.base import Task
from surefoot.training import teachers
from surefoot.training.guards import check_column, check_gradient, check_loss
from surefoot.training.settings import Settings
from surefoot.training.signals import Signals, require
from surefoot.training.world import Clock, Flight, StepWorld


@dataclass
class StepResult:
    """One step: its number, its metrics (deterministic), its seconds by phase, and its batch."""

    step: int
    metrics: dict[str, Any]
    seconds: dict[str, float]
    batch: Rollouts


@dataclass
class Trainer:
    """Runs `method` on `policy` and `task`.

    Every random draw is a function of (seed, step), so a run resumed at a step goes on as if never interrupted.

    Attributes:
        teacher: policy behind the `teacher_*` columns, where a method reads them.
        step: steps done.
        signals: counts of scoring passes (`signals.passes`), forward passes of the update (`forwards`).
    """

    policy: Any
    task: Task
    method: Method
    settings: Settings = field(default_factory=Settings)
    teacher: Any | None = None

    def __post_init__(self):
        self.method = self.method.fresh().check()
        self.step = 0
        self.forwards = 0
        self.flight: Flight | None = None
        self._reference = None
        self._check_ahead()
        self._wanted_live = self._live_columns()
        if {"value", "old_value", "next_value", "old_next_value"} & set(self.method.readers()):
            self.policy.critic()
        if {"ref_logp", "ref_logits", "old_kl", "now_kl"} & set(self.method.readers()):
            self._reference = self.method.reference(self.policy, self._another)
        statistics = self.method.statistics()
        self.signals = Signals(
            self.policy, reference=lambda: self._reference, teacher=self.teacher, statistics=statistics
        )
        s = self.settings
        if s.engine_dtype != "float32":
            if not hasattr(self.policy, "engine_dtype"):
                raise InputError(f"train.engine_dtype: a policy of kind {self.policy.kind!r} samples in its own type")
            self.policy.engine_dtype = getattr(torch, s.engine_dtype)
        self.peak_lr = s.lr if s.lr is not None else self.policy.suggested_lr
        grouped = list(getattr(self.policy, "parameter_groups", self.policy.parameters)())
        groups = grouped if grouped and isinstance(grouped[0], dict) else [{"params": grouped}]
        names = dict(zip(map(id, self.policy.parameters()), self._names(), strict=False))
        self.optimizer = self.method.update.optimizer(
            groups, names, lr=self.peak_lr, betas=(s.beta1, s.beta2), weight_decay=s.weight_decay
        )

    def _check_ahead(self) -> None:
        if not self.settings.ahead:
            return
        if any(getattr(part, "moves_policy", False) for _, part in self.method.rollout.inside()):
            raise InputError("train.ahead=1: rollout.starts changes the policy that samples; expected train.ahead=0")
        if not {"old_logp", "rollout_logp"} & set(self.method.readers(*UPDATE_SLOTS)):
            raise InputError(
                f"train.ahead=1: nothing in {self.method.name!r} corrects for trajectories of an earlier policy; "
                "expected a surrogate with a ratio (old_logp), or EngineCorrected"
            )

    def settle(self) -> None:
        """Wait until nothing is being sampled ahead: before weights, parts or the task are used from elsewhere."""
        if self.flight:
            self.flight.plain()

    def _another(self, spec: str) -> Any:
        return teachers.load(spec, self.task, of=getattr(self.policy, "name", "pebble"))

    def _live_columns(self) -> set[str]:
        return {c for c in self.method.readers(*UPDATE_SLOTS) if c in LIVE} | {"logp"}

    # --- where trajectories come from -------------------------------------------------------------------------------

    def world(self, step: int, age: int = 0) -> StepWorld:
        """What the method's rollout part sees at `step`."""
        return StepWorld(self.policy, self.task, self.method, self.settings.seed, step, age, self._renew_optimizer)

    def _renew_optimizer(self) -> None:
        self.optimizer.state.clear()

    def _sampled(self) -> Rollouts:
        """This step's trajectories: those that were sampled ahead, or fresh ones."""
        flight, self.flight = self.flight, None
        if flight is None or flight.step != self.step:
            self._world = self.world(self.step)
            batch = self._world.make()
            self._seconds |= self._world.seconds
        else:
            with self._seconds.phase("rollout"):  # what is left to wait for
                self._world, batch = flight.land()
        self.signals.temperature = self._world.temperature
        return batch

    def _sample_ahead(self) -> None:
        """Let the next step's trajectories be made beside the update, by the policy as it is before it."""
        if self.settings.ahead and self.step < self.settings.steps:
            with self._seconds.phase("rollout"):
                self.flight = Flight.of(self.world(self.step + 1, age=1))

    @property
    def moved_reference(self) -> dict[str, Tensor]:
        """The weights of a reference that moves, for checkpoints; empty for one that can be made again."""
        if self._reference is None or not self.method.reference.moves:
            return {}
        return dict(weights(self._reference))

    # --- one step -------------------------------------------------------------------------------------------------

    def train_step(self) -> StepResult:
        """Make a batch, learn from it, and let the controllers see what came of it.

        Raises:
            GuardStop: a reward, loss or gradient that is not finite; the weights are left as they were before it.
        """
        self.step += 1
        self._seconds = Clock(rollout=0.0, score=0.0, update=0.0)
        started = time.perf_counter()
        batch = self.make_batch()
        self._sample_ahead()
        metrics = self._describe(batch)
        with self._seconds.phase("update"):
            metrics |= self.update(batch)
        if self._reference is not None:
            self.method.reference.follow(self._reference, self.policy, self.step)
        for path, part in list(self.method.parts()):
            if path.startswith("controllers."):
                for target, value in part(metrics).items():
                    self.settle()
                    self.method = self.method.set(target, value)
                    metrics[target] = value
        self._wanted_live = self._live_columns()
        total = time.perf_counter() - started
        seconds = self._seconds | {"other": total - sum(self._seconds.values()), "total": total}
        seconds["tokens_per_s"] = self._world.tokens / max(total, 1e-9)
        return StepResult(self.step, metrics, seconds, batch)

    def make_batch(self) -> Rollouts:
        """Sample, judge and credit one batch: every column that the update reads, detached."""
        method = self.method
        batch = self._sampled()
        if hasattr(method.prompts, "observe"):
            method.prompts.observe(batch)  # pyright: ignore[reportAttributeAccessIssue]
        with self._seconds.phase("score"), torch.no_grad():
            batch = self._with_old_logp(batch)
            if "lr" in method.readers():
                batch = batch.having(lr=torch.full((len(batch),), self.settings.lr_at(self.step, self.peak_lr)))
            batch = self.signals.fill(
                batch, {c for p in (method.reward, method.advantage, method.select) for c in p.reads}
            )
            batch = self._call("reward", method.reward, batch)
            check_column(batch, "reward", self.step)
            batch = self._call("advantage", method.advantage, batch)
            check_column(batch, "advantage", self.step)
            require(batch, "select", method.select)
            chosen, offered = method.select(batch).bool(), batch.mask
            batch = batch.having(mask=offered & (chosen[:, None] if chosen.ndim == 1 else chosen))
            self._selected = float(batch.mask.sum() / offered.sum().clamp_min(1))
            reads = set(method.readers(*UPDATE_SLOTS))
            aggregates = [method.aggregate, *(a for _, p in self._terms() if (a := getattr(p, "aggregate", None)))]
            early = any("old_logp" in a.reads for a in aggregates)
            if method.update.epochs * method.update.minibatches == 1 and not early:
                reads -= {"old_logp"}  # the policy has not moved: the update's own forward pass gives it
            batch = self.signals.fill(batch, reads)
            self._tell("observe", batch)
            return batch

    @torch.no_grad()
    def _tell(self, what: str, rollouts: Rollouts) -> None:
        """Show a whole batch (`observe`) or minibatch (`prepare`) to the update parts, and those inside, that look."""
        for path, outer in self.method.parts():
            for _, part in outer.inside() if path.split(".")[0] in UPDATE_SLOTS else ():
                if hasattr(part, what):
                    getattr(part, what)(rollouts)

    def _with_old_logp(self, batch: Rollouts) -> Rollouts:
        """The engine's log-probabilities as `old_logp` where they are the trainer's (see `Settings.engine_logp`)."""
        readers = self.method.readers(*BATCH_SLOTS)
        several = self.method.update.epochs * self.method.update.minibatches > 1
        fresh = not batch.age.any()  # older trajectories: the engine's numbers are those of an earlier policy
        if self.settings.engine_logp and self._world.exact and fresh and (several or "old_logp" in readers):
            if "old_logp" in self.method.readers():
                return batch.having(old_logp=batch.rollout_logp)
        return batch

    def _call(self, slot: str, part: Any, batch: Rollouts) -> Rollouts:
        require(batch, slot, part)
        result = part(batch)
        return batch.having(**(result if isinstance(result, dict) else {slot: result}))

    def update(self, batch: Rollouts) -> dict[str, float]:
        """All epochs and minibatches of one batch; returns means over them."""
        plan, logs = self.method.update, []
        for epoch in range(plan.epochs):
            for rows in _minibatches(batch, plan.minibatches, self._world.rng(2 + epoch)):
                minibatch = batch.rows(rows) if plan.minibatches > 1 else batch
                logs.append(self._optimizer_step(self.signals.refresh(minibatch) if logs else minibatch))
        return {
            k: float(np.mean([log[k] for log in logs if k in log])) for k in dict.fromkeys(k for g in logs for k in g)
        }

    def _optimizer_step(self, minibatch: Rollouts) -> dict[str, float]:
        self._tell("prepare", minibatch)
        weights = self._weights(minibatch)
        self.optimizer.zero_grad(set_to_none=True)
        log: dict[str, float] = {"loss": 0.0}
        parts = [inner for _, part in self._terms() for _, inner in part.inside()]
        groups, budget = any(p.whole_groups for p in parts), self.settings.micro_tokens
        if any(p.whole_batch for p in parts):
            budget = sys.maxsize
        for rows in _microbatches(minibatch, self._learnable(minibatch), budget, groups):
            micro = minibatch.rows(rows)
            self._backward(micro, {path: w[rows][:, : micro.steps] for path, w in weights.items()}, log)
        parameters = self.policy.parameters()
        limit = self.method.update.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit or float("inf"))
        check_gradient(norm, parameters, self._names(), self.step)
        lr = self.settings.lr_at(self.step, self.peak_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # their memory is the engine's until the next update
        if hasattr(self.policy, "stepped"):
            self.policy.stepped()
        counted = log.pop("_counted", 0.0)
        means = {k[5:]: log.pop(k) / counted for k in list(log) if k.startswith("_sum_") and counted}
        return log | means | {"grad_norm": float(norm), "lr": lr}

    def _terms(self) -> list[tuple[str, Any]]:
        """The parts whose losses add up, by path."""
        return [(p, part) for p, part in self.method.parts() if p == "surrogate" or p.startswith("regularizers.")]

    def _weights(self, minibatch: Rollouts) -> dict[str, Tensor]:
        """The weights of each term's steps: by the method's aggregate, or by its own where the part brings one."""
        common = self.method.aggregate(minibatch)
        factor = minibatch.weight if "weight" in minibatch else 1.0
        own = {path: getattr(part, "aggregate", None) for path, part in self._terms()}
        return {path: (part(minibatch) if part else common) * factor for path, part in own.items()}

    def _backward(self, micro: Rollouts, weights: dict[str, Tensor], log: dict[str, float]) -> None:
        """Loss and gradient of one microbatch; adds what it measured to `log`."""
        self.forwards += 1
        micro = micro.having(**self.policy.score(micro, self._wanted_live, self.signals.temperature))
        if "old_logp" not in micro:
            micro = micro.having(old_logp=micro.logp.detach())
        loss = micro.logp.new_zeros(())
        for path, part in self._terms():
            require(micro, path, part)
            term, w = part(micro), weights[path]
            scaled = w * term.where(w != 0, 0.0) if term.ndim == 2 else w.sum(1) * term
            check_loss(scaled.sum(), term, w, micro, self.step)
            loss = loss + scaled.sum()
        if loss.requires_grad:
            loss.backward()
        log["loss"] += float(loss.detach())
        with torch.no_grad():
            counted = float(micro.mask.sum())
            log["_counted"] = log.get("_counted", 0.0) + counted
            for _, part in self._terms():
                measure = getattr(part, "metrics", None)
                for name, value in (measure(micro) if measure else {}).items():
                    log[f"_sum_{name}"] = log.get(f"_sum_{name}", 0.0) + float(value) * counted
            if "ref_logp" in micro and getattr(self.policy, "likelihood", True):
                gap = (micro.ref_logp - micro.logp)[micro.mask]
                log["_sum_kl"] = log.get("_sum_kl", 0.0) + float((gap.exp() - 1 - gap).sum())

    def _learnable(self, minibatch: Rollouts) -> Tensor:
        """Rows whose loss has a gradient; a group with nothing to learn from costs no forward pass."""
        rows = minibatch.mask.any(1)
        silent = getattr(self.method.surrogate, "vanishes_with_advantage", False)
        if silent and not any(r.reads for r in self.method.regularizers):
            rows = rows & (minibatch.advantage != 0).any(1)
        return rows.nonzero().flatten()

    def _names(self) -> list[str]:
        model = getattr(self.policy, "model", None)
        return [n for n, p in model.named_parameters() if p.requires_grad] if model is not None else []

    def _describe(self, batch: Rollouts) -> dict[str, Any]:
        """Deterministic numbers of a judged batch."""
        lengths = batch.mask.sum(1).float() if "present" not in batch else batch.present.sum(1).float()
        first = torch.zeros(int(batch.group.max()) + 1, dtype=batch.reward.dtype)
        first[batch.group] = batch.reward
        mixed = torch.zeros(len(first)).index_add(0, batch.group, (batch.reward != first[batch.group]).float())
        out = {
            "reward": float(batch.reward.mean()),
            "reward_std": float(batch.reward.std(correction=0)),
            "length": float(lengths.mean()),
            "zero_groups": float((mixed == 0).float().mean()),
            "tokens": self._world.tokens,
            "rewards": {k: float((v if v.ndim == 1 else v.sum(1)).mean()) for k, v in batch.rewards.items()},
        }
        if self._selected < 1:
            out["selected"] = self._selected
        if batch.age.any():
            out["age"] = float(batch.age.float().mean())
        if "correct" in batch:
            out["correct"] = float(batch.correct.float().mean())
        out |= {name: float(batch[name].float().mean()) for name in ("truncated", "void") if name in batch}
        if "rollout_logp" in batch:
            out["entropy"] = float(-batch.rollout_logp[batch.present].mean())
        return out


def _minibatches(batch: Rollouts, count: int, rng: np.random.Generator) -> list[Tensor]:
    """Rows of each minibatch: groups are shuffled and kept together."""
    if count == 1:
        return [torch.arange(len(batch))]
    groups = np.unique(batch.group.numpy())
    rng.shuffle(groups)
    of_group = torch.empty(int(groups.max()) + 1, dtype=torch.long)
    parts = np.array_split(groups, min(count, len(groups)))
    for i, part in enumerate(parts):
        of_group[torch.from_numpy(part)] = i
    of_row = of_group[batch.group]
    return [(of_row == i).nonzero().flatten() for i in range(len(parts))]


def _microbatches(batch: Rollouts, rows: Tensor, budget: int, whole: bool = False) -> list[Tensor]:
    """`rows` cut into runs of at most `budget` tokens; the split does not change the gradient.

    A run has at least one row, and with `whole` every row of each group that it has.
    """
    if not len(rows):
        return []
    width = batch.steps + (batch.prompt_tokens.shape[1] if "prompt_tokens" in batch else 0)
    room = max(1, budget // max(1, width))
    if not whole:
        return list(rows.split(room))
    rows = rows[batch.group[rows].argsort(stable=True)]
    sizes = batch.group[rows].unique_consecutive(return_counts=True)[1].tolist()
    cuts, used = [0], 0
    for size in sizes:
        if used and used + size > room:
            cuts.append(cuts[-1] + used)
            used = 0
        used += size
    return [rows[a:b] for a, b in zip(cuts, [*cuts[1:], len(rows)], strict=True)]
