"""A step's vectors, asked for in a thread of its own; scorers and Ray are in-process stand-ins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, wait
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_encoders import POISON, GatedEncoder
from in_process_ray import pool_of
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_dra.config import DRAConfig
from verl_dra.config.schedule import Schedule
from verl_dra.embedding import Encoded, Encoder
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.scorer.asking import Asking, NoScoresError, StepVectors
from verl_dra.scorer.messages import Session
from verl_dra.scorer.pool import ScorerPool, replica_of
from verl_dra.training.trainer import with_dra

Texts = dict[Session, str]


Pools = Callable[..., ScorerPool]


@pytest.fixture
def pools() -> Iterator[Pools]:
    """Makes pools of scorers; by default of one, patient."""
    with ExitStack() as stack:

        def make(encoder: Callable[[], Encoder], **config: Any) -> ScorerPool:
            return stack.enter_context(pool_of(encoder, **{"replicas": 1, "deadline_s": 60, **config}))[0]

        yield make


class LengthEncoder:
    """Takes no time: a text's vector hangs on its length alone; counts texts."""

    def __init__(self) -> None:
        self.texts = 0

    def encode(self, texts: Sequence[str]) -> Encoded:
        self.texts += len(texts)
        angle = torch.tensor([float(len(text)) for text in texts])
        none = torch.zeros(len(texts), dtype=torch.int64)
        return Encoded(torch.stack([angle.cos(), angle.sin()], dim=1), none, none, none)


def completions(number: int, characters: int = 8) -> Texts:
    return {Session(f"u{i // 4}", i % 4): f"{i} " + "x" * characters for i in range(number)}


class Fetch:
    """In place of TransferQueue and the decoding: keeps what was fetched, in the order of the calls."""

    def __init__(self, texts: Texts, before: Callable[[], object] = lambda: None) -> None:
        self.calls: list[list[Session]] = []
        self._texts, self._before = texts, before

    def __call__(self, sessions: Sequence[Session]) -> Mapping[Session, str]:
        self._before()
        self.calls.append(list(sessions))
        return {session: self._texts[session] for session in sessions}


def assert_vectors_of(came: StepVectors, texts: Texts) -> None:
    expected = NgramEncoder().encode(list(texts.values())).vectors.numpy()
    np.testing.assert_array_equal(came.vectors[came.index], expected)


def asking_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dra-asking"]


def test_what_no_scorer_has_is_fetched_and_embedded_before_anybody_waits(pools: Pools) -> None:
    encoder, texts = LengthEncoder(), completions(200)
    done = threading.Event()
    fetched: list[Session] = []

    def fetch(sessions: Sequence[Session]) -> Mapping[Session, str]:
        fetched.extend(sessions)
        if len(fetched) == len(texts):
            done.set()
        return {session: texts[session] for session in sessions}

    asking = Asking(pools(lambda: encoder, replicas=3), list(texts), fetch)
    assert done.wait(60)
    came = asking.result()
    assert sorted(fetched) == sorted(texts)
    assert came.missing_rows == encoder.texts == len(texts)
    assert (came.index >= 0).all()


def test_all_scorers_get_work_with_the_first_texts(pools: Pools) -> None:
    texts, pool = completions(2000), pools(LengthEncoder, replicas=4)

    def before() -> None:
        if not fetch.calls:
            wait([reply for handle in pool.handles for reply in handle._replies])  # each has said what it lacks

    fetch = Fetch(texts, before)
    Asking(pool, list(texts), fetch).result()
    assert {replica_of(call[0], 4) for call in fetch.calls[:4]} == {0, 1, 2, 3}
    assert all(len({replica_of(session, 4) for session in call}) == 1 for call in fetch.calls)


@pytest.mark.parametrize("characters", [8, 2**17])
def test_few_texts_are_in_memory_at_a_time(pools: Pools, characters: int) -> None:
    encoder, texts = LengthEncoder(), completions(300, characters)
    ahead: list[int] = []
    fetch = Fetch(texts, before=lambda: ahead.append(sum(map(len, fetch.calls)) - encoder.texts))
    Asking(pools(lambda: encoder), list(texts), fetch).result()
    if characters == 8:
        assert [len(call) for call in fetch.calls] == [64, 236]
    else:
        # Of 2**17 characters and their numbers, one less than 16 have 2**21.
        assert [len(call) for call in fetch.calls] == [64, *[15] * 15, 11]
        assert max(ahead) <= 64 + 2 * 2**21 / characters


def test_short_texts_are_fetched_a_thousand_at_a_time(pools: Pools) -> None:
    texts = completions(1200)
    fetch = Fetch(texts)
    assert Asking(pools(LengthEncoder), list(texts), fetch).result().missing_rows == 1200
    assert [len(call) for call in fetch.calls] == [64, 1024, 112]


def test_a_text_is_sent_once_however_often_its_scorer_is_asked(pools: Pools) -> None:
    gated, texts = GatedEncoder(), completions(100)
    pool = pools(lambda: gated, deadline_s=0.1)
    asking = Asking(pool, list(texts), Fetch(texts))
    while len(pool.handles[0].asked) < 8:  # its answer comes after a deadline, with nothing embedded
        assert asking_threads()
    gated.gate.set()
    while asking_threads():
        pass
    assert_vectors_of(asking.result(), texts)
    sent = [session for request in pool.handles[0].asked for session in request]
    assert sorted(sent) == sorted(texts)


