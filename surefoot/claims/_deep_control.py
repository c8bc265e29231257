"""DQN and PPO on small finite problems, as rivals in claims: networks of state features, exact problems to walk in.

DQN: Mnih et al. (2015). PPO: Schulman et al. (2017, arXiv 1707.06347), with generalised advantages (arXiv 1506.02438).
Both get a number of episodes, walk in 8 copies at once, and give the greedy policy of what they learnt.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from surefoot.exact.episodes import draw, next_states
from surefoot.exact.mdp import FiniteHorizon

COPIES = 8


class Walkers:
    """Copies of a problem with fixed dynamics, each started anew when it ends or time is up."""

    def __init__(self, problem: FiniteHorizon, rng: np.random.Generator):
        self.problem, self.mdp, self.rng = problem, problem.stages[0], rng
        self.ends = self.mdp.ends()
        self.state, self.age, self.finished = self._start(COPIES), np.zeros(COPIES, int), 0

    def step(
        self, action: Int[np.ndarray, "c"]
    ) -> tuple[Float[np.ndarray, "c"], Int[np.ndarray, "c"], Int[np.ndarray, "c"]]:
        """Rewards, next states, and whether the episode is over; `state` is then a new start."""
        reward = self.mdp.R[self.state, action]
        after = next_states(self.mdp, self.state, action, self.rng)
        self.age += 1
        over = self.ends[after] | (self.age == self.problem.horizon)
        self.finished += int(over.sum())
        self.state = np.where(over, self._start(COPIES), after)
        self.age[over] = 0
        return reward, after, over

    def _start(self, n: int) -> Int[np.ndarray, "n"]:
        return draw(np.broadcast_to(self.problem.mu, (n, len(self.problem.mu))), self.rng)


def dqn(problem: FiniteHorizon, n: int, seed: int, gamma: float = 0.99) -> np.ndarray:
    """Replay of everything, batches of 128, a target network renewed every 100 updates, epsilon 1 to .05 by n / 2."""
    walk, rng = Walkers(problem, np.random.default_rng(seed)), np.random.default_rng((seed, 1))
    x, net = _network(problem, seed, problem.stages[0].actions)
    target, optimizer = deepcopy(net), torch.optim.Adam(net.parameters(), 1e-3)
    replay: list[tuple[np.ndarray, ...]] = []
    while walk.finished < n:
        with torch.no_grad():
            greedy = net(x[walk.state]).argmax(-1).numpy()
        explores = rng.random(COPIES) < max(0.05, 1 - 2 * walk.finished / n)
        action = np.where(explores, rng.integers(problem.stages[0].actions, size=COPIES), greedy)
        before = walk.state
        reward, after, over = walk.step(action)
        replay.append((before, action, reward, after, over))
        if len(replay) < 16:
            continue
        at = rng.integers(len(replay), size=128), rng.integers(COPIES, size=128)
        s, a, r, following, done = (
            np.array([replay[i][field][c] for i, c in zip(*at, strict=True)]) for field in range(5)
        )
        with torch.no_grad():
            ahead = target(x[following]).amax(-1) * torch.as_tensor(~done)
        values = net(x[s])[torch.arange(128), a]
        _update(optimizer, net, smooth_l1_loss(values, torch.as_tensor(r, dtype=torch.float32) + gamma * ahead))
        if len(replay) % 100 == 0:
            target.load_state_dict(net.state_dict())
    return _greedy(problem, net(x))


def ppo(problem: FiniteHorizon, n: int, seed: int, gamma: float = 0.99, trace: float = 0.95) -> np.ndarray:
    """Batches of 8 by 64 steps, 10 epochs of 4 minibatches, clip .2, entropy .01, rate 1e-3."""
    walk, rng = Walkers(problem, np.random.default_rng(seed)), np.random.default_rng((seed, 1))
    x, net = _network(problem, seed, problem.stages[0].actions + 1)  # the last output is the value
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    while walk.finished < n:
        states, actions, rewards, afters, overs = [], [], [], [], []
        with torch.no_grad():
            table = net(x)
        policy, value = table[:, :-1].softmax(-1).double().numpy(), table[:, -1].double().numpy()
        for _ in range(64):
            action = draw(policy[walk.state], rng)
            states.append(walk.state)
            actions.append(action)
            for kept, new in zip((rewards, afters, overs), walk.step(action), strict=True):
                kept.append(new)
        s, a, r, after, over = (np.array(v) for v in (states, actions, rewards, afters, overs))
        delta, advantage = r + gamma * ~over * value[after] - value[s], np.zeros((65, COPIES))
        for t in reversed(range(64)):
            advantage[t] = delta[t] + gamma * trace * ~over[t] * advantage[t + 1]
        batch = [
            torch.as_tensor(v.ravel()) for v in (s, a, np.log(policy[s, a]), advantage[:-1], advantage[:-1] + value[s])
        ]
        for _ in range(10):
            for part in np.array_split(rng.permutation(len(batch[0])), 4):
                _update(optimizer, net, _ppo_loss(net, x, *(v[part] for v in batch)))
    return _greedy(problem, net(x)[:, :-1])


def _ppo_loss(
    net: nn.Module, x: Tensor, s: Tensor, a: Tensor, old: Tensor, advantage: Tensor, target: Tensor
) -> Tensor:
    out = net(x[s])
    log_p = out[:, :-1].log_softmax(-1)
    ratio = (log_p[torch.arange(len(a)), a] - old).exp()
    scaled = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    gain = torch.minimum(ratio * scaled, ratio.clamp(0.8, 1.2) * scaled).mean()
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    return 0.5 * (out[:, -1] - target).square().mean() - gain - 0.01 * entropy


def _network(problem: FiniteHorizon, seed: int, outputs: int) -> tuple[Tensor, nn.Sequential]:
    """One-hot features of every state, and a network on them."""
    states = len(problem.mu)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(states, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))
    return torch.eye(states), net


def _update(optimizer: torch.optim.Optimizer, net: nn.Module, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 10.0)
    optimizer.step()


def _greedy(problem: FiniteHorizon, scores: Tensor) -> np.ndarray:
    policy = np.eye(scores.shape[1])[scores.argmax(-1).numpy()]
    return np.broadcast_to(policy, (problem.horizon, *policy.shape))
