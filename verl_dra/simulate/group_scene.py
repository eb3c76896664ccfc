"""Scene `group`: one group of near-clones, a wrong answer and right answers of their own, with every number shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from verl_dra.simulate.options import OptionError
from verl_dra.simulate.scene import Scene
from verl_dra.simulate.scoring import Scores, Scoring

DIMENSIONS = 16

StandardDeviation = Literal["sample", "population"]


@dataclass(frozen=True)
class GroupScene(Scene):
    """`clones` right answers by path A, a wrong one by path B, and the rest right, each by a path of its own."""

    clones: int = 6
    noise: float = 0.05
    std: StandardDeviation = "sample"
    """The standard deviation that GRPO divides by; veRL's is the sample's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clones < 1:
            raise OptionError(f"--clones must be at least 1, not {self.clones}")
        if self.group_size < self.clones + 2:
            raise OptionError(
                f"--group-size {self.group_size} has no room for {self.clones} clones, a wrong and a unique answer; "
                f"use --group-size {self.clones + 2} or more, or fewer --clones"
            )
        if not 0 <= self.noise < inf:
            raise OptionError(f"--noise must be 0 or more and finite, not {self.noise}")

    @property
    def kinds(self) -> list[str]:
        """`clone`, `wrong` or `unique`, [group_size]."""
        return ["clone"] * self.clones + ["wrong"] + ["unique"] * (self.group_size - self.clones - 1)

    @property
    def labels(self) -> list[str]:
        """Path and number: A1, A2, ..., B1, C1, C2, ..., [group_size]."""
        unique = self.group_size - self.clones - 1
        return [f"{path}{i + 1}" for path, n in (("A", self.clones), ("B", 1), ("C", unique)) for i in range(n)]

    def rewards(self) -> Tensor:
        """[group_size] float64: 1 for right, `wrong_reward` for wrong."""
        return torch.tensor([self.wrong_reward if kind == "wrong" else 1.0 for kind in self.kinds], dtype=torch.float64)

    def embeddings(self) -> Tensor:
        """[group_size, DIMENSIONS] float64, not normalised.

        The order of the draws (template A, the noise of each clone, then B and the C's) and numpy's legacy
        generator are the published note's: the defaults give all the decimals of adjusted reward that it prints.
        """
        random = np.random.RandomState(self.seed)
        template = random.randn(DIMENSIONS)
        clones = template + self.noise * random.randn(self.clones, DIMENSIONS)
        others = random.randn(self.group_size - self.clones, DIMENSIONS)
        return torch.from_numpy(np.concatenate([clones, others]))


@dataclass(frozen=True)
class GroupResult:
    """What the scene's completions get, and how similar they are."""

    scene: GroupScene
    scoring: Scoring
    scores: Scores
    similarity: Tensor
    """[group_size, group_size] cosines."""


def play_group(scene: GroupScene, scoring: Scoring) -> GroupResult:
    """Score the scene's group by GRPO and DRA-GRPO.

    For `std="population"` veRL's advantages are multiplied by sqrt(G / (G - 1)): what division by the population's
    standard deviation gives, but for veRL's epsilon of 1e-6 in the denominator.
    """
    if scene.std == "population" and scoring.estimator != "grpo":
        raise OptionError(f"--std population needs --estimator grpo; {scoring.estimator} divides by no deviation")
    embeddings = scene.embeddings()
    group = torch.zeros(scene.group_size, dtype=torch.int64)
    scores = scoring.score(embeddings, scene.rewards(), group)
    if scene.std == "population":
        scale = sqrt(scene.group_size / (scene.group_size - 1))
        scores = replace(scores, grpo=scores.grpo * scale, dra=scores.dra * scale)
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    return GroupResult(scene, scoring, scores, unit @ unit.T)
