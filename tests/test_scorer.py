"""The scorer without Ray: streaming, waiting, what is missing, evicted or replaced, and encoders that fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracles
import pytest
from fake_encoders import POISON, GatedEncoder, NoisyEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.scorer.messages import Counts, Missing, Scores, Session
from verl_dra.scorer.scorer import Scorer

Texts = dict[Session, str]


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


def collected(scorer: Scorer, texts: Texts) -> Scores:
    answer = scorer.collect(list(texts), {})
    assert isinstance(answer, Scores)
    return answer


def assert_right(scores: Scores, texts: Texts, smi: str = "graph_cut") -> None:
    vectors = NgramEncoder().encode(list(texts.values())).vectors.numpy()
    ids = np.unique([session.uid for session in texts], return_inverse=True)[1]
    oracle = {"graph_cut": oracles.graph_cut_smi, "log_det": oracles.log_det_smi}[smi]
    np.testing.assert_allclose(scores.smi, oracle(vectors, ids), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.effective_paths, oracles.effective_paths(vectors, ids), rtol=1e-6)


@pytest.mark.parametrize("smi", ["graph_cut", "log_det"])
def test_scores_are_the_brute_force_values_in_the_order_asked(smi: str) -> None:
    scorer = Scorer(NgramEncoder(), smi, max_rows=100)
    scorer.submit(TEXTS.items())
    asked = {session: TEXTS[session] for session in sorted(TEXTS, key=lambda s: (s.session_id, s.uid))}
    scores = collected(scorer, asked)
    assert_right(scores, asked, smi)
    assert scores.duplicate.tolist() == [s in (("a", 0), ("a", 1)) for s in asked]
    assert scores.smi.dtype == np.float32


@settings(max_examples=20, deadline=None)
@given(
    names=st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=15),
    random=st.randoms(use_true_random=False),
)
def test_neither_arrival_order_nor_batches_change_the_scores(names, random) -> None:
    texts = {Session(*name): random.choice(["x = 1", "x = 2", "no idea", "", "x = 1, so y = 2"]) for name in names}
    scorer = Scorer(NgramEncoder(), "graph_cut", max_rows=100)
    arriving = list(texts.items())
    random.shuffle(arriving)
    cut = random.randrange(len(arriving) + 1)
    scorer.submit(arriving[:cut])
    scorer.submit(arriving[cut:])
    assert_right(collected(scorer, texts), texts)


def test_submitting_never_waits_for_the_encoder(gated: GatedEncoder) -> None:
    scorer = Scorer(gated, "graph_cut", max_rows=100)
    for item in TEXTS.items():
        scorer.submit([item])
    assert gated.started.wait(60)
    assert not gated.gate.is_set()


def test_collecting_waits_for_texts_that_are_being_embedded(gated: GatedEncoder, thread: ThreadPoolExecutor) -> None:
    scorer = Scorer(gated, "graph_cut", max_rows=100)
    scorer.submit(group("a", "add both sides").items())
    assert gated.started.wait(60)
    scorer.submit(TEXTS.items())
    answer = thread.submit(collected, scorer, TEXTS)
    assert not answer.done()
    gated.gate.set()
    assert_right(answer.result(60), TEXTS)


def test_a_group_waits_for_no_other_group(gated: GatedEncoder, thread: ThreadPoolExecutor) -> None:
    scorer = Scorer(gated, "graph_cut", max_rows=100)
    first, second = ({s: t for s, t in TEXTS.items() if s.uid == uid} for uid in "ab")
    gated.gate.set()
    scorer.submit(first.items())
    scorer.collect([*first, Session("none", 0)], {})  # waits until they are embedded
    gated.gate.clear()
    gated.started.clear()
    scorer.submit(second.items())
    assert gated.started.wait(60)
    assert_right(thread.submit(collected, scorer, first).result(60), first)
    gated.gate.set()
    assert_right(collected(scorer, second), second)


def test_what_is_missing_is_named_and_then_sent_as_text() -> None:
    scorer = Scorer(NgramEncoder(), "graph_cut", max_rows=100)
    arrived = {s: t for s, t in TEXTS.items() if s.session_id == 0}
    scorer.submit(arrived.items())
    missing = scorer.collect(list(TEXTS), {})
    assert missing == Missing([s for s in TEXTS if s.session_id > 0])
    scores = scorer.collect(list(TEXTS), {s: TEXTS[s] for s in missing.sessions})
    assert isinstance(scores, Scores)
    assert_right(scores, TEXTS)
    assert scorer.take_counts().tokens == sum(map(len, TEXTS.values()))


def test_a_text_that_arrives_after_it_was_missed_is_not_embedded_again() -> None:
    encoder = GatedEncoder()
    encoder.gate.set()
    scorer = Scorer(encoder, "graph_cut", max_rows=100)
    assert isinstance(scorer.collect(list(TEXTS), {}), Missing)
    scorer.submit(TEXTS.items())
    scores = scorer.collect(list(TEXTS), TEXTS)
    assert isinstance(scores, Scores)
    assert_right(scores, TEXTS)
    assert sum(map(len, encoder.batches)) == len(TEXTS)


def test_scores_are_taken_once() -> None:
    scorer = Scorer(NgramEncoder(), "graph_cut", max_rows=100)
    scorer.submit(TEXTS.items())
    first = {s: t for s, t in TEXTS.items() if s.uid == "a"}
    assert_right(collected(scorer, first), first)
    assert scorer.collect(list(TEXTS), {}) == Missing(list(first))
    second = {s: t for s, t in TEXTS.items() if s.uid == "b"}
    assert_right(collected(scorer, second), second)


def test_a_session_that_comes_again_replaces_the_earlier_one(gated: GatedEncoder) -> None:
    scorer = Scorer(gated, "graph_cut", max_rows=100)
    old, new = group("a", "the old one", "a sibling"), group("a", "another text", "a sibling")
    gated.gate.set()
    scorer.submit(old.items())
    scorer.submit(new.items())
    assert_right(collected(scorer, new), new)


def test_a_session_that_comes_again_while_it_is_embedded_replaces_it(gated: GatedEncoder) -> None:
    scorer = Scorer(gated, "graph_cut", max_rows=100)
    old, new = group("a", "the old one", "a sibling"), group("a", "another text", "a sibling")
    scorer.submit(old.items())
    assert gated.started.wait(60)
    scorer.submit(list(new.items())[:1])
    gated.gate.set()
    assert_right(collected(scorer, new), new)
    assert sum(batch.count("another text") for batch in gated.batches) == 1


def test_a_replaced_text_is_never_scored_even_where_the_new_one_fails(gated: GatedEncoder) -> None:
    scorer = Scorer(gated, "graph_cut", max_rows=100)
    old = group("a", "the old one", "a sibling")
    scorer.submit(old.items())
    assert gated.started.wait(60)
    scorer.submit([(Session("a", 0), POISON)])
    gated.gate.set()
    assert scorer.collect(list(old), {}) == Missing([Session("a", 0)])


def test_the_oldest_are_evicted_and_counted() -> None:
    scorer = Scorer(NgramEncoder(), "graph_cut", max_rows=3)
    for item in TEXTS.items():
        scorer.submit([item])
        scorer.collect([item[0], Session("none", 0)], {})  # waits until it is embedded
    assert scorer.collect(list(TEXTS), {}) == Missing(list(TEXTS)[:2])
    assert scorer.take_counts().evicted == 2


def test_waiting_texts_are_bounded_too(gated: GatedEncoder) -> None:
    scorer = Scorer(gated, "graph_cut", max_rows=3)
    scorer.submit([(Session("first", 0), "held by the gate")])
    assert gated.started.wait(60)
    scorer.submit(TEXTS.items())
    assert scorer.take_counts().evicted == 2
    gated.gate.set()
    assert scorer.collect(list(TEXTS), {}) == Missing(list(TEXTS)[:2])


def test_groups_larger_than_what_is_kept_are_scored_all_the_same() -> None:
    scorer = Scorer(NgramEncoder(), "graph_cut", max_rows=1)
    scorer.submit(TEXTS.items())
    missing = scorer.collect(list(TEXTS), {})
    assert isinstance(missing, Missing)
    scores = scorer.collect(list(TEXTS), TEXTS)
    assert isinstance(scores, Scores)
    assert_right(scores, TEXTS)


def test_an_encoder_that_fails_is_quiet_while_streaming_and_an_error_at_the_step(
    gated: GatedEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    gated.gate.set()
    scorer = Scorer(gated, "graph_cut", max_rows=100)
    bad = group("a", POISON, "fine")
    scorer.submit(bad.items())
    assert scorer.collect(list(bad), {}) == Missing(list(bad))
    assert "embedding 2 completions failed" in caplog.text
    with pytest.raises(RuntimeError, match="poison can't be embedded"):
        scorer.collect(list(bad), bad)
    good = group("a", "better", "fine")
    scorer.submit(good.items())
    assert_right(collected(scorer, good), good)


def test_an_encoder_that_gives_too_few_vectors_is_an_error() -> None:
    class ShortEncoder(NgramEncoder):
        """Loses the last text."""

        def encode(self, texts):
            return super().encode(list(texts)[:-1] or [""])

    scorer = Scorer(ShortEncoder(), "graph_cut", max_rows=100)
    with pytest.raises(ValueError, match="shorter"):
        scorer.collect(list(TEXTS), TEXTS)


def test_counts_are_what_happened_since_they_were_last_taken() -> None:
    scorer = Scorer(NgramEncoder(), "graph_cut", max_rows=100)
    assert scorer.take_counts() == Counts()
    scorer.submit(TEXTS.items())
    collected(scorer, TEXTS)
    assert scorer.take_counts() == Counts(tokens=sum(map(len, TEXTS.values())))
    assert scorer.take_counts() == Counts()


def test_many_threads_submit_and_collect_at_once(thread: ThreadPoolExecutor) -> None:
    scorer = Scorer(NgramEncoder(), "graph_cut", max_rows=10_000)
    together = threading.Barrier(8)

    def work(worker: int) -> None:
        together.wait(60)
        for step in range(20):
            texts = group(f"{worker}_{step}", *(f"{worker} tries way {i % 3} in {step}" for i in range(6)))
            for item in texts.items():
                scorer.submit([item])
            assert_right(collected(scorer, texts), texts)

    for done in [thread.submit(work, worker) for worker in range(8)]:
        done.result(120)
    assert scorer.take_counts().evicted == 0


def test_equal_texts_share_one_vector_whatever_batches_they_came_in() -> None:
    clones = group("a", *["add both sides"] * 4)
    scorer = Scorer(NoisyEncoder(), "graph_cut", max_rows=100)
    for item in clones.items():
        scorer.submit([item])
        scorer.collect([item[0], Session("none", 0)], {})  # waits until it is embedded, in a batch of its own
    np.testing.assert_allclose(collected(scorer, clones).smi, 3, rtol=1e-6)


def test_what_a_step_waits_for_goes_before_a_backlog(gated: GatedEncoder, thread: ThreadPoolExecutor) -> None:
    scorer = Scorer(gated, "graph_cut", max_rows=1000)
    scorer.submit([(Session("first", 0), "held by the gate")])
    assert gated.started.wait(60)
    backlog = {Session("validation", i): "long text " * 30_000 for i in range(3)}
    scorer.submit(backlog.items())
    scorer.submit(TEXTS.items())
    scores = thread.submit(scorer.collect, list(TEXTS), {})
    while next(iter(scorer._waiting)) not in TEXTS:
        pass
    gated.gate.set()
    assert_right(scores.result(60), TEXTS)
    assert set(TEXTS.values()) <= set(gated.batches[1])
