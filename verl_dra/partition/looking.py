"""The groupings of one step: a thread sends its groups to the actors, one actor a group, while the trainer goes on."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from verl_dra.partition.actor import Look
from verl_dra.partition.distinct import Distinct
from verl_dra.partition.partition import PromptGroup
from verl_dra.partition.pool import PartitionPool
from verl_dra.partition.step import StepGroupings
from verl_dra.scorer.asking import NoScoresError

logger = logging.getLogger(__name__)

_ASK_AGAIN_S = 0.5
# Of a group that the partition raises an error on.
_TRIES = 3
# Before the second try; four times as long before the third, and so on to the last.
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
# Times that a group was with an actor that was lost; then it goes alone, as it may be what ends the process.
_MOST_LOST = 2
# Fetched and decoded at a time.
_GROUPS = 32
_STOP_S = 10.0

FetchGroups = Callable[[Sequence[str]], Sequence[PromptGroup]]
"""The groups of uids, whole, in their order; completions in ascending order of their session ids."""


@dataclass(eq=False)
class _Asked:
    """A group that is to be looked at."""

    of: Distinct
    ask_at: float = 0.0
    failures: int = 0
    away: int = 0
    lost: int = 0
    booked: int = 0
    """Requests that are kept for it while it is looked at."""


class Looking:
    """A step's groupings on their way, in a thread of its own.

    A group goes to the actor with the fewest, and again where that is lost or the server away. Nothing is given up
    before somebody waits.

    Args:
        pool: the actors.
        uids: the groups of the step.
        fetch_groups: gives them; called in the thread.
        correct_above: with a gate, the reward that a completion inside is above: a group with fewer than two inside is
            not asked about.
        calls_left: requests that may be made; None for no bound.
    """

    def __init__(
        self,
        pool: PartitionPool,
        uids: Sequence[str],
        fetch_groups: FetchGroups,
        correct_above: float | None = None,
        calls_left: int | None = None,
    ) -> None:
        self._pool = pool
        self._fetch_groups = fetch_groups
        self._correct_above = correct_above
        self._calls_left = calls_left
        self._unfetched = list(uids)
        self._queue: list[_Asked] = []
        self._out: dict[Any, tuple[int, Any, _Asked]] = {}
        """By reply: the actor's number, its handle and the group."""
        self._similarity: dict[str, np.ndarray] = {}
        self._needless: list[str] = []
        self._totals = dict.fromkeys(("calls", "tokens", "truncated", "retried", "unplaced"), 0)
        self._unasked: list[_Asked] = []
        self._unreadable = self._fallbacks = self._spent = 0
        self._seconds = self._fetching_s = 0.0
        self._error = "none was looked at"
        self._works_at = -math.inf
        self._wanted_since = math.inf
        self._told_to_stop = threading.Event()
        self._came: Future[StepGroupings] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True, name="dra-looking")
        self._thread.start()

    def result(self) -> StepGroupings:
        """Wait for the groupings.

        Raises:
            NoScoresError: with `dra.on_failure=raise`, some are not there and no group was looked at for
                `dra.partition.deadline_s` of this wait, or the partition fails on one again and again, or
                `dra.partition.max_calls` leaves one out. Not where a group is unreadable.
            Exception: what `fetch_groups` raised.
            CancelledError: it was told to stop.
        """
        self._wanted_since = min(self._wanted_since, self._now())
        return self._came.result()

    def stop(self) -> None:
        """End the thread, whose groupings nobody will want; returns when it has ended, or soon."""
        self._told_to_stop.set()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        try:
            while self._unfetched or self._queue or self._out:
                if self._told_to_stop.is_set():
                    raise CancelledError("a step's groupings are not wanted any more")
                sent = self._send()
                self._settle(timeout_s=0 if sent else _ASK_AGAIN_S)
                self._give_up_late()
            if self._unasked:
                most = f"dra.partition.max_calls={self._pool.config.max_calls}"
                self._give_up(len(self._unasked), f"{most} does not do for them; set it higher")
            self._came.set_result(
                StepGroupings(
                    self._similarity,
                    frozenset(self._needless),
                    unreadable=self._unreadable,
                    unasked=len(self._unasked),
                    fallbacks=self._fallbacks,
                    seconds=self._seconds,
                    spent=self._spent,
                    **self._totals,
                )
            )
        except BaseException as error:  # whatever it is, who waits must hear of it
            self._came.set_exception(error)

    def _send(self) -> bool:
        """Send one group, where one is ready and an actor free; whether there was one, or one was left out."""
        busy = [sum(at == i for at, _, _ in self._out.values()) for i in range(len(self._pool))]
        if not busy or min(busy) >= self._pool.config.at_once:
            return False
        asked = self._next()
        if asked is None or not self._book(asked):
            return False
        self._queue.remove(asked)
        if asked.booked > self._left():
            self._unasked.append(asked)
            return True
        i = busy.index(min(busy))
        handle = self._pool.handles[i]
        self._out[handle.look.remote(asked.of.group)] = (i, handle, asked)
        return True

    def _next(self) -> _Asked | None:
        """The first group that is ready; what may have ended actors alone, when all others are done."""
        while True:
            ready = [asked for asked in self._queue if asked.ask_at <= self._now()]
            safe = [asked for asked in ready if asked.lost < _MOST_LOST]
            if safe or not self._unfetched:
                break
            self._fetch()
        if safe:
            return safe[0]
        alone = not self._out and all(asked.lost >= _MOST_LOST for asked in self._queue)
        return ready[0] if ready and alone else None

    def _book(self, asked: _Asked) -> bool:
        """Find out what a group may cost; whether it is to be decided on now, and not when others are back."""
        if self._calls_left is None:
            return True
        try:
            asked.booked = self._pool.most_calls(len(asked.of.group.texts))
        except RayError as error:
            self._lose(asked, 0, self._pool.handles[0], error)
            return False
        return not self._out or asked.booked <= self._left()

    def _left(self) -> float:
        """Requests that nobody has made or booked."""
        if self._calls_left is None:
            return math.inf
        return self._calls_left - self._spent - sum(asked.booked for _, _, asked in self._out.values())

    def _fetch(self) -> None:
        uids, self._unfetched = self._unfetched[:_GROUPS], self._unfetched[_GROUPS:]
        began = time.monotonic()
        groups = self._fetch_groups(uids)
        self._fetching_s += time.monotonic() - began
        for group in groups:
            of = Distinct.of(group)
            if self._correct_above is not None and sum(r > self._correct_above for r in group.rewards) < 2:
                self._needless.append(group.uid)
            elif len(of.group.texts) < 2:
                self._similarity[group.uid] = of.expanded(np.ones((1, 1), np.float32))
            else:
                self._queue.append(_Asked(of))

    def _settle(self, timeout_s: float) -> None:
        """Act on looks that are there; wait for one at most so long."""
        if not self._out:
            self._told_to_stop.wait(timeout_s)
            return
        if not ray.wait(list(self._out), num_returns=1, timeout=timeout_s)[0]:
            return
        for reply in ray.wait(list(self._out), num_returns=len(self._out), timeout=0)[0]:
            i, handle, asked = self._out.pop(reply)
            try:
                look: Look = ray.get(reply)
            except RayTaskError as error:
                look = Look(failed=str(error))
            except RayError as error:
                self._spent += asked.booked
                asked.lost += 1
                self._queue.append(asked)
                self._lose(asked, i, handle, error)
                continue
            self._seconds += look.seconds
            self._act(asked, look)

    def _act(self, asked: _Asked, look: Look) -> None:
        uid = asked.of.group.uid
        if look.grouping is not None:
            self._works_at = self._now()
            # One that does not say what it took may have taken all.
            self._spent += look.grouping.calls or (asked.booked if look.unreadable else 0)
            self._totals = {name: total + getattr(look.grouping, name) for name, total in self._totals.items()}
            if look.unreadable:
                self._unreadable += 1
                logger.warning("uid %s has no partition and gets the mean weight: %s", uid, look.unreadable)
            else:
                self._similarity[uid] = asked.of.expanded(look.grouping.similarity)
        elif look.unavailable:
            self._error = f"the server is away: {look.unavailable}"
            self._fallbacks += 1
            asked.away += 1
            self._queue.append(asked)
            self._pause(asked, asked.away)
        else:
            self._spent += asked.booked
            self._error = f"the partition failed on the group of uid {uid}: {look.failed}"
            asked.failures += 1
            if asked.failures < _TRIES:
                self._queue.append(asked)
                self._pause(asked, asked.failures)
            else:
                self._give_up(1, f"{self._error} ({_TRIES} times)")

    def _pause(self, asked: _Asked, times: int) -> None:
        pause_s = min(_PAUSE_S * 4 ** (times - 1), _LONGEST_PAUSE_S)
        asked.ask_at = min(self._now() + pause_s, self._deadline())

    def _lose(self, asked: _Asked, i: int, handle: Any, error: RayError) -> None:
        """See to it that a lost actor comes back; Ray restarts those that are not dead for good."""
        self._error = f"partition actor {i} was lost ({type(error).__name__})"
        self._fallbacks += 1
        asked.ask_at = self._now()
        if not isinstance(error, ActorDiedError) or not self._pool.revive(i, handle):
            asked.ask_at += _ASK_AGAIN_S

    def _give_up_late(self) -> None:
        """Give up what is left when no group came for too long; who does not come back from one is started again."""
        left = len(self._queue) + len(self._out) + len(self._unfetched)
        if not left or self._now() < self._deadline():
            return
        for i in {i for i, _, _ in self._out.values()}:
            if not self._pool.is_loading(i):
                self._pool.restart(i, "it does not come back from what it does")
        self._unfetched.clear()
        self._queue.clear()
        self._out.clear()
        deadline = f"dra.partition.deadline_s={self._pool.config.deadline_s:g} s have passed without a group looked at"
        self._give_up(left, f"{self._error}, and {deadline}")

    def _give_up(self, groups: int, why: str) -> None:
        """Go on without so many groups, or raise."""
        some = "1 group" if groups == 1 else f"{groups} groups"
        message = f"dra.partition.by={self._pool.config.by} has said nothing of {some}: {why}"
        if self._pool.on_failure == "raise":
            raise NoScoresError(f"{message}. dra.on_failure=unadjusted would train on with a mean weight for them")
        logger.warning("%s; what has no partition gets the mean weight of the others", message)

    def _now(self) -> float:
        """Seconds, but for those that groups were fetched in, which are no actor's fault."""
        return time.monotonic() - self._fetching_s

    def _deadline(self) -> float:
        """When what is left is given up: never, while nobody waits."""
        return max(self._works_at, self._wanted_since) + self._pool.config.deadline_s
