"""CAPO: tokens whose own update would move the objective or the policy too far are left out of it.

Melo et al., "Stabilizing Policy Gradients for Sample-Efficient RL in LLM Reasoning", arXiv 2510.00819. Before the step,
each token (s, a) is asked what a step on it alone would do, to second order, if the model were its head W: logits W h,
pi over the kept candidates, v = e_a - pi, A its advantage. With g = A v h^T its gradient, D the optimizer's direction,
eta the learning rate, u = D h and F = diag(pi) - pi pi^T:

    m_H = eta <g, D> + (eta^2 / 2) A [ (v . u)^2 - u^T F u ]      change of the objective, <g, D> = A v . u
    m_F = (eta^2 / 2) (v . u)^2                                   change of the policy (Fisher; about its KL)
    a token trains if  m_F < policy_shift  and  |m_H| < objective_shift
    SGD:  D = g, so u = A |h|^2 v
    Adam: D = m^ / (sqrt(u^) + eps), the running moments of the head's rows with this token's g added

Everything is detached; the loss is unchanged. Nothing of size [n, t, v, d] is made: the rows of the kept candidates are
read a few tokens at a time. The moments are simulated, once a batch, from the tokens that were accepted: as released, a
row's gradient is its mean over the tokens that kept it (`mean_over_keepers`); `batch_gradient` is that of the batch.
While they are empty D = g. A token outside the kept candidates takes the last one's place.

The paper's thresholds hold for its models: they scale as eta^2 |h|^4 A^2. OUR CHOICE, the default here: each test that
is on takes its threshold as a quantile over the first steps (`quantile=0` for the paper's numbers).

Claim: training goes on at learning rates at which GRPO collapses, with fewer than 8 % of the tokens rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.errors import InputError
from surefoot.method import Paper
from surefoot.methods.rlvr.grpo import GRPO
from surefoot.parts import Part
from surefoot.rollouts import Rollouts

CELLS = 1 << 22  # numbers of [tokens, k, d] held at a time
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Tokens:
    """Tokens side by side: candidates and their ids [n k], pi and v over them [n k], hidden h [n d], A and eta [n]."""

    ids: Int[Tensor, "n k"]
    pi: Float[Tensor, "n k"]
    v: Float[Tensor, "n k"]
    h: Float[Tensor, "n d"]
    advantage: Float[Tensor, "n"]
    eta: Float[Tensor, "n"]

    def __getitem__(self, rows: slice | Tensor) -> Tokens:
        return Tokens(*(getattr(self, f)[rows] for f in ("ids", "pi", "v", "h", "advantage", "eta")))

    def __len__(self) -> int:
        return len(self.ids)

    def chunks(self) -> Iterator[Tokens]:
        """The same in pieces of which [n k d] is held."""
        size = max(1, CELLS // max(1, self.ids.shape[1] * self.h.shape[1]))
        return (self[i : i + size] for i in range(0, len(self), size))


@dataclass(frozen=True)
class Likeliest(Part):
    """A statistic of whole distributions: the `kept` likeliest candidates, in order.

    A step taken that is not among them takes the last one's place.

    Attributes:
        ids: gives their ids, else their log-probabilities.
    """

    kept: int = 64
    ids: bool = True

    def __call__(self, logp: Float[Tensor, "*s v"], taken: Int[Tensor, "*s"]) -> Tensor:
        found = logp.topk(min(self.kept, logp.shape[-1]), -1).indices
        missing = ~(found == taken[..., None]).any(-1)
        found[..., -1] = taken.where(missing, found[..., -1])
        return found if self.ids else logp.gather(-1, found)


def kept_tokens(rollouts: Rollouts) -> Tokens:
    """The steps that may train, with pi renormalised over the kept candidates."""
    mask = rollouts.mask
    ids, pi = rollouts.old_top[mask], rollouts.old_top_logp[mask].float().softmax(-1)
    v = (ids == rollouts.tokens[mask][:, None]).float() - pi
    columns = rollouts.old_hidden[mask].float(), rollouts.advantage[mask].float()
    return Tokens(ids, pi, v, *columns, rollouts.lr[:, None].expand_as(mask)[mask].float())


def shifts(tokens: Tokens, u: Float[Tensor, "n k"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """m_H and m_F of every token whose step moves the logits along u = D h.

    >>> pi, v = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[-0.7, -0.2, 0.9]])
    >>> one, h = torch.ones(1), torch.full((1, 5), 1.0)
    >>> m_H, m_F = shifts(Tokens(torch.arange(3)[None], pi, v, h, one, 0.01 * one), 5 * v)
    >>> [round(float(m), 7) for m in (m_H, m_F)]
    [0.0689465, 0.0022445]
    """
    along = (tokens.v * u).sum(1)
    spread = (tokens.pi * u.square()).sum(1) - (tokens.pi * u).sum(1).square()
    second = 0.5 * tokens.eta.square()
    curved = second * tokens.advantage * (along.square() - spread)
    return tokens.eta * tokens.advantage * along + curved, second * along.square()


def mean_over_keepers(total: Float[Tensor, "v d"], keepers: Float[Tensor, "v"], tokens: int) -> Float[Tensor, "v d"]:
    """A row's gradient is its mean over the tokens that kept it, as released."""
    return total / keepers.clamp_min(1)[:, None]


