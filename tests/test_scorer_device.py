"""The device that a scorer loads its encoder on: the GPU that Ray gave it, by the number that torch knows it by."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from verl_dra.embedding import EmbeddingConfig
from verl_dra.embedding.sentence_transformer import memory_bound
from verl_dra.scorer.actor import DiversityScorer
from verl_dra.scorer.placement import ScorerConfig

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
