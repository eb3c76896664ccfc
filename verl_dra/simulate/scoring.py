"""Rewards to advantages, once as GRPO has it and once as DRA-GRPO has it. The group estimator is veRL's own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from verl_dra.algorithm import (
    SMI_FUNCTIONS,
    NegativeRewards,
    adjust_rewards,
    diversity_weights,
    gated,
    kept_scale,
    level_small_spreads,
    power_smi,
    temper,
)
from verl_dra.missing import in_words
from verl_dra.simulate.options import OptionError

Estimator = Literal["grpo", "dr_grpo"]
Among = Literal["all", "correct"]

RIGHT = 1.0
"""The reward of a right answer."""


class VerlUnavailableError(RuntimeError):
    """veRL, whose advantage functions the simulation uses, can't be imported."""


@dataclass(frozen=True)
class Scores:
    """What each of N completions gets, all [N] float64."""

    smi: Tensor
    adjusted_rewards: Tensor
    grpo: Tensor
    """Advantages from the raw rewards."""
    dra: Tensor
    """Advantages from the adjusted rewards."""


@dataclass(frozen=True)
class Scoring:
    """The choices that both methods are compared under."""

    smi: str = "graph_cut"
    negative_rewards: NegativeRewards = "paper"
    estimator: Estimator = "grpo"
    strength: float = 1.0
    among: Among = "all"
    cosine_power: float = 1.0
    spread_floor: float = 0.0
    keep_scale: bool = False
    epsilon: float = 1e-6
    """veRL's."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 8:
            raise OptionError(f"--strength must be from 0 to 8, not {self.strength}")
        if not 1 <= self.cosine_power <= 64:
            raise OptionError(f"--cosine-power must be from 1 to 64, not {self.cosine_power}")
        if not 0 <= self.spread_floor < 1:
            raise OptionError(f"--spread-floor must be from 0 to below 1, not {self.spread_floor}")
        if not 0 < self.epsilon < float("inf"):
            raise OptionError(f"--epsilon must be above 0 and finite, not {self.epsilon}")
        for option, given in (("--cosine-power", self.cosine_power > 1), ("--spread-floor", self.spread_floor > 0)):
            if given and self.smi != "graph_cut":
                raise OptionError(f"{option} needs --smi graph_cut, a sum of cosines, not {self.smi}")
        if self.epsilon != Scoring.epsilon and self.estimator != "grpo":
            raise OptionError(f"--epsilon needs --estimator grpo; {self.estimator} divides by no deviation")
        if self.among == "correct" and self.negative_rewards == "shift":
            raise OptionError("--among correct with --negative-rewards shift can rank a wrong answer above a right one")

    @property
    def names(self) -> tuple[str, str]:
        """What to call the method without and with DRA."""
        name = {"grpo": "GRPO", "dr_grpo": "Dr.GRPO"}[self.estimator]
        return name, f"DRA-{name}"

    def score(self, embeddings: Tensor, rewards: Tensor, group: Tensor) -> Scores:
        """Advantages of completions by raw and by adjusted rewards.

        Args:
            embeddings: [N, D] float64.
            rewards: [N] float64.
            group: [N] int64.

        Raises:
            VerlUnavailableError: veRL can't be imported.
        """
        inside = rewards >= RIGHT if self.among == "correct" else torch.ones_like(rewards, dtype=torch.bool)
        among = gated(group, inside)
        function = partial(power_smi, power=self.cosine_power) if self.cosine_power > 1 else SMI_FUNCTIONS[self.smi]
        smi = torch.where(inside, level_small_spreads(function(embeddings, among), among, self.spread_floor), 0)
        weights = temper(diversity_weights(smi), self.strength)
        adjusted = adjust_rewards(rewards, weights, group, self.negative_rewards)
        if self.keep_scale:
            acted = inside & (rewards > 0) if self.negative_rewards == "positive_only" else inside
            adjusted = adjusted * kept_scale(weights, acted)
        return Scores(smi, adjusted, self._advantages(rewards, group), self._advantages(adjusted, group))

    def _advantages(self, rewards: Tensor, group: Tensor) -> Tensor:
        advantages, _ = _verl_grpo()(
            rewards.unsqueeze(1),
            torch.ones_like(rewards).unsqueeze(1),
            group.numpy(),
            epsilon=self.epsilon,
            norm_adv_by_std_in_grpo=self.estimator == "grpo",
        )
        return advantages.squeeze(1)


def _verl_grpo() -> Callable[..., tuple[Tensor, Tensor]]:
    try:
        with _quiet():
            from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
    except ImportError as error:
        raise VerlUnavailableError(
            f"simulate takes its GRPO advantages from veRL, which can't be imported: {in_words(error)}"
        ) from error
    advantage: Callable[..., tuple[Tensor, Tensor]] = compute_grpo_outcome_advantage
    return advantage


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what veRL's dependencies have to say about each other at import off the screen."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