def batch_gradient(total: Float[Tensor, "v d"], keepers: Float[Tensor, "v"], tokens: int) -> Float[Tensor, "v d"]:
    """The head's gradient of the batch's mean over tokens."""
    return total / max(tokens, 1)


@dataclass(frozen=True)
class CurvatureLimit(Part):
    """A select part: the tokens whose predicted shifts are within their limits.

    Attributes:
        policy_shift, objective_shift: limits of m_F and |m_H|; 0 turns a test off, infinity accepts everything.
        quantile: where above 0, a test that is on takes its limit from the shifts of the first `calibration` batches
            with a direction of the optimizer's own, in which everything trains.
        adam: simulate Adam; else plain gradient steps.
        kept: candidates that pi is over; a sampler's own `top_k` where it has one.
        row_gradient: what the simulated moments are fed with.
    """

    policy_shift: float = 1e-4
    objective_shift: float = 1e-2
    quantile: float = 0.0
    calibration: int = 5
    adam: bool = True
    kept: int = 64
    row_gradient: Callable[[Tensor, Tensor, int], Tensor] = mean_over_keepers
    reads = ("mask", "tokens", "advantage", "old_hidden", "old_top", "old_top_logp", "lr")

    def __post_init__(self):
        if not 0 <= self.quantile < 1 or min(self.policy_shift, self.objective_shift) < 0 or self.kept < 1:
            raise InputError(
                f"CurvatureLimit: quantile={self.quantile}, policy_shift={self.policy_shift}, "
                f"objective_shift={self.objective_shift}, kept={self.kept}, "
                f"expected 0 <= quantile < 1, shifts >= 0, kept >= 1"
            )

    @property
    def statistics(self) -> dict[str, Part]:
        """The kept candidates, and their log-probabilities."""
        return {"old_top": Likeliest(self.kept), "old_top_logp": Likeliest(self.kept, ids=False)}

    @torch.no_grad()
    def __call__(self, rollouts: Rollouts) -> Bool[Tensor, "n t"]:
        tokens = kept_tokens(rollouts)
        m_H, m_F = self.predict(tokens)
        policy, objective = self.limits(m_H, m_F)
        accepted = (m_F < policy) & (m_H.abs() < objective)
        self.remember(tokens[accepted])
        chosen = torch.zeros_like(rollouts.mask)
        chosen[rollouts.mask] = accepted
        return chosen

    def predict(self, tokens: Tokens) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """m_H and m_F of every token, each as if it were the whole batch."""
        found = [shifts(piece, self._direction(piece)) for piece in tokens.chunks()]
        if not found:
            return tokens.eta, tokens.eta
        return torch.cat([m_H for m_H, _ in found]), torch.cat([m_F for _, m_F in found])

    def limits(self, m_H: Float[Tensor, "n"], m_F: Float[Tensor, "n"]) -> tuple[float, float]:
        """Limits of m_F and |m_H| for this batch."""
        fixed = [limit or float("inf") for limit in (self.policy_shift, self.objective_shift)]
        if not self.quantile:
            return fixed[0], fixed[1]
        if self.adam and not self.memory.get("step"):
            return float("inf"), float("inf")  # the moments are empty, and D of another scale
        seen = self.memory.setdefault("shifts", [[], []])
        if self.memory.get("batches", 0) < self.calibration:
            for known, new in zip(seen, (m_F, m_H.abs()), strict=True):
                known.append(new.cpu())
            self.memory["batches"] = self.memory.get("batches", 0) + 1
            return float("inf"), float("inf")
        if "limits" not in self.memory:
            self.memory["limits"] = [
                float(torch.cat(known).double().quantile(self.quantile)) if on < float("inf") else float("inf")
                for known, on in zip(seen, fixed, strict=True)
            ]
            seen[0].clear()
            seen[1].clear()
        policy, objective = self.memory["limits"]
        return policy, objective

    def remember(self, accepted: Tokens) -> None:
        """One simulated Adam step of the head's rows that the accepted tokens kept."""
        if not self.adam or not len(accepted):
            return
        step, first, second = self._moments(accepted)
        total, keepers = torch.zeros_like(first), first.new_zeros(len(first))
        for piece in accepted.chunks():
            each = (piece.advantage[:, None] * piece.v)[..., None] * piece.h[:, None]
            total.index_add_(0, piece.ids.flatten(), each.flatten(0, 1))
            keepers.index_add_(0, piece.ids.flatten(), torch.ones_like(piece.pi).flatten())
        rows = keepers > 0
        gradient = self.row_gradient(total, keepers, len(accepted))
        first[rows] = BETA1 * first[rows] + (1 - BETA1) * gradient[rows]
        second[rows] = BETA2 * second[rows] + (1 - BETA2) * gradient[rows].square()
        self.memory.update(step=step + 1, first=first, second=second)

    def _direction(self, tokens: Tokens) -> Float[Tensor, "n k"]:
        """u = D h."""
        along = tokens.advantage[:, None] * tokens.v
        step, first, second = self._moments(tokens)
        if not self.adam or not step:
            return along * tokens.h.square().sum(1, keepdim=True)
        gradient = along[..., None] * tokens.h[:, None]
        mean = (BETA1 * first[tokens.ids] + (1 - BETA1) * gradient) / (1 - BETA1 ** (step + 1))
        square = (BETA2 * second[tokens.ids] + (1 - BETA2) * gradient.square()) / (1 - BETA2 ** (step + 1))
        return torch.einsum("nkd,nd->nk", mean / (square.sqrt() + EPS), tokens.h)

    def _moments(self, tokens: Tokens) -> tuple[int, Tensor, Tensor]:
        """Steps so far, and both moments with a row for every candidate among these."""
        rows, width = int(tokens.ids.max()) + 1 if len(tokens) else 0, tokens.h.shape[1]
        none = tokens.h.new_zeros(0, width)
        moments = (self.memory.get(name, none).to(none) for name in ("first", "second"))
        first, second = (torch.cat([m, m.new_zeros(max(0, rows - len(m)), width)]) for m in moments)
        return self.memory.get("step", 0), first, second


CAPO_CURVATURE = GRPO.but(
    name="capo-curvature",
    paper=Paper(
        arxiv="2510.00819",
        year=2025,
        title="Stabilizing Policy Gradients for Sample-Efficient Reinforcement Learning in LLM Reasoning",
    ),
    select=CurvatureLimit(quantile=0.98),
    regularizers=(),
)
