"""The scorer as a Ray actor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch

from verl_dra.embedding import EmbeddingConfig, build_encoder
from verl_dra.scorer.messages import Counts, Missing, Scores, Session
from verl_dra.scorer.scorer import Scorer


class DiversityScorer:
    """Runs a `Scorer` in a process of its own. Ray runs the constructor again at each restart.

    Submissions have a thread of their own, so that they never wait behind a collection.
    """

    def __init__(self, embedding: EmbeddingConfig, smi: str, max_rows: int) -> None:
        self._scorer = Scorer(build_encoder(replace(embedding, device=embedding.device or _device())), smi, max_rows)

    @ray.method(concurrency_group="submit")
    def submit(self, completions: Iterable[tuple[Session, str]]) -> None:
        """See `Scorer.submit`."""
        self._scorer.submit(completions)

    @ray.method(concurrency_group="collect")
    def collect(self, sessions: Sequence[Session], texts: Mapping[Session, str]) -> Scores | Missing:
        """See `Scorer.collect`."""
        return self._scorer.collect(sessions, texts)

    @ray.method(concurrency_group="collect")
    def take_counts(self) -> Counts:
        """See `Scorer.take_counts`."""
        return self._scorer.take_counts()

    @ray.method(concurrency_group="collect")
    def ready(self) -> int:
        """The process id, once the encoder is loaded."""
        return os.getpid()


def _device() -> str:
    """The GPU that Ray assigned, or the CPU. Ray 2.60 leaves all GPUs visible to an actor that booked none."""
    assigned = ray.get_gpu_ids()
    if not assigned or not torch.cuda.is_available():
        return "cpu"
    if os.environ.get("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"):
        return f"cuda:{assigned[0]}"
    return "cuda"


def remote_scorer() -> Any:
    """The Ray actor class."""
    return ray.remote(concurrency_groups={"submit": 1, "collect": 4})(DiversityScorer)  # type: ignore[call-overload]
