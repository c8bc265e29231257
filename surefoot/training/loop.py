"""A whole run: evaluate, train with checkpoints, evaluate again, report."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch

import surefoot
from surefoot import policies, tasks
from surefoot.errors import GuardStop, InputError, SurefootError, nearest
from surefoot.evaluation.evaluate import evaluate, quick_score, shown
from surefoot.method import Method, read_as
from surefoot.rollout.native import Sampling
from surefoot.training import checkpoint, teachers
from surefoot.training.progress import Live
from surefoot.training.run import Run
from surefoot.training.settings import Settings
from surefoot.training.trainer import Trainer


class Interrupted(SurefootError):
    """Ctrl-C; a checkpoint is kept (exit status 130)."""

    status = 130


@dataclass
class Result:
    """What a run ended with.

    Attributes:
        folder: the run folder.
        before, after: held-out evaluations (see `evaluation.evaluate`), empty where the run skips them.
        seconds: spent training, evaluations apart.
        policy: the trained policy.
    """

    folder: Path
    before: dict[str, Any]
    after: dict[str, Any]
    seconds: float
    policy: Any


def apply_overrides(method: Method, settings: Settings, overrides: Mapping[str, Any]) -> tuple[Method, Settings]:
    """`train.lr=1e-3` changes a setting of the trainer, anything else a field of the method's parts."""
    hints, changed = get_type_hints(Settings), {}
    for path, value in overrides.items():
        slot, _, name = path.partition(".")
        if slot == "train":
            if name not in hints:
                raise InputError(f"train has no setting {name!r}{nearest(name, hints)}")
            changed[name] = read_as(value, hints[name], path)
        else:
            method = method.set(path, value)
    return method, Settings(**(asdict(settings) | changed))


