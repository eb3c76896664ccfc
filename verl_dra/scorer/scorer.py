"""The scorer itself: embeds completions in the background, keeps their vectors, gives them on request."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from verl_dra.embedding import Encoded, Encoder, EncoderUnavailableError
from verl_dra.scorer import heap
from verl_dra.scorer.messages import Events, Session, Vectors

logger = logging.getLogger(__name__)

# What the encoder is handed at a time: enough to sort into full batches, little enough that what a step asks for, which
# is in the next slice, need not wait long. Seconds, and bytes at least and at most.
_SLICE_S = 1.0
_SLICE_BYTES = (2**13, 2**24)
_CACHED_TEXTS = 2**14
# At least; a step may have as many as are kept.
_REMEMBERED_SESSIONS = 2**14
_TRIM_AFTER_BYTES = 2**26
_IDLE_S = 0.5
_PAUSE_S = (0.5, 15.0)
_TRIES_ALONE = 3
_PROBES = 64
HUNG_S = 300.0
"""A call of the encoder that lasts longer than this at a deadline is taken not to end."""
_NOT_FINITE = "the encoder gave NaN or infinity"


class Observer(Protocol):
    """Told what a scorer does, from any of its threads."""

    def queued(self, events: Events, rows: int, size: int) -> None:
        """All events since the start; the queue's rows and bytes now."""
        ...

    def embedded(self, texts: int, seconds: float) -> None:
        """One call of the encoder."""
        ...


class _Embedded(NamedTuple):
    vector: np.ndarray
    """[D] float32."""
    tokens: int
    truncated_tokens: int
    unknown_tokens: int


@dataclass
class _Job:
    """A text that is to be embedded, for all sessions that have it."""

    digest: bytes
    data: bytes
    """Its UTF-8, which takes a quarter of what a string of other scripts does."""
    sessions: set[Session] = field(default_factory=set)
    company: int = 2**31
    """Texts of a batch that it may be in."""
    probes: int = 0
    """Times that it was tried alone while the encoder was away."""
    first_away: int | None = None
    """What the encoder had done when it was away for this text first."""
    tries_alone: int = 0
    """Times that it was away for this text alone, though it did others meanwhile."""

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass
class _Row:
    """A completion whose vector has not been taken."""

    digest: bytes
    replaced: bool
    cached: bool = False
    result: _Embedded | str | None = None
    """The vector; the encoder's error; or None while it waits."""


