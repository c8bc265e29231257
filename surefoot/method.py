"""A method is a composition of parts: data, not control flow.

`Method` holds one part a slot. `but` makes a variant, `set` changes one field by its path (`surrogate.low=0.3`)
with its type checked, `to_dict`/`from_dict` carry it through TOML. No trainer knows a method by its name.
"""

from __future__ import annotations

import importlib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Union, get_args, get_origin, get_type_hints

from surefoot.errors import InputError, nearest
from surefoot.objective.optimizers import AdamW
from surefoot.objective.references import Start
from surefoot.parts import Part
from surefoot.rollouts import COLUMNS, LIVE

BATCH_SLOTS = ("prompts", "rollout", "reward", "advantage", "select")
UPDATE_SLOTS = ("surrogate", "regularizers", "aggregate")
TUPLE_SLOTS = ("regularizers", "controllers")
SLOTS = (*BATCH_SLOTS, *UPDATE_SLOTS, "controllers", "update", "reference")


@dataclass(frozen=True)
class Paper:
    """Where a method was published."""

    arxiv: str = ""
    year: int = 0
    title: str = ""


@dataclass(frozen=True)
class Home:
    """Where a method is at home: what `surefoot train --method M` takes when nothing else is named.

    Attributes:
        policy, task, teacher: specifications (`policies.load`, `tasks.load`); an empty task is the main job's.
        train: settings of the trainer that differ from its defaults (`{"lr": 3e-4}`).
    """

    policy: str = "pebble"
    task: str = ""
    teacher: str = ""
    train: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Update(Part):
    """How one batch becomes optimizer steps.

    Attributes:
        epochs: passes over the batch.
        minibatches: optimizer steps in a pass; trajectories are shuffled anew for each pass when there are several.
        max_grad_norm: clip of the global gradient norm; 0 leaves it alone.
        optimizer: makes the optimizer (`objective.optimizers`: AdamW, Muon, Aro).
    """

    epochs: int = 1
    minibatches: int = 1
    max_grad_norm: float = 1.0
    optimizer: Part = AdamW()


