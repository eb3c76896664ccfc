"""Scorer actors on a real local Ray cluster: placement, replicas, lost ones, and what is left at the end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import ray
import torch
import transfer_queue as tq
from clients import all_sent
from fake_encoders import BREAK, POISON, STALL
from local_ray import local_ray, process_of
from omegaconf import OmegaConf
from processes import alive
from tensordict import TensorDict
from trajectories import byte_tokenizer, trajectory
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_dra.algorithm import graph_cut_smi
from verl_dra.config import DRAConfig
from verl_dra.embedding import EmbeddingConfig
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.scorer.asking import Asking, FetchTexts, NoScoresError, StepVectors, take
from verl_dra.scorer.client import ScorerClient
from verl_dra.scorer.messages import Session
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.scorer.pool import ScorerPool, replica_name, replica_of
from verl_dra.scorer.scores import StepScores, step_scores
from verl_dra.training.reward_manager import DRARewardManager
from verl_dra.training.rows import Rows
from verl_dra.training.trainer import with_dra

pytestmark = pytest.mark.slow

Texts = dict[Session, str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this module's own with room for 32 CPUs and two GPUs, which are numbers to Ray."""
    with local_ray(num_cpus=32, num_gpus=2):
        yield


@dataclass
class Run:
    """A pool as the trainer owns it, a client as reward workers have it, and the encoder's gate."""

    pool: ScorerPool
    client: ScorerClient
    name: str
    gate: Path

    def submit(self, texts: Texts) -> None:
        """As reward workers do; returns when all has arrived or is given up."""

        async def submit() -> None:
            for session, text in texts.items():
                self.client.submit(session, text)
            await all_sent()

        asyncio.run(submit())

    def close_gate(self) -> None:
        self.gate.unlink()
        self.gate.with_suffix(".started").unlink(missing_ok=True)

    def vectors(self, texts: Texts) -> StepVectors:
        return self.ask(texts).result()

    def ask(self, texts: Texts, fetch: FetchTexts | None = None) -> Asking:
        """As the trainer does for a step that has these completions."""
        return Asking(self.pool, list(texts), fetch or fetch_from(texts))


@pytest.fixture(scope="module")
def start(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Run]]:
    pools: list[ScorerPool] = []

    def start(
        encoder: str = "fake_encoders:FileGatedEncoder",
        trainer_pool: Any = (),
        gate: Path | None = None,
        **settings: Any,
    ) -> Run:
        name = f"scorer_{uuid.uuid4().hex[:8]}"
        if gate is None:
            gate = tmp_path_factory.mktemp(name) / "gate"
            gate.touch()
        on_failure = settings.pop("on_failure", "raise")
        defaults = {"placement": "cpu", "num_replicas": 1, "num_cpus": 1, "placement_timeout_s": 200}
        config = ScorerConfig(name=name, **{**defaults, **settings})
        embedding = EmbeddingConfig(encoder=encoder, model=str(gate))
        pools.append(ScorerPool(config, embedding, on_failure, trainer_pool))
        return Run(pools[-1], ScorerClient(name), name, gate)

    yield start
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def run(start: Callable[..., Run]) -> Run:
    """Three replicas, shared by the tests of this module; each leaves them alive."""
    return start(num_replicas=3)


def completions(groups: int = 8, size: int = 3) -> Texts:
    """Texts of shuffled groups, with clones; a group is on as many replicas as it has texts. No scorer knows them."""
    rng = np.random.default_rng(0)
    step = uuid.uuid4().hex[:8]
    names = [Session(f"{step}_{g}", s) for g in range(groups) for s in range(size)]
    words = ["add both sides", "draw the graph", "guess and check", "use the lemma"]
    return {names[i]: f"{rng.choice(words)} {rng.integers(3)} {step}" for i in rng.permutation(len(names))}


def fetch_from(texts: Texts) -> Callable[[Sequence[Session]], Mapping[Session, str]]:
    return lambda sessions: {session: texts[session] for session in sessions}


def never_fetch(sessions: Sequence[Session]) -> Texts:
    raise AssertionError(f"{len(sessions)} completions were fetched")


def scores_of(came: StepVectors, texts: Texts) -> StepScores:
    group = np.unique([session.uid for session in texts], return_inverse=True)[1]
    return step_scores(came.vectors, came.index, torch.from_numpy(group), graph_cut_smi)


def unscored(came: StepVectors, texts: Texts) -> int:
    """Groups without scores."""
    return int(scores_of(came, texts).effective_paths.isnan().sum())