def default_folder(method: str, seed: int) -> Path:
    """A fresh folder under `runs/`."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{method}-{seed}"
    return next(p for i in range(1000) if not (p := Path("runs") / (stem + (f"-{i}" if i else ""))).exists())


def train(
    policy: str | Any = None,
    task: str | Any = None,
    method: str | Method = "grpo",
    *,
    reward: Any = None,
    steps: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    set: Mapping[str, Any] | None = None,  # noqa: A002 (the command's word)
    teacher: str | Any | None = None,
    progress: bool = True,
    report: bool = True,
) -> Result:
    """Train `policy` on `task` with `method`: the `surefoot train` command from Python.

    Args:
        policy: a specification (`policies.load`), or a policy object; none takes the method's home.
        task: a specification (`tasks.load`), or a task object; none takes the method's home.
        method: a slug, `module:OBJECT`, or a Method.
        reward: for a file task: `exact`, `math`, `module:function` or a function.
        set: overrides, such as `{"surrogate.low": 0.3, "train.lr": 1e-3}`.
        out: the run folder; a fresh one under `runs/` by default.

    Raises:
        InputError: bad input. Where no step was written yet, there is no run folder left.
        GuardStop: a number that is not finite; a checkpoint is kept.
        Interrupted: Ctrl-C; a checkpoint is kept.
    """
    from surefoot import methods

    chosen = methods.find(method) if isinstance(method, str) else method
    home = chosen.home
    if out:
        Run.check_free(Path(out))
    base = Settings(**_settings({**home.train, "seed": seed} | ({} if steps is None else {"steps": steps})))
    chosen, settings = apply_overrides(chosen, base, set or {})
    task, policy = tasks.load(task or home.task or tasks.DEFAULT, reward), policy or home.policy
    made = _Made(policy, task, chosen.check(), settings, teacher or home.teacher or None)
    trainer = made.trainer()
    folder = Path(out) if out else default_folder(chosen.name, settings.seed)
    run = Run.create(folder, made.config(reward))
    versions = f"surefoot {surefoot.__version__}, torch {torch.__version__}"
    run.event(0, "start", versions, policy=trainer.policy.describe())
    try:
        return _run(trainer, run, progress, report)
    except InputError:  # many a part finds only in the first batch that a reward or column is not there
        run.forget_unless_begun()
        raise


def resume(
    folder: str | Path,
    *,
    policy: Any = None,
    task: Any = None,
    method: Method | None = None,
    progress: bool = True,
    report: bool = True,
) -> Result:
    """Go on with a run from its newest checkpoint (or the one given), exactly as if it had never stopped.

    Objects of one's own (`policy`, `task`, `method`) that the run was started with must be given again.
    """
    folder = Path(folder)
    at = folder if folder.name.startswith("step-") else None
    run = Run.open(folder.parent.parent if at else folder)
    found = checkpoint.checkpoints(run.folder / "checkpoints")
    if at is None and not found:
        raise InputError(f"{run.folder}: no checkpoint to resume from")
    at = at or found[-1]
    checkpoint.verify(at)
    config = run.config()
    made = _Made(
        policy or config["policy"],
        task or tasks.load(config["task"], config.get("reward") or None),
        method or Method.from_dict(config["method"]),
        Settings(**_settings(config["train"])),
        config.get("teacher") or None,
    )
    trainer = made.trainer()
    checkpoint.load(trainer, at)
    run.rewind(trainer.step)
    run.event(trainer.step, "resume", f"from {at.name}")
    return _run(trainer, run, progress, report)


def _settings(table: Mapping[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(Settings)
    for name in table:
        if name not in hints:
            raise InputError(f"train has no setting {name!r}{nearest(name, hints)}")
    return {k: read_as(v, hints[k], f"train.{k}") for k, v in table.items()}


@dataclass
class _Made:
    """The resolved pieces of a run."""

    policy: Any
    task: Any
    method: Method
    settings: Settings
    teacher: Any = None

    def trainer(self) -> Trainer:
        torch.manual_seed(self.settings.seed)
        policy, teacher = self.policy, self.teacher
        if isinstance(policy, str):
            policy = policies.load(policy, self.task, self.settings.lora)
        if isinstance(teacher, str):
            teacher = teachers.load(teacher, self.task)
        return Trainer(policy, self.task, self.method, self.settings, teacher)

    def config(self, reward: Any) -> dict[str, Any]:
        named = reward if isinstance(reward, str) else getattr(reward, "__name__", "")
        return {
            "surefoot": surefoot.__version__,
            "policy": self.policy if isinstance(self.policy, str) else getattr(self.policy, "name", "object"),
            "task": self.task.name,
            "reward": named or "",
            "teacher": self.teacher if isinstance(self.teacher, str) else "",
            "train": {f.name: "none" if (v := getattr(self.settings, f.name)) is None else v for f in fields(Settings)},
            "method": self.method.to_dict(),
        }


def _run(trainer: Trainer, run: Run, progress: bool, report: bool) -> Result:
    s, folder = trainer.settings, run.folder / "checkpoints"
    live = Live(s.steps, trainer.step, progress, trainer.policy.unit)
    say = live.say
    say(
        f"[bold]{trainer.method.name}[/bold] on {trainer.task.name} with {getattr(trainer.policy, 'name', 'policy')}"
        f" -> {run.folder}"
    )
    before = _final_evaluation(trainer, run, "before", say) if trainer.step == 0 else _known(run, "before")
    if trainer.step == 0:
        _draw(trainer, run)
    spent, saved_at = 0.0, time.monotonic()
    try:
        with _interruptible() as stop, live:
            while trainer.step < s.steps:
                started = time.perf_counter()
                result = trainer.train_step()
                spent += time.perf_counter() - started
                if s.eval_every and (trainer.step % s.eval_every == 0 or trainer.step == s.steps):
                    trainer.settle()
                    name, value = quick_score(trainer.policy, trainer.task, s.eval_problems, s.seed, _sampling(trainer))
                    result.metrics["heldout"] = {name: value, "n": min(s.eval_problems, len(trainer.task.heldout))}
                run.step(trainer.step, result.metrics, result.seconds, result.batch if s.log_rollouts else None)
                live.step(trainer.step, result.metrics, result.seconds)
                if stop.requested:
                    break
                if time.monotonic() - saved_at > s.checkpoint_seconds:
                    _save(trainer, run, folder)
                    saved_at = time.monotonic()
    except GuardStop as e:
        trainer.step -= 1
        kept = _save(trainer, run, folder)
        run.event(trainer.step, "stop", str(e))
        raise GuardStop(f"{e}; checkpoint kept: {kept}") from None
    kept = _save(trainer, run, folder)
    if stop.requested:
        run.event(trainer.step, "interrupt", "Ctrl-C")
        raise Interrupted(f"interrupted after step {trainer.step}; go on with: surefoot train --resume {run.folder}")
    after = _final_evaluation(trainer, run, "after", say)
    run.event(trainer.step, "end", f"trained for {spent:.1f} s", seconds=round(spent, 1))
    _draw(trainer, run)
    if report:
        from surefoot.report import report as write_report

        write_report([run.folder], run.folder / "report.html")
    return Result(run.folder, before, after, spent, trainer.policy)


def _draw(trainer: Trainer, run: Run) -> None:
    """What people would look at, where the task draws it: PNG files that the report shows."""
    draw = getattr(trainer.task, "pictures", None)
    if draw:
        draw(trainer.policy, run.folder / "pictures", f"step_{trainer.step:06d}")


def _save(trainer: Trainer, run: Run, folder: Path) -> Path:
    run.flush()
    kept = checkpoint.save(trainer, folder, trainer.settings.keep)
    run.event(trainer.step, "checkpoint", kept.name)
    return kept


def _sampling(trainer: Trainer) -> Sampling:
    return Sampling(
        max_new_tokens=getattr(trainer.method.rollout, "max_new_tokens", None) or trainer.task.max_new_tokens
    )


def _final_evaluation(trainer: Trainer, run: Run, when: str, say: Any) -> dict[str, Any]:
    s = trainer.settings
    if not s.final_problems or not s.final_samples:
        return {}
    record = evaluate(trainer.policy, trainer.task, s.final_problems, s.final_samples, s.seed, _sampling(trainer))
    run.evaluation(task=trainer.task.name, k=s.final_samples, **{when: record})
    first, best = record["headline"], f"pass@{s.final_samples}"
    more = f", {best} {100 * record[best]:.1f}%" if best in record and best != first else ""
    say(f"held-out {when}: {first} {shown(record, first)}{more} ({record['n']} problems)")
    return record


def _known(run: Run, when: str) -> dict[str, Any]:
    import json

    path = run.folder / "evaluation.json"
    return json.loads(path.read_text()).get(when, {}) if path.exists() else {}


@dataclass
class _Stop:
    requested: bool = False


@contextmanager
def _interruptible() -> Iterator[_Stop]:
    """Ctrl-C asks for a stop after the step in hand; a second one stops at once."""
    stop = _Stop()

    def ask(*_: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    try:
        previous = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not in the main thread: leave signals alone
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