@dataclass(frozen=True)
class Method:
    """A composition of parts, one a slot (see `surefoot.parts` for what each slot does and when it runs)."""

    name: str
    prompts: Part
    rollout: Part
    reward: Part
    advantage: Part
    select: Part
    surrogate: Part
    aggregate: Part
    regularizers: tuple[Part, ...] = ()
    controllers: tuple[Part, ...] = ()
    update: Update = Update()
    reference: Start = Start()
    paper: Paper | None = None
    home: Home = field(default=Home(), compare=False)

    def but(self, **changes: Any) -> Method:
        """A variant: the same composition with other parts.

        >>> DR_GRPO = GRPO.but(name="dr-grpo", advantage=GroupCentred(), aggregate=ConstantLength())  # doctest: +SKIP
        """
        for slot in changes:
            if slot not in {f.name for f in fields(self)}:
                raise InputError(f"method {self.name!r} has no slot {slot!r}{nearest(slot, SLOTS)}")
        return replace(self, **changes)

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every part with its path: `("surrogate", Clip(...)), ("regularizers.kl", KL(...)), ...`."""
        for slot in SLOTS:
            value = getattr(self, slot)
            if slot in TUPLE_SLOTS:
                for i, part in enumerate(value):
                    yield f"{slot}.{_label(value, i)}", part
            else:
                yield slot, value

    def readers(self, *slots: str) -> dict[str, list[str]]:
        """Column -> the paths of the parts in `slots` (all by default) that read it."""
        found: dict[str, list[str]] = {}
        for path, part in self.parts():
            if not slots or path.split(".")[0] in slots:
                for column in part.reads:
                    found.setdefault(column, []).append(path)
        return found

    def statistics(self) -> dict[str, Callable]:
        """Column -> the function of whole distributions by which a part wants it (`Part.statistics`).

        Raises:
            InputError: two parts want one column by different functions.
        """
        found: dict[str, Callable] = {}
        for path, outer in self.parts():
            for column, function in (item for _, part in outer.inside() for item in part.statistics.items()):
                if found.setdefault(column, function) != function:
                    raise InputError(
                        f"method {self.name!r}: {path} wants {column!r} by {function!r}, and another part by "
                        f"{found[column]!r}; expected one function a column"
                    )
        return found

    def check(self) -> Method:
        """Raise `InputError` where a part reads an unknown column, or a live one before there is a gradient."""
        self.statistics()
        for column, readers in self.readers().items():
            if column not in COLUMNS:
                raise InputError(
                    f"method {self.name!r}: {readers[0]} reads unknown column {column!r}{nearest(column, COLUMNS)}"
                )
        for column, readers in self.readers(*BATCH_SLOTS).items():
            if column in LIVE:
                raise InputError(
                    f"method {self.name!r}: {readers[0]} reads {column!r}, which exists only in the "
                    f"update; a part of the batch reads 'old_{column}'"
                )
        return self

    def fresh(self) -> Method:
        """A copy whose parts remember nothing, for a new run."""
        return replace(
            self,
            **{
                slot: tuple(p.fresh() for p in getattr(self, slot))
                if slot in TUPLE_SLOTS
                else getattr(self, slot).fresh()
                for slot in SLOTS
            },
        )

    def set(self, path: str, value: Any) -> Method:
        """A variant with one field changed: `GRPO.set("surrogate.low", 0.3)`; a string is read by the field's type.

        Raises:
            InputError: unknown slot, part or field (with the nearest name), or a value of another type.
        """
        slot, *rest = path.split(".")
        if slot not in SLOTS and slot != "name":
            raise InputError(f"method {self.name!r} has no slot {slot!r}{nearest(slot, SLOTS)}")
        current = getattr(self, slot)
        if slot in TUPLE_SLOTS:
            labels = {_label(current, i): i for i in range(len(current))} | {str(i): i for i in range(len(current))}
            if len(rest) < 2 or rest[0] not in labels:
                name = rest[0] if rest else ""
                raise InputError(f"method {self.name!r}: {slot} has no part {name!r}{nearest(name, labels)}")
            i = labels[rest[0]]
            part = _set(current[i], rest[1:], value, f"{slot}.{rest[0]}")
            return replace(self, **{slot: (*current[:i], part, *current[i + 1 :])})
        if slot == "name" or not rest:
            return replace(self, **{slot: value if slot == "name" else read_as(value, Part, path)})
        return replace(self, **{slot: _set(current, rest, value, slot)})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for TOML: every part with its class and all its fields."""
        out: dict[str, Any] = {"name": self.name}
        if self.paper:
            out["paper"] = {f.name: getattr(self.paper, f.name) for f in fields(self.paper)}
        for slot in SLOTS:
            value = getattr(self, slot)
            out[slot] = [_plain(p) for p in value] if slot in TUPLE_SLOTS else _plain(value)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Method:
        """The method that `to_dict` wrote.

        Raises:
            InputError: a missing slot, an unknown part or field, or a value of another type.
        """
        unknown = set(data) - {*SLOTS, "name", "paper"}
        if unknown:
            raise InputError(f"method: unknown slot {min(unknown)!r}{nearest(min(unknown), SLOTS)}")
        filled: dict[str, Any] = {"name": data.get("name", "unnamed")}
        if "paper" in data:
            filled["paper"] = Paper(**data["paper"])
        for slot in SLOTS:
            if slot in TUPLE_SLOTS:
                filled[slot] = tuple(read_as(p, Part, f"{slot}.{i}") for i, p in enumerate(data.get(slot, ())))
            elif slot in data:
                filled[slot] = read_as(data[slot], Part, slot)
            elif slot not in ("update", "reference"):
                raise InputError(f"method {filled['name']!r}: no {slot!r} given")
        return cls(**filled)

    def state_dict(self) -> dict[str, Any]:
        """The memory of every part, by path."""
        return {path: state for path, part in self.parts() if (state := part.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put saved memories back."""
        parts = dict(self.parts())
        for path, memory in state.items():
            if path not in parts:
                raise InputError(f"checkpoint: memory of {path!r}, which method {self.name!r} does not have")
            parts[path].load_state_dict(memory)


def _label(parts: tuple[Part, ...], i: int) -> str:
    """A part's name in its tuple: its class in lower case, numbered from the second of its kind."""
    name = type(parts[i]).__name__.lower()
    before = sum(type(p).__name__.lower() == name for p in parts[:i])
    return f"{name}{before + 1}" if before else name


def _set(part: Any, path: list[str], value: Any, where: str) -> Any:
    hints = _hints(type(part))
    name = path[0]
    if name not in hints:
        raise InputError(f"{where} ({type(part).__name__}) has no field {name!r}{nearest(name, hints)}")
    here = f"{where}.{name}"
    new = _set(getattr(part, name), path[1:], value, here) if path[1:] else read_as(value, hints[name], here)
    return part.having(**{name: new}) if isinstance(part, Part) else replace(part, **{name: new})


def _hints(cls: type) -> dict[str, Any]:
    """Init fields of a dataclass and their types."""
    if not is_dataclass(cls):
        return {}
    resolved = get_type_hints(cls)
    return {f.name: resolved[f.name] for f in fields(cls) if f.init}


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str)):
        return value
    if value is None:
        return "none"
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, (type, Part)):
        return _constant(value)
    if isinstance(value, Part):
        return {"part": _address(type(value))} | {name: _plain(getattr(value, name)) for name in _hints(type(value))}
    if callable(value):
        return _address(value)
    raise InputError(f"cannot write {value!r} to TOML; expected numbers, text, parts or named functions")