def assert_right(came: StepVectors, texts: Texts, but: Sequence[str] = ()) -> None:
    """The scores are those of the oracle, but for the groups `but`, which have none."""
    scores = scores_of(came, texts)
    assert scores.scored.tolist() == [session.uid not in but for session in texts]
    assert not scores.smi[~scores.scored].any()
    texts = {session: text for session, text in texts.items() if session.uid not in but}
    vectors = NgramEncoder().encode(list(texts.values())).vectors.numpy()
    group = np.unique([session.uid for session in texts], return_inverse=True)[1]
    np.testing.assert_allclose(scores.smi[scores.scored], oracles.graph_cut_smi(vectors, group), atol=1e-5)
    paths = scores.effective_paths[~scores.effective_paths.isnan()]
    np.testing.assert_allclose(paths, oracles.effective_paths(vectors, group))
    clones = [sum(o == t and s.uid == q.uid for q, o in texts.items()) > 1 for s, t in texts.items()]
    assert scores.duplicate[scores.scored].tolist() == clones


def all_there(came: StepVectors) -> bool:
    return bool((came.index >= 0).all())


def eventually(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def embed(run: Run, texts: Texts) -> None:
    """Wait until replica 0 has embedded texts that it was given; it forgets nothing of them."""
    same = {Session(f"same {uuid.uuid4()}", i): text for i, text in enumerate(texts.values())}
    assert (ray.get(run.pool.handles[0].collect.remote(list(same), same, 60)).index >= 0).all()


def kill(run: Run, replica: int, how: str) -> None:
    handle = run.pool.handles[replica]
    pid = process_of(handle)
    if how == "sigkill":
        os.kill(pid, signal.SIGKILL)
    else:
        ray.kill(handle, no_restart=how == "gone for good")
    eventually(lambda: not alive(pid))


def test_a_group_on_several_replicas_has_the_scores_of_one(run: Run) -> None:
    texts = completions()
    for uid in {session.uid for session in texts}:
        assert {replica_of(session, 3) for session in texts if session.uid == uid} == {0, 1, 2}
    run.submit(texts)
    scores = run.ask(texts, never_fetch).result()
    assert_right(scores, texts)
    assert (scores.missing_rows, scores.fallbacks) == (0, 0)
    assert scores.tokens == sum(map(len, texts.values()))
    assert scores.events.submitted == len(texts)


def test_completions_that_never_came_are_fetched_and_counted(run: Run) -> None:
    texts = completions()
    arrived = dict(list(texts.items())[::2])
    run.submit(arrived)
    scores = run.vectors(texts)
    assert_right(scores, texts)
    assert scores.missing_rows == len(texts) - len(arrived)
    assert 1 <= scores.fallbacks <= 3


def test_texts_that_are_missing_are_sent_while_the_rest_is_still_being_embedded(run: Run) -> None:
    texts = completions()
    arrived = dict(list(texts.items())[::2])
    fetched: list[Session] = []

    def fetch(sessions: Sequence[Session]) -> Mapping[Session, str]:
        fetched.extend(sessions)
        return {session: texts[session] for session in sessions}

    run.close_gate()
    run.submit(arrived)
    asking = run.ask(texts, fetch)
    eventually(lambda: len(fetched) == len(texts) - len(arrived))
    assert not run.gate.exists()
    run.gate.touch()
    assert_right(asking.result(), texts)
    assert len(fetched) == len(texts) - len(arrived)


def test_scores_are_asked_for_before_the_texts_are_embedded(run: Run) -> None:
    texts = completions()
    run.close_gate()
    run.submit(texts)
    asking = run.ask(texts, never_fetch)
    # When a later question is answered, they have got that one.
    ray.get([handle.collect.remote([Session("none", 0)], {}, 0) for handle in run.pool.handles])
    run.gate.touch()
    came = asking.result()
    assert_right(came, texts)
    assert came.backlog_bytes == sum(len(text) for _, text in {(replica_of(s, 3), text) for s, text in texts.items()})


@pytest.fixture(scope="module")
def transfer_queue(cluster: None) -> Iterator[None]:
    tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 2}}}))
    yield
    tq.close()


