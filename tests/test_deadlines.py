"""What a step does about a scorer that fails, stands still or is lost: its answers and the clock are the test's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import ray
from in_process_ray import Reply
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from verl_dra.scorer.asking import Asking, NoScoresError, StepVectors
from verl_dra.scorer.messages import Session, Vectors

DEADLINE_S = 100.0
NAMES = [Session(uid, i) for uid in "ab" for i in range(2)]
TEXTS = {name: f"text {at}" for at, name in enumerate(NAMES)}
PASSED = r"dra.scorer.deadline_s=100 s have passed without a text embedded"


class Asked(NamedTuple):
    """One request for vectors."""

    at: float
    sessions: list[Session]
    texts: dict[Session, str]
    within_s: float
    under_way: int
    """Requests that it finds unanswered."""


Answer = Callable[[Asked], "Vectors | Exception | None"]
"""To a request; None for silence."""


class OneScorer:
    """In place of a pool of one scorer: answers as it is told, the first request first and the last way for good."""

    def __init__(self, answers: Sequence[Answer], on_failure: str, loading: bool = False, revives: bool = True) -> None:
        self.config = SimpleNamespace(deadline_s=DEADLINE_S)
        self.on_failure = on_failure
        self.handles = [
            SimpleNamespace(collect=SimpleNamespace(remote=self._collect), forget=SimpleNamespace(remote=self._forget))
        ]
        self.now = 0.0
        self.asked: list[Asked] = []
        self.forgotten: list[list[Session]] = []
        self.restarts: list[str] = []
        self.revived: list[Any] = []
        self.awaited = threading.Event()
        self._answers, self._loading, self._revives = list(answers), loading, revives
        self._held: list[tuple[Reply, Vectors | Exception, float]] = []
        self._silent = 0

    def __len__(self) -> int:
        return 1

    def is_loading(self, replica: int) -> bool:
        return self._loading

    def revive(self, replica: int, dead: Any) -> bool:
        self.revived.append(dead)
        return self._revives

    def restart(self, replica: int, why: str) -> None:
        self.restarts.append(why)

    def pass_time(self, seconds: float) -> None:
        assert self.awaited.wait(60)
        self.now += seconds

    def wait(self, replies: list[Reply], num_returns: int = 1, timeout: float = 0) -> tuple[list[Reply], list[Reply]]:
        """What is under way is answered once nothing else is to be done."""
        if not (done := [reply for reply in replies if reply.done()]) and timeout:
            waiting = [within_s for _, answer, within_s in self._held if isinstance(answer, Vectors) and answer.waiting]
            self.pass_time(max([timeout, *waiting]))
            for reply, answer, _ in self._held:
                put(reply, answer)
            self._held.clear()
            done = [reply for reply in replies if reply.done()]
        return done[:num_returns], [reply for reply in replies if reply not in done[:num_returns]]

    def _collect(self, sessions: list[Session], texts: Mapping[Session, str], within_s: float) -> Reply:
        self.asked.append(Asked(self.now, list(sessions), dict(texts), within_s, len(self._held) + self._silent))
        answer = self._answers[0](self.asked[-1])
        if len(self._answers) > 1:
            self._answers.pop(0)
        reply = Reply()
        if answer is None:
            self._silent += 1
        else:
            self._held.append((reply, answer, within_s))
        return reply

    def _forget(self, sessions: list[Session]) -> None:
        self.forgotten.append(sessions)


class Awaited(threading.Event):
    """Time that is waited for the event passes at once."""

    pass_time: Callable[[float], None]

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set() and timeout:
            self.pass_time(timeout)
        return self.is_set()


def put(reply: Reply, answer: Vectors | Exception) -> None:
    if isinstance(answer, Exception):
        reply.set_exception(answer)
    else:
        reply.set_result(answer)


def vectors(asked: Asked, there: Sequence[Session], **more: Any) -> Vectors:
    """Those of some of the sessions."""
    digests = [f"{session}".encode() for session in there]
    index = np.array([there.index(session) if session in there else -1 for session in asked.sessions], dtype=np.int64)
    return Vectors(np.eye(4, dtype=np.float32)[: len(there)], digests, index, **more)


def gives(asked: Asked) -> Vectors:
    return vectors(asked, asked.sessions)


def lacks(asked: Asked) -> Vectors:
    return vectors(asked, [], missing=asked.sessions, stalled_s=1e9)


def fails(asked: Asked, number: int = 9, broken: bool = False) -> Vectors:
    """On the first ones; gives the others."""
    bad = asked.sessions[:number]
    return vectors(asked, asked.sessions[number:], failed=bad, error="too odd", stalled_s=1e9, broken=broken)


def fails_on_one(asked: Asked) -> Vectors:
    return fails(asked, 1)


def is_broken(asked: Asked) -> Vectors:
    return fails(asked, broken=True)


def waits(asked: Asked, stalled_s: float = 1e9, broken: bool = False) -> Vectors:
    return vectors(asked, [], waiting=asked.sessions, error="not yet", stalled_s=stalled_s, broken=broken)


def works_on(asked: Asked) -> Vectors:
    return waits(asked, 0.0)


def hangs(asked: Asked) -> Vectors:
    return waits(asked, broken=True)


def is_silent(asked: Asked) -> None:
    return None


def is_away(asked: Asked) -> Exception:
    return ActorUnavailableError("the network is down", None)


def is_dead(asked: Asked) -> Exception:
    return ActorDiedError()


def has_a_defect(asked: Asked) -> Exception:
    return RayTaskError("collect", "its traceback", ZeroDivisionError())


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[OneScorer, StepVectors | str]]]:
    """What a step gets of a scorer that answers so for NAMES: vectors, or the reason why it ends."""
    begun: list[Asking] = []

    def run(*answers: Answer, on_failure: str = "unadjusted", **of_scorer: bool) -> tuple[OneScorer, StepVectors | str]:
        scorer = OneScorer(answers, on_failure, **of_scorer)
        pool: Any = scorer

        made: list[Asking] = []

        def monotonic() -> float:
            if made and threading.current_thread() is threading.main_thread():
                scorer.awaited.set()
            return scorer.now

        def fetch(sessions: Sequence[Session]) -> Mapping[Session, str]:
            return {session: TEXTS[session] for session in sessions}

        event = type("Event", (Awaited,), {"pass_time": staticmethod(scorer.pass_time)})
        monkeypatch.setattr("verl_dra.scorer.asking.time", SimpleNamespace(monotonic=monotonic))
        monkeypatch.setattr("verl_dra.scorer.asking.threading", SimpleNamespace(Event=event, Thread=threading.Thread))
        monkeypatch.setattr(ray, "wait", scorer.wait)
        monkeypatch.setattr(ray, "get", lambda reply: reply.result(0))
        made.append(Asking(pool, NAMES, fetch))
        begun.extend(made)
        try:
            return scorer, made[0].result()
        except NoScoresError as error:
            return scorer, str(error)

    yield run
    for asking in begun:
        asking.stop()


Step = Callable[..., tuple[OneScorer, Any]]


def gaps(scorer: OneScorer) -> list[float]:
    """Seconds between requests."""
    return [round(after.at - before.at, 1) for before, after in pairwise(scorer.asked)]


def lost(came: StepVectors) -> list[int]:
    return [at for at, row in enumerate(came.index) if row < 0]


def test_a_text_that_can_not_be_embedded_is_tried_three_times_in_growing_pauses(step: Step) -> None:
    scorer, came = step(lacks, fails_on_one)
    assert [(asked.sessions, asked.texts) for asked in scorer.asked] == [
        (NAMES, {}),
        (NAMES, TEXTS),
        (NAMES[:1], {NAMES[0]: "text 0"}),
        (NAMES[:1], {NAMES[0]: "text 0"}),
    ]
    assert gaps(scorer) == [0.5, 1.5, 4.5]
    assert (lost(came), came.missing_rows, came.fallbacks) == ([0], 4, 4)
    assert (scorer.forgotten, scorer.restarts) == ([NAMES[:1]], [])
    assert scorer.asked[-1].within_s == pytest.approx(DEADLINE_S - 6, abs=2)
    _, why = step(lacks, fails_on_one, on_failure="raise")
    assert why.startswith(
        "diversity scorer 0 gave no scores of 1 completions: the encoder can't embed 1 of them, such as the completion "
        "0 of uid a: too odd. dra.on_failure=unadjusted would"
    )


def test_an_encoder_that_fails_on_everything_is_started_again_until_the_deadline(step: Step) -> None:
    scorer, came = step(is_broken)
    assert gaps(scorer) == [1.5, 4.5, 16.5, 60.5, 17.0]  # at the deadline for the last time
    assert scorer.restarts == ["its encoder fails on everything"] * 6
    assert (lost(came), scorer.forgotten) == ([0, 1, 2, 3], [NAMES])
    scorer, came = step(is_broken, gives)
    assert (lost(came), len(scorer.restarts)) == ([], 1)


def two_at_a_time(monkeypatch: pytest.MonkeyPatch, texts: int = 2) -> None:
    monkeypatch.setattr("verl_dra.scorer.asking._TEXTS", (texts, texts))


def test_what_one_process_failed_on_starts_it_again_once(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    two_at_a_time(monkeypatch)
    scorer, came = step(lacks, is_broken, is_broken, gives)
    assert [asked.sessions for asked in scorer.asked] == [NAMES, *[NAMES[:2], NAMES[2:]] * 2]
    assert (lost(came), scorer.restarts) == ([], ["its encoder fails on everything"])


def test_what_failed_is_tried_again_one_at_a_time(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    two_at_a_time(monkeypatch)
    scorer, came = step(lacks, fails, fails, gives)
    assert [asked.under_way for asked in scorer.asked] == [0, 0, 1, 0, 0]
    assert lost(came) == []


def test_a_scorer_has_three_requests_under_way_at_most(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    two_at_a_time(monkeypatch, texts=1)
    scorer, came = step(lacks, is_silent)
    assert [asked.sessions for asked in scorer.asked] == [NAMES, NAMES[:1], NAMES[1:2], NAMES[2:3]]
    # What was not even sent is given up as well.
    assert (lost(came), scorer.forgotten, came.missing_rows) == ([0, 1, 2, 3], [NAMES], 3)
    assert scorer.restarts == ["it does not come back from what it does"]


def test_a_scorer_that_embeds_is_waited_for_beyond_its_deadline(step: Step) -> None:
    scorer, came = step(works_on, works_on, works_on, gives)
    assert gaps(scorer) == [100, 100, 100]
    assert [asked.within_s for asked in scorer.asked] == [100, 100, 100, 100]
    assert (lost(came), came.fallbacks) == ([], 3)


@pytest.mark.parametrize(("answer", "restarts"), [(waits, []), (hangs, ["it does not come back from what it does"])])
def test_one_that_embeds_nothing_is_given_up_at_its_deadline(step: Step, answer: Answer, restarts: list[str]) -> None:
    scorer, came = step(answer)
    assert (len(scorer.asked), lost(came), scorer.forgotten) == (1, [0, 1, 2, 3], [NAMES])
    assert scorer.restarts == restarts
    assert step(answer, on_failure="raise")[1].startswith(
        "diversity scorer 0 gave no scores of 4 completions: dra.scorer.deadline_s=100 s have passed without a text "
        "embedded: not yet. dra.on_failure"
    )


HANGS = ["it does not come back from what it does"]


@pytest.mark.parametrize(
    ("answers", "of_scorer", "restarts", "why"),
    [
        ([is_silent], {}, HANGS, "it gives no answer"),
        ([is_silent], {"loading": True}, [], "it is starting again"),
        # Not there at all, or since it was lost: Ray sees to it.
        ([is_away], {}, [], r"it was lost \(ActorUnavailableError\)"),
        ([is_away, is_silent], {}, [], r"it was lost \(ActorUnavailableError\)"),
        # It answered since then.
        ([is_away, lacks, is_silent], {}, HANGS, r"it was lost \(ActorUnavailableError\)"),
    ],
)
def test_one_that_says_nothing_is_given_up_soon_after_its_deadline(
    step: Step, answers: list[Answer], of_scorer: dict[str, bool], restarts: list[str], why: str
) -> None:
    scorer, came = step(*answers, **of_scorer)
    assert (lost(came), scorer.forgotten, scorer.restarts) == ([0, 1, 2, 3], [NAMES], restarts)
    assert 102 <= scorer.now < 103
    with pytest.raises(
        AssertionError, match=f"diversity scorer 0 gave no scores of 4 completions: {why}, and {PASSED}. dra"
    ):
        raise AssertionError(step(*answers, on_failure="raise", **of_scorer)[1])


@pytest.mark.parametrize(
    ("answer", "revives", "pause_s", "revived"),
    [(is_away, True, 1.0, 0), (is_dead, True, 0.5, 1), (is_dead, False, 1.0, 1)],
)
def test_a_lost_scorer_is_asked_again_at_once_where_there_is_another_one(
    step: Step, answer: Answer, revives: bool, pause_s: float, revived: int
) -> None:
    scorer, came = step(answer, gives, revives=revives)
    assert (gaps(scorer), scorer.revived) == ([pause_s], [scorer.handles[0]] * revived)
    assert (lost(came), came.fallbacks, came.missing_rows) == ([], 1, 0)


def test_what_the_encoder_failed_with_is_said_though_its_process_is_gone_since(step: Step) -> None:
    _, why = step(is_broken, is_away, on_failure="raise")
    assert why.startswith(
        "diversity scorer 0 gave no scores of 4 completions: it was lost (ActorUnavailableError), and"
    )
    assert (
        "embedded. Before that, the encoder can't embed 4 of them, such as the completion 0 of uid a: too odd." in why
    )


def test_a_defect_of_a_scorer_gives_up_what_it_was_asked_for_and_no_more(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_at_a_time(monkeypatch)
    scorer, came = step(lacks, has_a_defect, gives)
    assert (lost(came), scorer.forgotten, scorer.restarts) == ([0, 1], [NAMES[:2]], [])


def test_what_waits_is_asked_for_again_at_once_beside_what_is_missing(step: Step) -> None:
    def has_one_of_each(asked: Asked) -> Vectors:
        missing, waiting, failed, there = asked.sessions
        return vectors(asked, [there], missing=[missing], waiting=[waiting], failed=[failed], stalled_s=0.0)

    scorer, came = step(has_one_of_each, gives)
    assert [(asked.sessions, asked.texts) for asked in scorer.asked[1:]] == [
        (NAMES[:1], {NAMES[0]: "text 0"}),
        (NAMES[1:3], {}),
    ]
    assert (lost(came), came.missing_rows, came.fallbacks) == ([], 1, 1)


def test_the_thread_that_asks_holds_up_no_end_of_the_process(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[threading.Thread] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (made.append(thread), start(thread)))
    step(gives)
    assert [(thread.name, thread.daemon) for thread in made] == [("dra-asking", True)]
