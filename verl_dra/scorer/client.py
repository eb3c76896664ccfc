"""The reward workers' side of the scorers: hand over a finished completion and go on."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import ray

from verl_dra.scorer.directory import look_up
from verl_dra.scorer.messages import Session
from verl_dra.scorer.pool import replica_name, replica_of

logger = logging.getLogger(__name__)

_BATCH_CHARACTERS = 2**18


@dataclass
class _Line:
    """What is on its way to one scorer."""

    waiting: deque[tuple[Session, str]] = field(default_factory=deque)
    characters: int = 0
    handle: Any = None
    sending: asyncio.Task[None] | None = None
    refused: int = 0
    unsent: int = 0
    skipped: int = 0


class ScorerClient:
    """Sends each completion to its scorer, one batch at a time: what comes while a batch is under way goes
    with the next, and a scorer whose queue is full answers late.

    A completion that finds too many waiting here is refused. Those and what can't be sent are counted, and fetched by
    the trainer. How many scorers there are is looked up at the first submission; what comes meanwhile waits.

    Args:
        name: prefix of the actors' names (`dra.scorer.name`).
        max_rows: completions that wait here for each scorer at most.
        max_characters: characters of those at most.
    """

    def __init__(self, name: str, max_rows: int = 4096, max_characters: int = 2**24) -> None:
        self._name = name
        self._lines: list[_Line] = []
        self._before = _Line()
        self._max_rows = max_rows
        self._max_characters = max_characters

    def submit(self, session: Session, text: str) -> None:
        """Send without waiting. Must be called from a running event loop."""
        i, line = self._line(session)
        if len(line.waiting) >= self._max_rows or line.characters >= self._max_characters:
            line.refused += 1
            return
        line.waiting.append((session, text))
        line.characters += len(text)
        self._start(i, line)

    def skip(self, session: Session) -> None:
        """Count a completion that is not sent. Must be called from a running event loop."""
        i, line = self._line(session)
        line.skipped += 1
        self._start(i, line)

    def _line(self, session: Session) -> tuple[int, _Line]:
        if not self._lines:
            return 0, self._before
        i = replica_of(session, len(self._lines))
        return i, self._lines[i]

    def _start(self, i: int, line: _Line) -> None:
        if line.sending is None or line.sending.done():
            work = self._find() if line is self._before else self._send(i, line)
            line.sending = asyncio.get_running_loop().create_task(work)

    async def _find(self) -> None:
        """Learn how many scorers there are, and give each what came before that was known."""
        before = self._before
        try:
            replicas = await asyncio.get_running_loop().run_in_executor(None, look_up, self._name)
        except Exception as error:  # Ray's, or that there are none
            logger.warning(
                "%d completions did not reach a diversity scorer (%s: %s)",
                len(before.waiting),
                type(error).__name__,
                error,
            )
            before.unsent += len(before.waiting)
            before.waiting.clear()
            before.characters = 0
            return
        self._lines = [_Line() for _ in range(replicas)]
        self._lines[0].refused, self._lines[0].unsent = before.refused, before.unsent
        self._lines[0].skipped = before.skipped
        for session, text in before.waiting:
            self.submit(session, text)
        if before.skipped:
            self._start(0, self._lines[0])

    async def _send(self, i: int, line: _Line) -> None:
        while line.waiting or line.skipped:
            batch = _next_batch(line)
            refused, unsent, skipped = line.refused, line.unsent, line.skipped
            line.skipped = 0
            try:
                if line.handle is None:
                    line.handle = ray.get_actor(replica_name(self._name, i))
                await line.handle.submit.remote(batch, refused, unsent, skipped)
            except Exception as error:  # mostly a RayError, or the ValueError of a name that no actor has
                line.handle = None
                line.unsent += len(batch)
                logger.warning(
                    "%d completions did not reach diversity scorer %s (%s)",
                    len(batch),
                    replica_name(self._name, i),
                    type(error).__name__,
                )
            else:
                line.refused -= refused
                line.unsent -= unsent


def _next_batch(line: _Line) -> list[tuple[Session, str]]:
    batch: list[tuple[Session, str]] = []
    characters = 0
    while line.waiting and characters < _BATCH_CHARACTERS:
        batch.append(line.waiting.popleft())
        characters += len(batch[-1][1])
    line.characters -= characters
    return batch
