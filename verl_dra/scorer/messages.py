"""What reward workers, scorers and the trainer send each other."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np


class Session(NamedTuple):
    """One completion of a prompt, as veRL names it."""

    uid: str
    session_id: int


@dataclass
class Events:
    """How often what happened to completions in a scorer and on the way to it, over some time."""

    submitted: int = 0
    """Completions that arrived."""
    refused: int = 0
    """Those that reward workers kept back because the queue was full."""
    unsent: int = 0
    """Those that reward workers could not send because the scorer was not there."""
    skipped: int = 0
    """Those that reward workers don't send: of validation, of steps without DRA, and all with `dra.text=assistant`."""
    late: int = 0
    """Those that came after their vector was taken or given up."""
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


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What is counted of sessions that have vectors, and of the scorers' work; adds up over answers."""

    tokens: int = 0
    """Tokens of the texts of the sessions that have vectors."""
    truncated_tokens: int = 0
    """Those of them that no window of the encoder saw."""
    unknown_tokens: int = 0
    """Those of them that stand for what the encoder has no token for."""
    cached: int = 0
    """Sessions whose text needed no embedding of its own."""
    replaced: int = 0
    """Sessions with lone surrogates in their text, which are embedded as question marks."""
    busy_s: float = field(default=0.0, compare=False)
    """Seconds that encoders worked since the answers before."""
    events: Events = field(default_factory=Events)
    """What happened since the answers before."""


@dataclass(frozen=True)
class Vectors(Counts):
    """A scorer's answer for n sessions: the vectors of k different texts, and the sessions that it has none of."""

    vectors: np.ndarray
    """[k, D] float32, unit norm or zero; [0, 0] where there are none."""
    digests: list[bytes]
    """[k] which text each is of."""
    index: np.ndarray
    """[n] int64, in the order of the request: the row of each session's text in `vectors`; -1 where it has none."""
    missing: list[Session] = field(default_factory=list)
    """Those that it has no text of: send it and ask again."""
    waiting: list[Session] = field(default_factory=list)
    """Those that are to be embedded still."""
    failed: list[Session] = field(default_factory=list)
    """Those that the encoder raised an error on, each alone, though their texts were sent along."""
    error: str = ""
    """Why some failed or are waiting still."""
    broken: bool = False
    """Whether the encoder fails on a plain word as well, or does not come back from a call."""
    stalled_s: float = field(default=0.0, compare=False)
    """Seconds since the scorer last embedded a text, whichever."""
    backlog_bytes: int = field(default=0, compare=False)
    """Bytes of texts that waited for the encoder or were in it when this was asked for."""