def test_texts_are_fetched_from_transfer_queue_while_the_trainer_asks_it_too(
    run: Run, transfer_queue: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """veRL's client runs what several threads of a process ask for (TransferQueue 0.1.11)."""
    monkeypatch.setattr("verl_dra.scorer.asking._TEXTS", (4, 4))
    texts, tokenizer = completions(groups=40), byte_tokenizer()
    keys = [f"{session.uid}_{session.session_id}_0" for session in texts]
    tokens = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts.values()]
    responses = torch.nested.nested_tensor(tokens, layout=torch.jagged)
    tq.kv_batch_put(keys=keys, partition_id="train", fields=TensorDict({"responses": responses}, batch_size=len(keys)))
    trainer: Any = object.__new__(with_dra(PPOTrainerSync))
    trainer.tokenizer, trainer._dra = tokenizer, DRAConfig()
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=[{} for _ in keys])
    asking = run.ask(texts, trainer._texts_of(batch, Rows.of(keys, [False] * len(keys))))
    rounds = 0
    while rounds < 3 or any(thread.name == "dra-asking" for thread in threading.enumerate()):
        column = TensorDict({"log_probs": torch.arange(len(keys)) + rounds}, batch_size=len(keys))
        tq.kv_batch_put(keys=keys, partition_id="train", fields=column)
        data = tq.kv_batch_get(keys=keys[::-1], partition_id="train", select_fields=["log_probs", "responses"])
        assert data["log_probs"].tolist() == [at + rounds for at in reversed(range(len(keys)))]
        assert [row.tolist() for row in data["responses"].unbind()] == [row.tolist() for row in reversed(tokens)]
        rounds += 1
    came = asking.result()
    assert_right(came, texts)
    assert came.missing_rows == len(texts)


def test_a_step_takes_scores_once(run: Run) -> None:
    texts = completions(groups=2)
    run.submit(texts)
    assert run.vectors(texts).missing_rows == 0
    assert run.vectors(texts).missing_rows == len(texts)


@pytest.mark.parametrize("how", ["restarted", "gone for good", "sigkill"])
@pytest.mark.parametrize("moment", ["before the step asks", "while the step waits"])
def test_a_lost_replica_costs_time_and_never_the_scores(run: Run, moment: str, how: str) -> None:
    texts = completions()
    lost = sum(replica_of(session, 3) == 1 for session in texts)
    if moment == "before the step asks":
        run.submit(texts)
        kill(run, 1, how)
        scores = run.vectors(texts)
    else:
        run.close_gate()
        run.submit(texts)
        asking = run.ask(texts)
        eventually(run.gate.with_suffix(".started").exists)
        kill(run, 1, how)
        run.gate.touch()
        scores = asking.result()
    assert_right(scores, texts)
    assert scores.missing_rows == lost
    assert scores.fallbacks >= 1


