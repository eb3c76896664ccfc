"""The scorer without Ray: streaming, waiting, what is missing, evicted or replaced, and encoders that fail."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import oracles
import pytest
import torch
from fake_encoders import POISON, GatedEncoder, NoisyEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_dra.algorithm import SMI_FUNCTIONS
from verl_dra.embedding import Encoded, EncoderUnavailableError
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.scorer import heap
from verl_dra.scorer.messages import Events, Session, Vectors
from verl_dra.scorer.scorer import HUNG_S, Scorer
from verl_dra.scorer.scores import StepScores, put_together, step_scores

Texts = dict[Session, str]
LONG = 60.0


@pytest.fixture
def gated() -> Iterator[GatedEncoder]:
    encoder = GatedEncoder()
    yield encoder
    encoder.gate.set()


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def group(uid: str, *texts: str) -> Texts:
    return {Session(uid, i): text for i, text in enumerate(texts)}


TEXTS = group("a", "add both sides", "add both sides", "draw a graph") | group("b", "guess", "check the units")


def collected(scorer: Scorer, texts: Texts) -> Vectors:
    """All of them."""
    answer = scorer.collect(list(texts), {}, LONG)
    assert (answer.index >= 0).all(), answer
    return answer


def embed(scorer: Scorer, *texts: str) -> None:
    """Wait until the scorer has embedded texts that it was given; it forgets nothing of them."""
    same = group("same", *texts)
    assert (scorer.collect(list(same), same, LONG).index >= 0).all()


def scores_of(texts: Texts, *answers: Vectors, smi: str = "graph_cut") -> StepScores:
    """The scores of `texts` by answers, each to a request for what those before it left."""
    rows, parts = np.arange(len(texts)), []
    for answer in answers:
        parts.append((0, rows, answer))
        rows = rows[answer.index < 0]
    ids = np.unique([session.uid for session in texts], return_inverse=True)[1]
    return step_scores(*put_together(len(texts), parts), torch.from_numpy(ids), SMI_FUNCTIONS[smi])


def assert_right(texts: Texts, *answers: Vectors, smi: str = "graph_cut") -> None:
    scores = scores_of(texts, *answers, smi=smi)
    assert scores.scored.all()
    vectors = NgramEncoder().encode(list(texts.values())).vectors.numpy()
    ids = np.unique([session.uid for session in texts], return_inverse=True)[1]
    oracle = {"graph_cut": oracles.graph_cut_smi, "log_det": oracles.log_det_smi}[smi]
    np.testing.assert_allclose(scores.smi, oracle(vectors, ids), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.effective_paths, oracles.effective_paths(vectors, ids), rtol=1e-6)


def until_it_waits(condition: threading.Condition, call: Future[Any]) -> None:
    """Return when a thread waits there, or `call` has ended without."""
    waits = False
    while not (waits or call.done()):
        with condition:
            waits = bool(condition._waiters)  # type: ignore[attr-defined]


def failure(answer: Vectors) -> tuple[list[Session], list[Session], str, bool]:
    """Who failed, who waits still, why, and whether the encoder is broken; nobody is missing."""
    assert not answer.missing
    return answer.failed, answer.waiting, answer.error, answer.broken


@pytest.mark.parametrize("smi", ["graph_cut", "log_det"])
def test_scores_are_the_brute_force_values_in_the_order_asked(smi: str) -> None:
    scorer = Scorer(NgramEncoder(), max_rows=100)
    scorer.submit(TEXTS.items())
    asked = {session: TEXTS[session] for session in sorted(TEXTS, key=lambda s: (s.session_id, s.uid))}
    answer = collected(scorer, asked)
    assert_right(asked, answer, smi=smi)
    scores = scores_of(asked, answer)
    assert scores.duplicate.tolist() == [s in (("a", 0), ("a", 1)) for s in asked]
    assert scores.smi.dtype == torch.float32


def test_an_answer_has_one_vector_for_each_different_text() -> None:
    scorer = Scorer(NgramEncoder(), max_rows=100)
    scorer.submit(TEXTS.items())
    answer = collected(scorer, TEXTS)
    assert answer.vectors.shape == (4, 512)
    assert answer.vectors.dtype == np.float32
    assert len(set(answer.digests)) == 4
    expected = NgramEncoder().encode(list(TEXTS.values())).vectors
    np.testing.assert_allclose(answer.vectors[answer.index], expected, atol=1e-7)


@settings(max_examples=20)
@given(
    names=st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=15),
    random=st.randoms(use_true_random=False),
)
def test_neither_arrival_order_nor_batches_change_the_scores(names, random) -> None:
    texts = {Session(*name): random.choice(["x = 1", "x = 2", "no idea", "", "x = 1, so y = 2"]) for name in names}
    scorer = Scorer(NgramEncoder(), max_rows=100)
    arriving = list(texts.items())
    random.shuffle(arriving)
    cut = random.randrange(len(arriving) + 1)
    scorer.submit(arriving[:cut])
    scorer.submit(arriving[cut:])
    assert_right(texts, collected(scorer, texts))


def test_submitting_never_waits_for_the_encoder(gated: GatedEncoder, thread: ThreadPoolExecutor) -> None:
    scorer = Scorer(gated, max_rows=100)
    scorer.submit(list(TEXTS.items())[:1])
    assert gated.started.wait(60)
    # The encoder stands still until the gate is open, for longer than this waits.
    thread.submit(scorer.submit, list(TEXTS.items())[1:]).result(30)
    assert not gated.gate.is_set()
    gated.gate.set()
    assert_right(TEXTS, collected(scorer, TEXTS))


def test_collecting_waits_for_texts_that_are_being_embedded(gated: GatedEncoder, thread: ThreadPoolExecutor) -> None:
    scorer = Scorer(gated, max_rows=100)
    scorer.submit(group("a", "add both sides").items())
    assert gated.started.wait(60)
    scorer.submit(TEXTS.items())
    answer = thread.submit(collected, scorer, TEXTS)
    assert not answer.done()
    gated.gate.set()
    assert_right(TEXTS, answer.result(60))


def test_a_group_waits_for_no_other_group(gated: GatedEncoder, thread: ThreadPoolExecutor) -> None:
    scorer = Scorer(gated, max_rows=100)
    first, second = ({s: t for s, t in TEXTS.items() if s.uid == uid} for uid in "ab")
    gated.gate.set()
    scorer.submit(first.items())
    embed(scorer, *first.values())
    gated.gate.clear()
    gated.started.clear()
    scorer.submit(second.items())
    assert gated.started.wait(60)
    assert_right(first, thread.submit(collected, scorer, first).result(60))
    gated.gate.set()
    assert_right(second, collected(scorer, second))


def test_what_is_missing_is_named_and_then_sent_as_text() -> None:
    scorer = Scorer(NgramEncoder(), max_rows=100)
    arrived = {s: t for s, t in TEXTS.items() if s.session_id == 0}
    scorer.submit(arrived.items())
    embed(scorer, *arrived.values())
    first = scorer.collect(list(TEXTS), {}, LONG)
    assert first.missing == [s for s in TEXTS if s.session_id > 0]
    assert [s for s, at in zip(TEXTS, first.index, strict=True) if at >= 0] == list(arrived)
    second = scorer.collect(first.missing, {s: TEXTS[s] for s in first.missing}, LONG)
    assert_right(TEXTS, first, second)
    assert first.tokens + second.tokens == sum(map(len, TEXTS.values()))


def test_what_is_missing_is_named_while_the_rest_is_still_being_embedded(gated: GatedEncoder) -> None:
    scorer = Scorer(gated, max_rows=100)
    arrived = {s: t for s, t in TEXTS.items() if s.session_id == 0}
    scorer.submit(arrived.items())
    assert gated.started.wait(60)
    answer = scorer.collect(list(TEXTS), {}, LONG)
    assert answer.missing == [s for s in TEXTS if s.session_id > 0]
    assert answer.waiting == list(arrived)
    assert not gated.gate.is_set()


def test_what_is_there_is_given_when_time_is_up(gated: GatedEncoder) -> None:
    scorer = Scorer(gated, max_rows=100)
    first, second = ({s: t for s, t in TEXTS.items() if s.uid == uid} for uid in "ab")
    gated.gate.set()
    scorer.submit(first.items())
    embed(scorer, *first.values())
    gated.gate.clear()
    scorer.submit(second.items())
    answer = scorer.collect(list(TEXTS), {}, 0.05)
    assert (answer.missing, answer.waiting) == ([], list(second))
    assert scores_of(TEXTS, answer).scored.tolist() == [s in first for s in TEXTS]
    gated.gate.set()
    assert_right(TEXTS, answer, collected(scorer, second))


def test_a_text_that_arrives_after_it_was_missed_is_not_embedded_again() -> None:
    encoder = GatedEncoder()
    encoder.gate.set()
    scorer = Scorer(encoder, max_rows=100)
    assert scorer.collect(list(TEXTS), {}, LONG).missing == list(TEXTS)
    scorer.submit(TEXTS.items())
    assert_right(TEXTS, scorer.collect(list(TEXTS), TEXTS, LONG))
    assert sum(map(len, encoder.batches)) == len(set(TEXTS.values()))


def test_vectors_are_taken_once() -> None:
    scorer = Scorer(NgramEncoder(), max_rows=100)
    scorer.submit(TEXTS.items())
    first = {s: t for s, t in TEXTS.items() if s.uid == "a"}
    assert_right(first, collected(scorer, first))
    second = {s: t for s, t in TEXTS.items() if s.uid == "b"}
    embed(scorer, *second.values())
    answer = scorer.collect(list(TEXTS), {}, LONG)
    assert answer.missing == list(first)
    assert_right(second, replace(answer, index=answer.index[len(first) :]))


def test_a_session_that_comes_again_replaces_the_earlier_one(gated: GatedEncoder) -> None:
    scorer = Scorer(gated, max_rows=100)
    old, new = group("a", "the old one", "a sibling"), group("a", "another text", "a sibling")
    gated.gate.set()
    scorer.submit(old.items())
    scorer.submit(new.items())
    assert_right(new, collected(scorer, new))


def test_a_session_that_comes_again_while_it_is_embedded_replaces_it(gated: GatedEncoder) -> None:
    scorer = Scorer(gated, max_rows=100)
    old, new = group("a", "the old one", "a sibling"), group("a", "another text", "a sibling")
    scorer.submit(old.items())
    assert gated.started.wait(60)
    scorer.submit(list(new.items())[:1])
    gated.gate.set()
    assert_right(new, collected(scorer, new))
    assert sum(batch.count("another text") for batch in gated.batches) == 1


def test_a_replaced_text_is_never_scored_even_where_the_new_one_fails(gated: GatedEncoder) -> None:
    scorer = Scorer(gated, max_rows=100)
    old = group("a", "the old one", "a sibling")
    scorer.submit(old.items())
    assert gated.started.wait(60)
    scorer.submit([(Session("a", 0), POISON)])
    gated.gate.set()
    assert scorer.collect(list(old), {}, LONG).missing == [Session("a", 0)]


def test_the_oldest_are_evicted_and_counted() -> None:
    scorer = Scorer(NgramEncoder(), max_rows=3)
    scorer.submit(TEXTS.items())
    first = scorer.collect(list(TEXTS), {}, LONG)
    assert first.missing == list(TEXTS)[:2]
    rest = [s for s, at in zip(TEXTS, first.index, strict=True) if at < 0]
    assert_right(TEXTS, first, scorer.collect(rest, TEXTS, LONG))
    assert first.events.evicted == 2


def test_an_evicted_text_is_not_embedded(gated: GatedEncoder) -> None:
    scorer = Scorer(gated, max_rows=3)
    scorer.submit([(Session("first", 0), "held by the gate")])
    assert gated.started.wait(60)
    scorer.submit(group("a", "evicted", "kept", "kept too", "kept as well").items())
    gated.gate.set()
    embed(scorer, "kept as well")
    assert "evicted" not in gated.batches[1]
    assert "kept" in gated.batches[1]


@pytest.mark.parametrize(
    "limits", [{"max_queue_rows": 2}, {"max_queue_bytes": len("one") + len("two")}], ids=["rows", "bytes"]
)
def test_who_submits_to_a_full_queue_is_answered_when_there_is_room(
    gated: GatedEncoder, thread: ThreadPoolExecutor, limits: dict[str, int]
) -> None:
    scorer = Scorer(gated, max_rows=100, **limits)
    scorer.submit([(Session("first", 0), "held by the gate")])
    assert gated.started.wait(60)
    texts = group("a", "one", "two", "three")
    full = dict(list(texts.items())[:2])
    scorer.submit(full.items())
    answer = thread.submit(scorer.submit, list(texts.items())[2:])
    until_it_waits(scorer._room, answer)
    assert not answer.done()
    # What a step waits for gets in all the same.
    waiting = thread.submit(scorer.collect, list(texts), texts, LONG)
    until_it_waits(scorer._results, waiting)
    assert not answer.done()
    gated.gate.set()
    assert_right(texts, waiting.result(60))
    answer.result(60)


@pytest.mark.parametrize("given_up", ["its own", "one in the queue"])
def test_who_waits_for_room_hears_of_what_is_given_up(
    gated: GatedEncoder, thread: ThreadPoolExecutor, given_up: str
) -> None:
    scorer = Scorer(gated, max_rows=100, max_queue_rows=1)
    scorer.submit([(Session("first", 0), "held by the gate")])
    assert gated.started.wait(60)
    texts = group("a", "in the queue", "its own")
    scorer.submit(list(texts.items())[:1])
    answer = thread.submit(scorer.submit, list(texts.items())[1:])
    until_it_waits(scorer._room, answer)
    scorer.forget([Session("a", int(given_up == "its own"))])
    answer.result(30)  # while the encoder stands still
    assert not gated.gate.is_set()


def test_all_who_wait_for_room_hear_that_the_encoder_took_some(gated: GatedEncoder, thread: ThreadPoolExecutor) -> None:
    scorer = Scorer(gated, max_rows=100, max_queue_rows=2)
    scorer.submit([(Session("first", 0), "held by the gate")])
    assert gated.started.wait(60)
    scorer.submit(group("a", "one", "two").items())
    answers = [thread.submit(scorer.submit, group(uid, uid).items()) for uid in "bc"]
    while len(scorer._room._waiters) < 2:  # type: ignore[attr-defined]
        pass
    gated.gate.set()
    for answer in answers:
        answer.result(30)


def test_who_waits_for_vectors_hears_of_what_is_given_up(gated: GatedEncoder, thread: ThreadPoolExecutor) -> None:
    scorer = Scorer(gated, max_rows=100)
    scorer.submit(TEXTS.items())
    assert gated.started.wait(60)
    answer = thread.submit(scorer.collect, list(TEXTS), {}, LONG)
    until_it_waits(scorer._results, answer)
    scorer.forget(list(TEXTS))
    assert answer.result(30).missing == list(TEXTS)
    assert not gated.gate.is_set()


def test_all_who_wait_for_vectors_get_theirs(gated: GatedEncoder, thread: ThreadPoolExecutor) -> None:
    scorer = Scorer(gated, max_rows=100)
    scorer.submit(TEXTS.items())
    assert gated.started.wait(60)
    parts = [{s: t for s, t in TEXTS.items() if s.uid == uid} for uid in "ab"]
    answers = [thread.submit(scorer.collect, list(part), {}, LONG) for part in parts]
    while len(scorer._results._waiters) < 2:  # type: ignore[attr-defined]
        pass
    gated.gate.set()
    for part, answer in zip(parts, answers, strict=True):
        assert_right(part, answer.result(30))


def test_what_the_sender_kept_back_or_lost_is_counted_once() -> None:
    scorer = Scorer(NgramEncoder(), max_rows=100)
    scorer.submit(TEXTS.items(), refused=3, unsent=2, skipped=4)
    first = collected(scorer, TEXTS).events
    assert (first.submitted, first.refused, first.unsent, first.skipped) == (5, 3, 2, 4)
    scorer.submit(TEXTS.items())
    answer = scorer.collect(list(TEXTS), {}, LONG)
    assert answer.missing == list(TEXTS)
    assert (answer.events.submitted, answer.events.refused, answer.events.late) == (5, 0, 5)
    again = scorer.collect(list(TEXTS), {}, LONG).events
    assert (again.submitted, again.refused, again.late) == (0, 0, 0)


def test_groups_larger_than_what_is_kept_are_scored_all_the_same() -> None:
    scorer = Scorer(NgramEncoder(), max_rows=1)
    scorer.submit(TEXTS.items())
    first = scorer.collect(list(TEXTS), {}, LONG)
    assert len(first.missing) >= 4
    rest = [s for s, at in zip(TEXTS, first.index, strict=True) if at < 0]
    assert_right(TEXTS, first, scorer.collect(rest, TEXTS, LONG))


def test_a_text_that_cannot_be_embedded_fails_alone(gated: GatedEncoder, caplog: pytest.LogCaptureFixture) -> None:
    gated.gate.set()
    scorer = Scorer(gated, max_rows=100)
    bad = TEXTS | group("c", POISON, "fine")
    poisoned = Session("c", 0)
    scorer.submit(bad.items())
    first = scorer.collect(list(bad), {}, LONG)
    assert first.missing == [poisoned]
    assert (first.index >= 0).sum() == len(bad) - 1
    assert "can't be embedded" in caplog.text
    second = scorer.collect([poisoned], {poisoned: POISON}, LONG)
    assert failure(second) == ([poisoned], [], f"RuntimeError: {POISON} can't be embedded", False)
    scorer.submit([(poisoned, "better")])
    third = collected(scorer, {poisoned: "better"})
    assert_right(bad | {poisoned: "better"}, first, second, third)
    assert sum(answer.events.failed for answer in (first, second, third)) == 2


def test_an_encoder_that_gives_too_few_vectors_is_an_error() -> None:
    class ShortEncoder(NgramEncoder):
        """Loses a text."""

        def encode(self, texts):
            encoded = super().encode(texts)
            return replace(encoded, vectors=encoded.vectors[1:])

    scorer = Scorer(ShortEncoder(), max_rows=100)
    failed = scorer.collect(list(TEXTS), TEXTS, LONG)
    assert failed.error == "ValueError: the encoder gave 0 vectors of 1 texts"
    assert failed.failed == list(TEXTS)


def test_an_encoder_that_counts_tokens_of_too_few_texts_is_an_error() -> None:
    class ForgetfulEncoder(NgramEncoder):
        def encode(self, texts):
            encoded = super().encode(texts)
            return replace(encoded, tokens=encoded.tokens[1:])

    failed = Scorer(ForgetfulEncoder(), max_rows=100).collect(list(TEXTS), TEXTS, LONG)
    assert failed.error.startswith("ValueError: zip() argument 3 is shorter")
    assert failed.failed == list(TEXTS)


def test_the_thread_that_embeds_holds_up_no_end_of_the_process() -> None:
    Scorer(NgramEncoder(), max_rows=100)
    assert {thread.daemon for thread in threading.enumerate() if thread.name == "dra-embed"} == {True}


def test_an_encoder_that_changes_its_dimensions_is_an_error() -> None:
    class GrowingEncoder(NgramEncoder):
        """Has one dimension more in each batch."""

        dimension = 511

        def encode(self, texts):
            encoded = super().encode(texts)
            self.dimension += 1
            vectors = torch.nn.functional.pad(encoded.vectors, (0, self.dimension - 512))
            return replace(encoded, vectors=vectors)

    scorer = Scorer(GrowingEncoder(), max_rows=100)
    scorer.submit(TEXTS.items())
    assert_right(TEXTS, collected(scorer, TEXTS))
    more = group("c", "guess again")
    failed = scorer.collect(list(more), more, LONG)
    assert failed.error == "ValueError: the encoder gave vectors of 513 dimensions, and of 512 before"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_vector_that_is_no_number_is_an_error_of_its_session(value: float) -> None:
    class HoleEncoder(NgramEncoder):
        """Has no vector of a guess."""

        def encode(self, texts):
            encoded = super().encode(texts)
            encoded.vectors[[text == "guess" for text in texts], 3] = value
            return encoded

    scorer = Scorer(HoleEncoder(), max_rows=100)
    failed = scorer.collect(list(TEXTS), TEXTS, LONG)
    assert failure(failed) == ([Session("b", 0)], [], "the encoder gave NaN or infinity", False)


class AwayEncoder(NgramEncoder):
    """Is away for its first calls."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def encode(self, texts):
        self.left -= 1
        if self.left >= 0:
            raise EncoderUnavailableError("nobody answers at embed.example")
        return super().encode(texts)


