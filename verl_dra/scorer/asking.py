"""The vectors of one step: a thread asks the scorers for them and sends what they lack, while the trainer goes on."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from verl_dra.scorer.messages import Counts, Session, Vectors
from verl_dra.scorer.pool import ScorerPool, replica_of
from verl_dra.scorer.scores import put_together

logger = logging.getLogger(__name__)

_ASK_AGAIN_S = 0.5
# What a scorer may take beyond the deadline to say what it has.
_GRACE_S = 2.0
_ENCODER_TRIES = 3
# Before the second try of what the encoder can't embed; four times as long before the third, and so on to the last.
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
# At once of one scorer, which has four threads for them: it works on one while others are on their way.
_MOST_ASKS = 3
# Texts that are fetched, decoded and sent at a time: first, and at most; then so many as have about so many characters.
_TEXTS = (64, 1024)
_CHARACTERS = 2**21
_STOP_S = 10.0
_LOADING = "it is starting again"
_HUNG = "it does not come back from what it does"

FetchTexts = Callable[[Sequence[Session]], Mapping[Session, str]]


class NoScoresError(RuntimeError):
    """A step has no scores of some groups, and `dra.on_failure` is `raise`."""


@dataclass(frozen=True)
class StepVectors(Counts):
    """The vectors of a step's n sessions, and how they came about."""

    vectors: np.ndarray
    """[m, D] float32, one for each different text."""
    index: np.ndarray
    """[n] int64, in the order of the request: the row of each session in `vectors`; -1 where it has none."""
    missing_rows: int = 0
    """Sessions whose text had to be fetched, as their scorer did not have it."""
    fallbacks: int = 0
    """Times that a scorer lacked something or was lost, and was asked again."""
    tokens_per_s: float = 0.0
    """What all scorers embed together while they work."""
    backlog_bytes: int = 0
    """Bytes of texts that scorers had not embedded when they were asked first."""


@dataclass(eq=False)
class _Ask:
    """Sessions that a scorer is asked for together."""

    rows: list[int]
    """Positions in the step of those that it has given no vector of."""
    sessions: list[Session]
    """Those sessions."""
    texts: dict[Session, str] = field(default_factory=dict)
    """Those that it is not known to have."""
    asked: Any = None
    """The actor that was asked last."""
    asked_at: float = 0.0
    reply: Any = None
    """Object reference, or None while it is to be asked again at `ask_at`."""
    ask_at: float = 0.0
    encoder_failures: int = 0

    def keep(self, sessions: set[Session]) -> list[tuple[int, Session]]:
        """Keep these alone; the others, with their positions."""
        pairs = list(zip(self.rows, self.sessions, strict=True))
        self.rows = [row for row, session in pairs if session in sessions]
        self.sessions = [session for session in self.sessions if session in sessions]
        return [pair for pair in pairs if pair[1] not in sessions]


@dataclass(eq=False)
class _Scorer:
    """What a step has of one scorer still to come."""

    replica: int
    asks: list[_Ask]
    lacking: deque[tuple[int, Session]] = field(default_factory=deque)
    """Positions and sessions whose texts are to be fetched."""
    sent: int = 0
    """Times that it was sent texts."""
    works_at: float = -math.inf
    """When it last embedded a text."""
    error: str = "it gives no answer"
    encoder_error: str = ""
    """What the encoder failed with, which a scorer that was started again since can't say."""
    started_at: float = -math.inf
    """When its process was told to end and to start again."""
    lost: bool = False
    """Whether it was not there when it was asked last, or did not answer."""


