"""Teachers: a policy that is at hand, or one that is trained here once and kept in the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from surefoot import policies
from surefoot.cache import made_once
from surefoot.specs import call, read_options

RECIPE = 2  # raised where the same words would now train another teacher (a default learning rate)


def load(spec: str, task: Any, of: str = "pebble") -> Any:
    """The teacher of a specification: what `policies.load` takes, or `trained[:method=grpo,policy=pebble,steps=8]`.

    Args:
        of: the policy that is trained where the specification names none.

    Raises:
        InputError: nothing of that name, or an option that there is not.
    """
    kind, _, rest = spec.partition(":")
    if kind != "trained":
        return policies.load(spec, task)
    where = f"teacher {spec!r}"
    return call(trained, {"policy": of} | read_options(rest, where), where, task)


def trained(task: Any, method: str = "grpo", policy: str = "pebble", steps: int = 8, seed: int = 0) -> Any:
    """The policy that `surefoot train` ends with on the task, from the cache if it was made before."""
    from surefoot.training.loop import train

    made_from = {"task": task.name, "method": method, "policy": policy, "steps": steps, "seed": seed, "recipe": RECIPE}

    def fill(aside: Path) -> None:
        silent = {"train.final_problems": 0, "train.eval_every": 0, "train.log_rollouts": False}
        out = aside.parent / "run"
        told = {"steps": steps, "seed": seed, "out": out, "set": silent, "progress": False, "report": False}
        with torch.random.fork_rng(), torch.enable_grad():  # who asks may be drawing, or averaging without gradients
            train(policy, task, method, **told).policy.save(aside)

    folder = made_once("teachers", made_from, fill, stem=f"{Path(policy).name}-{method}-{steps}-")
    return policies.load(str(folder), task)
