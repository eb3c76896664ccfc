"""What a scorer's process loads when, and on which device: the GPU that Ray gave it, by the number that torch knows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from verl_dra.embedding import EmbeddingConfig
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.embedding.sentence_transformer import memory_bound
from verl_dra.scorer.actor import DiversityScorer, remote_scorer
from verl_dra.scorer.messages import Session
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.scorer.scorer import HUNG_S

NOSET = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
UUIDS = "GPU-0a1b2c3d-aaaa,GPU-4e5f6071-bbbb"


class LoadedError(Exception):
    """Ends a scorer's start where it loads its encoder."""


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`device.of(gpu_ids, variables)` of a scorer on a machine with GPUs."""

    def load(config: EmbeddingConfig) -> None:
        raise LoadedError(config.device)

    def of(gpu_ids: list[int | str], variables: dict[str, str]) -> str:
        monkeypatch.setattr("ray.get_gpu_ids", lambda: gpu_ids)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(LoadedError) as loaded:
            DiversityScorer(EmbeddingConfig(), ScorerConfig()).ready()
        return str(loaded.value)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(was_current_actor_reconstructed=False))
    monkeypatch.setattr("verl_dra.scorer.actor.build_encoder", load)
    for name in (NOSET, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    return SimpleNamespace(of=of)


@pytest.mark.parametrize(
    ("gpu_ids", "variables", "expected"),
    [
        ([], {}, "cpu"),
        (["5"], {"CUDA_VISIBLE_DEVICES": "5"}, "cuda"),  # as Ray sets it
        (["5"], {"CUDA_VISIBLE_DEVICES": "5", NOSET: "0"}, "cuda"),
        ([1], {NOSET: "1"}, "cuda:1"),
        (["4"], {"CUDA_VISIBLE_DEVICES": "4,5", NOSET: "1"}, "cuda:0"),
        (["5"], {"CUDA_VISIBLE_DEVICES": "4, 5", NOSET: "true"}, "cuda:1"),
        (["GPU-4e5f6071-bbbb"], {"CUDA_VISIBLE_DEVICES": UUIDS, NOSET: "1"}, "cuda:1"),
    ],
)
def test_the_gpu_is_counted_among_the_visible_ones(
    gpu_ids: list[int | str], variables: dict[str, str], expected: str, device: SimpleNamespace
) -> None:
    assert device.of(gpu_ids, variables) == expected


def test_a_scorer_keeps_within_the_memory_that_its_encoder_says(
    device: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept_within(fraction: float) -> None:
        raise LoadedError(f"{fraction} of {torch.cuda.current_device()}")

    monkeypatch.setattr(
        "verl_dra.scorer.actor.build_encoder", lambda _: SimpleNamespace(memory_bound=memory_bound(2**30, 2**30))
    )
    monkeypatch.setattr("torch.cuda.device", lambda name: nullcontext())
    monkeypatch.setattr("torch.cuda.current_device", lambda: "the right one")
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", kept_within)
    # A GiB of weights and one of a batch, a quarter more, and a quarter of one for vectors.
    assert device.of([1], {NOSET: "1"}) == f"{2.75 / 80} of the right one"


def test_a_gpu_that_can_not_be_seen_is_named(device: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="the GPU 3, which CUDA_VISIBLE_DEVICES=4,5 leaves out"):
        device.of(["3"], {"CUDA_VISIBLE_DEVICES": "4,5", NOSET: "1"})


class Process:
    """A scorer's actor in this process, without Ray: what it is made of."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.loads: list[str | None] = []
        self.scorers: list[dict[str, Any]] = []
        self.threads: list[int] = []
        self.reconstructed = False
        actor = "verl_dra.scorer.actor"
        context = SimpleNamespace(get_actor_name=lambda: "mine_3")
        patch.setattr(
            "ray.get_runtime_context",
            lambda: SimpleNamespace(was_current_actor_reconstructed=self.reconstructed, **vars(context)),
        )
        patch.setattr("ray.get_gpu_ids", list)
        patch.setattr(f"{actor}.build_encoder", self._build)
        patch.setattr(f"{actor}.Telemetry", lambda *of: of)
        patch.setattr(f"{actor}.Scorer", self._scorer)
        patch.setattr(f"{actor}.torch", SimpleNamespace(set_num_threads=self.threads.append))

    def _build(self, config: EmbeddingConfig) -> NgramEncoder:
        self.loads.append(config.device)
        return NgramEncoder()

    def _scorer(self, encoder: Any, rows: int, queue_rows: int, queue_bytes: int, telemetry: Any, hung_s: float) -> Any:
        self.scorers.append({"limits": (rows, queue_rows, queue_bytes), "telemetry": telemetry, "hung_s": hung_s})
        calls = [("submit", 4), ("collect", 3), ("forget", 1)]
        return SimpleNamespace(**{name: lambda *of, name=name: (name, of) for name, _ in calls})


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    return Process(monkeypatch)