def test_nothing_is_given_up_while_nobody_waits(pools: Pools) -> None:
    gated, texts = GatedEncoder(), completions(4)
    pool = pools(lambda: gated, deadline_s=0.1)
    asking = Asking(pool, list(texts), Fetch(texts))
    while len(pool.handles[0].asked) < 8:
        assert asking_threads()
    with pytest.raises(NoScoresError, match=r"4 completions: dra.scorer.deadline_s=0.1 s have passed without a text"):
        asking.result()
    gated.gate.set()


def test_time_that_fetching_takes_is_no_scorers_fault(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("verl_dra.scorer.asking.time", SimpleNamespace(monotonic=lambda: clock[0]))
    texts = completions(3 * 64, 2**15)
    fetch = Fetch(texts, before=lambda: clock.__setitem__(0, clock[0] + 100))
    asking = Asking(pools(LengthEncoder, replicas=2, deadline_s=50), list(texts), fetch)
    assert (asking.result().index >= 0).all()
    assert len(fetch.calls) > 2


def test_a_lost_scorer_is_asked_again_and_sent_what_it_had_not_given(pools: Pools) -> None:
    gated, texts = GatedEncoder(), completions(40)
    pool = pools(lambda: gated, replicas=2)
    asking = Asking(pool, list(texts), Fetch(texts))
    assert gated.started.wait(60)
    first = pool.handles[1]
    first.end(restart=False)
    gated.gate.set()
    came = asking.result()
    assert_vectors_of(came, texts)
    assert pool.handles[1] is not first
    assert came.missing_rows == len(texts)
    assert came.fallbacks > 2


@pytest.mark.parametrize("on_failure", ["raise", "unadjusted"])
def test_a_text_that_cannot_be_embedded_is_given_up_alone(pools: Pools, on_failure: str) -> None:
    gated, texts = GatedEncoder(), completions(8)
    gated.gate.set()
    bad = list(texts)[5]
    asking = Asking(pools(lambda: gated, on_failure=on_failure), list(texts), Fetch(texts | {bad: POISON}))
    if on_failure == "raise":
        with pytest.raises(NoScoresError, match=f"can't embed 1 of them, such as the completion 1 of uid {bad.uid}"):
            asking.result()
    else:
        assert [at for at, row in enumerate(asking.result().index) if row < 0] == [5]


def test_what_fetching_raises_is_raised_where_the_vectors_are_taken(pools: Pools) -> None:
    def fetch(sessions: Sequence[Session]) -> Mapping[Session, str]:
        raise ConnectionResetError("the storage unit is gone")

    with pytest.raises(ConnectionResetError, match="the storage unit is gone"):
        Asking(pools(LengthEncoder), list(completions(4)), fetch).result()


def test_the_thread_ends_when_it_is_told_to_whatever_the_scorers_do(pools: Pools) -> None:
    gated, texts = GatedEncoder(), completions(4)
    asking = Asking(pools(lambda: gated), list(texts), Fetch(texts))
    assert gated.started.wait(60)
    assert asking_threads()
    asking.stop()
    assert not asking_threads()
    with pytest.raises(CancelledError):
        asking.result()
    gated.gate.set()


class Queue:
    """In place of TransferQueue and the tokenizer: a text is decoded once it may be."""

    def __init__(self) -> None:
        self.may_decode = threading.Event()

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> dict[str, torch.Tensor]:
        assert (partition_id, select_fields) == ("train", ["responses"])
        rows = [torch.tensor(list(map(ord, f"text of {key}"))) for key in keys]
        return {"responses": torch.nested.nested_tensor(rows, layout=torch.jagged)}

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
        assert self.may_decode.wait(60)
        return "".join(map(chr, ids.tolist()))


def trainer_of(
    queue: Queue, pool: ScorerPool, log_probs: Callable[[], object], patch: pytest.MonkeyPatch
) -> tuple[Any, list[StepVectors]]:
    """A trainer whose step is veRL's in outline, and where it puts the vectors that it took."""
    batch = SimpleNamespace(
        keys=[f"a_{i}_0" for i in range(4)], partition_id="train", tags=[{"is_padding": False}] * 4, extra_info={}
    )
    taken: list[StepVectors] = []

    class InOutline(PPOTrainerSync):
        def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> Any:
            made: Any = self
            made._balance_batch(batch)
            log_probs()
            taken.append(made._asking.result())
            return batch

        def _balance_batch(self, batch: Any) -> Any:
            return batch

    patch.setattr("verl_dra.training.transfer.tq", queue)
    trainer: Any = object.__new__(with_dra(InOutline))
    trainer._counts, trainer._behind, trainer._only_shown, trainer._filters = {}, None, False, False
    trainer._schedule, trainer._off, trainer.global_steps = Schedule.of(1), False, 1
    trainer._scorers, trainer.tokenizer, trainer._dra, trainer._asking = pool, queue, DRAConfig(), None
    trainer._partitions, trainer._looking, trainer._calls = None, None, 0
    return trainer, taken


def test_log_probabilities_do_not_wait_for_decoding(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, pool = Queue(), pools(NgramEncoder)
    trainer, taken = trainer_of(queue, pool, queue.may_decode.set, monkeypatch)
    trainer.step({}, {})
    assert_vectors_of(taken[0], {Session("a", i): f"text of a_{i}_0" for i in range(4)})


def test_a_step_that_fails_leaves_no_thread(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    def log_probs() -> None:
        queue.may_decode.set()
        raise RuntimeError("out of memory")

    queue, gated = Queue(), GatedEncoder()
    trainer, _ = trainer_of(queue, pools(lambda: gated), log_probs, monkeypatch)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.step({}, {})
    assert not asking_threads()
    gated.gate.set()
