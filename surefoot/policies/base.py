"""What a policy is, and a base for those that are one PyTorch module: a step may be anything that has a probability.

A kind of policy is one file here with a function `load(task, **options) -> Policy`; `--policy <kind>:key=value` finds
it by its file's name, and nothing else learns of it. `docs/policies.md` makes one from nothing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from surefoot.errors import InputError, nearest
from surefoot.rollouts import Rollouts

CARD = "policy.json"


class Policy(Protocol):
    """Samples steps and scores them.

    How it samples is between the policy and its task (`tasks.play`): text policies have `sample`, a policy for an
    environment whatever that task's `rollout` calls. What every policy has is below; these it may have besides:
    `critic()` (makes the value head when a part first reads a value), `stepped()` (called after every optimizer
    step: moving averages, target networks), `parameter_groups()` (as for a PyTorch optimizer; `scale` in a group is a
    factor on the learning rate), `engine_exact` (what it records as `rollout_logp` is what `score` would say),
    `likelihood` (false where `logp` is a score and no log-probability, so that no KL divergence is told from it).

    Attributes:
        kind: the name of its file.
        live: the live columns that `score` can give.
        unit: what its steps are, in the plural, for reports.
        suggested_lr: a learning rate to start from.
    """

    kind: str
    name: str
    live: tuple[str, ...]
    unit: str

    @property
    def suggested_lr(self) -> float: ...

    def score(self, rollouts: Rollouts, want: Collection[str], temperature: float = 1.0) -> dict[str, Tensor]: ...

    def parameters(self) -> list[nn.Parameter]: ...

    def reference(self) -> Policy: ...

    def save(self, folder: Path) -> None: ...

    def restore(self, folder: Path, extra: dict[str, Tensor]) -> None: ...

    def extra_state(self) -> dict[str, Tensor]: ...

    def describe(self) -> dict[str, Any]: ...


class ModulePolicy:
    """A policy that is one PyTorch module, saved as safetensors beside the options it was made from.

    A subclass sets `kind` and `live`, and writes `columns` (and what its task samples with).

    Args:
        model: everything that trains or must be saved.
        options: plain data from which its file's `load(None, **options)` makes the same module again.
        lr: a learning rate to start from.
    """

    kind: ClassVar[str] = "module"
    live: ClassVar[tuple[str, ...]] = ("logp",)
    unit: ClassVar[str] = "steps"
    engine_exact = True

    def __init__(self, model: nn.Module, options: Mapping[str, Any], name: str | None = None, lr: float = 1e-3):
        self.model, self.options, self.suggested_lr = model, dict(options), lr
        self.name = name or self.kind

    def columns(self, rollouts: Rollouts, want: set[str], temperature: float) -> dict[str, Tensor]:
        """The wanted live columns, with gradient where it is enabled."""
        raise NotImplementedError

    def score(self, rollouts: Rollouts, want: Collection[str], temperature: float = 1.0) -> dict[str, Tensor]:
        """The wanted live columns; a column that this kind cannot give is an error that names it."""
        refuse_unknown(self, want)
        return self.columns(rollouts, set(want), temperature or 1.0)

    def parameters(self) -> list[nn.Parameter]:
        """What trains."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def reference(self) -> ModulePolicy:
        """The policy as it is now, frozen."""
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self.model).requires_grad_(False)
        return twin

    def save(self, folder: Path) -> None:
        """`model.safetensors`, and `policy.json` with the kind and the options."""
        save_file({k: v.detach().contiguous().clone() for k, v in self.model.state_dict().items()}, _weights(folder))
        card = {"kind": self.kind, "name": self.name, "options": self.options}
        (folder / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")

    def restore(self, folder: Path, extra: dict[str, Tensor] | None = None) -> None:
        """Copy the weights that `save` wrote.

        Raises:
            InputError: weights of another policy.
        """
        saved, own = load_file(_weights(folder)), self.model.state_dict()
        odd = {n for n in {*saved, *own} if n not in own or n not in saved or own[n].shape != saved[n].shape}
        if odd:
            raise InputError(f"checkpoint {folder}: weight {min(odd)!r} does not fit the policy {self.name!r}")
        self.model.load_state_dict(saved)

    def extra_state(self) -> dict[str, Tensor]:
        """Nothing beside the module's own state."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Facts for the report."""
        count = sum(p.numel() for p in self.model.parameters())
        return {"kind": self.kind, "name": self.name, "unit": self.unit, "parameters": count}


def refuse_unknown(policy: Any, want: Collection[str]) -> None:
    """Raise `InputError` for a live column that the policy cannot give."""
    unknown = set(want) - set(policy.live)
    if unknown:
        first = min(unknown)
        raise InputError(
            f"policy {policy.name!r} ({policy.kind}) cannot give column {first!r}{nearest(first, policy.live)}"
        )


def supervised(parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor], steps: int, lr: float) -> list[float]:
    """Steps of AdamW on what `loss()` gives: a short warm-up, then a learning rate that falls to 0; the losses."""
    parameters = list(parameters)
    optimizer, losses = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 20) * (1 - step / steps)
        value = loss()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(value.item())
    return losses


def generator(seed: int) -> torch.Generator:
    """A stream of random numbers of its own, from the seed of a trajectory or batch."""
    return torch.Generator().manual_seed(seed)


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"
