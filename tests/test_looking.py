"""A step's groups on their way to a partition and back: whatever befalls actors, servers and answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process_partitions import partitions_of

from verl_dra.partition import (
    Grouping,
    Partition,
    PartitionConfig,
    PartitionUnavailableError,
    PromptGroup,
    UnreadableError,
)
from verl_dra.partition.answers import FoundAnswers
from verl_dra.partition.distinct import Distinct
from verl_dra.partition.looking import FetchGroups, Looking
from verl_dra.partition.step import StepGroupings, members
from verl_dra.scorer.asking import NoScoresError
from verl_dra.scorer.messages import Session

pytestmark = pytest.mark.usefixtures("one_thread")


def by_first_word(group: PromptGroup) -> Grouping:
    words = [text.split()[0] for text in group.texts]
    return Grouping.of_labels([words.index(word) for word in words], calls=2, tokens=10, truncated=1, unplaced=1)


def always(look: Callable[[PromptGroup], Grouping]) -> Callable[[PartitionConfig], Partition]:
    return lambda config: look


def group(uid: str, *texts: str, rewards: Sequence[float] | None = None) -> PromptGroup:
    return PromptGroup(uid, f"prompt of {uid}", texts, rewards or [1.0] * len(texts), FoundAnswers(texts))


def fetched(*groups: PromptGroup) -> FetchGroups:
    of = {group.uid: group for group in groups}
    return lambda uids: [of[uid] for uid in uids]


def looked(pool: Any, *groups: PromptGroup, **of: Any) -> StepGroupings:
    return Looking(pool, [group.uid for group in groups], fetched(*groups), **of).result()


SOME = [group(f"u{i}", "add it", "add all", f"draw {i}") for i in range(5)]
MATRIX = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_groups_come_whole_and_are_counted() -> None:
    with partitions_of(always(by_first_word), num_actors=2) as (pool, actors):
        came = looked(pool, *SOME)
    assert {uid: matrix.tolist() for uid, matrix in came.similarity.items()} == {g.uid: MATRIX for g in SOME}
    assert sorted(g.uid for g in actors.looked) == [g.uid for g in SOME]
    assert actors.looked[0].prompt == "prompt of u0"
    found = came.metrics()
    assert found.pop("dra/partition/seconds") > 0
    assert found == {
        "dra/partition/calls": 10,
        "dra/partition/tokens": 50,
        "dra/partition/truncated_rows": 5,
        "dra/partition/unplaced_rows": 5,
        "dra/partition/ways": 2,
        **{f"dra/partition/{name}": 0 for name in ("unreadable_groups", "unasked_groups", "retried", "fallbacks")},
    }


def test_copies_are_looked_at_once_and_have_the_same_row() -> None:
    one = group("u", "add it", "draw", "add it", "  ", "", "add all", rewards=[1, 2, 3, 4, 5, 6])
    with partitions_of(always(by_first_word)) as (pool, actors):
        came = looked(pool, one)
    assert (actors.looked[0].texts, actors.looked[0].rewards) == (["add it", "draw", "add all"], [1, 2, 6])
    assert len(actors.looked[0].answers) == 3
    smi, known = came.smi([Session("u", i) for i in range(6)], torch.ones(6, dtype=torch.bool))
    assert smi.tolist() == [2, 0, 2, 0, 0, 2]
    assert known.all()


@pytest.mark.parametrize("texts", [("same", "same"), ("", " "), ("one", "")])
def test_nobody_is_asked_about_what_needs_no_asking(texts: tuple[str, str]) -> None:
    with partitions_of(always(by_first_word)) as (pool, actors):
        came = looked(pool, group("u", *texts))
    assert not actors.looked
    assert came.similarity["u"].tolist() == ([[1, 1], [1, 1]] if texts[0] == texts[1] else [[1, 0], [0, 1]])


def test_a_lone_surrogate_is_a_question_mark() -> None:
    with partitions_of(always(by_first_word)) as (pool, actors):
        looked(pool, group("u", "a \ud800", "a ?", "b"))
    assert actors.looked[0].texts == ["a ?", "b"]


def test_with_a_gate_a_group_with_one_inside_is_not_asked_about() -> None:
    groups = [group("none", "a", "b", "c", rewards=[0, 1, 0]), group("two", "a", "a b", "c", rewards=[1, 1, 0])]
    with partitions_of(always(by_first_word)) as (pool, actors):
        came = looked(pool, *groups, correct_above=0.5)
    assert [g.uid for g in actors.looked] == ["two"]
    names = [Session(uid, i) for uid in ("none", "two") for i in range(3)]
    smi, known = came.smi(names, torch.tensor([False, True, False, True, True, False]))
    assert smi.tolist() == [0, 0, 0, 1, 1, 0]
    assert known.all()
    assert (came.knows("none"), came.ways("none"), came.metrics()["dra/partition/ways"]) == (True, None, 2)


@pytest.mark.parametrize("fault", ["restarts", "dies"])
def test_a_lost_actor_comes_back_and_its_groups_go_again(fault: str) -> None:
    with partitions_of(always(by_first_word), num_actors=2) as (pool, actors):
        before = pool.handles
        actors.faults.extend([None, fault])
        came = looked(pool, *SOME)
        assert (pool.handles != before) == (fault == "dies")
    assert {uid: matrix.tolist() for uid, matrix in came.similarity.items()} == {g.uid: MATRIX for g in SOME}
    assert came.fallbacks == 1
    assert len(actors.looked) == len(SOME) + 1


def test_a_group_that_ends_processes_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were with it go again with others; what was with two that ended goes alone."""
    never = threading.Event()

    def look(of: PromptGroup) -> Grouping:
        never.wait(0.05)  # long enough to be on its way when the next is sent
        return by_first_word(of)

    with partitions_of(always(look), concurrency=8, on_failure="unadjusted") as (pool, actors):
        poison, at_once = SOME[2].uid, threading.Lock()
        (handle,) = pool.handles
        look = handle.look.remote

        def remote(of: PromptGroup) -> Any:
            with at_once:
                if of.uid == poison:
                    actors.faults.append("restarts")
                return look(of)

        handle.look.remote = remote
        looking = Looking(pool, [g.uid for g in SOME], fetched(*SOME))
        patience = time.monotonic() + 60
        while len(looking._similarity) < len(SOME) - 1:
            assert time.monotonic() < patience, "others did not come back"
            never.wait(0.01)
        pool.config.deadline_s = 0.3
        came = looking.result()
    assert set(came.similarity) == {g.uid for g in SOME} - {poison}
    assert not came.knows(poison)


