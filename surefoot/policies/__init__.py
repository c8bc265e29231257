"""Policies by name: a kind of this package with its options, or a causal language model."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from surefoot.errors import InputError
from surefoot.policies.base import CARD, Policy
from surefoot.specs import call, kinds, read_options


def load(spec: str, task: Any = None, lora: int = 0) -> Any:
    """The policy of a specification.

    Args:
        spec: `<kind>[:key=value,...]` for a kind of this package (`tabular:lr=0.1`), the folder of a saved policy
            or of a run (its newest checkpoint), or what `CausalLM.load` takes (`pebble`, a cached name, a Hugging Face
            id or folder).
        task: what the policy is for; a kind may take its sizes from it.
        lora: rank of LoRA adapters (causal language models).

    Raises:
        InputError: nothing of that name, or an option that the kind does not have.
    """
    spec = newest(spec)
    card = Path(spec).expanduser() / CARD
    if card.is_file():
        saved = json.loads(card.read_text(encoding="utf-8"))
        policy = _made(saved["kind"], None, saved["options"], spec)
        policy.restore(card.parent, {})
        policy.name = saved["name"]
        return policy
    kind, _, rest = spec.partition(":")
    if kind in kinds(__name__):
        policy = _made(kind, task, read_options(rest, f"policy {spec!r}"), spec)
        policy.name = spec
        return policy
    from surefoot.policies.causal_lm import CausalLM

    return CausalLM.load(spec, lora=lora)


def newest(spec: str) -> str:
    """The newest checkpoint where `spec` is a run folder, else `spec`.

    Raises:
        InputError: a run folder without a checkpoint.
    """
    folder = Path(spec).expanduser()
    if not (folder / "checkpoints").is_dir():
        return spec
    found = sorted(p for p in (folder / "checkpoints").glob("step-*") if p.is_dir())
    if not found:
        raise InputError(f"policy {spec!r}: a run folder without a checkpoint")
    return str(found[-1])


def _made(kind: str, task: Any, options: dict[str, Any], spec: str) -> Policy:
    known = kinds(__name__)
    if kind not in known:
        raise InputError(f"policy {spec!r}: made by the kind {kind!r}, which this installation does not have")
    return call(importlib.import_module(known[kind]).load, options, f"policy {spec!r}", task)


__all__ = ["Policy", "load"]
