"""Teachers: a policy that is at hand, or one that is trained here once and kept in the cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from surefoot import policies
from surefoot.cache import cache_folder
from surefoot.files import make_folder
from surefoot.specs import call, read_options


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

    made_from = {"task": task.name, "method": method, "policy": policy, "steps": steps, "seed": seed}
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:8]
    folder = cache_folder() / "teachers" / f"{Path(policy).name}-{method}-{steps}-{digest}"

    def fill(aside: Path) -> None:
        silent = {"train.final_problems": 0, "train.eval_every": 0, "train.log_rollouts": False}
        out = aside.parent / "run"
        told = {"steps": steps, "seed": seed, "out": out, "set": silent, "progress": False, "report": False}
        with torch.random.fork_rng(), torch.enable_grad():  # who asks may be drawing, or averaging without gradients
            made = train(policy, task, method, **told)
        made.policy.save(aside)
        (aside / "made.json").write_text(json.dumps(made_from, indent=1))

    return policies.load(str(make_folder(folder, fill)), task)
