"""Scene `policy`: a softmax policy over ways of reasoning, trained by GRPO and by DRA-GRPO.

K modes are right, of equal reward and unequal start probability, and one more is wrong. A group is a multinomial
draw of G completions, so all groups can be listed, their advantages computed once, and the expected gradient of a
step is a sum over groups: exact, or estimated from a few sampled groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb, isfinite, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verl_dra.simulate.options import OptionError
from verl_dra.simulate.scene import Scene
from verl_dra.simulate.scoring import Scoring

MAX_COMPLETIONS = 100_000
"""Completions in all groups together, above which listing them takes more than a few seconds."""

_TINY = 1e-300  # keeps 0 log 0 finite


@dataclass(frozen=True)
class PolicyScene(Scene):
    """The modes, their start probabilities, how alike their completions are, and how the policy is trained."""

    modes: int = 5
    start_ratio: float = 0.5
    wrong_start: float = 0.5
    clone_cosine: float = 0.95
    mode_cosine: float = 0.1
    steps: int = 200
    lr: float = 0.3
    sampled: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, value, least in (
            ("--modes", self.modes, 2),
            ("--steps", self.steps, 1),
            ("--sampled", 1 if self.sampled is None else self.sampled, 1),
        ):
            if value < least:
                raise OptionError(f"{option} must be at least {least}, not {value}")
        if not 0 < self.start_ratio <= 1:
            raise OptionError(f"--start-ratio must be above 0 and at most 1, not {self.start_ratio}")
        if not 0 < self.wrong_start < 1:
            raise OptionError(f"--wrong-start must be between 0 and 1, not {self.wrong_start}")
        if not 0 <= self.mode_cosine <= self.clone_cosine <= 1:
            raise OptionError(
                f"--mode-cosine {self.mode_cosine} and --clone-cosine {self.clone_cosine} must be in 0 to 1, "
                "the first not above the second"
            )
        if not (self.lr > 0 and isfinite(self.lr)):
            raise OptionError(f"--lr must be above 0 and finite, not {self.lr}")
        completions = comb(self.group_size + self.modes, self.modes) * self.group_size
        if completions > MAX_COMPLETIONS:
            raise OptionError(
                f"--group-size {self.group_size} and --modes {self.modes} make {completions:,} completions in all "
                f"possible groups, above the limit of {MAX_COMPLETIONS:,}; lower one of them"
            )

    def start(self) -> NDArray[np.float64]:
        """[K + 1]: start probabilities, the wrong mode last; each right one `start_ratio` times the one before."""
        right = self.start_ratio ** np.arange(self.modes)
        return np.append((1 - self.wrong_start) * right / right.sum(), self.wrong_start)

    def rewards(self) -> NDArray[np.float64]:
        """[K + 1]: 1 for the right modes, `wrong_reward` for the wrong one."""
        return np.append(np.ones(self.modes), self.wrong_reward)

    def embeddings(self, mode: NDArray[np.int64], slot: NDArray[np.int64]) -> Tensor:
        """[N, 1 + K + 1 + G] unit vectors for completions by `mode` [N] at place `slot` [N] of their group.

        A common axis, one for each mode and one for each place give every pair of a group exactly the cosine
        `clone_cosine` (same mode) or `mode_cosine` (different modes).
        """
        row = np.arange(len(mode))
        vectors = np.zeros((len(mode), 2 + self.modes + self.group_size))
        vectors[:, 0] = sqrt(self.mode_cosine)
        vectors[row, 1 + mode] = sqrt(self.clone_cosine - self.mode_cosine)
        vectors[row, 2 + self.modes + slot] = sqrt(1 - self.clone_cosine)
        return torch.from_numpy(vectors)


@dataclass(frozen=True)
class Trajectory:
    """A policy over the steps of its training."""

    probabilities: NDArray[np.float64]
    """[steps + 1, K + 1], the wrong mode last."""
    group_size: int

    @property
    def right(self) -> NDArray[np.float64]:
        """[steps + 1]: probability of a right answer."""
        total: NDArray[np.float64] = self.probabilities[:, :-1].sum(1)
        return total

    @property
    def entropy(self) -> NDArray[np.float64]:
        """[steps + 1]: entropy in nats of the mode of a right answer, at most log K."""
        share = self.probabilities[:, :-1] / np.maximum(self.right, _TINY)[:, None]
        entropy: NDArray[np.float64] = (share * np.log(1 / np.maximum(share, _TINY))).sum(1)
        return entropy

    @property
    def covered(self) -> NDArray[np.float64]:
        """[steps + 1]: how many of the K right modes a group has, on average."""
        count: NDArray[np.float64] = (1 - (1 - self.probabilities[:, :-1]) ** self.group_size).sum(1)
        return count


@dataclass(frozen=True)
class PolicyResult:
    """The same policy trained in two ways."""

    scene: PolicyScene
    scoring: Scoring
    grpo: Trajectory
    dra: Trajectory


def play_policy(scene: PolicyScene, scoring: Scoring) -> PolicyResult:
    """Train the scene's policy by GRPO and by DRA-GRPO from the same start."""
    counts = _all_groups(scene.group_size, scene.modes + 1)
    modes = np.tile(np.arange(scene.modes + 1), len(counts)).repeat(counts.ravel())
    slots = np.tile(np.arange(scene.group_size), len(counts))
    groups = np.arange(len(counts)).repeat(scene.group_size)
    scores = scoring.score(
        scene.embeddings(modes, slots), torch.from_numpy(scene.rewards()[modes]), torch.from_numpy(groups)
    )
    cell = groups * (scene.modes + 1) + modes

    def train(advantages: Tensor) -> Trajectory:
        push = np.bincount(cell, advantages.numpy(), minlength=counts.size).reshape(counts.shape)
        return Trajectory(_train(scene, counts, push / scene.group_size), scene.group_size)

    return PolicyResult(scene, scoring, train(scores.grpo), train(scores.dra))


def _all_groups(size: int, modes: int) -> NDArray[np.int64]:
    """[M, modes]: how many completions each mode has, for each of the M = C(size + modes - 1, size) groups."""
    bars = np.array(list(combinations(range(size + modes - 1), modes - 1)))
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, size + modes - 1)))
    return np.diff(edges, axis=1) - 1


def _train(scene: PolicyScene, counts: NDArray[np.int64], push: NDArray[np.float64]) -> NDArray[np.float64]:
    """[steps + 1, K + 1] probabilities under gradient ascent on the logits.

    `push` [M, K + 1] is each group's mean of A_i e_{mode i}. The policy gradient of a group is the mean of
    A_i (e_{mode i} - p), which is the same as its advantages sum to zero.
    """
    random = np.random.default_rng(scene.seed)
    orders = _log_factorial(scene.group_size) - _log_factorial(counts).sum(1)
    logits = np.log(scene.start())
    probabilities = [scene.start()]
    for _ in range(scene.steps):
        chance = np.exp(orders + counts @ np.log(np.maximum(probabilities[-1], _TINY)))
        chance /= chance.sum()
        if scene.sampled is not None:
            chance = random.multinomial(scene.sampled, chance) / scene.sampled
        logits = logits + scene.lr * (chance @ push)
        unscaled = np.exp(logits - logits.max())
        probabilities.append(unscaled / unscaled.sum())
    return np.stack(probabilities)


def _log_factorial(n: int | NDArray[np.int64]) -> NDArray[np.float64]:
    factorial: NDArray[np.float64] = torch.lgamma(torch.as_tensor(n, dtype=torch.float64) + 1).numpy()
    return factorial
