"""The scorer as a Ray actor."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch

from verl_dra.embedding import EmbeddingConfig, build_encoder
from verl_dra.embedding.rate import measured_rate
from verl_dra.scorer.messages import Session, Vectors
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.scorer.scorer import HUNG_S, Scorer
from verl_dra.scorer.telemetry import Telemetry


class DiversityScorer:
    """Runs a `Scorer` in a process of its own.

    The first process loads its encoder when it is asked whether it is `ready`, so that who asks sees how it died there.
    Later ones, which nobody may ask, load it in the constructor, which Ray runs again at each restart.

    Submissions have a thread of their own, so that they never wait behind a collection, nor a collection behind one
    that waits for room.
    """

    def __init__(self, embedding: EmbeddingConfig, config: ScorerConfig, recreated: bool = False) -> None:
        self._embedding = embedding
        self._config = config
        self._restarted = recreated or bool(ray.get_runtime_context().was_current_actor_reconstructed)
        if self._restarted:
            self._load()

    @ray.method(concurrency_group="submit")
    def submit(
        self, completions: Iterable[tuple[Session, str]], refused: int = 0, unsent: int = 0, skipped: int = 0
    ) -> None:
        """See `Scorer.submit`."""
        self._scorer.submit(completions, refused, unsent, skipped)

    # Who asks does so again by itself: Ray would send a text that ends the process for ever, whoever waits for it.
    @ray.method(concurrency_group="collect", max_task_retries=0)
    def collect(self, sessions: Sequence[Session], texts: Mapping[Session, str], within_s: float) -> Vectors:
        """See `Scorer.collect`."""
        return self._scorer.collect(sessions, texts, within_s)

    @ray.method(concurrency_group="collect")
    def forget(self, sessions: Sequence[Session]) -> None:
        """See `Scorer.forget`."""
        self._scorer.forget(sessions)

    # The first process that ends while it loads ends the start; Ray would start it for ever.
    @ray.method(concurrency_group="collect", max_task_retries=0)
    def ready(self) -> int:
        """The process id, once the encoder is loaded."""
        if not hasattr(self, "_scorer"):
            self._load()
        return os.getpid()

    @ray.method(concurrency_group="collect")
    def encoder(self) -> str:
        """The encoder in words."""
        return str(self._encoder)

    @ray.method(concurrency_group="collect", max_task_retries=0)
    def rate(self) -> float:
        """Tokens that the encoder embeds in a second, tried; before it has anything else to do."""
        return measured_rate(self._encoder)

    def _load(self) -> None:
        device = self._embedding.device or _device()
        if device == "cpu":
            # By itself torch takes OMP_NUM_THREADS, which Ray sets where nobody has, and sites often export as 1.
            torch.set_num_threads(max(1, int(self._config.num_cpus or 0)))
        self._encoder = build_encoder(replace(self._embedding, device=device))
        if memory := getattr(self._encoder, "memory_bound", None):
            _keep_within(memory, device)
        self._scorer = Scorer(
            self._encoder,
            self._config.max_rows,
            self._config.max_queue_rows,
            self._config.max_queue_bytes,
            Telemetry(str(ray.get_runtime_context().get_actor_name()), self._restarted),
            # Its requests have time-outs, and a scorer that is started again needs the server that it may wait for.
            hung_s=math.inf if self._embedding.encoder == "openai" else HUNG_S,
        )


def _keep_within(memory: int, device: str) -> None:
    """Let this process take so many bytes of the GPU and no more, as vLLM's wake-up needs the rest; a batch that finds
    none is halved."""
    with torch.cuda.device(device):
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(memory / total, 1.0))


def _device() -> str:
    """The GPU that Ray assigned, or the CPU. Ray 2.60 leaves all GPUs visible to an actor that booked none."""
    assigned = ray.get_gpu_ids()
    if not assigned or not torch.cuda.is_available():
        return "cpu"
    if os.environ.get("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", "").lower() not in ("1", "true"):
        return "cuda"
    gpu, visible = str(assigned[0]), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return f"cuda:{gpu}"
    # Ray names the GPU as it stands there, by its number or its UUID; torch counts those that stand there.
    names = [name.strip() for name in visible.split(",")]
    if gpu not in names:
        raise ValueError(f"Ray gave this scorer the GPU {gpu}, which CUDA_VISIBLE_DEVICES={visible} leaves out")
    return f"cuda:{names.index(gpu)}"


def remote_scorer() -> Any:
    """The Ray actor class."""
    return ray.remote(concurrency_groups={"submit": 1, "collect": 4})(DiversityScorer)  # type: ignore[call-overload]
