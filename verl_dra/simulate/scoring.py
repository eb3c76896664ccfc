"""Rewards to advantages, once as GRPO has it and once as DRA-GRPO has it. The group estimator is veRL's own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from verl_dra.algorithm import SMI_FUNCTIONS, NegativeRewards, adjust_rewards, diversity_weights
from verl_dra.missing import in_words

Estimator = Literal["grpo", "dr_grpo"]


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
        smi = SMI_FUNCTIONS[self.smi](embeddings, group)
        adjusted = adjust_rewards(rewards, diversity_weights(smi), group, self.negative_rewards)
        return Scores(smi, adjusted, self._advantages(rewards, group), self._advantages(adjusted, group))

    def _advantages(self, rewards: Tensor, group: Tensor) -> Tensor:
        advantages, _ = _verl_grpo()(
            rewards.unsqueeze(1),
            torch.ones_like(rewards).unsqueeze(1),
            group.numpy(),
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