def test_a_server_that_is_away_is_waited_for() -> None:
    away = iter([True, True, False])

    def look(of: PromptGroup) -> Grouping:
        if of.uid == "u0" and next(away):
            raise PartitionUnavailableError("connection refused")
        return by_first_word(of)

    with partitions_of(always(look)) as (pool, _):
        came = looked(pool, *SOME)
    assert {uid: matrix.tolist() for uid, matrix in came.similarity.items()} == {g.uid: MATRIX for g in SOME}
    assert came.fallbacks == 2


@pytest.mark.parametrize("on_failure", ["raise", "unadjusted"])
def test_a_server_that_stays_away_goes_by_on_failure(on_failure: str) -> None:
    def look(of: PromptGroup) -> Grouping:
        if of.uid == "u0":
            raise PartitionUnavailableError("connection refused")
        return by_first_word(of)

    with partitions_of(always(look), on_failure, deadline_s=0.2) as (pool, _):
        if on_failure == "raise":
            says = r"nothing of 1 group: the server is away: connection refused, and dra\.partition\.deadline_s=0\.2 s"
            with pytest.raises(NoScoresError, match=says):
                looked(pool, *SOME)
        else:
            assert set(looked(pool, *SOME).similarity) == {"u1", "u2", "u3", "u4"}


def test_nothing_is_given_up_while_nobody_waits() -> None:
    away, tries = threading.Event(), threading.Semaphore(0)

    def look(of: PromptGroup) -> Grouping:
        there = away.is_set()
        tries.release()
        if not there:
            raise PartitionUnavailableError("not yet")
        return by_first_word(of)

    with partitions_of(always(look), deadline_s=0.01) as (pool, _):
        looking = Looking(pool, ["u0"], fetched(SOME[0]))
        for _ in range(4):  # the pauses between are longer than the deadline
            assert tries.acquire(timeout=30)
        pool.config.deadline_s = 60
        away.set()
        assert tries.acquire(timeout=30)
        assert looking.result().similarity["u0"].tolist() == MATRIX


