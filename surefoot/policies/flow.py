"""A flow model whose sampling is a row of Gaussian steps: `flow[:key=value,...]`.

A network gives the velocity v(x, t, label) of a rectified flow, x_t = t noise + (1 - t) data; t falls from 1 to 0.
Euler's steps are made random without changing the marginals (Flow-GRPO, arXiv 2505.05470, eq. 9), `transition`. The
last step has no noise: it is no choice, and does not train. Log-probabilities are means over the entries of x, as in
the authors' code.

The policy starts pre-trained on the task's own data (`task.examples()`), some seconds that are kept in the cache.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save
from torch import Tensor, nn

from surefoot.cache import cache_folder
from surefoot.errors import InputError
from surefoot.files import write_aside
from surefoot.policies.base import ModulePolicy, generator
from surefoot.rollouts import Rollouts
from surefoot.specs import call

LOG_ROOT = 0.5 * math.log(2 * math.pi)


class Transition(NamedTuple):
    """One Gaussian denoising step: its mean [... d], and its deviation and time [...]."""

    mean: Tensor
    std: Tensor
    dt: Tensor

    def logp(self, after: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
        """Log-density of where it led, a mean over the entries."""
        z = (after - self.mean) / self.std[..., None]
        return (-0.5 * z.square() - LOG_ROOT).mean(-1) - self.std.log()


def transition(
    x: Float[Tensor, "... d"], v: Float[Tensor, "... d"], t: Float[Tensor, "..."], dt: Float[Tensor, "..."], a: float
) -> Transition:
    """`x - dt (v + s^2 / (2 t) (x + (1 - t) v))`, deviation `s sqrt(dt)`, with `s = a sqrt(t / (1 - t))`.

    At t = 1, where s is infinite, s is that of the step's end.
    """
    late = torch.where(t < 1, t, t - dt)
    s = a * (late / (1 - late)).sqrt()
    drift = v + (s.square() / (2 * t))[..., None] * (x + (1 - t)[..., None] * v)
    return Transition(x - dt[..., None] * drift, s * dt.sqrt(), dt)


class Velocity(nn.Module):
    """v(x, t, label): `depth` hidden layers with SiLU after them; the label is any vector."""

    def __init__(self, entries: int, labels: int, width: int, depth: int = 3):
        super().__init__()
        sizes = (entries + labels + 3, *[width] * depth)
        hidden = [m for a, b in zip(sizes, sizes[1:], strict=False) for m in (nn.Linear(a, b), nn.SiLU())]
        self.net = nn.Sequential(*hidden, nn.Linear(width, entries))

    def forward(
        self, x: Float[Tensor, "... d"], label: Float[Tensor, "... l"], t: Float[Tensor, "..."]
    ) -> Float[Tensor, "... d"]:
        clock = torch.stack([t, (math.pi * t).sin(), (math.pi * t).cos()], -1)
        return self.net(torch.cat([x, label, clock], -1))


Field = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x [... d], label [... l], t [...]) -> velocity [... d]


def euler(v: Field, noise: Float[Tensor, "n d"], label: Float[Tensor, "n l"], steps: int) -> Float[Tensor, "n d"]:
    """From noise at t = 1 to data at t = 0 in even steps, `x <- x - v / steps`: no choice is made on the way.

    >>> euler(lambda x, label, t: torch.ones_like(x), torch.zeros(1, 1), torch.zeros(1, 0), 4)
    tensor([[-1.]])
    """
    x = noise
    for k in range(steps):
        x = x - v(x, label, x.new_full(x.shape[:-1], 1 - k / steps)) / steps
    return x


def flow_matching(
    v: Field,
    data: Float[Tensor, "n d"],
    label: Float[Tensor, "n l"],
    noise: Float[Tensor, "n d"],
    t: Float[Tensor, "n"],
) -> Float[Tensor, ""]:
    """`|v(t noise + (1 - t) data, t) - (noise - data)|^2`, a mean over rows and entries (arXiv 2210.02747)."""
    x = t[:, None] * noise + (1 - t)[:, None] * data
    return (v(x, label, t) - (noise - data)).square().mean()


def fit(
    v: nn.Module,
    data: Float[Tensor, "n d"],
    label: Float[Tensor, "n l"],
    steps: int,
    g: torch.Generator,
    rows: int = 256,
    lr: float = 1e-3,
) -> list[float]:
    """Flow matching at uniform times with fresh noise: Adam, `rows` a batch, a cosine to 0; returns the losses."""
    optimizer = torch.optim.Adam(v.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        drawn = torch.randint(len(data), (rows,), generator=g)
        noise, t = torch.randn(rows, data.shape[1], generator=g), torch.rand(rows, generator=g)
        loss = flow_matching(v, data[drawn], label[drawn], noise, t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


class Flow(ModulePolicy):
    """Denoising as a policy: state (x_t, label), action x_{t - dt}.

    Args:
        entries, labels: sizes of x and of the one-hot label (0 for none).
        width: of the layers.
        steps: of a trajectory, the noiseless last one included.
        noise: the a of `transition`.
        shift: steps are uniform in u with t = shift u / (1 + (shift - 1) u); 1 is uniform in t.
    """

    kind, live, unit = "flow", ("logp", "mean"), "denoising steps"
    engine_exact = False  # a batch of another size may round otherwise, and ratios are clipped within 1e-3

    def __init__(
        self,
        entries: int,
        labels: int = 0,
        width: int = 128,
        steps: int = 10,
        noise: float = 0.7,
        shift: float = 1.0,
        lr: float = 3e-4,
    ):
        if steps < 2:
            raise InputError(f"policy flow: steps={steps}, expected at least 2: the last one is no choice")
        options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(Velocity(entries, labels, width), options, lr=lr)
        self.entries, self.labels, self.steps, self.noise = entries, labels, steps, noise
        u = torch.linspace(1, 0, steps + 1)
        self.times = shift * u / (1 + (shift - 1) * u)

    def column(self, k: int, n: int) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Time before step k and its length, for n rows."""
        return self.times[k].expand(n), (self.times[k] - self.times[k + 1]).expand(n)

    @torch.no_grad()
    def denoise(self, label: Int[Tensor, "n"], seeds: Int[Tensor, "n"]) -> dict[str, Tensor]:
        """The columns of one trajectory a row, each from its own stream of noise."""
        noise = torch.stack([torch.randn(self.steps + 1, self.entries, generator=generator(int(s))) for s in seeds])
        n, x = len(label), noise[:, 0]
        one_hot = torch.nn.functional.one_hot(label, self.labels).float() if self.labels else x[:, :0]
        kept: dict[str, list[Tensor]] = {}
        for k in range(self.steps):
            t, dt = self.column(k, n)
            v = self.model(x, one_hot, t)
            step, chosen = transition(x, v, t, dt, self.noise), k < self.steps - 1
            after = step.mean + step.std[:, None] * noise[:, k + 1] if chosen else x - dt[:, None] * v
            row = dict(
                states=torch.cat([x, one_hot], -1), actions=after, step_mean=step.mean, step_std=step.std, step_dt=dt
            )
            row |= dict(step_time=t, rollout_logp=step.logp(after), mask=torch.full((n,), chosen))
            for name, value in row.items():
                kept.setdefault(name, []).append(value)
            x = after
        return {name: torch.stack(values, 1) for name, values in kept.items()}

    def columns(self, rollouts: Rollouts, want: set[str], temperature: float) -> dict[str, Tensor]:
        x, label = rollouts.states.split([self.entries, self.labels], -1)
        t, dt = rollouts.step_time, rollouts.step_dt
        step = transition(x, self.model(x, label, t), t, dt, self.noise)
        return {k: v for k, v in {"mean": step.mean, "logp": step.logp(rollouts.actions)}.items() if k in want}

    def fit(
        self, data: Float[Tensor, "n d"], labels: Int[Tensor, "n"], steps: int = 3000, seed: int = 0
    ) -> list[float]:
        """Flow matching on labelled data (`fit`); returns the losses."""
        one_hot = torch.nn.functional.one_hot(labels, self.labels).float() if self.labels else data[:, :0]
        return fit(self.model, data, one_hot, steps, torch.Generator().manual_seed(seed))


def load(task: Any, **options: Any) -> Flow:
    """The policy of `flow:key=value,...`, pre-trained on the examples of its task."""
    if task is None:
        return call(Flow, options, "policy flow")
    if not hasattr(task, "examples"):
        raise InputError(f"policy 'flow' needs a task with examples to learn from (digits), not {task.name!r}")
    data, labels = task.examples()
    policy = call(Flow, options, "policy flow", data.shape[1], int(labels.max()) + 1)
    key = hashlib.blake2b(repr((task.name, data.shape, policy.options["width"])).encode(), digest_size=6).hexdigest()
    path = cache_folder() / "flows" / f"{key}.safetensors"
    if not path.is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            policy = call(Flow, options, "policy flow", data.shape[1], int(labels.max()) + 1)
            policy.fit(data, labels)
        write_aside(path, save(policy.model.state_dict()))
    policy.model.load_state_dict(load_file(path))
    return policy
