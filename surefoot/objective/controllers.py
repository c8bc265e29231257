"""Controllers: metrics in, new values of fields out.

Each names the field it moves (`regularizers.kl.coef`) and the metric it watches, and returns `{field: value}` after
every step; a metric that is not there, or not finite, moves nothing. What a controller remembers is in `memory`, so a
resumed run goes on exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from surefoot.errors import InputError
from surefoot.parts import Part

Metrics = Mapping[str, float]


def measured(metrics: Metrics, name: str) -> bool:
    """The metric is there and finite; one NaN must not live on in an integral or an average.

    >>> measured({"kl": float("nan")}, "kl"), measured({"kl": 0.1}, "kl")
    (False, True)
    """
    return name in metrics and math.isfinite(metrics[name])


class Steering(Part):
    """A controller of one field by one metric; where that is missing or not finite, nothing moves."""

    metric: str
    field: str

    def value(self, now: float) -> float:
        """What the field becomes, from what the metric is now."""
        raise NotImplementedError

    def __call__(self, metrics: Metrics) -> dict[str, float]:
        return {self.field: self.value(metrics[self.metric])} if measured(metrics, self.metric) else {}


@dataclass(frozen=True)
class AdaptiveKL(Steering):
    """PPO's adaptive penalty in its proportional form (Ziegler et al., arXiv 1909.08593, section 2.2).

    `e = clip(kl / target - 1, -0.2, 0.2);  coef *= 1 + gain * e`. The paper's gain is 0.1 per batch.
    """

    target: float = 0.1
    gain: float = 0.1
    start: float = 0.04
    limit: float = 0.2
    metric: str = "kl"
    field: str = "regularizers.kl.coef"

    def value(self, now: float) -> float:
        error = min(self.limit, max(-self.limit, now / self.target - 1))
        coef = self.memory.get("coef", self.start) * (1 + self.gain * error)
        self.memory["coef"] = coef
        return coef


@dataclass(frozen=True)
class DoublingKL(Steering):
    """PPO's original rule (arXiv 1707.06347, section 4): halve below target / 1.5, double above 1.5 target."""

    target: float = 0.1
    start: float = 0.04
    metric: str = "kl"
    field: str = "regularizers.kl.coef"

    def value(self, now: float) -> float:
        coef = self.memory.get("coef", self.start)
        coef = coef / 2 if now < self.target / 1.5 else coef * 2 if now > self.target * 1.5 else coef
        self.memory["coef"] = coef
        return coef


@dataclass(frozen=True)
class DualAscent(Steering):
    """Multiplier of the constraint `metric <= budget`: `lambda = max(0, lambda + rate (metric - budget))`.

    Attributes:
        at_least: the constraint is `metric >= budget` instead.
    """

    budget: float = 0.1
    rate: float = 0.1
    start: float = 0.0
    cap: float = 1e3
    at_least: bool = False
    metric: str = "kl"
    field: str = "regularizers.kl.coef"

    def value(self, now: float) -> float:
        excess = (now - self.budget) * (-1 if self.at_least else 1)
        value = min(self.cap, max(0.0, self.memory.get("value", self.start) + self.rate * excess))
        self.memory["value"] = value
        return value


@dataclass(frozen=True)
class PID(Steering):
    """Proportional-integral-derivative control of a metric towards a target; the output stays in [low, high].

    The integral stops growing while the output is saturated (anti-windup).
    """

    target: float = 0.1
    kp: float = 0.1
    ki: float = 0.01
    kd: float = 0.0
    bias: float = 0.0
    low: float = 0.0
    high: float = 1.0
    metric: str = "kl"
    field: str = "regularizers.kl.coef"

    def value(self, now: float) -> float:
        error = now - self.target
        integral = self.memory.get("integral", 0.0) + error
        slope = error - self.memory.get("error", error)
        raw = self.bias + self.kp * error + self.ki * integral + self.kd * slope
        value = min(self.high, max(self.low, raw))
        self.memory["error"] = error
        if value == raw:
            self.memory["integral"] = integral
        return value


