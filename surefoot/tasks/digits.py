"""Drawing digits: `digits`. A flow policy makes 8 x 8 images of a label; a classifier judges them.

Data are scikit-learn's digits, scaled to [-1, 1]; the classifier is a softmax regression on half of them, fitted here
in a second, its reward the probability of the label asked for. What a proxy pays for is not all that is wanted: beside
it are reported `diversity`, the mean distance between the images of one label over that of the data, and what a second
classifier says, which was fitted on the other half and is no part of the reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from surefoot.errors import InputError
from surefoot.rollouts import Rollouts
from surefoot.tasks.base import Problem


class Digits:
    """Ten labels, each posed many times."""

    name, max_new_tokens = "digits", 2**10

    def __init__(self):
        self.train = [Problem(f"a {i % 10}", str(i % 10), {"label": i % 10}) for i in range(160)]
        self.heldout = [Problem(f"another {i % 10}", str(i % 10), {"label": i % 10}) for i in range(40)]

    @cached_property
    def _data(self) -> tuple[Tensor, Tensor]:
        try:
            from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise InputError("task 'digits' needs scikit-learn; pip install 'surefoot[flows]'") from None
        images, labels = load_digits(return_X_y=True)
        return torch.from_numpy(images).float() / 8 - 1, torch.from_numpy(labels).long()

    def examples(self) -> tuple[Float[Tensor, "n d"], Int[Tensor, "n"]]:
        """Images and labels."""
        return self._data

    @cached_property
    def classifier(self) -> Float[Tensor, "d+1 l"]:
        """Weights of the judge: a softmax regression on every second image."""
        return softmax_regression(*(v[::2] for v in self._data))

    @cached_property
    def second_classifier(self) -> Float[Tensor, "d+1 l"]:
        """Weights of one that nothing is trained against: the same on the other images."""
        return softmax_regression(*(v[1::2] for v in self._data))

    def chances(self, images: Float[Tensor, "n d"]) -> Float[Tensor, "n l"]:
        """The judge's probabilities."""
        return probabilities(self.classifier, images)

    def rollout(
        self, policy: Any, problems: Sequence[Problem], group: Int[Tensor, "n"], seeds: Int[Tensor, "n"], sampling: Any
    ) -> Rollouts:
        """One image for each entry of `group`."""
        label = torch.tensor([p.data["label"] for p in problems])[group]
        columns = policy.denoise(label, seeds)
        return Rollouts(columns | dict(present=torch.ones_like(columns["mask"]), group=group, seed=seeds))

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts:
        """The classifier's probability of the label."""
        label = torch.tensor([p.data["label"] for p in problems])
        chance = self.chances(rollouts.actions[:, -1]).gather(1, label[:, None])[:, 0]
        return rollouts.having(rewards={"classifier": chance})

    def summarise(self, batches: Sequence[Rollouts], k: int) -> dict[str, Any]:
        """Diversity over the images of each label, and the second classifier's probability of the label."""
        images = torch.cat([b.actions[:, -1] for b in batches])
        label = torch.tensor([int(a) for b in batches for a in b.notes["answer"]])
        data, labels = self._data
        mine = sum(spread(images[label == i]) for i in range(10))
        theirs = sum(spread(data[labels == i]) for i in range(10))
        second = probabilities(self.second_classifier, images).gather(1, label[:, None])
        return {"diversity": float(mine / theirs), "second_classifier": float(second.mean())}

    def pictures(self, policy: Any, folder: Path, when: str) -> None:
        """Eight images of each label, a row a label: `samples_<when>.png`."""
        from matplotlib.figure import Figure

        label = torch.arange(10).repeat_interleave(8)
        images = policy.denoise(label, torch.arange(80))["actions"][:, -1].clamp(-1, 1)
        sheet = torch.zeros(10, 9, 8, 9)  # grey between the images
        sheet[:, :8, :, :8] = images.reshape(10, 8, 8, 8).permute(0, 2, 1, 3)
        figure = Figure(figsize=(4, 5), layout="constrained")
        axes = figure.subplots()
        axes.imshow(sheet.reshape(90, 72).numpy(), cmap="gray_r", vmin=-1, vmax=1)
        axes.set_yticks(range(4, 90, 9), [str(i) for i in range(10)])
        axes.set_xticks([])
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"samples_{when}.png", dpi=110)


def softmax_regression(images: Float[Tensor, "n d"], labels: Int[Tensor, "n"]) -> Float[Tensor, "d+1 l"]:
    """Weights, the last row a bias, with an L2 penalty of .005 on the mean square of the others."""
    x = torch.cat([images, torch.ones(len(images), 1)], 1)
    weights = torch.zeros(x.shape[1], 10, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(x @ weights, labels) + 0.005 * weights[:-1].square().mean()
        value.backward()
        return value

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    return weights.detach()


def probabilities(weights: Float[Tensor, "d+1 l"], images: Float[Tensor, "n d"]) -> Float[Tensor, "n l"]:
    """Of each label, by a `softmax_regression`."""
    return (torch.cat([images, torch.ones(len(images), 1)], 1) @ weights).softmax(-1)


def spread(images: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean distance between two of the images; 0 for fewer than two."""
    n = len(images)
    return torch.cdist(images, images).sum() / (n * (n - 1)) if n > 1 else images.new_zeros(())


def load(rest: str) -> Digits:
    """The task `digits`."""
    if rest:
        raise InputError(f"task 'digits:{rest}': digits has no options")
    return Digits()
