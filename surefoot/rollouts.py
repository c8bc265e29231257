"""The one table that everything reads: N trajectories by T steps, in typed columns.

`COLUMNS` documents every column. A part names the columns it reads; the trainer computes each of them once, and
only if somebody reads it. Axes: `n` trajectories, `t` steps, `m` groups (one prompt each), `p` prompt tokens,
`v` vocabulary, `d` hidden width, `k` kept candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surefoot.errors import InputError, nearest


@dataclass(frozen=True)
class Column:
    """One column: its axes (`"n t"`), its kind (`float`, `int`, `bool`), what it means, who makes it.

    `source` is `rollout` (made by sampling), `task` (made by judging), `method` (made by a part), `signal` (a
    detached forward pass, on demand) or `live` (computed in the update, with gradient).
    """

    name: str
    axes: str
    kind: str
    source: str
    meaning: str


_TABLE = """
tokens        | n t   | int   | rollout | the step taken: a token id
actions       | n t d | float | rollout | the step taken, where it is a vector (control, flows, soft thoughts)
states        | n t d | float | rollout | what the policy saw before each step, where it is a vector
next_states   | n t d | float | rollout | what it saw, or would have seen, after each step
ended         | n t   | bool  | rollout | the environment ended with this step by itself (a time limit is no end)
slots         | n t k | int   | rollout | candidates that a soft step mixes; -1 where there is none
soft          | n t   | bool  | rollout | the step is a mixture of its slots (a soft thought), not one token
mask          | n t   | bool  | rollout | the policy chose this step and it may train
present       | n t   | bool  | rollout | the step exists (chosen, or said by a tool or environment); false is padding
turn          | n t   | int   | rollout | index of the turn a step belongs to, from 0; -1 on padding
prompt        | n     | int   | rollout | the prompt's index in its task
group         | n     | int   | rollout | row of the prompt table: trajectories of one prompt in one batch share it
noise         | n t   | bool  | rollout | masked in the mask draw that scores it; false: in its complement
seed          | n     | int   | rollout | the seed of the trajectory's own random stream
prompt_tokens | m p   | int   | rollout | the prompts, one row a group, padded on the left
prompt_mask   | m p   | bool  | rollout | false on the padding of prompt_tokens
truncated     | n     | bool  | rollout | the trajectory was cut at the length limit
step_mean     | n t d | float | rollout | mean of each Gaussian step as it was sampled
step_std      | n t   | float | rollout | deviation of each Gaussian step, in every entry
step_time     | n t   | float | rollout | time before each denoising step: 1 is noise, 0 is data
step_dt       | n t   | float | rollout | time that each denoising step takes
rollout_logp  | n t   | float | rollout | log-probability of each step as it was sampled (engine's numerics)
age           | n     | int   | rollout | batches trained on since the trajectory was begun
reward        | n     | float | method  | the one reward, from the named rewards
step_reward   | n t   | float | method  | reward paid at each step, where a part shapes it
void          | n     | bool  | task    | some turn neither called a tool nor answered
correct       | n     | bool  | task    | the verifier accepted the trajectory
success_rate  | n     | float | method  | mean reward of the trajectory's group
baseline_reward | n   | float | rollout | reward of a greedy trajectory of the same prompt (ReMax)
advantage     | n t   | float | method  | credit of each step
returns       | n t   | float | method  | target of the value function
weight        | n t   | float | method  | factor on the loss of each step
old_logp      | n t   | float | signal  | log-probability when the batch was made (trainer's numerics)
old_entropy   | n t   | float | signal  | entropy of the step's distribution when the batch was made, nats
old_collision | n t   | float | signal  | log sum_v pi(v)^2 of the step's distribution when the batch was made
old_value     | n t   | float | signal  | value before each step when the batch was made
old_next_value | n t  | float | signal  | value after each step when the batch was made, whether it ended there or not
old_kl        | n t   | float | signal  | KL divergence of the step from the reference when the batch was made, exact
proxy_logp    | n t   | float | signal  | log-probability under the policy of the batch, filtered as a part says
old_hidden    | n t d | float | signal  | last hidden state before each step when the batch was made
old_top       | n t k | int   | signal  | likeliest candidates when the batch was made, the step taken among them
old_top_logp  | n t k | float | signal  | log-probabilities of the candidates in `old_top`
lr            | n     | float | signal  | learning rate of the update that the batch is made for
now_logp      | n t   | float | signal  | log-probability as the minibatch finds the policy, before its own update
now_entropy   | n t   | float | signal  | entropy of the step's distribution as the minibatch finds the policy, nats
now_kl        | n t   | float | signal  | KL divergence from the reference as the minibatch finds the policy, exact
ref_logp      | n t   | float | signal  | log-probability under the reference policy
ref_logits    | n t v | float | signal  | log-probabilities of all candidates under the reference policy
teacher_logp  | n t   | float | signal  | log-probability under the teacher policy
teacher_logits | n t v | float | signal | log-probabilities of all candidates under the teacher policy
logp          | n t   | float | live    | log-probability of each step under the current policy, with gradient
mean          | n t d | float | live    | mean of each Gaussian step under the current policy, with gradient
deviation     | n t d | float | live    | deviation of each Gaussian step under the current policy, with gradient
entropy       | n t   | float | live    | entropy of the current policy at each step, nats, with gradient
collision     | n t   | float | live    | log sum_v pi(v)^2 of the current policy at each step, without gradient
value         | n t   | float | live    | value before each step, with gradient
next_value    | n t   | float | live    | value after each step, whether it ended there or not, without gradient
q             | n t k | float | live    | value of each step by each of the critics, with gradient
target_q      | n t k | float | live    | value of each step by each of the target critics, without gradient
logits        | n t v | float | live    | log-probabilities of all candidates under the current policy, with gradient
hidden        | n t d | float | live    | last hidden state before each step, with gradient
"""

COLUMNS: dict[str, Column] = {}


def declare(column: Column) -> Column:
    """Add a column of one's own to the table's vocabulary (a new policy kind or method may need one)."""
    COLUMNS[column.name] = column
    return column


for _line in _TABLE.strip().splitlines():
    declare(Column(*(field.strip() for field in _line.split("|"))))

LIVE = frozenset(c.name for c in COLUMNS.values() if c.source == "live")
SIGNALS = frozenset(c.name for c in COLUMNS.values() if c.source == "signal")
_KINDS = {
    "float": lambda t: t.is_floating_point(),
    "int": lambda t: not t.is_floating_point() and t.dtype != torch.bool,
    "bool": lambda t: t.dtype == torch.bool,
}


class MissingColumn(InputError):
    """A part read a column that the batch does not carry."""


class Rollouts(Mapping[str, Tensor]):
    """N trajectories x T steps in named columns; immutable: `having` and `rows` return a new table.

    Columns are read as attributes or items (`rollouts.reward`, `rollouts["reward"]`). `rewards` maps the name of
    each reward to its [n] or [n t] tensor; `notes` maps a name to a list of N plain objects (texts, traces).

    Raises:
        InputError: a column that is not declared, or whose axes or kind do not fit the table.
        MissingColumn: a column that is read but not there.
    """

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        rewards: Mapping[str, Tensor] | None = None,
        notes: Mapping[str, Sequence] | None = None,
    ):
        self._columns = dict(columns)
        self.rewards: dict[str, Tensor] = dict(rewards or {})
        self.notes: dict[str, list] = {k: list(v) for k, v in (notes or {}).items()}
        self._sizes: dict[str, int] = {}
        for name, tensor in self._columns.items():
            self._check(name, tensor)
        for name, tensor in self.rewards.items():
            if len(tensor) != len(self):
                raise InputError(f"reward {name!r}: {len(tensor)} values for {len(self)} trajectories")

    def _check(self, name: str, tensor: Tensor) -> None:
        column = COLUMNS.get(name)
        if column is None:
            raise InputError(f"unknown column {name!r}{nearest(name, COLUMNS)}")
        axes = column.axes.split()
        if tensor.ndim != len(axes):
            raise InputError(f"column {name!r}: shape {tuple(tensor.shape)}, expected axes [{column.axes}]")
        for axis, size in zip(axes, tensor.shape, strict=True):
            if axis in "ntmp" and self._sizes.setdefault(axis, size) != size:
                raise InputError(f"column {name!r}: {size} along {axis!r}, the table has {self._sizes[axis]}")
        if not _KINDS[column.kind](tensor):
            raise InputError(f"column {name!r}: dtype {tensor.dtype}, expected {column.kind}")

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._columns[name]
        except KeyError:
            hint = "" if name in COLUMNS else nearest(name, COLUMNS)
            raise MissingColumn(f"column {name!r} is not in this batch{hint}") from None

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __len__(self) -> int:
        """Number of trajectories N."""
        return self._sizes.get("n", 0)

    @property
    def steps(self) -> int:
        """Number of steps T of the padded table."""
        return self._sizes.get("t", 0)

    def __repr__(self) -> str:
        return (
            f"Rollouts(n={len(self)}, t={self.steps}, columns={sorted(self._columns)}, rewards={sorted(self.rewards)})"
        )

    def having(
        self,
        rewards: Mapping[str, Tensor] | None = None,
        notes: Mapping[str, Sequence] | None = None,
        **columns: Tensor,
    ) -> Rollouts:
        """This table with more, or replaced, columns (and rewards and notes)."""
        return Rollouts(self._columns | columns, self.rewards | dict(rewards or {}), self.notes | dict(notes or {}))

    def without(self, *names: str) -> Rollouts:
        """This table without the named columns."""
        kept = {k: v for k, v in self._columns.items() if k not in names}
        return Rollouts(kept, self.rewards, self.notes)

    def rows(self, index: Tensor | Sequence[int]) -> Rollouts:
        """The trajectories at `index` (ints or a bool mask), trimmed to the longest of them.

        The prompt table keeps all its rows, so that `group` stays valid.
        """
        index = torch.as_tensor(index)
        index = index.nonzero().flatten() if index.dtype == torch.bool else index.long()
        length = self.steps
        if "present" in self and len(index):
            used = self.present[index].any(0).nonzero()
            length = int(used[-1]) + 1 if len(used) else 0

        def take(name: str, tensor: Tensor) -> Tensor:
            axes = COLUMNS[name].axes.split()
            if axes[0] != "n":
                return tensor
            taken = tensor[index]
            return taken[:, :length] if axes[1:2] == ["t"] else taken

        rewards = {k: v[index][:, :length] if v.ndim == 2 else v[index] for k, v in self.rewards.items()}
        notes = {k: [v[i] for i in index.tolist()] for k, v in self.notes.items()}
        return Rollouts({k: take(k, v) for k, v in self._columns.items()}, rewards, notes)

    def plain(self) -> dict[str, dict]:
        """What a part may remember: `Rollouts(**table.plain())` is the table again."""
        return {"columns": dict(self._columns), "rewards": dict(self.rewards), "notes": dict(self.notes)}

    def to(self, device: torch.device | str) -> Rollouts:
        """The table with its tensors on `device`."""
        return Rollouts(
            {k: v.to(device) for k, v in self._columns.items()},
            {k: v.to(device) for k, v in self.rewards.items()},
            self.notes,
        )


def concatenate(tables: Sequence[Rollouts]) -> Rollouts:
    """Stack tables: trajectories below each other, steps padded on the right, prompts on the left, groups renumbered.

    Only the columns that all tables have are kept.
    """
    if len(tables) == 1:
        return tables[0]
    names = set(tables[0]).intersection(*tables[1:])
    steps = max(t.steps for t in tables)
    width = max((t.prompt_tokens.shape[1] for t in tables if "prompt_tokens" in t), default=0)
    columns: dict[str, Tensor] = {}
    for name in names:
        axes, pieces, offset = COLUMNS[name].axes.split(), [], 0
        for table in tables:
            piece = table[name]
            if name == "group":
                piece, offset = piece + offset, offset + _groups(table)
            if axes[1:2] == ["t"]:
                piece = _pad(piece, steps, right=True, value=-1 if name == "turn" else 0)
            elif axes == ["m", "p"]:
                piece = _pad(piece, width, right=False)
            pieces.append(piece)
        columns[name] = torch.cat(pieces)
    rewards = {k: torch.cat([t.rewards[k] for t in tables]) for k in tables[0].rewards}
    notes = {k: [x for t in tables for x in t.notes[k]] for k in tables[0].notes}
    return Rollouts(columns, rewards, notes)


def _groups(table: Rollouts) -> int:
    if "prompt_tokens" in table:
        return len(table.prompt_tokens)
    return int(table.group.max()) + 1 if len(table) else 0


def _pad(tensor: Tensor, size: int, right: bool, value: int = 0) -> Tensor:
    missing = size - tensor.shape[1]
    if not missing:
        return tensor
    filler = tensor.new_full((tensor.shape[0], missing, *tensor.shape[2:]), value)
    return torch.cat([tensor, filler] if right else [filler, tensor], dim=1)
