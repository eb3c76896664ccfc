"""The reward workers' client: batches while one is under way, what is held back, and what is counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from verl_dra.scorer import directory
from verl_dra.scorer.client import ScorerClient
from verl_dra.scorer.messages import Session


class FakeActor:
    """In place of a scorer's handle: keeps what it is sent, and answers when it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int, int]] = []
        self.skipped: list[int] = []
        self.answers: list[asyncio.Future[None]] = []
        self.submit = SimpleNamespace(remote=self._submit)

    def _submit(
        self, completions: list[tuple[Session, str]], refused: int, unsent: int, skipped: int
    ) -> asyncio.Future[None]:
        self.skipped.append(skipped)
        self.calls.append(([text for _, text in completions], refused, unsent))
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]


class Known:
    """The number of scorers, or why it can't be looked up; given while `gate` is open."""

    def __init__(self) -> None:
        self.number: int | Exception = 1
        self.gate = threading.Event()
        self.gate.set()
        self.asked = 0

    def look_up(self, name: str) -> int:
        self.asked += 1
        assert self.gate.wait(60)
        if isinstance(self.number, Exception):
            raise self.number
        return self.number


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Known:
    """What the look-up of the scorers' number finds."""
    known = Known()
    monkeypatch.setattr("verl_dra.scorer.client.look_up", known.look_up)
    return known


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch, known: Known) -> FakeActor:
    actor = FakeActor()
    monkeypatch.setattr("ray.get_actor", lambda name: actor)
    return actor


def submit(client: ScorerClient, *texts: str) -> None:
    for i, text in enumerate(texts):
        client.submit(Session("a", i), text)


async def turn() -> None:
    """Let every task that can go on do so; one that looks up the scorers' number comes back from its thread."""
    while any(task.get_coro().__qualname__ == "ScorerClient._find" for task in asyncio.all_tasks()):
        await asyncio.sleep(0.001)
    for _ in range(5):
        await asyncio.sleep(0)


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(body())


def test_what_comes_while_a_batch_is_under_way_goes_with_the_next(actor: FakeActor) -> None:
    async def body() -> None:
        client = ScorerClient("scorer")
        submit(client, "one")
        await turn()
        submit(client, "two", "three")
        await turn()
        assert [texts for texts, *_ in actor.calls] == [["one"]]
        actor.answers[0].set_result(None)
        await turn()
        assert [texts for texts, *_ in actor.calls] == [["one"], ["two", "three"]]
        actor.answers[1].set_result(None)
        await turn()
        submit(client, "four")
        await turn()
        assert actor.calls[2] == (["four"], 0, 0)

    run(body)


@pytest.mark.parametrize(("characters", "first"), [(100_000, 3), (2**17, 2), (2**18, 1)])
def test_a_batch_is_no_longer_than_a_message_may_be(actor: FakeActor, characters: int, first: int) -> None:
    async def body() -> None:
        client = ScorerClient("scorer")
        submit(client, *["x" * characters] * 5)
        await turn()
        assert len(actor.calls[0][0]) == first

    run(body)


@pytest.mark.parametrize("limits", [{"max_rows": 2}, {"max_characters": 6}], ids=["rows", "characters"])
def test_completions_beyond_the_limit_are_refused_and_counted_with_the_next_batch(
    actor: FakeActor, limits: dict[str, int]
) -> None:
    async def body() -> None:
        client = ScorerClient("scorer", **limits)
        submit(client, "one")
        await turn()
        submit(client, "two", "six", "refused", "refused")
        await turn()
        actor.answers[0].set_result(None)
        await turn()
        assert actor.calls[1] == (["two", "six"], 2, 0)
        actor.answers[1].set_result(None)
        await turn()
        submit(client, "ten")
        await turn()
        assert actor.calls[2] == (["ten"], 0, 0)

    run(body)


@pytest.mark.parametrize(
    ("waiting", "refused"),
    [
        (["x"] * 4095, 0),
        (["x"] * 4096, 1),
        (["x" * (2**24 - 1)], 0),
        (["x" * 2**24], 1),
    ],
    ids=["fewer rows", "most rows", "fewer characters", "most characters"],
)
def test_by_itself_a_line_takes_4096_completions_and_16_mebibytes(
    actor: FakeActor, waiting: list[str], refused: int
) -> None:
    async def body() -> None:
        client = ScorerClient("scorer")
        submit(client, "under way")
        await turn()
        submit(client, *waiting, "the last")
        actor.answers[0].set_result(None)
        await turn()
        assert actor.calls[1][1] == refused
        actor.answers[1].set_result(None)
        await turn()
        assert (actor.calls[-1][0][-1] == "the last") == (not refused)

    run(body)