CONFIG = ScorerConfig(max_rows=5, max_queue_rows=6, max_queue_bytes=7, num_cpus=3)


def test_the_first_process_loads_its_encoder_when_it_is_asked_and_once(process: Process) -> None:
    actor = DiversityScorer(EmbeddingConfig(encoder="ngram"), CONFIG)
    assert process.loads == []
    assert [actor.ready(), actor.ready()] == [os.getpid()] * 2
    assert (process.loads, process.threads) == (["cpu"], [3])
    assert process.scorers == [{"limits": (5, 6, 7), "telemetry": ("mine_3", False), "hung_s": HUNG_S}]
    assert actor.encoder() == "hashed character 3-grams"
    sessions, texts = [Session("a", 0)], {Session("a", 0): "x"}
    assert actor.submit(texts.items(), 1, 2, 3) is None  # type: ignore[func-returns-value]
    assert actor.collect(sessions, texts, 9.0) == ("collect", (sessions, texts, 9.0))


@pytest.mark.parametrize(("recreated", "reconstructed"), [(True, False), (False, True)])
def test_a_later_process_loads_it_at_once(recreated: bool, reconstructed: bool, process: Process) -> None:
    process.reconstructed = reconstructed
    actor = DiversityScorer(EmbeddingConfig(encoder="openai", device="cuda:7"), CONFIG, recreated)
    assert process.loads == ["cuda:7"]
    assert process.threads == []  # which are the CPU's
    # A server's requests have limits of their own.
    assert process.scorers == [{"limits": (5, 6, 7), "telemetry": ("mine_3", True), "hung_s": math.inf}]
    assert actor.ready() == os.getpid()
    assert len(process.loads) == 1


@pytest.mark.parametrize(("num_cpus", "threads"), [(None, 1), (0, 1), (0.5, 1), (2.5, 2)])
def test_a_scorer_has_a_thread_a_cpu(num_cpus: float | None, threads: int, process: Process) -> None:
    DiversityScorer(EmbeddingConfig(encoder="ngram"), ScorerConfig(num_cpus=num_cpus)).ready()
    assert process.threads == [threads]


def test_a_scorer_tells_what_it_embeds_in_a_second(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "verl_dra.scorer.actor.measured_rate", lambda encoder: 100.0 * isinstance(encoder, NgramEncoder)
    )
    actor = DiversityScorer(EmbeddingConfig(encoder="ngram"), CONFIG, recreated=True)
    assert actor.rate() == 100


def test_submissions_and_collections_have_threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.remote", lambda **options: lambda cls: (cls, options))
    assert remote_scorer() == (DiversityScorer, {"concurrency_groups": {"submit": 1, "collect": 4}})
    groups = {
        name: method.__ray_concurrency_group__
        for name, method in vars(DiversityScorer).items()
        if hasattr(method, "__ray_concurrency_group__")
    }
    assert groups.pop("submit") == "submit"
    assert set(groups.values()) == {"collect"}
    assert set(groups) == {"collect", "forget", "ready", "encoder", "rate"}
    # Of a text that ends the process, and of one that ends while it loads: Ray would try for ever.
    for name in ("collect", "ready", "rate"):
        assert getattr(DiversityScorer, name).__ray_max_task_retries__ == 0