@pytest.mark.parametrize("on_failure", ["raise", "unadjusted"])
def test_a_group_that_the_class_fails_on_is_tried_three_times(on_failure: str) -> None:
    tried: list[str] = []

    def look(of: PromptGroup) -> Grouping:
        tried.append(of.uid)
        if of.uid == "u1":
            raise KeyError("a defect")
        return by_first_word(of)

    with partitions_of(always(look), on_failure) as (pool, _):
        if on_failure == "raise":
            with pytest.raises(
                NoScoresError, match=r"failed on the group of uid u1: KeyError: 'a defect'.*unadjusted would"
            ):
                looked(pool, *SOME)
        else:
            assert set(looked(pool, *SOME).similarity) == {"u0", "u2", "u3", "u4"}
    assert tried.count("u1") == 3


@pytest.mark.parametrize(
    ("similarity", "says"),
    [
        (np.eye(2), r"shape \[2, 2\] for 3 completions"),
        (np.full((3, 3), np.nan), "not from 0 to 1"),
        (2 * np.eye(3), "not from 0 to 1"),
        (np.triu(np.ones((3, 3))), "not symmetric"),
        (np.zeros((3, 3)), "no ones on its diagonal"),
    ],
)
def test_a_matrix_that_is_none_is_a_failure(similarity: np.ndarray, says: str) -> None:
    with (
        partitions_of(always(lambda of: Grouping(similarity))) as (pool, _),
        pytest.raises(NoScoresError, match=says),
    ):
        looked(pool, SOME[0])


def test_a_matrix_of_rounded_numbers_is_mended() -> None:
    off = np.array([[1.0001, 0.5, 0], [0.5002, 0.9999, 0], [-1e-4, 0, 1]])
    with partitions_of(always(lambda of: Grouping(off))) as (pool, _):
        found = looked(pool, SOME[0]).similarity["u0"]
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(found.diagonal(), 1)
    assert found.min() == 0
    np.testing.assert_allclose(found, off, atol=2e-4)


@pytest.mark.parametrize("on_failure", ["raise", "unadjusted"])
def test_an_unreadable_group_ends_no_run_whatever_on_failure_says(on_failure: str) -> None:
    def look(of: PromptGroup) -> Grouping:
        if of.uid == "u3":
            raise UnreadableError("half a JSON", calls=3, tokens=30, retried=2)
        return by_first_word(of)

    with partitions_of(always(look), on_failure) as (pool, _):
        came = looked(pool, *SOME)
    assert set(came.similarity) == {"u0", "u1", "u2", "u4"}
    assert (came.unreadable, came.calls, came.tokens, came.retried) == (1, 4 * 2 + 3, 4 * 10 + 30, 2)


class Dear:
    """Says that it takes three requests at most, and takes two."""

    def most_calls(self, completions: int) -> int:
        assert completions == 3
        return 3

    def __call__(self, of: PromptGroup) -> Grouping:
        return by_first_word(of)


@pytest.mark.parametrize(("left", "asked"), [(0, 0), (2, 0), (3, 1), (4, 1), (5, 2), (8, 3), (9, 4), (11, 5), (100, 5)])
def test_what_would_exceed_the_budget_is_not_asked(left: int, asked: int) -> None:
    """Each group may take three requests and takes two."""
    with partitions_of(lambda config: Dear(), "unadjusted", concurrency=3, max_calls=100) as (pool, actors):
        came = looked(pool, *SOME, calls_left=left)
    assert [g.uid for g in actors.looked] == [f"u{i}" for i in range(asked)]
    assert (came.unasked, came.calls, came.spent) == (5 - asked, 2 * asked, 2 * asked)
    assert came.knows("u4") == (asked == 5)


def test_a_budget_that_does_not_do_names_its_setting() -> None:
    says = r"said nothing of 4 groups: dra\.partition\.max_calls=4 does not do for them.*on_failure=unadjusted would"
    with partitions_of(lambda config: Dear(), max_calls=4) as (pool, _), pytest.raises(NoScoresError, match=says):
        looked(pool, *SOME, calls_left=4)