@pytest.mark.parametrize("error", [RayActorError(), ConnectionError()])
def test_what_a_lost_scorer_did_not_get_is_counted_by_the_next(
    actor: FakeActor, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def body() -> None:
        client = ScorerClient("scorer")
        submit(client, "one", "two")
        await turn()
        actor.answers[0].set_exception(error)
        await turn()
        assert f"2 completions did not reach diversity scorer scorer_0 ({type(error).__name__})" in caplog.text
        submit(client, "three")
        await turn()
        assert actor.calls[1] == (["three"], 0, 2)

    run(body)


def test_what_is_skipped_is_counted_at_once_and_not_sent(actor: FakeActor) -> None:
    async def body() -> None:
        client = ScorerClient("scorer")
        client.skip(Session("a", 0))
        client.skip(Session("a", 1))
        await turn()
        client.skip(Session("a", 2))
        submit(client, "one")
        await turn()
        actor.answers[0].set_result(None)
        await turn()
        actor.answers[1].set_result(None)
        await turn()
        assert actor.calls == [([], 0, 0), (["one"], 0, 0)]
        assert actor.skipped == [2, 1]

    run(body)


def test_what_comes_before_the_number_of_scorers_is_known_goes_to_each_afterwards(
    monkeypatch: pytest.MonkeyPatch, known: Known
) -> None:
    actors = {"scorer_0": FakeActor(), "scorer_1": FakeActor()}
    monkeypatch.setattr("ray.get_actor", actors.__getitem__)
    known.number = 2

    async def body() -> None:
        client = ScorerClient("scorer", max_rows=4)
        known.gate.clear()
        client.skip(Session("a", 9))
        submit(client, "one", "two", "three", "four", "refused")
        await asyncio.sleep(0)
        known.gate.set()
        await turn()
        first, second = actors.values()
        assert sorted(first.calls[0][0] + second.calls[0][0]) == ["four", "one", "three", "two"]
        assert len(first.calls[0][0]) == len(second.calls[0][0]) == 2
        assert first.calls[0][1:] == (1, 0)
        assert second.calls[0][1:] == (0, 0)
        assert first.skipped + second.skipped == [1, 0]
        assert known.asked == 1

    run(body)


@pytest.mark.parametrize("limits", [{"max_rows": 1}, {"max_characters": 1}], ids=["rows", "characters"])
def test_what_could_not_be_sent_takes_no_room(actor: FakeActor, known: Known, limits: dict[str, int]) -> None:
    async def body() -> None:
        client = ScorerClient("scorer", **limits)
        known.number = LookupError("no diversity scorers of the name scorer are known")
        for _ in range(2):
            submit(client, "x")
            await turn()
        known.number = 1
        submit(client, "y")
        await turn()
        assert actor.calls == [(["y"], 0, 2)]
        # What is under way takes none either; nor what was lost on it.
        submit(client, "z")
        actor.answers[0].set_exception(RayActorError())
        await turn()
        submit(client, "w")
        await turn()
        assert actor.calls[1:] == [(["z"], 0, 3)]
        actor.answers[1].set_result(None)
        await turn()
        assert actor.calls[2:] == [(["w"], 0, 0)]

    run(body)


def test_what_comes_while_no_scorers_are_known_is_counted_by_the_first(
    actor: FakeActor, known: Known, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        client = ScorerClient("scorer")
        known.number = LookupError("no diversity scorers of the name scorer are known")
        client.skip(Session("a", 9))
        submit(client, "one", "two")
        await turn()
        assert not actor.calls
        assert "2 completions did not reach a diversity scorer (LookupError: no diversity scorers of" in caplog.text
        known.number = 1
        submit(client, "three")
        await turn()
        assert actor.calls == [(["three"], 0, 2)]
        assert actor.skipped == [1]
        assert known.asked == 2

    run(body)


def test_a_busy_scorer_holds_back_its_own_groups_alone(monkeypatch: pytest.MonkeyPatch, known: Known) -> None:
    known.number = 2
    actors = {"scorer_0": FakeActor(), "scorer_1": FakeActor()}
    monkeypatch.setattr("ray.get_actor", actors.__getitem__)

    async def body() -> None:
        client = ScorerClient("scorer")
        for _ in range(2):
            for uid in "abcdefgh":
                client.submit(Session(uid, 0), uid)
            await turn()
        actors["scorer_1"].answers[0].set_result(None)
        await turn()
        assert [len(actor.calls) for actor in actors.values()] == [1, 2]
        assert len(actors["scorer_0"].calls[0][0]) + len(actors["scorer_1"].calls[0][0]) == 8

    run(body)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[bytes, str], bytes]:
    """In place of Ray's store of keys, by its namespace and the key."""
    kept: dict[tuple[bytes, str], bytes] = {}
    for name, stand_in in (
        ("put", lambda key, value, namespace: kept.__setitem__((namespace, key), value.encode())),
        ("get", lambda key, namespace: kept.get((namespace, key))),
        ("del", lambda key, namespace: kept.pop((namespace, key), None)),
    ):
        monkeypatch.setattr(f"verl_dra.scorer.directory._internal_kv_{name}", stand_in)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(namespace="this run"))
    return kept


def test_a_runs_scorers_are_known_by_their_number_until_it_ends(
    store: dict[tuple[bytes, str], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.announce("scorer", 12)
    directory.announce("other", 2)
    assert (directory.look_up("scorer"), directory.look_up("other")) == (12, 2)
    assert {namespace for namespace, _ in store} == {b"verl_dra"}
    directory.withdraw("scorer")
    directory.withdraw("never announced")
    with pytest.raises(LookupError, match="no diversity scorers of the name scorer are known"):
        directory.look_up("scorer")
    assert directory.look_up("other") == 2
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(namespace="another run"))
    with pytest.raises(LookupError):
        directory.look_up("other")