def test_an_encoder_that_is_away_for_a_while_costs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_dra.scorer.scorer._PAUSE_S", (0.01, 0.02))
    scorer = Scorer(AwayEncoder(5), max_rows=100)
    scorer.submit(TEXTS.items())
    scores = collected(scorer, TEXTS)
    assert_right(TEXTS, scores)
    assert (scores.events.unavailable, scores.events.failed) == (5, 0)


def test_what_goes_back_into_the_queue_takes_its_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_dra.scorer.scorer._PAUSE_S", (0.001, 0.002))
    watcher, size = Watcher(), sum(map(len, set(TEXTS.values())))
    scorer = Scorer(AwayEncoder(5), max_rows=100, observer=watcher)
    scorer.submit(TEXTS.items())
    assert_right(TEXTS, collected(scorer, TEXTS))
    assert watcher.queue[-1] == (0, 0)
    assert watcher.queue.count((4, size)) > 1
    assert all(0 <= of_queue <= size for _, of_queue in watcher.queue)


def test_pauses_grow_to_a_limit_and_begin_anew_after_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    clock = {"monotonic": time.monotonic, "perf_counter": time.perf_counter}
    monkeypatch.setattr("verl_dra.scorer.scorer.time", SimpleNamespace(sleep=paused.append, **clock))
    encoder = AwayEncoder(7)
    scorer = Scorer(encoder, max_rows=100)
    embed(scorer, "one")
    assert paused == [0.5, 1, 2, 4, 8, 15, 15]
    encoder.left = 2
    embed(scorer, "two")
    assert paused[7:] == [0.5, 1]