def test_a_client_survives_its_scorer_and_finds_it_again(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    texts = completions()
    run.submit(texts)
    run.vectors(texts)
    for replica in range(3):
        kill(run, replica, "gone for good")
    texts = completions()
    run.submit(texts)
    assert "did not reach diversity scorer" in caplog.text
    assert run.vectors(texts).missing_rows == len(texts)
    texts = completions()
    run.submit(texts)
    scores = run.vectors(texts)
    assert scores.missing_rows == 0
    assert scores.events.unsent == len(texts)


def test_a_client_without_any_scorer_does_not_raise(cluster: None, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(pool=None, client=ScorerClient("nobody"), name="nobody", gate=Path())
    run.submit(completions(groups=1, size=1))
    assert "1 completions did not reach a diversity scorer (LookupError: no diversity scorers of the name nobody" in (
        caplog.text
    )


def length_score(solution_str: str, **_: Any) -> float:
    return float(len(solution_str))


def test_completions_reach_their_scorer_around_verls_remote_reward_manager(run: Run) -> None:
    texts, tokenizer = completions(groups=2), byte_tokenizer()
    dra = DRAConfig(base_reward_manager="remote", scorer=ScorerConfig(name=run.name))
    config = OmegaConf.create({"dra": OmegaConf.structured(dra), "reward": {"num_workers": 1}})

    async def reward() -> list[float]:
        manager = DRARewardManager(config, tokenizer, length_score)
        results = [await manager.run_single(trajectory(tokenizer, [("q", text)], *s)) for s, text in texts.items()]
        await all_sent()
        return [result["reward_score"] for result in results]

    assert asyncio.run(reward()) == [len(text) for text in texts.values()]
    assert_right(run.ask(texts, never_fetch).result(), texts)


def test_a_text_that_cannot_be_embedded_stops_the_step_and_is_named(run: Run) -> None:
    texts = completions(groups=2)
    session = next(iter(texts))
    texts[session] = POISON
    run.submit(texts)
    with pytest.raises(
        NoScoresError,
        match=rf"can't embed 1 of them, such as the completion {session.session_id} of uid {session.uid}: "
        r"RuntimeError: poison can't be embedded. dra.on_failure=unadjusted would train on",
    ):
        run.vectors(texts)
    texts[session] = "good again"
    assert_right(run.vectors(texts), texts)


def test_a_text_that_cannot_be_embedded_leaves_its_group_alone_unadjusted(start: Callable[..., Run]) -> None:
    run = start(on_failure="unadjusted")
    texts = completions()
    poisoned = next(iter(texts))
    run.submit(texts | {poisoned: POISON})
    assert_right(run.vectors(texts | {poisoned: POISON}), texts, but=[poisoned.uid])


@pytest.mark.parametrize("on_failure", ["raise", "unadjusted"])
def test_vectors_of_a_wrong_shape_are_a_failure_like_others(start: Callable[..., Run], on_failure: str) -> None:
    run = start("fake_encoders:FlatEncoder", on_failure=on_failure, deadline_s=3)
    texts = completions(groups=2)
    run.submit(texts)
    if on_failure == "raise":
        with pytest.raises(NoScoresError, match=r"scorer 0 gave no scores of (.|\n)*the shape \[1, 512, 1\]"):
            run.vectors(texts)
    else:
        assert unscored(run.vectors(texts), texts) == 2


def test_a_text_that_ends_the_process_ends_no_later_step(start: Callable[..., Run]) -> None:
    run = start("fake_encoders:FatalEncoder", deadline_s=8, on_failure="unadjusted")
    bad, good = completions(groups=2), completions(groups=2)
    bad[next(iter(bad))] = POISON
    assert unscored(run.vectors(bad), bad) == 2
    # The text may be on its way to one process more, and one that starts on a busy machine may take longer than a step.
    eventually(lambda: all_there(run.vectors(completions(groups=2))))
    scores = run.vectors(good)
    assert_right(scores, good)


def test_an_encoder_that_stays_broken_is_tried_until_the_deadline(start: Callable[..., Run]) -> None:
    run = start("fake_encoders:BrokenForAWhileEncoder", deadline_s=500)
    texts = completions(groups=2)
    run.submit(texts)
    scores = run.vectors(texts)
    assert_right(scores, texts)
    assert len(run.gate.with_suffix(".loads").read_text().splitlines()) == 4


def test_an_encoder_that_broke_is_loaded_again(start: Callable[..., Run]) -> None:
    run = start("fake_encoders:OnceBrokenEncoder")
    texts = completions(groups=4)
    run.submit(texts)
    scores = run.vectors(texts)
    assert_right(scores, texts)
    assert scores.fallbacks >= 2


@pytest.mark.parametrize("encoder", ["BreaksMidwayEncoder", "ShortTroubleEncoder"])
def test_an_encoder_that_breaks_in_mid_step_costs_time(start: Callable[..., Run], encoder: str) -> None:
    run = start(f"fake_encoders:{encoder}")
    texts = completions(groups=4)
    there = dict(list(texts.items())[:3])
    run.submit(there)
    embed(run, there)
    texts[list(texts)[4]] = BREAK
    run.submit(texts)
    assert_right(run.vectors(texts), texts)


def test_scorers_that_stand_still_keep_no_step_beyond_its_deadline_and_are_started_again(
    start: Callable[..., Run],
) -> None:
    run = start(num_replicas=3, deadline_s=2, on_failure="unadjusted")
    pids = [process_of(handle) for handle in run.pool.handles]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    before = time.monotonic()
    texts = completions()
    scores = run.vectors(texts)
    assert time.monotonic() - before < 12
    assert unscored(scores, texts) == 8
    eventually(lambda: not any(map(alive, pids)))
    run.pool.config.deadline_s = 300
    assert all_there(run.vectors(completions()))


def test_a_scorer_that_takes_longer_to_load_than_a_deadline_is_left_to_it(start: Callable[..., Run]) -> None:
    run = start("fake_encoders:SlowToLoadEncoder", deadline_s=1, on_failure="unadjusted")
    loads = run.gate.with_suffix(".loads")
    run.gate.unlink()
    os.kill(ray.get(run.pool.handles[0].ready.remote()), signal.SIGSTOP)
    for _ in range(3):
        assert not (run.vectors(completions()).index >= 0).any()
        eventually(lambda: loads.read_text() == "begun\nbegun\n")
    run.gate.touch()
    eventually(lambda: all_there(run.vectors(completions())))
    assert loads.read_text() == "begun\nbegun\n"


def test_an_encoder_that_cannot_be_loaded_stops_the_start(start: Callable[..., Run]) -> None:
    with pytest.raises(RuntimeError, match=r"scorer could not start(.|\n)*this encoder has no weights"):
        start("fake_encoders:BrokenEncoder")


def test_a_scorer_that_dies_while_it_loads_stops_the_start_at_once(start: Callable[..., Run], tmp_path: Path) -> None:
    before = set(ray.util.list_named_actors())
    with pytest.raises(RuntimeError, match="its process ended while it loaded") as refusal:
        start("fake_encoders:DiesWhileLoadingEncoder", gate=tmp_path / "gate")
    assert "not placed" not in str(refusal.value)
    eventually(lambda: set(ray.util.list_named_actors()) <= before)


def test_a_scorer_that_loads_for_too_long_is_not_said_to_lack_room(
    start: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_until_ready = ScorerPool._wait_until_ready

    def once_placed(pool: ScorerPool) -> None:
        ray.get(pool.handles[0].__ray_ready__.remote())
        wait_until_ready(pool)

    monkeypatch.setattr(ScorerPool, "_wait_until_ready", once_placed)
    with pytest.raises(RuntimeError, match=r" 1 of them are placed and still load their encoder") as refusal:
        start("fake_encoders:SlowToLoadEncoder", gate=tmp_path / "gate", placement_timeout_s=1)
    assert "not placed" not in str(refusal.value)


def test_a_step_ends_at_its_deadline(start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_dra.scorer.asking._GRACE_S", 300)  # it is the scorer that says what it lacks
    run = start(deadline_s=1)
    texts = completions(groups=1)
    run.close_gate()
    asking = run.ask(texts)
    eventually(run.gate.with_suffix(".started").exists)
    with pytest.raises(
        NoScoresError,
        match=r"scorer 0 gave no scores of 3 completions: dra.scorer.deadline_s=1 s have passed without a text "
        r"embedded: 3 texts are not embedded yet",
    ):
        asking.result()
    run.gate.touch()


def long_completions() -> Texts:
    """16 that differ, each a call of the encoder."""
    return {s: f"{text} {s}{' ' * 2**18}" for s, text in completions(groups=4, size=4).items()}


def test_a_step_waits_for_a_slow_scorer_as_long_as_it_embeds_texts(start: Callable[..., Run]) -> None:
    run = start("fake_encoders:SlowEncoder", deadline_s=2)
    texts = long_completions()
    before = time.monotonic()
    came = run.vectors(texts)
    assert time.monotonic() - before > 4
    assert all_there(came)


def test_a_scorer_that_stops_embedding_keeps_a_step_no_longer_than_a_deadline(start: Callable[..., Run]) -> None:
    run = start("fake_encoders:SlowEncoder", deadline_s=2)
    texts = long_completions()
    texts[list(texts)[9]] = STALL
    before = time.monotonic()
    with pytest.raises(NoScoresError, match="have passed without a text embedded"):
        run.vectors(texts)
    assert time.monotonic() - before > 3


def test_after_the_deadline_groups_that_are_there_are_scored_and_the_others_left_raw(start: Callable[..., Run]) -> None:
    run = start(deadline_s=1, on_failure="unadjusted")
    there, late = completions(groups=2), completions(groups=3)
    run.submit(there)
    embed(run, there)
    run.close_gate()
    asking = run.ask(there | late)
    eventually(run.gate.with_suffix(".started").exists)
    scores = asking.result()
    run.gate.touch()
    assert_right(scores, there | late, but=[session.uid for session in late])


@pytest.mark.parametrize("on_failure", ["raise", "unadjusted"])
def test_a_replica_that_cannot_come_back_ends_the_step_at_its_deadline(
    start: Callable[..., Run], on_failure: str
) -> None:
    run = start(deadline_s=4, on_failure=on_failure)
    run.gate.with_suffix(".broken").touch()
    kill(run, 0, "gone for good")
    texts = completions(groups=2)
    if on_failure == "raise":
        with pytest.raises(NoScoresError, match=r"scorer 0 gave .* and dra.scorer.deadline_s=4 s have passed"):
            run.vectors(texts)
        return
    assert unscored(run.vectors(texts), texts) == 2
    run.gate.with_suffix(".broken").unlink()
    texts = completions(groups=2)
    eventually(lambda: all_there(run.vectors(texts)))


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"placement": "dedicated"}, r"placement dedicated: 1 x \(CPU 1, GPU 1\).*use dra.scorer.placement=colocated"),
        (
            {"num_cpus": 20, "num_replicas": 2},
            r"placement cpu: 2 x \(CPU 20, GPU 0\) on 1 node.*or book none \(dra.scorer.num_c",
        ),
    ],
)
def test_what_cannot_be_placed_fails_at_the_start_with_the_reason(
    start: Callable[..., Run], settings: dict[str, Any], asked: str
) -> None:
    trainer = ray.util.placement_group([{"CPU": 1, "GPU": 1}] * 2)
    ray.get(trainer.ready())
    before = time.monotonic()
    try:
        with pytest.raises(RuntimeError, match=rf"within dra.scorer.placement_timeout_s=3 s.*{asked}") as refusal:
            start("ngram", placement_timeout_s=3, **settings)
    finally:
        ray.util.remove_placement_group(trainer)
    assert time.monotonic() - before < 30
    assert "of 32 free, GPU 0 of 2 free" in str(refusal.value)