def test_a_class_that_does_not_say_counts_as_one_request_until_it_has_said() -> None:
    with partitions_of(always(by_first_word), "unadjusted", max_calls=5) as (pool, _):
        came = looked(pool, *SOME, calls_left=5)
    assert (came.unasked, came.calls) == (2, 6)


def test_who_does_not_come_back_is_started_again() -> None:
    with partitions_of(always(by_first_word), "unadjusted", deadline_s=0.2) as (pool, actors):
        actors.faults.extend([None, "says nothing"])
        came = looked(pool, *SOME)
        assert set(came.similarity) == {"u0"}
        assert actors.ended == [True]
        assert set(looked(pool, *SOME).similarity) == {g.uid for g in SOME}


def test_what_fetching_raises_is_heard_and_a_stop_ends_it() -> None:
    def fetch(uids: Sequence[str]) -> list[PromptGroup]:
        raise OSError("the queue is gone")

    with partitions_of(always(by_first_word)) as (pool, actors):
        with pytest.raises(OSError, match="the queue is gone"):
            Looking(pool, ["u"], fetch).result()
        actors.faults.append("says nothing")
        looking = Looking(pool, ["u0"], fetched(SOME[0]))
        looking.stop()
        with pytest.raises(BaseException, match="not wanted any more"):
            looking.result()


def test_a_pool_says_what_it_is() -> None:
    with partitions_of(always(by_first_word), num_actors=2, concurrency=3) as (pool, _):
        assert "2 x (CPU 1, GPU 0), 3 groups at a time each" in pool.describe()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_smi_of_matrices_is_the_loop(sizes: list[int], seed: int, share: float) -> None:
    """A loop in float64 over pairs, in any order of rows, with some outside the gate and some groups without."""
    rng = np.random.default_rng(seed)
    names = [Session(f"u{g}", i) for g, size in enumerate(sizes) for i in range(size)]
    names = [names[at] for at in rng.permutation(len(names))]
    inside = rng.random(len(names)) < share
    matrices = {}
    for g, size in enumerate(sizes):
        half = rng.random((size, size))
        matrix = (half + half.T) / 2
        np.fill_diagonal(matrix, 1)
        matrices[f"u{g}"] = matrix.astype(np.float32)
    lost = {uid for uid in matrices if rng.random() < 0.3}
    came = StepGroupings({uid: m for uid, m in matrices.items() if uid not in lost})
    smi, known = came.smi(names, torch.from_numpy(inside))
    for at, name in enumerate(names):
        expected = 0.0
        for other, of in enumerate(names):
            if other != at and of.uid == name.uid and inside[other] and inside[at] and name.uid not in lost:
                expected += float(matrices[name.uid][name.session_id, of.session_id])
        assert smi[at].item() == pytest.approx(expected, abs=1e-5)
        assert known[at].item() == (name.uid not in lost)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.sampled_from(["a", "b", "c d", "", " "]), min_size=1, max_size=8))
def test_labels_without_copies_are_the_clusters_of_the_whole_group(texts: list[str]) -> None:
    of = Distinct.of(group("u", *texts))
    expanded = of.expanded(np.eye(len(of.group.texts), dtype=np.float32))
    # Blank ones have zero vectors.
    places = {text: at for at, text in enumerate(dict.fromkeys(t for t in texts if t.strip()))}
    vectors = np.zeros((len(texts), 5))
    for row, text in zip(vectors, texts, strict=True):
        if text in places:
            row[places[text]] = 1
    np.testing.assert_allclose(expanded.sum(1) - 1, oracles.cluster_smi(vectors, np.zeros(len(texts), dtype=int)))


def test_ways_are_what_likeness_above_a_half_links() -> None:
    chain = np.array([[1, 0.6, 0, 0], [0.6, 1, 0, 0.51], [0, 0, 1, 0.5], [0, 0.51, 0.5, 1]], dtype=np.float32)
    assert StepGroupings({"u": chain}).ways("u") == [0, 0, 1, 0]
    assert StepGroupings({}).ways("u") is None


def test_members_are_in_the_order_of_their_sessions() -> None:
    assert members([Session("b", 2), Session("a", 0), Session("b", 0)]) == {"b": [2, 0], "a": [1]}
