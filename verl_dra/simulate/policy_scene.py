"""Scene `policy`: a softmax policy over ways of reasoning, trained by GRPO and by DRA-GRPO.

K modes are right, of equal reward and unequal start probability, and one more is wrong; or K modes are each as often
right as its accuracy says. A group is a multinomial draw of G completions, so all groups can be listed, their
advantages computed once, and the expected gradient of a step is a sum over groups: exact, or estimated from a few
sampled groups.
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
class Outcomes:
    """The T kinds of completions: of which mode, and whether right."""

    mode: NDArray[np.int64]
    """[T]."""
    chance: NDArray[np.float64]
    """[T] how often a completion of this mode is this kind."""
    reward: NDArray[np.float64]
    """[T]."""


@dataclass(frozen=True)
class PolicyScene(Scene):
    """The modes, their start probabilities, how alike their completions are, and how the policy is trained.

    With `accuracies`, one of each of the `modes`, there is no mode that is always wrong, and `wrong_start` is 0.
    """

    modes: int = 5
    accuracies: tuple[float, ...] | None = None
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
        if self.accuracies is not None:
            self._check_accuracies(self.accuracies)
        elif not 0 < self.wrong_start < 1:
            raise OptionError(f"--wrong-start must be between 0 and 1, not {self.wrong_start}")
        if not 0 <= self.mode_cosine <= self.clone_cosine <= 1:
            raise OptionError(
                f"--mode-cosine {self.mode_cosine} and --clone-cosine {self.clone_cosine} must be in 0 to 1, "
                "the first not above the second"
            )
        if not (self.lr > 0 and isfinite(self.lr)):
            raise OptionError(f"--lr must be above 0 and finite, not {self.lr}")
        outcomes = len(self.outcomes().mode)
        completions = comb(self.group_size + outcomes - 1, outcomes - 1) * self.group_size
        if completions > MAX_COMPLETIONS:
            modes = f"--modes {self.modes}" if self.accuracies is None else f"{self.modes} --accuracies"
            raise OptionError(
                f"--group-size {self.group_size} and {modes} make {completions:,} completions in all "
                f"possible groups, above the limit of {MAX_COMPLETIONS:,}; lower one of them"
            )

    def _check_accuracies(self, accuracies: tuple[float, ...]) -> None:
        if len(accuracies) != self.modes:
            raise OptionError(f"--modes {self.modes} and {len(accuracies)} --accuracies don't fit; leave --modes out")
        if self.wrong_start != 0:
            raise OptionError("--wrong-start is of a mode that is always wrong; with --accuracies there is none")
        for accuracy in accuracies:
            if not 0 < accuracy <= 1:
                raise OptionError(f"--accuracies must be above 0 and at most 1, not {accuracy:g}")

    def labels(self) -> list[str]:
        """[M] what to call the modes."""
        if self.accuracies is not None:
            return [f"mode {i + 1}" for i in range(self.modes)]
        return [f"right {i + 1}" for i in range(self.modes)] + ["wrong"]

    def start(self) -> NDArray[np.float64]:
        """[M]: start probabilities, that of a wrong mode last; each other is `start_ratio` times the one before."""
        right = self.start_ratio ** np.arange(self.modes)
        right = (1 - self.wrong_start) * right / right.sum()
        return right if self.accuracies is not None else np.append(right, self.wrong_start)

    def chances(self) -> NDArray[np.float64]:
        """[M]: how often a completion of each mode is right."""
        return np.array(self.accuracies if self.accuracies is not None else [*[1.0] * self.modes, 0.0])

    def outcomes(self) -> Outcomes:
        """What a completion can be: of each mode, right where it can be right, and wrong where it can be wrong."""
        chances = self.chances()
        right, wrong = np.flatnonzero(chances > 0), np.flatnonzero(chances < 1)
        return Outcomes(
            np.concatenate([right, wrong]),
            np.concatenate([chances[right], 1 - chances[wrong]]),
            np.concatenate([np.ones(len(right)), np.full(len(wrong), float(self.wrong_reward))]),
        )

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
    """[steps + 1, M], a wrong mode last."""
    chances: NDArray[np.float64]
    """[M]: how often a completion of each mode is right."""
    group_size: int

    @property
    def right(self) -> NDArray[np.float64]:
        """[steps + 1]: probability of a right answer."""
        total: NDArray[np.float64] = self.probabilities @ self.chances
        return total

    @property
    def entropy(self) -> NDArray[np.float64]:
        """[steps + 1]: entropy in nats of the mode of a right answer, at most log K."""
        share = self.probabilities * self.chances / np.maximum(self.right, _TINY)[:, None]
        entropy: NDArray[np.float64] = (share * np.log(1 / np.maximum(share, _TINY))).sum(1)
        return entropy

    @property
    def covered(self) -> NDArray[np.float64]:
        """[steps + 1]: how many of the K modes that can be right a group has, on average."""
        of_right = self.probabilities[:, self.chances > 0]
        count: NDArray[np.float64] = (1 - (1 - of_right) ** self.group_size).sum(1)
        return count

    @property
    def log_ratio(self) -> NDArray[np.float64]:
        """[steps + 1]: log(p1 / p2) of the two modes that are the commonest at the start."""
        first, second = np.log(np.maximum(self.probabilities[:, :2], _TINY)).T
        ratio: NDArray[np.float64] = first - second
        return ratio


@dataclass(frozen=True)
class PolicyResult:
    """The same policy trained in two ways."""

    scene: PolicyScene
    scoring: Scoring
    grpo: Trajectory
    dra: Trajectory
    survival_accuracy: float
    """What `survival_accuracy` says of the scene, with DRA."""


def play_policy(scene: PolicyScene, scoring: Scoring) -> PolicyResult:
    """Train the scene's policy by GRPO and by DRA-GRPO from the same start."""
    outcomes = scene.outcomes()
    counts = _all_groups(scene.group_size, len(outcomes.mode))
    of_row = np.tile(np.arange(len(outcomes.mode)), len(counts)).repeat(counts.ravel())
    slots = np.tile(np.arange(scene.group_size), len(counts))
    groups = np.arange(len(counts)).repeat(scene.group_size)
    modes = outcomes.mode[of_row]
    scores = scoring.score(
        scene.embeddings(modes, slots), torch.from_numpy(outcomes.reward[of_row]), torch.from_numpy(groups)
    )
    chances = scene.chances()
    shape = len(counts), len(chances)
    cell = groups * shape[1] + modes

    def train(advantages: Tensor) -> Trajectory:
        push = np.bincount(cell, advantages.numpy(), minlength=shape[0] * shape[1]).reshape(shape)
        return Trajectory(_train(scene, counts, push / scene.group_size), chances, scene.group_size)

    return PolicyResult(scene, scoring, train(scores.grpo), train(scores.dra), survival_accuracy(scene, scoring))