def test_colocated_scorers_take_their_share_of_the_trainers_gpus(start: Callable[..., Run]) -> None:
    trainer = ray.util.placement_group([{"CPU": 1, "GPU": 1}] * 2)
    ray.get(trainer.ready())
    run = start("ngram", [trainer], placement="colocated", num_replicas=2, gpu_fraction=0.25)

    def left_of_each_gpu() -> list[float]:
        group = trainer.id.hex()
        return [ray.available_resources().get(f"GPU_group_{i}_{group}", 0) for i in range(2)]

    eventually(lambda: left_of_each_gpu() == [0.75, 0.75])
    texts = completions()
    run.submit(texts)
    assert_right(run.vectors(texts), texts)
    run.pool.close()
    eventually(lambda: left_of_each_gpu() == [1, 1])
    ray.util.remove_placement_group(trainer)


def test_scorers_without_a_number_are_on_the_nodes_of_the_run_and_say_what_they_embed(
    start: Callable[..., Run],
) -> None:
    trainer = ray.util.placement_group([{"CPU": 1, "GPU": 1}] * 2)
    ray.get(trainer.ready())
    run = start("ngram", [trainer], num_replicas=None, num_cpus=None)
    ray.util.remove_placement_group(trainer)
    assert len(run.pool) == 1
    said = re.fullmatch(
        r"1 x \(CPU 2, GPU 0\) on 1 node, placement cpu; hashed character 3-grams; ([\d,]+) tokens/s in a trial",
        run.pool.describe(),
    )
    assert said
    assert int(said[1].replace(",", "")) > 10_000
    texts = completions()
    run.submit(texts)
    assert_right(run.vectors(texts), texts)


