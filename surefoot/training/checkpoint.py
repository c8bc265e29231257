"""Checkpoints: the policy in Hugging Face format, and all that the trainer needs to go on exactly.

    step-000100/
      model.safetensors, config.json, tokenizer ...   loads anywhere
      trainer.safetensors                             optimizer, value head, adapters, a reference that moves,
                                                  tensors that parts remember, a batch sampled ahead
      trainer.json                                    step, fields that controllers moved, what parts remember
      manifest.json                                   a digest of every file, checked before anything is loaded

Written aside, synced and renamed: a checkpoint is whole or not there. Tensors are safetensors; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from surefoot.errors import InputError
from surefoot.files import make_folder
from surefoot.method import Method
from surefoot.training.trainer import Trainer
from surefoot.training.world import Flight


def save(trainer: Trainer, folder: Path, keep: int = 3) -> Path:
    """Write `folder/step-N`; the oldest beyond `keep` are removed after the new one is in place."""

    ahead = trainer.flight.plain() if trainer.flight else {}  # waits: parts must be still while they are written

    def fill(aside: Path) -> None:
        trainer.policy.save(aside)
        tensors: dict[str, torch.Tensor] = {}
        state = {
            "step": trainer.step,
            "method": trainer.method.to_dict(),
            "memory": _take_tensors(trainer.method.state_dict(), "memory", tensors),
            "optimizer": _take_tensors(trainer.optimizer.state_dict(), "optimizer", tensors),
            "policy": _take_tensors(trainer.policy.extra_state(), "policy", tensors),
            "reference": _take_tensors(trainer.moved_reference, "reference", tensors),
            "ahead": _take_tensors(ahead, "ahead", tensors),
            "torch_rng": _take_tensors(torch.get_rng_state(), "torch_rng", tensors),
        }
        save_file(tensors, aside / "trainer.safetensors")
        (aside / "trainer.json").write_text(json.dumps(state))
        digests = {p.name: _digest(p) for p in sorted(aside.iterdir())}
        (aside / "manifest.json").write_text(json.dumps(digests, indent=1))

    final = make_folder(folder / f"step-{trainer.step:06d}", fill)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run's folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def verify(checkpoint: Path) -> None:
    """Raise `InputError` where a file is missing or is not what was written."""
    try:
        digests = json.loads((checkpoint / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise InputError(
            f"checkpoint {checkpoint}: manifest.json is missing or unreadable{_others(checkpoint)}"
        ) from None
    for name, digest in digests.items():
        path = checkpoint / name
        if not path.is_file() or _digest(path) != digest:
            what = "is corrupt" if path.is_file() else "is missing"
            raise InputError(f"checkpoint {checkpoint}: {name} {what}{_others(checkpoint)}")


def load(trainer: Trainer, checkpoint: Path) -> None:
    """Put `trainer` (made from the same configuration) where it was when the checkpoint was written.

    Raises:
        InputError: a corrupt checkpoint, or one of another policy or method.
    """
    verify(checkpoint)
    state = json.loads((checkpoint / "trainer.json").read_text())
    tensors = load_file(checkpoint / "trainer.safetensors")
    trainer.policy.restore(checkpoint, _put_tensors(state["policy"], tensors))
    trainer.method = Method.from_dict(state["method"])
    trainer.method.load_state_dict(_put_tensors(state["memory"], tensors))
    moved = _put_tensors(state.get("reference", {}), tensors)
    with torch.no_grad():
        for name, weight in trainer.moved_reference.items():
            weight.copy_(moved[name])
    optimizer = _put_tensors(state["optimizer"], tensors)
    optimizer["state"] = {int(k): v for k, v in optimizer["state"].items()}
    trainer.optimizer.load_state_dict(optimizer)
    torch.set_rng_state(_put_tensors(state["torch_rng"], tensors))
    trainer.step = state["step"]
    ahead = _put_tensors(state.get("ahead", {}), tensors)
    trainer.flight = Flight.restored(ahead, trainer.world(ahead["step"])) if ahead else None


def moved_reference(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights of the reference that the checkpoint holds, by name; empty where the run's does not move."""
    with safe_open(checkpoint / "trainer.safetensors", "pt") as file:
        held = [name for name in file.keys() if name.startswith("reference.")]  # noqa: SIM118 (no mapping)
        return {name.removeprefix("reference."): file.get_tensor(name) for name in held}


def _take_tensors(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` for JSON, with its tensors moved to `tensors` under their path."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        return {str(k): _take_tensors(v, f"{path}.{k}", tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_take_tensors(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]
    return value


def _put_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"tensor"}:
            return tensors[value["tensor"]]
        return {k: _put_tensors(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_put_tensors(v, tensors) for v in value]
    return value


def _digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _others(checkpoint: Path) -> str:
    earlier = [p for p in checkpoints(checkpoint.parent) if p != checkpoint]
    return f"; an earlier one: --resume {earlier[-1]}" if earlier else ""
