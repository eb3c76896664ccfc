"""What reward workers, scorers and the trainer send each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Session(NamedTuple):
    """One completion of a prompt, as veRL names it."""

    uid: str
    session_id: int


@dataclass(frozen=True)
class Missing:
    """A scorer's answer when it has no vector for some of the sessions: send their texts and ask again."""

    sessions: list[Session]


@dataclass(frozen=True)
class Scores:
    """A scorer's answer for n sessions of k groups."""

    smi: np.ndarray
    """[n] float32, in the order of the request."""
    duplicate: np.ndarray
    """[n] bool: has a near-equal sibling."""
    effective_paths: np.ndarray
    """[k] float64: Vendi score of each group."""


@dataclass(frozen=True)
class Counts:
    """What a scorer did since it was last asked."""

    tokens: int = 0
    truncated_tokens: int = 0
    evicted: int = 0
    """Completions dropped uncollected to bound memory; validation's end so."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.tokens + other.tokens,
            self.truncated_tokens + other.truncated_tokens,
            self.evicted + other.evicted,
        )
