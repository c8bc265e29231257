"""What a part is: a small frozen object with one `__call__`, and the columns it reads and adds.

A `Method` is data: one part a slot. The trainer unions what the parts read, computes each column once, and runs
the slots in this order:

    once a batch, detached   prompts -> rollout -> reward -> advantage -> select
    every minibatch, live    surrogate + regularizers, weighted by aggregate, then one backward pass
    after the update         controllers, reference

A part with memory keeps it in `self.memory`, a dict of plain numbers, lists and tensors; a run starts with
`Method.fresh()`, which gives every part its own empty memory, and checkpoints carry it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, TypeVar

from jaxtyping import Float
from torch import Tensor

from surefoot.rollouts import Rollouts

P = TypeVar("P", bound="Part")


@dataclass(frozen=True)
class Part:
    """Base of every part. Subclasses are frozen dataclasses whose defaults are their paper's.

    Attributes:
        reads: columns that must be in the table when the part is called (a class attribute, or a property where
            it depends on the part's fields: a KL with coefficient 0 reads nothing).
        adds: columns that the part returns beside its main result; a part that adds columns returns a dict.
        whole_groups: the part compares the rows of a group in the update, so a microbatch must not split one.
        whole_batch: the part compares all rows in the update, so a minibatch is not split at all.
        aggregate: (a field of surrogates and regularizers that have it) weights this term's steps by itself, instead of
            the method's aggregate.
        statistics: columns that this part makes the trainer compute from whole distributions: name -> function of the
            log-probabilities of all candidates [*s v] under the policy that finds the batch, and of the steps taken
            [*s], which gives [*s]. Only its result is kept.
        observe: (a method of prompts and update parts that have it) called once with every whole batch, before its
            update: where a part gathers what it remembers, as microbatches may come in any number.
        prepare: (a method of update parts that have it) called with every whole minibatch before its update: where a
            part finds what holds for the update, from the detached columns that it reads, and puts it in `memory`.
        memory: what the part remembers between calls, saved in checkpoints; never part of its identity.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    adds: ClassVar[tuple[str, ...]] = ()
    whole_groups: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = False
    statistics: ClassVar[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {}
    memory: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False, kw_only=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the part does, by its slot (see the protocols below)."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__")

    def fresh(self: P) -> P:
        """A copy with empty memory, here and in every part inside it."""
        changed = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "memory":
                continue
            if isinstance(value, Part):
                changed[f.name] = value.fresh()
            elif isinstance(value, tuple) and any(isinstance(v, Part) for v in value):
                changed[f.name] = tuple(v.fresh() if isinstance(v, Part) else v for v in value)
        return replace(self, **changed)

    def having(self: P, **changes: Any) -> P:
        """A copy with other field values and the same memory (what a controller does to a coefficient)."""
        new = replace(self, **changes)
        object.__setattr__(new, "memory", self.memory)
        return new

    def inside(self) -> Iterator[tuple[str, Part]]:
        """This part and all parts in its fields, by path: `("", self), ("base", ...), ("of.0", ...)`."""
        yield "", self
        for f in fields(self):
            value = getattr(self, f.name)
            many = {f"{f.name}.{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {f.name: value}
            for name, part in many.items():
                if isinstance(part, Part):
                    yield from ((f"{name}.{path}".rstrip("."), inner) for path, inner in part.inside())

    def state_dict(self) -> dict[str, Any]:
        """A deep copy of the memory, with that of the parts inside it."""
        inside = {path: part.memory for path, part in self.inside() if path and part.memory}
        return copy.deepcopy(self.memory | ({"inside": inside} if inside else {}))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a saved memory back."""
        state = copy.deepcopy(dict(state))
        saved = state.pop("inside", {}) | {"": state}
        for path, part in self.inside():
            part.memory.clear()
            part.memory.update(saved.get(path, {}))


class Reward(Protocol):
    """Named rewards -> one reward."""

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n"]: ...


class Advantage(Protocol):
    """Credit of every step, detached. With `adds`, a dict that holds `advantage` and the added columns."""

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"] | dict[str, Tensor]: ...


class Select(Protocol):
    """Which steps train: a mask to multiply into `rollouts.mask`, after the group statistics are taken."""

    def __call__(self, rollouts: Rollouts) -> Tensor: ...


class Surrogate(Protocol):
    """Loss of every step (or of every trajectory, [n]), to be minimised, with gradient."""

    def __call__(self, rollouts: Rollouts) -> Float[Tensor, "n t"] | Float[Tensor, "n"]: ...


class Aggregate(Protocol):
    """Weight of every step's loss: the scalar loss is `sum(weights * loss)`.

    Weights are taken once on the whole minibatch (or over all ranks, when `total` sums over them), so the loss is
    the same under any split into microbatches.
    """

    def __call__(self, rollouts: Rollouts, total: Any = ...) -> Float[Tensor, "n t"]: ...


class Controller(Protocol):
    """Metrics in, new values of fields out: `{"regularizers.kl.coef": 0.02}`."""

    def __call__(self, metrics: Mapping[str, float]) -> dict[str, float]: ...
