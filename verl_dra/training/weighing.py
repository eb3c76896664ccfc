"""From a step's similarity to what its rewards are multiplied by: gate, floor, control, weight and strength in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from verl_dra.algorithm import (
    darling_weights,
    diversity_weights,
    fill_unscored,
    gated,
    level_small_spreads,
    random_smi,
    shuffled_smi,
    temper,
    unlikeliness_weights,
)
from verl_dra.config import DRAConfig
from verl_dra.scorer.messages import Session


@dataclass(frozen=True)
class Weighing:
    """How n sessions of a step are weighed; n as in `Rows`."""

    dra: DRAConfig
    step: int
    """The training step, which controls draw by."""
    strength: float
    names: Sequence[Session]
    group: Tensor
    """[n] int64."""
    inside: Tensor
    """[n] bool: those among which similarity is measured (`dra.among`)."""

    def smi(self, smi: Tensor, scored: Tensor, dimensions: int) -> Tensor:
        """[n] SMI that acts: levelled, and that of a control where one is set.

        Args:
            smi: [n] of the vectors.
            scored: [n] bool; 0 elsewhere.
            dimensions: of the vectors.
        """
        group = self._gated
        if self.dra.spread_floor:
            smi = level_small_spreads(smi, group, self.dra.spread_floor)
        if self.dra.smi == "shuffled":
            rank = torch.tensor([name.session_id for name in self.names])
            return shuffled_smi(smi, group, rank, self._draws())
        if self.dra.smi == "random" and bool(scored.any()):
            noise = np.empty((len(smi), dimensions), dtype=np.float32)
            for row, seed in zip(noise, self._draws().tolist(), strict=True):
                np.random.default_rng(seed).standard_normal(dtype=np.float32, out=row)
            return torch.where(scored, random_smi(smi, group, torch.from_numpy(noise)), 0)
        return smi

    def weights(self, smi: Tensor, scored: Tensor, log_probs: Tensor | None = None) -> Tensor:
        """[n] weights: 1 outside the gate, and the mean of the others where a session inside is not scored.

        Args:
            smi: [n] that acts.
            scored: [n] bool.
            log_probs: [n] mean log-probabilities, for `unlikeliness` alone.
        """
        if not self.strength:
            return torch.ones_like(smi)
        group = self._gated
        if self.dra.weight == "unlikeliness":
            assert log_probs is not None
            weights = unlikeliness_weights(log_probs, group)
        elif self.dra.weight == "darling":
            weights = darling_weights(smi, group)
        else:
            weights = diversity_weights(smi)
        weights = temper(weights, self.strength)
        filled = torch.ones_like(weights)
        filled[self.inside] = fill_unscored(weights[self.inside], scored[self.inside])
        return filled

    @cached_property
    def _gated(self) -> Tensor:
        """[n] group ids in which those outside the gate are alone."""
        return gated(self.group, self.inside)

    def _draws(self) -> Tensor:
        """[n] int64 random numbers that follow from step, uid and session alone, not from the order of rows."""
        texts = (f"{self.step}/{name.uid}/{name.session_id}".encode() for name in self.names)
        digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
        return torch.from_numpy(np.frombuffer(digests, dtype=np.int64) & np.int64(2**63 - 1))
