"""A step's vectors, whatever dies, from in-process stand-ins of Ray's actors; test_scorer_actors.py has real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from fake_encoders import POISON, GatedEncoder, NoisyEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process_ray import STATE, InProcessActor, InProcessRay, pool_of
from ray.exceptions import ActorUnavailableError

from verl_dra.algorithm import graph_cut_smi
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.scorer.asking import Asking, NoScoresError, take
from verl_dra.scorer.messages import Session
from verl_dra.scorer.pool import ScorerPool, replica_of
from verl_dra.scorer.scores import step_scores

pytestmark = pytest.mark.usefixtures("one_thread")

Texts = dict[Session, str]
TEXTS = {
    Session(uid, i): f"{words} {i % 3}"
    for i in range(4)
    for uid, words in (("a", "add both sides"), ("b", "draw a graph"), ("c", "guess"))
}


def step_vectors(pool: ScorerPool, texts: Texts, only_shown: bool = False) -> tuple[Any, list[Session]]:
    """What the trainer gets of the pool for a step, and the sessions whose texts it had to fetch.

    The one place here that knows how a step asks; `only_shown` as for `dra.weight=unlikeliness`.
    """
    fetched: list[Session] = []

    def fetch(sessions: Sequence[Session]) -> Mapping[Session, str]:
        fetched.extend(sessions)
        return {session: texts[session] for session in sessions}

    if only_shown:
        return take(pool, list(texts)), fetched
    return Asking(pool, list(texts), fetch).result(), fetched


def submit(pool: ScorerPool, texts: Texts) -> None:
    """As reward workers do; returns when all has arrived."""
    for session, text in texts.items():
        pool.handles[replica_of(session, len(pool))].submit.remote([(session, text)]).result()


def assert_right(came: Any, texts: Texts, but: Sequence[Session] = ()) -> None:
    """All have the vectors of their texts, but for some, which have none."""
    assert [s for s, row in zip(texts, came.index, strict=True) if row < 0] == list(but)
    group = np.unique([session.uid for session in texts], return_inverse=True)[1]
    scores = step_scores(came.vectors, came.index, torch.from_numpy(group), graph_cut_smi)
    lost = {session.uid for session in but}
    assert scores.scored.tolist() == [session.uid not in lost for session in texts]
    whole = [at for at, session in enumerate(texts) if session.uid not in lost]
    vectors = NgramEncoder().encode(list(texts.values())).vectors.numpy()
    np.testing.assert_allclose(scores.smi[whole], oracles.graph_cut_smi(vectors[whole], group[whole]), atol=1e-5)


@pytest.mark.parametrize("replicas", [1, 3, 16])
def test_what_all_scorers_have_is_put_together_and_nothing_is_fetched(replicas: int) -> None:
    with pool_of(replicas=replicas) as (pool, _):
        assert len(pool) == replicas
        submit(pool, TEXTS)
        came, fetched = step_vectors(pool, TEXTS)
    assert_right(came, TEXTS)
    assert (fetched, came.missing_rows, came.fallbacks) == ([], 0, 0)
    assert len(came.vectors) == len(set(TEXTS.values()))
    assert came.tokens == sum(map(len, TEXTS.values()))
    assert came.events.submitted == len(TEXTS)
    assert came.cached == came.events.cache_hits
    assert came.busy_s > 0
    assert came.tokens_per_s > 0


def test_what_no_scorer_has_is_fetched_once() -> None:
    there = {session: text for session, text in TEXTS.items() if session.session_id}
    with pool_of() as (pool, _):
        submit(pool, there)
        came, fetched = step_vectors(pool, TEXTS)
    assert_right(came, TEXTS)
    assert sorted(fetched) == sorted(TEXTS.keys() - there.keys())
    assert came.missing_rows == len(fetched)
    assert came.fallbacks >= 1


FAULTS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["is away", "restarts", "dies"])), max_size=6)


@settings(max_examples=50)
@given(faults=FAULTS, there=st.sets(st.sampled_from(sorted(TEXTS))))
def test_the_scores_are_right_whatever_befalls_the_scorers(faults: list[tuple[int, str]], there: set[Session]) -> None:
    with pool_of() as (pool, ray):
        submit(pool, {session: TEXTS[session] for session in sorted(there)})
        for replica, fault in faults:
            ray.faults[f"s_{replica}"].append(fault)
        came, fetched = step_vectors(pool, TEXTS)
        assert_right(came, TEXTS)
        assert set(fetched) >= TEXTS.keys() - there
        assert came.missing_rows == len(set(fetched))
        # Faults that are left are of scorers that had given all; the next step has them.
        more = {session: f"{text}!" for session, text in TEXTS.items()}
        submit_to_the_living(pool, more)
        assert_right(step_vectors(pool, more)[0], more)
    assert all(actor.state == STATE.DEAD for actor in ray.made)


def know_already(pool: ScorerPool, texts: Texts) -> None:
    """Let the scorers of texts know them, so that these wait for no encoder."""
    known: Texts = {}
    for session, text in texts.items():
        replica = replica_of(session, len(pool))
        names = (Session(f"known {len(known)}", i) for i in range(len(pool)))
        known[next(name for name in names if replica_of(name, len(pool)) == replica)] = text
    assert_right(step_vectors(pool, known)[0], known)


def submit_to_the_living(pool: ScorerPool, texts: Texts) -> None:
    with suppress(Exception):
        submit(pool, texts)


def test_equal_texts_have_one_vector_though_scorers_tell_them_apart() -> None:
    seeds = iter(range(0, 10**6, 100))
    clones = {Session("a", i): "add both sides" for i in range(6)}
    with pool_of(lambda: NoisyEncoder(next(seeds))) as (pool, _):
        came, _ = step_vectors(pool, clones)
    assert len(came.vectors) == 1


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("raises", r"diversity scorer 1 gave no scores of \d completions: it failed: .*its traceback"),
        ("poison", r"can't embed 1 of them, such as the completion 2 of uid b: .*poison can't be embedded"),
        ("stands still", r"gave no scores of \d+ completions: dra.scorer.deadline_s=0.5 s have passed without a text"),
    ],
)
@pytest.mark.parametrize("on_failure", ["raise", "unadjusted"])
def test_what_can_t_be_had_is_said_or_given_up_and_the_rest_is_right(fault: str, says: str, on_failure: str) -> None:
    encoders: list[GatedEncoder] = []

    def gated() -> GatedEncoder:
        encoders.append(GatedEncoder())
        if fault != "stands still" or len(encoders) != 2:
            encoders[-1].gate.set()
        return encoders[-1]

    texts = {**TEXTS, Session("b", 2): POISON} if fault == "poison" else TEXTS
    of_one = [session for session in texts if replica_of(session, 3) == 1]
    lost = [Session("b", 2)] if fault == "poison" else of_one
    with pool_of(gated, on_failure=on_failure) as (pool, ray):
        if fault == "raises":
            ray.faults["s_1"].append("raises")
        if fault == "stands still":
            know_already(pool, {s: text for s, text in texts.items() if s not in lost})
            ray.config.deadline_s = 0.5
        if on_failure == "raise":
            with pytest.raises(NoScoresError, match=rf"(?s){says}.*dra\.on_failure=unadjusted would train on"):
                step_vectors(pool, texts)
        else:
            assert_right(step_vectors(pool, texts)[0], texts, but=lost)
        for encoder in encoders:
            encoder.gate.set()


def test_what_is_only_shown_is_what_is_there_and_the_rest_is_given_up() -> None:
    there = {session: text for session, text in TEXTS.items() if session.uid != "b"}
    with pool_of() as (pool, ray):
        texts = {Session(f"{uid}2", i): text for (uid, i), text in TEXTS.items()}
        know_already(pool, texts)
        submit(pool, {session: text for session, text in texts.items() if session.uid != "b2"})
        came, fetched = step_vectors(pool, texts, only_shown=True)
        assert_right(came, texts, but=[session for session in texts if session.uid == "b2"])
        assert fetched == []
        # Late ones of that step are not kept for nobody.
        submit(pool, {session: text for session, text in texts.items() if session.uid == "b2"})
        ray.faults["s_0"].append("dies")
        came, _ = step_vectors(pool, there, only_shown=True)
        assert came.events.late > 0
        assert came.missing_rows == 0


def test_scorers_that_can_t_start_are_ended_and_said() -> None:
    class NoEncoder(NgramEncoder):
        def __init__(self) -> None:
            raise RuntimeError("this encoder has no weights")

    made: list[InProcessRay] = []
    original = InProcessRay.__init__

    def noted(self: InProcessRay, *arguments: Any) -> None:
        original(self, *arguments)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcessRay, "__init__", noted)
        with pytest.raises(RuntimeError, match=r"could not start: .*this encoder has no weights"), pool_of(NoEncoder):
            pass
    assert [actor.state for actor in made[0].made] == [STATE.DEAD] * 3


def test_scorers_that_take_too_long_are_said_with_what_the_cluster_has() -> None:
    gate = GatedEncoder().gate

    def slow() -> NgramEncoder:
        gate.wait(60)
        return NgramEncoder()

    with pytest.raises(RuntimeError) as late, pool_of(slow, placement_timeout_s=0.05):
        pass
    gate.set()
    assert "3 of 3 diversity scorers were not ready within dra.scorer.placement_timeout_s=0.05 s" in str(late.value)
    assert "3 of them are placed and still load their encoder" in str(late.value)
    assert "not placed" not in str(late.value)


def test_scorers_that_have_no_place_are_said_with_what_was_asked_for_and_what_there_is() -> None:
    gate = GatedEncoder().gate

    def slow() -> NgramEncoder:
        gate.wait(60)
        return NgramEncoder()

    with pytest.raises(RuntimeError) as late, pool_of(slow, placement_timeout_s=0.05, without_place=[0, 2]):
        pass
    gate.set()
    assert str(late.value) == (
        "3 of 3 diversity scorers were not ready within dra.scorer.placement_timeout_s=0.05 s. 1 of them are placed "
        "and still load their encoder, which a longer time may mend. 2 of them are not placed. Asked for, with "
        "placement cpu: 3 x (CPU 2, GPU 0). The cluster has: CPU 1 of 4 free, GPU 0 of 0 free. Leave CPUs to them, ask "
        "for fewer (dra.scorer.num_replicas), or book none (dra.scorer.num_cpus=0)"
    )


def test_a_pool_says_where_its_scorers_are_and_what_they_embed_together() -> None:
    with pool_of() as (pool, ray):
        ray.rate = lambda: 1234.5
        assert pool.describe() == (
            "3 x (CPU 2, GPU 0), placement cpu; an encoder in this process; 3,704 tokens/s in a trial"
        )

        def away() -> float:
            raise ActorUnavailableError("the network is down", None)

        ray.rate = away
        assert pool.describe().endswith("process; no tokens/s were measured (RayTaskError)")


def test_scorers_are_made_to_be_started_again_for_ever_and_are_found_by_their_number() -> None:
    with pool_of() as (pool, ray):
        assert (
            ray.options
            == [{"max_restarts": -1, "max_task_retries": -1, "num_cpus": 2, "num_gpus": 0, "of config": 2}] * 3
        )
        assert [actor.name for actor in pool.handles] == ["s_0", "s_1", "s_2"]
        assert ray.announced == {"s": 3}
        with pytest.MonkeyPatch.context() as patch:
            killed: list[tuple[Any, bool]] = []
            patch.setattr("ray.kill", lambda actor, no_restart=True: killed.append((actor, no_restart)))
            pool.restart(1, "it hangs")
            assert killed == [(pool.handles[1], False)]
    assert (len(pool), ray.announced) == (0, {})


@pytest.mark.parametrize(("state", "loading"), [("ALIVE", False), ("DEAD", False), ("RESTARTING", True)])
def test_a_scorer_that_is_neither_there_nor_dead_is_loading(state: str, loading: bool) -> None:
    with pool_of() as (pool, ray):
        ray.made[2].state = getattr(STATE, state)
        assert [pool.is_loading(i) for i in range(3)] == [False, False, loading]


def test_a_dead_scorer_is_made_again_once(caplog: pytest.LogCaptureFixture) -> None:
    with pool_of() as (pool, ray):
        dead = pool.handles[1]
        dead.end(restart=False)
        assert pool.revive(1, dead)
        assert "diversity scorer 1 died; it is started again" in caplog.text
        assert [actor.name for actor in ray.made] == ["s_0", "s_1", "s_2", "s_1"]
        assert pool.handles[1] is ray.made[3]
        assert pool.revive(1, dead)  # which is done
        assert len(ray.made) == 4
        # One that goes on after all has its name still.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ray.kill", lambda actor: None)
            assert not pool.revive(2, pool.handles[2])
        assert len(ray.made) == 4
    assert not pool.revive(1, ray.made[3])  # as the run has ended


@pytest.mark.parametrize("unsettled", [{"name": None}, {"placement": "auto"}])
def test_a_pool_needs_a_name_and_a_place(unsettled: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"name and dra\.scorer\.placement must be"), pool_of(**unsettled):
        pass


def test_a_process_that_ends_while_it_loads_is_said_to_have() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcessActor, "_load", lambda actor: actor.end(restart=False) or 7)
        with pytest.raises(RuntimeError, match=r"its process ended while it loaded its encoder\."), pool_of():
            pass


def test_only_shown_vectors_of_a_scorer_that_is_lost_or_silent_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with pool_of() as (pool, ray), pytest.MonkeyPatch.context() as patch:
        patch.setattr("verl_dra.scorer.asking._GRACE_S", 2)
        know_already(pool, TEXTS)
        submit(pool, TEXTS)
        ray.faults["s_0"].append("dies")
        ray.faults["s_2"].append("says nothing")
        came, _ = step_vectors(pool, TEXTS, only_shown=True)
        assert_right(came, TEXTS, but=[session for session in TEXTS if replica_of(session, 3) != 1])
        assert "diversity scorer 0 gave nothing to show: ActorDiedError" in caplog.text


def test_what_a_step_has_of_its_scorers_is_added_up() -> None:
    with pool_of() as (pool, _):
        know_already(pool, TEXTS)
        submit(pool, TEXTS)
        came, _ = step_vectors(pool, TEXTS)
        assert (came.fallbacks, came.backlog_bytes) == (0, 0)
        more = {session: f"{text}!" for session, text in TEXTS.items()}
        came, _ = step_vectors(pool, more)
        of_scorer = {(replica_of(session, 3), text) for session, text in more.items()}
        assert came.events.embedded == len(of_scorer)
        assert came.events.tokens == sum(len(text) for _, text in of_scorer)
        # What one embeds in a second of its work, and so the three together.
        assert came.tokens_per_s > 2 * came.events.tokens / came.busy_s
