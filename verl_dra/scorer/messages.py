"""What reward workers, scorers and the trainer send each other."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np


class Session(NamedTuple):
    """One completion of a prompt, as veRL names it."""

    uid: str
    session_id: int


@dataclass(frozen=True)
class Events:
    """How often what happened to completions in a scorer and on the way to it, over some time."""

    submitted: int = 0
    """Completions that arrived."""
    refused: int = 0
    """Those that reward workers kept back because the queue was full."""
    unsent: int = 0
    """Those that reward workers could not send because the scorer was not there."""
    skipped: int = 0
    """Those that came while none were accepted, which is while the trainer validates."""
    late: int = 0
    """Those that came after their group was scored."""
    evicted: int = 0
    """Those dropped uncollected to bound memory."""
    cache_hits: int = 0
    """Those whose text was known already."""
    embedded: int = 0
    """Texts that went through the encoder."""
    tokens: int = 0
    """Tokens of those."""
    halved: int = 0
    """Batches too large for memory or for a server."""
    failed: int = 0
    """Texts that the encoder can't embed."""
    unavailable: int = 0
    """Times that the encoder was away and was tried again."""

    def __add__(self, other: Events) -> Events:
        return Events(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Events) -> Events:
        return Events(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Missing:
    """A scorer's answer when it has no vector for some of the sessions: send their texts and ask again."""

    sessions: list[Session]


@dataclass(frozen=True)
class Failed:
    """A scorer's answer when it can't embed some of the sessions."""

    sessions: list[Session]
    error: str
    timed_out: bool
    """Whether it was still trying; else the encoder raised an error on each of the texts alone."""
    broken: bool = False
    """Whether the encoder fails on a plain word as well, or does not come back from a call."""
    stalled_s: float = field(default=0.0, compare=False)
    """Where it was still trying: seconds since it last embedded a text, whichever."""


@dataclass(frozen=True)
class Shown:
    """What a scorer shows of one group, where that is asked for."""

    similarity: np.ndarray
    """[n, n] float32 cosines, sessions in the order of the request."""
    effective_paths: float


@dataclass(frozen=True)
class Scores:
    """A scorer's answer for n sessions of k groups."""

    smi: np.ndarray
    """[n] float32, in the order of the request."""
    duplicate: np.ndarray
    """[n] bool: has a near-equal sibling."""
    effective_paths: np.ndarray
    """[k] float64: Vendi score of each group."""
    tokens: int
    """Tokens of the n texts."""
    truncated_tokens: int
    """Those of them that no window of the encoder saw."""
    cached: int
    """Sessions whose text needed no embedding of its own."""
    empty: int
    """Sessions with a zero vector, as of a text without tokens; they count as unique."""
    replaced: int
    """Sessions with lone surrogates in their text, which are embedded as question marks."""
    events: Events
    """What happened since the scorer's last scores."""
    shown: dict[str, Shown] = field(default_factory=dict)
    """Of the groups that were asked for, by uid."""