class Asking:
    """A step's vectors on their way, in a thread of its own.

    It asks each scorer for its sessions, fetches the texts that one lacks, some at a time, sends them and asks again:
    from its start to the end, whether anybody waits or not. Nothing is given up before somebody does.

    Args:
        pool: the scorers.
        sessions: those of the step, each once.
        fetch_texts: gives texts of sessions; called in the thread.
    """

    def __init__(self, pool: ScorerPool, sessions: Sequence[Session], fetch_texts: FetchTexts) -> None:
        self._pool = pool
        self._fetch_texts = fetch_texts
        self._sessions = len(sessions)
        self._scorers = [
            _Scorer(replica, [_Ask(rows, names)]) for replica, rows, names in _by_scorer(sessions, len(pool))
        ]
        self._answers: list[tuple[int, np.ndarray, Vectors]] = []
        self._missing: set[Session] = set()
        self._fetched = self._characters = 0
        self._fetching_s = 0.0
        self._fallbacks = 0
        self._wanted_since = math.inf
        self._told_to_stop = threading.Event()
        self._came: Future[StepVectors] = Future()
        for scorer in self._scorers:
            self._ask(scorer, scorer.asks[0])
        self._thread = threading.Thread(target=self._run, daemon=True, name="dra-asking")
        self._thread.start()

    def result(self) -> StepVectors:
        """Wait for the vectors.

        Raises:
            NoScoresError: with `dra.on_failure=raise`, some are not there and their scorer has embedded nothing for
                `dra.scorer.deadline_s` of this wait, or the encoder fails on a text again and again while it embeds
                others.
            Exception: what `fetch_texts` raised.
            CancelledError: it was told to stop.
        """
        self._wanted_since = min(self._wanted_since, self._now())
        return self._came.result()

    def stop(self) -> None:
        """End the thread, whose vectors nobody will want; returns when it has ended, or soon."""
        self._told_to_stop.set()
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        try:
            self._bring_together()
            self._came.set_result(_step_vectors(self._sessions, self._answers, len(self._missing), self._fallbacks))
        except BaseException as error:  # whatever it is, who waits must hear of it
            self._came.set_exception(error)

    def _bring_together(self) -> None:
        sent = False
        while any(scorer.asks or scorer.lacking for scorer in self._scorers):
            if self._told_to_stop.is_set():
                raise CancelledError("a step's vectors are not wanted any more")
            self._settle_replies(timeout_s=0 if sent else _ASK_AGAIN_S)
            self._give_up_late()
            self._ask_again()
            sent = self._send_texts()

    def _settle_replies(self, timeout_s: float) -> None:
        """Act on replies that are there; wait for one at most so long."""
        of_reply = {
            ask.reply: (scorer, ask) for scorer in self._scorers for ask in scorer.asks if ask.reply is not None
        }
        if not of_reply:
            self._told_to_stop.wait(timeout_s)
        elif ray.wait(list(of_reply), num_returns=1, timeout=timeout_s)[0]:
            for reply in ray.wait(list(of_reply), num_returns=len(of_reply), timeout=0)[0]:
                self._settle(*of_reply[reply])

    def _settle(self, scorer: _Scorer, ask: _Ask) -> None:
        """Act on a reply; the ask is done with when it has no sessions left."""
        try:
            answer: Vectors = ray.get(ask.reply)
        except RayTaskError as error:
            scorer.error = f"it failed: {error}"
            scorer.asks.remove(ask)
            self._give_up(scorer, ask.sessions)
            return
        except RayError as error:
            self._fallbacks += 1
            self._bring_back(scorer, ask, error)
            return
        scorer.lost = False
        scorer.works_at = max(scorer.works_at, self._now() - answer.stalled_s)
        self._answers.append((scorer.replica, np.array(ask.rows), answer))
        self._fallbacks += bool((answer.index < 0).any())
        missing = set(answer.missing)
        scorer.lacking += [pair for pair in ask.keep({*answer.waiting, *answer.failed}) if pair[1] in missing]
        ask.texts = {session: ask.texts[session] for session in answer.failed if session in ask.texts}
        pause_s = self._pause_after(scorer, ask, answer)
        if not ask.sessions:
            scorer.asks.remove(ask)
        elif pause_s:
            ask.reply, ask.ask_at = None, min(self._now() + pause_s, self._deadline(scorer))
        else:
            self._ask(scorer, ask)

    def _pause_after(self, scorer: _Scorer, ask: _Ask, answer: Vectors) -> float:
        """Seconds before the scorer is asked again for what it did not give; what is hopeless is given up."""
        past = self._now() >= self._deadline(scorer)
        hung = False
        if answer.failed:
            scorer.error = scorer.encoder_error = (
                f"the encoder can't embed {len(answer.failed)} of them, such as the completion "
                f"{answer.failed[0].session_id} of uid {answer.failed[0].uid}: {answer.error}"
            )
            ask.encoder_failures += 1
            if answer.broken:
                self._restart(scorer, ask, "its encoder fails on everything")
            elif ask.encoder_failures >= _ENCODER_TRIES:
                ask.encoder_failures, ask.texts = 0, {}
                ask.keep({*answer.waiting})
                self._give_up(scorer, answer.failed)
                return 0.0
        elif answer.waiting:
            scorer.error = f"{self._deadline_passed()}: {answer.error}"
            hung = answer.broken
        if past and ask.sessions:
            given_up = [*ask.sessions, *(session for _, session in scorer.lacking)]
            ask.keep(set())
            scorer.lacking.clear()
            self._give_up(scorer, given_up)
            if hung:
                self._restart(scorer, ask, _HUNG)
            return 0.0
        return min(_PAUSE_S * 4 ** (ask.encoder_failures - 1), _LONGEST_PAUSE_S) if answer.failed else 0.0

    def _give_up_late(self) -> None:
        """Give up scorers that do not even say what they have."""
        for scorer in self._scorers:
            if not scorer.asks or self._now() < self._deadline(scorer) + _GRACE_S:
                continue
            silent = [ask for ask in scorer.asks if ask.reply is not None]
            loading = bool(silent) and self._pool.is_loading(scorer.replica)
            scorer.error = f"{_LOADING if loading else scorer.error}, and {self._deadline_passed()}"
            given_up = [session for ask in scorer.asks for session in ask.sessions]
            given_up += [session for _, session in scorer.lacking]
            scorer.asks.clear()
            scorer.lacking.clear()
            self._give_up(scorer, given_up)
            if silent and not scorer.lost and not loading:
                self._restart(scorer, silent[-1], _HUNG)

    def _ask_again(self) -> None:
        for scorer in self._scorers:
            for ask in scorer.asks:
                # Of those that failed one at a time: all its threads would be taken else.
                free = not ask.encoder_failures or not any(
                    other.encoder_failures and other.reply is not None for other in scorer.asks
                )
                if ask.reply is None and self._now() >= ask.ask_at and free:
                    self._ask(scorer, ask)

    def _ask(self, scorer: _Scorer, ask: _Ask) -> None:
        ask.asked, ask.asked_at = self._pool.handles[scorer.replica], self._now()
        left_s = max(self._deadline(scorer) - ask.asked_at, 0)
        ask.reply = ask.asked.collect.remote(ask.sessions, ask.texts, min(left_s, self._pool.config.deadline_s))

    def _send_texts(self) -> bool:
        """Fetch some of the texts that a scorer lacks, and ask it for their vectors; whether there were any."""
        ready = [
            scorer
            for scorer in self._scorers
            if scorer.lacking and sum(not ask.encoder_failures for ask in scorer.asks) < _MOST_ASKS
        ]
        if not ready:
            return False
        scorer = min(ready, key=lambda scorer: (len(scorer.asks), scorer.sent))
        pairs = [scorer.lacking.popleft() for _ in range(min(self._texts_at_a_time(), len(scorer.lacking)))]
        ask = _Ask([row for row, _ in pairs], [session for _, session in pairs])
        began = time.monotonic()
        ask.texts = dict(self._fetch_texts(ask.sessions))
        self._fetching_s += time.monotonic() - began
        self._missing.update(ask.sessions)
        self._fetched += len(ask.texts)
        self._characters += sum(map(len, ask.texts.values()))
        scorer.sent += 1
        scorer.asks.append(ask)
        self._ask(scorer, ask)
        return True

    def _texts_at_a_time(self) -> int:
        if not self._fetched:
            return _TEXTS[0]
        return min(max(_CHARACTERS * self._fetched // max(self._characters, 1), 1), _TEXTS[1])

    def _bring_back(self, scorer: _Scorer, ask: _Ask, error: RayError) -> None:
        """See to it that a lost scorer comes back; Ray restarts those that are not dead for good."""
        scorer.error = f"it was lost ({type(error).__name__})"
        scorer.lost = True
        ask.reply, ask.ask_at = None, self._now()
        if not isinstance(error, ActorDiedError) or not self._pool.revive(scorer.replica, ask.asked):
            ask.ask_at += _ASK_AGAIN_S

    def _now(self) -> float:
        """Seconds, but for those that texts were fetched in, which are no scorer's fault."""
        return time.monotonic() - self._fetching_s

    def _deadline(self, scorer: _Scorer) -> float:
        """When it is given up, if it embeds nothing until then: never, while nobody waits."""
        return max(scorer.works_at, self._wanted_since) + self._pool.config.deadline_s

    def _deadline_passed(self) -> str:
        return f"dra.scorer.deadline_s={self._pool.config.deadline_s:g} s have passed without a text embedded"

    def _give_up(self, scorer: _Scorer, sessions: Sequence[Session]) -> None:
        """Go on without sessions that a scorer was asked for, or raise."""
        message = f"diversity scorer {scorer.replica} gave no scores of {len(sessions)} completions: {scorer.error}"
        if scorer.encoder_error not in scorer.error:
            message += f". Before that, {scorer.encoder_error}"
        if self._pool.on_failure == "raise":
            raise NoScoresError(f"{message}. dra.on_failure=unadjusted would train on with a mean weight for them")
        logger.warning("%s; their groups get the mean weight of the others", message)
        self._pool.handles[scorer.replica].forget.remote(list(sessions))

    def _restart(self, scorer: _Scorer, ask: _Ask, why: str) -> None:
        """Start a scorer again, once for all that the process before did not give."""
        if ask.asked_at >= scorer.started_at:
            scorer.started_at = self._now()
            self._pool.restart(scorer.replica, why)


def take(pool: ScorerPool, sessions: Sequence[Session]) -> StepVectors:
    """The vectors of sessions that are there by now; the others are given up. For what is only shown."""
    asked = {
        pool.handles[replica].collect.remote(names, {}, 0): (replica, rows, names)
        for replica, rows, names in _by_scorer(sessions, len(pool))
    }
    answers = _there_by_now(asked)
    for replica, _, names in asked.values():
        pool.handles[replica].forget.remote(names)
    return _step_vectors(len(sessions), answers)


def forgo(pool: ScorerPool, sessions: Sequence[Session]) -> StepVectors:
    """No vectors of sessions, which are given up where there are any, and what scorers counted. For what wants none."""
    asked = {
        handle.collect.remote([], {}, 0): (replica, list[int](), list[Session]())
        for replica, handle in enumerate(pool.handles)
    }
    answers = _there_by_now(asked)
    for replica, _, names in _by_scorer(sessions, len(pool)):
        pool.handles[replica].forget.remote(names)
    return _step_vectors(len(sessions), answers)


def _there_by_now(asked: Mapping[Any, tuple[int, list[int], list[Session]]]) -> list[tuple[int, np.ndarray, Vectors]]:
    """Scorers that answered or are about to, the positions that they were asked for, and their answers."""
    there = set(ray.wait(list(asked), num_returns=len(asked), timeout=_GRACE_S)[0]) if asked else set()
    answers: list[tuple[int, np.ndarray, Vectors]] = []
    for reply, (replica, rows, _) in asked.items():
        try:
            if reply in there:
                answers.append((replica, np.array(rows, dtype=np.int64), ray.get(reply)))
        except RayError as error:
            logger.warning("diversity scorer %d gave nothing to show: %s", replica, type(error).__name__)
    return answers


def _by_scorer(sessions: Sequence[Session], scorers: int) -> list[tuple[int, list[int], list[Session]]]:
    """Each scorer that has some of them, their positions, and themselves."""
    rows: dict[int, list[int]] = {}
    for row, session in enumerate(sessions):
        rows.setdefault(replica_of(session, scorers), []).append(row)
    return [(replica, of_scorer, [sessions[row] for row in of_scorer]) for replica, of_scorer in sorted(rows.items())]


def _step_vectors(
    sessions: int, answers: Sequence[tuple[int, np.ndarray, Vectors]], missing_rows: int = 0, fallbacks: int = 0
) -> StepVectors:
    vectors, index = put_together(sessions, answers)
    none = Counts()
    totals = {
        f.name: sum((getattr(answer, f.name) for _, _, answer in answers), getattr(none, f.name)) for f in fields(none)
    }
    tokens_per_s = 0.0
    backlog_bytes = 0
    for replica in {replica for replica, _, _ in answers}:
        of_scorer = [answer for of, _, answer in answers if of == replica]
        backlog_bytes += of_scorer[0].backlog_bytes
        busy_s = sum(answer.busy_s for answer in of_scorer)
        tokens_per_s += sum(answer.events.tokens for answer in of_scorer) / busy_s if busy_s else 0.0
    return StepVectors(vectors, index, missing_rows, fallbacks, tokens_per_s, backlog_bytes, **totals)