def _constant(value: Any) -> str:
    """The address of an object that is a named constant of the module of its class (a divergence's generator)."""
    home = type(value).__module__
    for name, known in vars(importlib.import_module(home)).items():
        if known is value:
            return f"{home}:{name}"
    raise InputError(f"cannot write {value!r} to TOML; expected a named constant of {home}")


def _address(obj: Any) -> str:
    if "<" in obj.__qualname__:
        raise InputError(f"cannot write {obj.__qualname__} to TOML; give it a name at the top of a module")
    return f"{obj.__module__}:{obj.__qualname__}"


def locate(address: str, where: str, home: str | None = None) -> Any:
    """The object at `module:name`; a bare name is looked up among Surefoot's parts (and in module `home`)."""
    if ":" in address:
        module, name = address.split(":", 1)
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as e:
            raise InputError(f"{where}: cannot find {address!r} ({e})") from None
    candidates = _vocabulary(home)
    if address not in candidates:
        raise InputError(f"{where}: no part or function {address!r}{nearest(address, candidates)}")
    return candidates[address]


def _vocabulary(home: str | None) -> dict[str, Any]:
    """Names that may stand in `--set advantage=GroupCentred` or `--set regularizers.kl.estimator=k2`."""
    import pkgutil

    import surefoot.objective
    import surefoot.rollout

    modules = [importlib.import_module(home)] if home else []
    for package in (surefoot.objective, surefoot.rollout):
        modules += [
            importlib.import_module(m.name) for m in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        ]
    found: dict[str, Any] = {}
    for module in reversed(modules):
        constants = {k: v for k, v in vars(module).items() if k.isupper() and type(v).__module__ == module.__name__}
        public = {k: v for k, v in vars(module).items() if callable(v) and not k.startswith("_")}
        found |= constants | {k: v for k, v in public.items() if getattr(v, "__module__", None) == module.__name__}
    return found


def read_as(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type, from Python, TOML or the command line."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if type(None) in options and value in (None, "none", "None"):
        return None
    for option in (o for o in options if o is not type(None)):
        try:
            return _read_one(value, option, where)
        except (ValueError, TypeError) as e:
            if isinstance(e, InputError) and len(options) == 1:
                raise
    names = " or ".join(getattr(o, "__name__", str(o)) for o in options if o is not type(None))
    raise InputError(f"{where}: got {value!r}, expected {names}")


def _read_one(value: Any, hint: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise ValueError
    if hint is int:
        if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
            raise ValueError
        return int(value)
    if hint is float:
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    if hint is str:
        return str(value)
    if origin in (tuple, list):
        items = (value.split(",") if value else ()) if isinstance(value, str) else value
        kinds = get_args(hint)
        inner = kinds[0] if kinds else Any
        read = [
            read_as(v, inner if len(kinds) < 2 or kinds[1] is ... else kinds[i], where) for i, v in enumerate(items)
        ]
        return tuple(read) if origin is tuple else read
    if origin in (dict, Mapping) or hint in (dict, Mapping) or origin is typing.get_origin(Mapping[str, int]):
        return dict(value)
    if isinstance(value, Mapping) and "part" in value:
        cls = locate(value["part"], where)
        hints = _hints(cls)
        for name in value:
            if name != "part" and name not in hints:
                raise InputError(f"{where} ({cls.__name__}) has no field {name!r}{nearest(name, hints)}")
        return cls(**{k: read_as(v, hints[k], f"{where}.{k}") for k, v in value.items() if k != "part"})
    if isinstance(hint, type) and issubclass(hint, Part):
        part = value if isinstance(value, Part) else locate(str(value), where)
        part = part() if isinstance(part, type) else part
        if not isinstance(part, hint):
            raise InputError(f"{where}: got {value!r}, expected {hint.__name__}")
        return part
    if isinstance(value, str):  # an object by name: an estimator, a ratio, a link
        found = locate(value, where)
        return found() if isinstance(found, type) and not _wants_class(hint) else found
    return value


def _wants_class(hint: Any) -> bool:
    return get_origin(hint) is type


def callable_name(value: Callable | Part) -> str:
    """A short name for showing: `k3`, `Clip`."""
    return getattr(value, "__name__", type(value).__name__)