def test_reward_workers_find_the_scorers_while_the_first_is_dead(start: Callable[..., Run]) -> None:
    run = start("ngram", num_replicas=2)
    kill(run, 0, "gone for good")
    texts = completions(groups=2)
    run.submit(texts)
    came = run.vectors(texts)
    assert_right(came, texts)
    assert came.missing_rows == sum(replica_of(session, 2) == 0 for session in texts)


def test_scorers_use_the_cpus_that_they_booked_whatever_a_site_exports(start: Callable[..., Run]) -> None:
    run = start("fake_encoders:ThreadsEncoder", num_cpus=2)
    texts = completions(groups=1)
    assert_right(run.vectors(texts), texts)
    assert run.gate.with_suffix(".threads").read_text() == "2"


def test_what_is_only_shown_is_taken_as_far_as_it_is_there(start: Callable[..., Run]) -> None:
    run = start(deadline_s=300, on_failure="raise")
    there, late, never = completions(groups=2), completions(groups=3), completions(groups=1)
    run.submit(there)
    embed(run, there)
    run.close_gate()
    run.submit(late)
    texts = there | late | never
    before = time.monotonic()
    assert_right(take(run.pool, list(texts)), texts, but=[session.uid for session in [*late, *never]])
    assert time.monotonic() - before < 60
    run.gate.touch()
    texts = completions(groups=2)
    assert_right(run.vectors(texts), texts)


def test_nothing_is_left_after_close(start: Callable[..., Run]) -> None:
    run = start("ngram", num_replicas=2)
    pids = [process_of(handle) for handle in run.pool.handles]
    assert all(map(alive, pids))
    run.pool.close()
    eventually(lambda: not any(map(alive, pids)))
    names = {replica_name(run.name, i) for i in range(2)}
    eventually(lambda: not names & set(ray.util.list_named_actors()))
