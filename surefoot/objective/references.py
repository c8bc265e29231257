"""Which policy the `ref_*` columns, and every KL divergence to "the reference", are measured against.

The reference slot makes it once, before training (`reference(policy, load)`), and is told of every step (`follow`). It
gets no gradient. One that `moves` is kept in float32, so that small steps are not lost, and saved in checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from surefoot.errors import InputError
from surefoot.parts import Part

Load = Callable[[str], Any]


@dataclass(frozen=True)
class Start(Part):
    """The policy as it was when training began (with LoRA: the policy with its adapters off, at no cost)."""

    moves: ClassVar[bool] = False

    def __call__(self, policy: Any, load: Load) -> Any:
        """The reference at the start; `load` makes a policy from its specification."""
        return policy.reference()

    def follow(self, reference: Any, policy: Any, step: int) -> None:
        """Called after the update of step `step` (from 1), to move the reference's weights in place."""


@dataclass(frozen=True)
class Fixed(Start):
    """Another policy as it is, that need not be kin to the one that trains: what a teacher was trained from.

    Attributes:
        of: its specification: a folder, a name, `trained:steps=8` (`training.teachers`); empty is the start.
    """

    of: str = ""

    def __call__(self, policy: Any, load: Load) -> Any:
        return load(self.of).reference() if self.of else policy.reference()


@dataclass(frozen=True)
class EMA(Start):
    """An exponential moving average of the policy's weights: `ref <- decay ref + (1 - decay) policy`.

    Attributes:
        decay: of the average; 0 is a snapshot.
        every: steps between two moves.
    """

    decay: float = 0.99
    every: int = 1
    moves: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 <= self.decay <= 1 or self.every < 1:
            raise InputError(f"reference: decay={self.decay}, every={self.every}, expected 0 <= decay <= 1, every >= 1")

    def __call__(self, policy: Any, load: Load) -> Any:
        reference = own_copy(policy)
        reference.model.float()
        return reference

    def follow(self, reference: Any, policy: Any, step: int) -> None:
        if step % self.every == 0:
            average([(self.decay, reference), (1 - self.decay, policy)], into=reference)


@dataclass(frozen=True)
class Snapshot(EMA):
    """The policy as it was at the last multiple of `every` steps: what a penalty holds on to moves in jumps."""

    decay: float = 0.0
    every: int = 100


@dataclass(frozen=True)
class Soup(Start):
    """The mean of the weights of the start and of other policies of one origin (SALSA, arXiv 2411.01798).

    Weights that were trained apart from the first step on do not average to anything: permuted units cancel out.

    Attributes:
        of: specifications of the others: folders, names, `trained:steps=8` (`training.teachers`).
        share: weight of the start; the others share the rest evenly.
    """

    of: tuple[str, ...] = ()
    share: float = 0.5

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise InputError(f"reference.share: {self.share}, expected a weight between 0 and 1")

    def __call__(self, policy: Any, load: Load) -> Any:
        """Raises `InputError` without other policies, or with one whose weights have other names or shapes."""
        if not self.of:
            raise InputError(
                "reference.of names no policy to average with; expected at least one fine-tuned from the same model "
                "(--set reference.of=FOLDER)"
            )
        soup = own_copy(policy)
        others = (((1 - self.share) / len(self.of), load(spec)) for spec in self.of)
        average(chain([(self.share, policy)], others), into=soup)
        return soup


def own_copy(policy: Any) -> Any:
    """A frozen copy with weights of its own: adapters are merged, so that an average is one of what they make."""
    return getattr(policy, "frozen", policy.reference)()


@torch.no_grad()
def average(ingredients: Iterable[tuple[float, Any]], into: Any) -> None:
    """Put the weighted mean of the policies' weights into `into`, in float64 until it is stored.

    Tied weights are averaged once and stay tied; buffers and integers are left as they are in `into`.

    Raises:
        InputError: a policy whose weights have other names or shapes.

    >>> from types import SimpleNamespace as Policy
    >>> one, two, mean = (Policy(model=nn.ParameterDict({"w": torch.tensor([x])})) for x in (1.0, 3.0, 0.0))
    >>> average([(0.25, one), (0.75, two)], into=mean)
    >>> mean.model["w"].detach()
    tensor([2.5000])
    """
    total: dict[str, Tensor] = {}
    own = dict(weights(into))
    for share, policy in ingredients:
        found = dict(weights(policy if policy is into else _merged(policy)))
        odd = {n for n in {*own, *found} if n not in own or n not in found or own[n].shape != found[n].shape}
        if odd:
            name = getattr(policy, "name", "policy")
            raise InputError(
                f"reference: weight {min(odd)!r} of {name!r} does not fit the policy; expected one kin to it"
            )
        for name, weight in found.items():
            part = share * weight.to(own[name].device, torch.float64)
            total[name] = total[name] + part if name in total else part
    for name, weight in own.items():
        weight.copy_(total[name])


def weights(policy: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """The named weights of a policy, each tied one once."""
    return ((name, w) for name, w in policy.model.named_parameters() if w.is_floating_point())


def _merged(policy: Any) -> Any:
    """The policy, or its copy with adapters merged where it has some."""
    return own_copy(policy) if getattr(policy, "adapted", False) else policy