class Scorer:
    """Vectors of completions by session, embedded by a thread of its own; equal texts once. It knows no groups.

    All it holds can be made again from the texts: a lost or evicted vector costs time, never the answer.

    Args:
        encoder: makes the vectors.
        max_rows: completions kept at most; the oldest are evicted and counted.
        max_queue_rows: texts that wait for the encoder at most.
        max_queue_bytes: their bytes; one text more is taken while there is room for any.
        observer: told what happens.
        hung_s: seconds after which a call of the encoder is taken not to end; infinity where it has limits of its own.
    """

    def __init__(
        self,
        encoder: Encoder,
        max_rows: int,
        max_queue_rows: int = 2**16,
        max_queue_bytes: int = 2**30,
        observer: Observer | None = None,
        hung_s: float = HUNG_S,
    ) -> None:
        self._encoder = encoder
        self._max_rows = max_rows
        self._max_queue_rows = max_queue_rows
        self._max_queue_bytes = max_queue_bytes
        self._observer = observer
        self._hung_s = hung_s
        self._rows: OrderedDict[Session, _Row] = OrderedDict()
        self._queue: OrderedDict[bytes, _Job] = OrderedDict()
        self._queue_bytes = 0
        self._running: dict[bytes, _Job] = {}
        self._cache: OrderedDict[bytes, _Embedded] = OrderedDict()
        self._taken: OrderedDict[Session, None] = OrderedDict()
        self._events = Events()
        self._told = Events()
        self._trouble = ""
        self._pause = _PAUSE_S[0]
        self._away = False
        self._broken = False
        self._done = 0
        self._rate = 0.0
        self._busy_s = self._told_busy_s = 0.0
        self._progress_at = -math.inf
        self._dimension: int | None = None
        self._call_began: float | None = None
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._results = threading.Condition(self._lock)
        threading.Thread(target=self._embed_or_end, daemon=True, name="dra-embed").start()

    def submit(
        self, completions: Iterable[tuple[Session, str]], refused: int = 0, unsent: int = 0, skipped: int = 0
    ) -> None:
        """Take finished completions, waiting while the queue is full: who has not been answered holds back the next.

        A session that comes again with another text replaces the earlier one.

        Args:
            completions: sessions and their texts.
            refused: completions that the sender kept back since it last sent some, because it was not answered.
            unsent: those that it could not send.
            skipped: those that it does not send.
        """
        with self._lock:
            self._events.refused += refused
            self._events.unsent += unsent
            self._events.skipped += skipped
            for session, text in completions:
                self._room.wait_for(partial(self._has_room_for, session))
                self._events.submitted += 1
                if session in self._taken:
                    self._events.late += 1
                else:
                    self._take(session, text, urgent=False)
            self._observe()

    def collect(self, sessions: Sequence[Session], texts: Mapping[Session, str], within_s: float) -> Vectors:
        """Give the vectors of sessions and forget those.

        Says at once what it does not have. Else waits for those of `sessions` that are to be embedded, which go before
        all others; takes those in `texts` that it has no vector for, whether the queue is full or not.

        Args:
            sessions: any, each once.
            texts: texts of those that an earlier answer said are missing.
            within_s: seconds to wait at most.

        Returns:
            The vectors that are there, and which are not.
        """
        with self._lock:
            backlog = self._queue_bytes + sum(job.size for job in self._running.values())
            for session in reversed(sessions):
                row = self._rows.get(session)
                if session in texts and (row is None or isinstance(row.result, str)):
                    self._take(session, texts[session], urgent=True)
                elif row is not None and row.digest in self._queue:
                    self._queue.move_to_end(row.digest, last=False)
            if not any(self._is_missing(s, texts) for s in sessions):
                self._results.wait_for(lambda: not any(map(self._is_waiting, sessions)), within_s)
            there = {s: row for s in sessions if (row := self._rows.get(s)) and isinstance(row.result, _Embedded)}
            lacking = [s for s in sessions if s not in there]
            missing = [s for s in lacking if self._is_missing(s, texts)]
            waiting = [s for s in lacking if self._is_waiting(s)]
            without = {*missing, *waiting}
            failed = {s: str(self._rows[s].result) for s in lacking if s not in without}
            broken = self._broken if failed else bool(waiting) and self._is_hung()
            error = next(iter(failed.values()), "") or self._trouble
            events, self._told = self._events - self._told, replace(self._events)
            busy_s, self._told_busy_s = self._busy_s - self._told_busy_s, self._busy_s
            self._forget(there)
        embedded = {row.digest: row.result for row in there.values() if isinstance(row.result, _Embedded)}
        place = {digest: at for at, digest in enumerate(embedded)}
        of_session = [embedded[row.digest] for row in there.values()]
        return Vectors(
            vectors=np.stack([e.vector for e in embedded.values()]) if embedded else np.empty((0, 0), np.float32),
            digests=list(embedded),
            index=np.array([place[there[s].digest] if s in there else -1 for s in sessions], dtype=np.int64),
            tokens=sum(e.tokens for e in of_session),
            truncated_tokens=sum(e.truncated_tokens for e in of_session),
            unknown_tokens=sum(e.unknown_tokens for e in of_session),
            cached=sum(row.cached for row in there.values()),
            replaced=sum(row.replaced for row in there.values()),
            missing=missing,
            waiting=waiting,
            failed=list(failed),
            error=error or (f"{len(waiting)} texts are not embedded yet" if waiting else ""),
            broken=broken,
            stalled_s=time.monotonic() - self._progress_at,
            busy_s=busy_s,
            backlog_bytes=backlog,
            events=events,
        )

    def forget(self, sessions: Iterable[Session]) -> None:
        """Drop sessions that nobody will ask for; what comes of them later is late."""
        with self._lock:
            self._forget(sessions)

    def _forget(self, sessions: Iterable[Session]) -> None:
        for session in sessions:
            self._drop(session)
            self._taken[session] = None
        _shrink(self._taken, max(_REMEMBERED_SESSIONS, self._max_rows))
        self._room.notify_all()
        self._results.notify_all()
        self._observe()

    def _has_room_for(self, session: Session) -> bool:
        """Whether a completion need not wait: there is room, or it will not be taken."""
        if session in self._taken:
            return True
        return len(self._queue) < self._max_queue_rows and self._queue_bytes < self._max_queue_bytes

    def _is_hung(self) -> bool:
        began = self._call_began
        return began is not None and time.monotonic() - began > self._hung_s

    def _is_missing(self, session: Session, texts: Mapping[Session, str]) -> bool:
        """Whether its text is wanted: that of one that failed as well, which another try needs."""
        row = self._rows.get(session)
        return row is None or (isinstance(row.result, str) and session not in texts)

    def _is_waiting(self, session: Session) -> bool:
        row = self._rows.get(session)
        return row is not None and row.result is None

    def _take(self, session: Session, text: str, urgent: bool) -> None:
        data, replaced = _readable(text)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        known = self._rows.get(session)
        if known is not None:
            if known.digest == digest and not isinstance(known.result, str):
                return
            self._drop(session)
        row = self._rows[session] = _Row(digest, replaced)
        if digest in self._cache:
            self._cache.move_to_end(digest)
            row.result, row.cached = self._cache[digest], True
        else:
            job = self._running.get(digest) or self._queue.get(digest)
            row.cached = job is not None
            if job is None:
                job = self._queue[digest] = _Job(digest, data)
                self._queue_bytes += job.size
                self._work.notify()
            job.sessions.add(session)
            if urgent and digest in self._queue:
                self._queue.move_to_end(digest, last=False)
        self._events.cache_hits += row.cached
        if not urgent:
            self._evict()

    def _evict(self) -> None:
        while len(self._rows) > self._max_rows:
            self._drop(next(iter(self._rows)))
            self._events.evicted += 1

    def _drop(self, session: Session) -> None:
        """Forget a session, and its text where that waits for nobody else."""
        row = self._rows.pop(session, None)
        job = (self._queue.get(row.digest) or self._running.get(row.digest)) if row else None
        if job is not None:
            job.sessions.discard(session)
            if not job.sessions and job.digest in self._queue:
                self._unqueue(job)
                self._room.notify_all()

    def _unqueue(self, job: _Job) -> None:
        del self._queue[job.digest]
        self._queue_bytes -= job.size

    def _embed_or_end(self) -> None:
        """Embed for ever; a scorer that can't is of no use, and Ray starts the process that it has for itself again."""
        try:
            self._embed_for_ever()
        except BaseException:
            logger.critical("the thread that embeds ended", exc_info=True)
            os._exit(1)

    def _embed_for_ever(self) -> None:
        done = 0
        idle = False
        while True:
            if idle or (done > _TRIM_AFTER_BYTES and not self._queue):
                heap.trim()
                done = 0
            with self._lock:
                idle = not self._work.wait_for(lambda: bool(self._queue), _IDLE_S if done else None)
                if idle:
                    continue
                jobs = self._next_jobs()
                self._running = {job.digest: job for job in jobs}
                self._room.notify_all()
                self._observe()
            self._embed(jobs)
            done += sum(job.size for job in jobs)

    def _next_jobs(self) -> list[_Job]:
        if self._away:
            # One text shows whether the encoder is back: not always the same, which may be what it can't do.
            probe = min(islice(self._queue.values(), _PROBES), key=lambda job: job.probes)
            probe.probes += 1
            self._unqueue(probe)
            return [probe]
        jobs: list[_Job] = []
        size = 0
        company = 2**31
        slice_bytes = self._slice_bytes()
        while self._queue:
            job = next(iter(self._queue.values()))
            company = min(company, job.company)
            if jobs and (len(jobs) >= company or size + job.size > slice_bytes):
                break
            self._unqueue(job)
            jobs.append(job)
            size += job.size
        return jobs

    def _slice_bytes(self) -> float:
        """What the encoder takes about `_SLICE_S` for, by the rate that it showed; little before it has shown one."""
        return min(max(_SLICE_S * self._rate, _SLICE_BYTES[0]), _SLICE_BYTES[1])

    def _embed(self, jobs: Sequence[_Job]) -> None:
        """Embed a batch; one that fails by halves, so that a text that can't be embedded is alone with its error."""
        start = time.perf_counter()
        try:
            encoded = self._encode([job.data.decode() for job in jobs])
            results = _results(encoded)
        except EncoderUnavailableError as error:
            self._wait_for_encoder(jobs, error)
            return
        except BaseException as error:  # a panic of the tokenizers' Rust is no Exception
            if len(jobs) == 1:
                logger.exception("a text of %d bytes can't be embedded", jobs[0].size)
                self._broken = not self._can_embed_a_word()
                self._finish(jobs, [f"{type(error).__name__}: {error}"], Events())
                return
        else:
            seconds = time.perf_counter() - start
            self._busy_s += seconds
            tokens = int(encoded.tokens.sum())
            rate = sum(job.size for job in jobs) / max(seconds, 1e-6)
            self._rate = max(rate, (rate + self._rate) / 2)
            self._pause = _PAUSE_S[0]
            self._away = self._broken = False
            self._done += len(jobs)
            self._progress_at = time.monotonic()
            self._finish(jobs, results, Events(embedded=len(jobs), tokens=tokens, halved=encoded.halved))
            self._tell("embedded", len(jobs), seconds)
            return
        middle = len(jobs) // 2
        self._embed(jobs[:middle])
        self._embed(jobs[middle:])

    def _encode(self, texts: list[str]) -> Encoded:
        self._call_began = time.monotonic()
        try:
            encoded = self._encoder.encode(texts)
        finally:
            self._call_began = None
        if len(encoded.vectors) != len(texts):
            raise ValueError(f"the encoder gave {len(encoded.vectors)} vectors of {len(texts)} texts")
        if encoded.vectors.ndim != 2:
            raise ValueError(
                f"the encoder gave vectors of the shape {list(encoded.vectors.shape)}, which is not [n, D]"
            )
        size = encoded.vectors.shape[1]
        self._dimension = self._dimension or size
        if size != self._dimension:
            raise ValueError(f"the encoder gave vectors of {size} dimensions, and of {self._dimension} before")
        return encoded

    def _can_embed_a_word(self) -> bool:
        """Whether a text or the encoder is at fault, which after a CUDA error fails on everything."""
        try:
            return bool(self._encode(["a"]).vectors.isfinite().all())
        except BaseException:
            return False

    def _wait_for_encoder(self, jobs: Sequence[_Job], error: EncoderUnavailableError) -> None:
        """Put the texts back in their place and let some time pass.

        A server may be away for one text alone, and then for every batch that holds it. A batch that fails right after
        another was done comes back in smaller ones; a text that fails alone while others are done is at fault.
        """
        for job in jobs:
            job.first_away = self._done if job.first_away is None else job.first_away
            if not self._away:
                job.company = max(len(jobs) // 2, 1)
        if len(jobs) == 1 and self._done > (jobs[0].first_away or 0):
            jobs[0].tries_alone += 1
            if jobs[0].tries_alone >= _TRIES_ALONE:
                logger.warning("a text of %d bytes can't be embedded: %s", jobs[0].size, error)
                self._finish(jobs, [str(error)], Events(unavailable=1))
                return
        self._away = True
        logger.warning("%s; trying again in %g s", error, self._pause)
        with self._lock:
            self._trouble = str(error)
            self._events.unavailable += 1
            for job in reversed(jobs):
                self._running.pop(job.digest, None)
                if job.sessions:
                    self._queue[job.digest] = job
                    self._queue.move_to_end(job.digest, last=False)
                    self._queue_bytes += job.size
            self._observe()
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _PAUSE_S[1])

    def _finish(self, jobs: Sequence[_Job], results: Sequence[_Embedded | str], events: Events) -> None:
        with self._lock:
            self._trouble = ""
            self._events += events
            for job, result in zip(jobs, results, strict=True):
                self._running.pop(job.digest, None)
                for session in job.sessions:
                    row = self._rows.get(session)
                    if row is not None and row.digest == job.digest:
                        row.result = result
                if isinstance(result, str):
                    self._events.failed += 1
                else:
                    self._cache[job.digest] = result
            _shrink(self._cache, _CACHED_TEXTS)
            self._results.notify_all()
            self._observe()

    def _observe(self) -> None:
        self._tell("queued", replace(self._events), len(self._queue), self._queue_bytes)

    def _tell(self, what: str, *values: object) -> None:
        """Tell the observer, which may fail: nothing hangs on what it shows."""
        if self._observer is None:
            return
        try:
            getattr(self._observer, what)(*values)
        except Exception:
            logger.exception("the scorer's metrics fail; they are left out from now on")
            self._observer = None


def _results(encoded: Encoded) -> list[_Embedded | str]:
    """A vector of its own for each text, so that a kept one does not keep its whole batch; or why there is none."""
    finite = encoded.vectors.isfinite().all(dim=1).tolist()
    counts = (encoded.tokens.tolist(), encoded.truncated_tokens.tolist(), encoded.unknown_tokens.tolist())
    found = zip(encoded.vectors.float().numpy(), finite, *counts, strict=True)
    return [_Embedded(vector.copy(), *of_text) if ok else _NOT_FINITE for vector, ok, *of_text in found]


def _readable(text: str) -> tuple[bytes, bool]:
    """The text's UTF-8, lone surrogates as question marks, and whether there were any."""
    try:
        return text.encode(), False
    except UnicodeEncodeError:
        return text.encode(errors="replace"), True


def _shrink(entries: OrderedDict[Any, Any], most: int) -> None:
    while len(entries) > most:
        entries.popitem(last=False)