def test_a_trouble_that_is_over_is_no_reason_any_more(gated: GatedEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_dra.scorer.scorer._PAUSE_S", (0.001, 0.002))
    away = [True]

    class AwayOnceEncoder(GatedEncoder):
        def encode(self, texts):
            if away and away.pop():
                raise EncoderUnavailableError("nobody answers at embed.example")
            return gated.encode(texts)

    gated.gate.set()
    scorer = Scorer(AwayOnceEncoder(), max_rows=100)
    embed(scorer, "first")
    gated.gate.clear()
    scorer.submit(TEXTS.items())
    assert scorer.collect(list(TEXTS), {}, 0.05).error == "5 texts are not embedded yet"


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts are cached, and two taken sessions remembered."""
    monkeypatch.setattr("verl_dra.scorer.scorer._CACHED_TEXTS", 2)
    monkeypatch.setattr("verl_dra.scorer.scorer._REMEMBERED_SESSIONS", 2)


@pytest.mark.usefixtures("small_memory")
def test_of_known_texts_the_newest_are_cached(gated: GatedEncoder) -> None:
    gated.gate.set()
    scorer = Scorer(gated, max_rows=2)

    def batches(*texts: str) -> list[list[str]]:
        gated.batches.clear()
        for text in texts:
            embed(scorer, text)
        return gated.batches

    assert batches("one", "two", "three") == [["one"], ["two"], ["three"]]
    assert batches("two", "three") == []
    assert batches("one") == [["one"]]
    # That is what was used last, not what came last.
    assert batches("three", "four", "three") == [["four"]]


@pytest.mark.usefixtures("small_memory")
def test_the_sessions_that_were_taken_last_are_remembered() -> None:
    scorer = Scorer(NgramEncoder(), max_rows=2)
    texts = group("a", *"123456")
    for session in texts:
        scorer.forget([session])
    scorer.submit(texts.items())
    assert scorer.collect([], {}, 0).events.late == 2
    assert scorer.collect(list(texts), {}, LONG).missing == [s for s in texts if s.session_id not in (2, 3)]


def test_a_kept_vector_does_not_keep_its_batch() -> None:
    class WatchedEncoder(NgramEncoder):
        batches: ClassVar[list[Any]] = []
        alive = -1

        def encode(self, texts):
            self.alive = sum(batch() is not None for batch in self.batches)
            encoded = super().encode(texts)
            array = np.array(encoded.vectors)
            self.batches.append(weakref.ref(array))  # which torch keeps as long as any row of it is in use
            return replace(encoded, vectors=torch.from_numpy(array))

    encoder = WatchedEncoder()
    scorer = Scorer(encoder, max_rows=100)
    scorer.submit(TEXTS.items())
    embed(scorer, *TEXTS.values())
    embed(scorer, "in a later call")
    assert (encoder.alive, len(encoder.batches) > 1) == (0, True)
    assert_right(TEXTS, collected(scorer, TEXTS))


def test_who_waits_for_an_encoder_that_is_away_hears_why_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_dra.scorer.scorer._PAUSE_S", (0.01, 0.02))
    encoder = AwayEncoder(10**9)
    scorer = Scorer(encoder, max_rows=100)
    scorer.submit(TEXTS.items())
    failed = scorer.collect(list(TEXTS), {}, 0.1)
    assert failure(failed) == ([], list(TEXTS), "nobody answers at embed.example", False)
    encoder.left = 0
    assert_right(TEXTS, collected(scorer, TEXTS))


class RefusingEncoder(NgramEncoder):
    """A server that answers 500 wherever a certain text is."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def encode(self, texts):
        self.batches.append(list(texts))
        if POISON in texts:
            raise EncoderUnavailableError("answered 500: NaN is not JSON")
        return super().encode(texts)


@pytest.mark.parametrize("place", [0, 7, 15])
def test_a_text_that_a_server_is_away_for_alone_is_found_out(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    monkeypatch.setattr("verl_dra.scorer.scorer._PAUSE_S", (0.001, 0.002))
    encoder = RefusingEncoder()
    scorer = Scorer(encoder, max_rows=100)
    texts = [f"way {i}" for i in range(16)]
    texts[place] = POISON
    poisoned, others = group("bad", *texts), group("good", "x", "y")
    scorer.submit((poisoned | others).items())
    assert_right(others, collected(scorer, others))
    bad = Session("bad", place)
    first = scorer.collect(list(poisoned), {}, LONG)
    assert first.missing == [bad]
    # It is told at once, whatever is still to come.
    assert (first.index >= 0).sum() + len(first.waiting) == 15
    assert (scorer.collect(first.waiting, {}, LONG).index >= 0).all()
    # Each time in half as large a company, and alone from then on.
    company = [len(batch) for batch in encoder.batches if POISON in batch and len(batch) > 1]
    assert company[0] == 18
    assert all(after <= before // 2 for before, after in pairwise(company))
    failed = scorer.collect([bad], {bad: POISON}, 0.2)
    assert [*failed.failed, *failed.waiting] == [bad]
    assert failed.error == "answered 500: NaN is not JSON"


def test_what_nobody_waits_for_any_more_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_dra.scorer.scorer._PAUSE_S", (0.001, 0.002))
    away = threading.Event()

    class GatedAwayEncoder(GatedEncoder):
        def encode(self, texts):
            encoded = super().encode(texts)
            if away.is_set():
                raise EncoderUnavailableError("gone")
            return encoded

    encoder = GatedAwayEncoder()
    away.set()
    scorer = Scorer(encoder, max_rows=100)
    scorer.submit(TEXTS.items())
    assert encoder.started.wait(60)
    scorer.forget(list(TEXTS))  # while a request is under way
    encoder.gate.set()
    later = group("later", "p", "q")
    scorer.submit(later.items())
    assert scorer.collect(list(later), {}, 0.2).waiting == list(later)
    away.clear()
    assert_right(later, collected(scorer, later))
    assert not [batch for batch in encoder.batches[1:] if set(batch) & set(TEXTS.values())]


def test_a_panic_of_native_code_is_a_text_that_cannot_be_embedded() -> None:
    class Panic(BaseException):
        """As pyo3's PanicException, which is no Exception."""

    class PanickingEncoder(NgramEncoder):
        def encode(self, texts):
            if POISON in texts:
                raise Panic("index out of bounds")
            return super().encode(texts)

    scorer = Scorer(PanickingEncoder(), max_rows=100)
    bad = TEXTS | group("c", POISON, "fine")
    failed = scorer.collect(list(bad), bad, LONG)
    assert failure(failed) == ([Session("c", 0)], [], "Panic: index out of bounds", False)
    assert (failed.index >= 0).sum() == len(bad) - 1


def test_an_encoder_that_fails_on_a_plain_word_is_broken() -> None:
    class StickyEncoder(NgramEncoder):
        broken = False

        def encode(self, texts):
            self.broken |= POISON in texts
            if self.broken:
                raise RuntimeError("CUDA error")
            return super().encode(texts)

    scorer = Scorer(StickyEncoder(), max_rows=100)
    bad = group("c", POISON)
    assert failure(scorer.collect(list(bad), bad, LONG)) == (list(bad), [], "RuntimeError: CUDA error", True)


@pytest.mark.parametrize(("hung_s", "broken"), [(HUNG_S, False), (0.0, True), (math.inf, False)])
def test_an_encoder_that_does_not_come_back_is_broken(gated: GatedEncoder, hung_s: float, broken: bool) -> None:
    scorer = Scorer(gated, max_rows=100, hung_s=hung_s)
    scorer.submit(TEXTS.items())
    assert gated.started.wait(60)
    answer = scorer.collect(list(TEXTS), {}, 0.05)
    assert failure(answer) == ([], list(TEXTS), "5 texts are not embedded yet", broken)


def test_an_observer_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    class FailingObserver:
        def queued(self, *_):
            raise OSError("no metrics agent")

        embedded = queued

    scorer = Scorer(NgramEncoder(), max_rows=100, observer=FailingObserver())
    scorer.submit(TEXTS.items())
    assert_right(TEXTS, collected(scorer, TEXTS))
    assert caplog.text.count("the scorer's metrics fail") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_process_whose_embedding_thread_ends_ends_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: Future[int] = Future()

    def end(code: int) -> None:
        ended.set_result(code)
        raise SystemExit

    class DefectiveScorer(Scorer):
        def _finish(self, *_: object) -> None:
            raise AssertionError("a defect")

    monkeypatch.setattr("os._exit", end)
    scorer = DefectiveScorer(NgramEncoder(), max_rows=9)
    scorer.submit(group("a", "x", "y").items())
    assert ended.result(60) == 1
    assert "the thread that embeds ended" in caplog.text
    assert "a defect" in caplog.text


def test_what_will_not_be_taken_does_not_wait_for_room(gated: GatedEncoder) -> None:
    scorer = Scorer(gated, max_rows=100, max_queue_rows=1)
    scorer.submit(group("a", "first").items())
    assert gated.started.wait(60)
    scorer.submit(group("b", "second").items())  # the queue is full
    scorer.forget(list(group("late", "x", "y")))
    scorer.submit(group("late", "x", "y").items())
    gated.gate.set()
    answer = collected(scorer, group("a", "first") | group("b", "second"))
    assert (answer.events.late, answer.events.submitted) == (2, 4)


def test_equal_texts_are_embedded_once_whenever_they_come(gated: GatedEncoder) -> None:
    scorer = Scorer(gated, max_rows=100)
    scorer.submit(group("first", "add", "add").items())  # in one batch
    assert gated.started.wait(60)
    scorer.submit(group("second", "add", "draw").items())  # while it is embedded
    gated.gate.set()
    assert collected(scorer, group("first", "add", "add")).cached == 1
    assert collected(scorer, group("second", "add", "draw")).cached == 1
    scorer.submit(group("third", "draw", "add", "count").items())  # long after
    third = collected(scorer, group("third", "draw", "add", "count"))
    assert third.cached == 2
    assert third.events == Events(submitted=3, cache_hits=2, embedded=1, tokens=len("count"))
    assert sorted(text for batch in gated.batches for text in batch) == ["add", "count", "draw"]


def test_what_the_texts_are_is_counted() -> None:
    scorer = Scorer(NgramEncoder(), max_rows=100)
    texts = group("a", "", " \n", "so \ud83d it is", "so ? it is", "\x00")
    scorer.submit(texts.items())
    answer = collected(scorer, texts)
    scores = scores_of(texts, answer)
    assert (scores.empty, answer.replaced, answer.cached) == (2, 1, 1)
    assert scores.duplicate.tolist() == [False, False, True, True, False]
    assert scores.smi[:2].tolist() == [0, 0]


def test_late_completions_of_a_step_as_large_as_is_kept_are_told_from_new_ones() -> None:
    scorer = Scorer(NgramEncoder(), max_rows=20_000)
    texts = {Session(f"u{i // 8}", i % 8): f"way {i % 5}" for i in range(20_000)}
    scorer.submit(texts.items())
    collected(scorer, texts)
    scorer.submit(list(texts.items())[:100])
    scorer.submit(TEXTS.items())
    assert collected(scorer, TEXTS).events.late == 100


def test_groups_that_are_given_up_are_forgotten() -> None:
    scorer = Scorer(NgramEncoder(), max_rows=100)
    scorer.submit(TEXTS.items())
    first = [s for s in TEXTS if s.uid == "a"]
    scorer.forget(first)
    scorer.submit([(first[0], "late")])
    assert scorer.collect(list(TEXTS), {}, LONG).missing == first


class Watcher:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Events] = []
        self.queue: list[tuple[int, int]] = []
        self.calls: list[int] = []

    def queued(self, events: Events, rows: int, size: int) -> None:
        self.events.append(events)
        self.queue.append((rows, size))

    def embedded(self, texts: int, seconds: float) -> None:
        assert seconds > 0
        self.calls.append(texts)


def test_an_observer_is_told_of_queue_and_encoder() -> None:
    watcher = Watcher()
    scorer = Scorer(NgramEncoder(), max_rows=100, observer=watcher)
    scorer.submit(TEXTS.items())
    collected(scorer, TEXTS)
    assert watcher.events[-1] == Events(
        submitted=5, cache_hits=1, embedded=4, tokens=sum(map(len, set(TEXTS.values())))
    )
    assert (4, sum(map(len, set(TEXTS.values())))) in watcher.queue
    assert watcher.queue[-1] == (0, 0)
    assert sum(watcher.calls) == 4


def test_many_threads_submit_and_collect_at_once(thread: ThreadPoolExecutor) -> None:
    scorer = Scorer(NgramEncoder(), max_rows=10_000)
    together = threading.Barrier(8)

    def work(worker: int) -> None:
        together.wait(60)
        for step in range(20):
            texts = group(f"{worker}_{step}", *(f"{worker} tries way {i % 3} in {step}" for i in range(6)))
            for item in texts.items():
                scorer.submit([item])
            assert_right(texts, collected(scorer, texts))

    for done in [thread.submit(work, worker) for worker in range(8)]:
        done.result(120)


def test_equal_texts_share_one_vector_whatever_batches_they_came_in() -> None:
    clones = group("a", *["add both sides"] * 4)
    scorer = Scorer(NoisyEncoder(), max_rows=100)
    for item in clones.items():
        scorer.submit([item])
        embed(scorer, item[1])  # in a batch of its own
    np.testing.assert_allclose(scores_of(clones, collected(scorer, clones)).smi, 3, rtol=1e-6)


class MeasuredEncoder(NgramEncoder):
    """Embeds so many bytes a second; time passes in no other way."""

    def __init__(self, rate: float) -> None:
        self.rate, self.now = rate, 0.0
        self.slices: list[int] = []

    def encode(self, texts):
        self.slices.append(sum(map(len, texts)))
        self.now += self.slices[-1] / self.rate
        return super().encode(texts)


@pytest.mark.parametrize(
    ("rate", "least", "most"), [(10**5, 80_000, 100_000), (10**6, 0.9e6, 1e6), (10**4, 10_000, 16_384)]
)
def test_an_encoder_gets_about_a_second_of_work_at_a_time(
    monkeypatch: pytest.MonkeyPatch, rate: int, least: float, most: float
) -> None:
    encoder = MeasuredEncoder(rate)
    monkeypatch.setattr("verl_dra.scorer.scorer.time.perf_counter", lambda: encoder.now)
    scorer = Scorer(encoder, max_rows=10**5)
    texts = {Session("a", i): f"{i:06d}" + "x" * 994 for i in range(4 * rate // 1000 + 40)}
    collected_at_once = scorer.collect(list(texts), texts, LONG)
    assert (collected_at_once.index >= 0).all()
    assert encoder.slices[0] == 8000  # of 8 KiB, before a rate is known
    assert least <= max(encoder.slices) <= most
    assert collected_at_once.busy_s == pytest.approx(encoder.now)


class InstantEncoder(MeasuredEncoder):
    """Makes no vectors."""

    def encode(self, texts):
        self.slices.append(len(texts))
        self.now += sum(map(len, texts)) / self.rate
        none = torch.zeros(len(texts), dtype=torch.int64)
        return Encoded(torch.zeros(len(texts), 2), none, none, none)


def test_an_encoder_gets_16_mebibytes_at_a_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = InstantEncoder(10**9)
    monkeypatch.setattr("verl_dra.scorer.scorer.time.perf_counter", lambda: encoder.now)
    texts = {Session("a", i): f"{i:04d}" + "x" * (2**20 - 4) for i in range(22)}
    assert (Scorer(encoder, max_rows=100).collect(list(texts), texts, LONG).index >= 0).all()
    assert (encoder.slices[0], max(encoder.slices)) == (1, 16)


def test_an_encoder_that_slows_down_gets_less_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = InstantEncoder(800_000)
    monkeypatch.setattr("verl_dra.scorer.scorer.time.perf_counter", lambda: encoder.now)
    scorer = Scorer(encoder, max_rows=10**5)
    for rate, slices in ((800_000, [8, 792]), (80_000, [800, 440, 260, 170, 125, 102, 91]), (10**6, [85, 904])):
        encoder.rate = rate
        encoder.slices.clear()
        texts = {Session(f"{rate}", i): f"{rate}{i:04d}".ljust(1000) for i in range(sum(slices))}
        assert (scorer.collect(list(texts), texts, LONG).index >= 0).all()
        assert encoder.slices == slices


def test_the_last_16384_sessions_are_remembered_at_least() -> None:
    scorer = Scorer(NgramEncoder(), max_rows=1)
    scorer.forget(Session("a", i) for i in range(2**14 + 1))
    scorer.submit([(Session("a", i), "x") for i in (0, 1, 2)])
    assert scorer.collect([], {}, 0).events.late == 2


def test_what_a_step_waits_for_goes_before_a_backlog(gated: GatedEncoder, thread: ThreadPoolExecutor) -> None:
    scorer = Scorer(gated, max_rows=1000)
    scorer.submit([(Session("first", 0), "held by the gate")])
    assert gated.started.wait(60)
    backlog = {Session("validation", i): "long text " * 30_000 for i in range(3)}
    scorer.submit(backlog.items())
    scorer.submit(TEXTS.items())
    scores = thread.submit(scorer.collect, list(TEXTS), {}, LONG)
    while Session("a", 0) not in next(iter(scorer._queue.values())).sessions:
        pass
    gated.gate.set()
    assert_right(TEXTS, scores.result(60))
    assert set(TEXTS.values()) <= set(gated.batches[1])


def test_a_step_learns_what_had_not_been_embedded_when_it_asked(
    gated: GatedEncoder, thread: ThreadPoolExecutor
) -> None:
    scorer = Scorer(gated, max_rows=10)
    scorer.submit({**TEXTS, Session("c", 0): "\u00e9"}.items())
    gated.started.wait(LONG)
    waiting = thread.submit(scorer.collect, list(TEXTS), {}, LONG)
    assert scorer.collect([Session("d", 0)], {}, 0).backlog_bytes == sum(map(len, set(TEXTS.values()))) + 2
    gated.gate.set()
    assert (waiting.result().index >= 0).all()
    assert scorer.collect([Session("c", 0)], {}, LONG).missing == []
    assert scorer.collect([Session("d", 0)], {}, 0).backlog_bytes == 0


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Freed memory given back: how often, and an event for the next time. Scorers of tests before may be idle now."""
    seen = SimpleNamespace(times=0, next=threading.Event())
    of_before = threading.enumerate()

    def trim() -> None:
        if threading.current_thread() not in of_before:
            seen.times += 1
            seen.next.set()

    monkeypatch.setattr("verl_dra.scorer.scorer.heap.trim", trim)
    return seen


def test_memory_is_given_back_once_after_work_and_not_while_there_is_none(
    trims: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verl_dra.scorer.scorer._IDLE_S", 0.001)
    scorer = Scorer(NgramEncoder(), max_rows=100)
    assert not trims.next.wait(0.03)
    for times in (1, 2):
        embed(scorer, f"text {times}")
        assert trims.next.wait(60)
        trims.next.clear()
        assert not trims.next.wait(0.03)
        assert trims.times == times


def test_memory_is_given_back_after_much_work_without_a_pause(trims: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_dra.scorer.scorer._TRIM_AFTER_BYTES", 10)
    monkeypatch.setattr("verl_dra.scorer.scorer._IDLE_S", LONG)
    scorer = Scorer(NgramEncoder(), max_rows=100)
    embed(scorer, "five.")
    embed(scorer, "6five.")
    assert trims.next.wait(60)
    trims.next.clear()
    embed(scorer, "ten bytes.")  # not more than that
    embed(scorer, "five!")
    assert trims.next.wait(60)
    assert trims.times == 2


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("library", ["glibc", "another"])
def test_freed_memory_of_the_heap_and_of_a_gpu_is_given_back(
    library: str, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    names = {"malloc_trim": lambda keep: calls.append(keep)} if library == "glibc" else {}
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(**names) if name is None else None)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: on_gpu)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: calls.append("GPU"))
    heap.trim()
    assert calls == ["GPU"] * on_gpu + [0] * (library == "glibc")