@dataclass(frozen=True)
class Hysteresis(Steering):
    """Two values and a memory: `on` once the metric falls below `low`, `off` once it rises above `high`.

    With `low == high` this is bang-bang control.
    """

    low: float = 0.2
    high: float = 0.4
    on: float = 0.01
    off: float = 0.0
    metric: str = "entropy"
    field: str = "regularizers.entropybonus.coef"

    def __post_init__(self):
        if self.low > self.high:
            raise InputError(f"controllers: low={self.low} above high={self.high}, expected low <= high")

    def value(self, now: float) -> float:
        active = now < self.low or self.memory.get("active", False) and now <= self.high
        self.memory["active"] = bool(active)
        return self.on if active else self.off


@dataclass(frozen=True)
class Scheduled(Part):
    """A field as a function of the step: from `start` to `end` over `steps`, by `shape`, after `delay` steps.

    Attributes:
        shape: `linear` (none), `cosine`, `last_fifth` or `warmup_stable_decay`: progress in [0, 1] to the share of
            the way from `start` to `end`.
    """

    field: str = "regularizers.kl.coef"
    start: float = 0.04
    end: float = 0.0
    steps: int = 100
    delay: int = 0
    shape: Callable[[float], float] | None = None

    def __call__(self, metrics: Metrics) -> dict[str, float]:
        step = self.memory.get("step", 0) + 1
        self.memory["step"] = step
        done = min(1.0, max(0.0, (step - self.delay) / max(1, self.steps)))
        return {self.field: self.start + (self.end - self.start) * (self.shape or linear)(done)}


def linear(done: float) -> float:
    """Even progress.

    >>> linear(0.25)
    0.25
    """
    return done


def cosine(done: float) -> float:
    """Half a cosine: slow, fast, slow.

    >>> round(cosine(0.25), 4)
    0.1464
    """
    return (1 - math.cos(math.pi * done)) / 2


def last_fifth(done: float) -> float:
    """Constant, then a linear change over the last fifth.

    >>> round(last_fifth(0.9), 4)
    0.5
    """
    return max(0.0, (done - 0.8) / 0.2)


def warmup_stable_decay(done: float) -> float:
    """Up over the first tenth, constant, back over the last fifth (MiniCPM, arXiv 2404.06395).

    >>> [round(warmup_stable_decay(d), 2) for d in (0.0, 0.05, 0.5, 0.9, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return min(1.0, done / 0.1, (1 - done) / 0.2)


@dataclass(frozen=True)
class Phases(Part):
    """A field that takes one value after another: `values[i]` from step `starts[i]` on (steps count from 1).

    Before the first start the field is left as the method has it. What holds at step s was set after step s - 1.
    """

    field: str = "regularizers.entropybonus.coef"
    starts: tuple[int, ...] = (1,)
    values: tuple[float, ...] = (0.0,)

    def __post_init__(self):
        if len(self.starts) != len(self.values) or list(self.starts) != sorted(self.starts):
            raise InputError(
                f"Phases: starts={self.starts}, values={self.values}, expected as many values, starts in order"
            )

    def __call__(self, metrics: Metrics) -> dict[str, float]:
        following = self.memory.get("step", 0) + 2
        self.memory["step"] = following - 1
        begun = [value for start, value in zip(self.starts, self.values, strict=True) if start <= following]
        return {self.field: begun[-1]} if begun else {}


@dataclass(frozen=True)
class Smoothed(Part):
    """Any controller, fed with exponential moving averages of the metrics (bias-corrected), moving only outside a
    dead band.

    Attributes:
        of: the controller.
        decay: of the averages; 0 passes the metrics through.
        dead_band: a new value closer than this to the last one is not passed on.
    """

    of: Part
    decay: float = 0.9
    dead_band: float = 0.0

    def __call__(self, metrics: Metrics) -> dict[str, float]:
        averages = self.memory.setdefault("averages", {})  # name -> [weighted sum, sum of weights]
        seen = [k for k, v in metrics.items() if isinstance(v, (int, float)) and measured(metrics, k)]
        for name in seen:
            total, weight = averages.get(name, (0.0, 0.0))
            fresh = 1 - self.decay
            averages[name] = [self.decay * total + fresh * metrics[name], self.decay * weight + fresh]
        moved = self.of({name: averages[name][0] / averages[name][1] for name in seen})
        last = self.memory.setdefault("last", {})
        passed = {k: v for k, v in moved.items() if k not in last or abs(v - last[k]) > self.dead_band}
        last.update(passed)
        return passed