def survival_accuracy(scene: PolicyScene, scoring: Scoring) -> float:
    """The accuracy above which a rare mode grows under DRA from groups that have the commonest mode alone.

    Exact as the rare mode's share goes to 0: its completion's expected advantage among G - 1 of the commonest is linear
    in its accuracy, and this is where it is 0. `verl_dra.algorithm.survival` has it as formulas.
    """
    size, common = scene.group_size, float(scene.chances()[0])
    k = np.arange(size)  # right ones among the others
    rewards = np.full((2, size, size), float(scene.wrong_reward))
    rewards[1, :, 0] = 1
    rewards[:, :, 1:][:, k[1:] <= k[:, None]] = 1
    modes = np.zeros((2 * size, size), dtype=np.int64)
    modes[:, 0] = 1
    scores = scoring.score(
        scene.embeddings(modes.ravel(), np.tile(k, 2 * size)),
        torch.from_numpy(rewards.ravel()),
        torch.arange(2 * size).repeat_interleave(size),
    )
    chance = np.array([comb(size - 1, i) * common**i * (1 - common) ** (size - 1 - i) for i in range(size)])
    wrong, right = scores.dra.numpy().reshape(2, size, size)[:, :, 0] @ chance
    return float(wrong / (wrong - right))


def _all_groups(size: int, kinds: int) -> NDArray[np.int64]:
    """[groups, kinds]: how many completions are of each kind, for each of the C(size + kinds - 1, size) groups."""
    bars = np.array(list(combinations(range(size + kinds - 1), kinds - 1)))
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, size + kinds - 1)))
    return np.diff(edges, axis=1) - 1


def _train(scene: PolicyScene, counts: NDArray[np.int64], push: NDArray[np.float64]) -> NDArray[np.float64]:
    """[steps + 1, M] probabilities under gradient ascent on the logits.

    `push` [groups, M] is each group's mean of A_i e_{mode i}. The policy gradient of a group is the mean of
    A_i (e_{mode i} - p), which is the same as its advantages sum to zero.
    """
    random = np.random.default_rng(scene.seed)
    outcomes = scene.outcomes()
    orders = _log_factorial(scene.group_size) - _log_factorial(counts).sum(1)
    logits = np.log(scene.start())
    probabilities = [scene.start()]
    for _ in range(scene.steps):
        of_outcome = probabilities[-1][outcomes.mode] * outcomes.chance
        chance = np.exp(orders + counts @ np.log(np.maximum(of_outcome, _TINY)))
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
