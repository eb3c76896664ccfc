"""Real scorers, as benchmarks want them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from verl_dra.algorithm import graph_cut_smi
from verl_dra.embedding import EmbeddingConfig
from verl_dra.scorer.asking import Asking, StepVectors
from verl_dra.scorer.messages import Session
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.scorer.pool import ScorerPool
from verl_dra.scorer.scores import StepScores, step_scores


@contextmanager
def scorer_pool(embedding: EmbeddingConfig, replicas: int = 1, num_cpus: float = 1) -> Iterator[tuple[ScorerPool, str]]:
    """Scorers that are ready, and the prefix of their names, which a `ScorerClient` needs."""
    name = f"scorer_{uuid.uuid4().hex[:8]}"
    config = ScorerConfig(placement="cpu", name=name, num_replicas=replicas, num_cpus=num_cpus)
    pool = ScorerPool(config, embedding)
    yield pool, name
    pool.close()


def scored(pool: ScorerPool, texts: dict[Session, str]) -> tuple[StepVectors, StepScores]:
    """A step as the trainer has it: vectors of all `texts`, and the scores of their groups."""
    group = np.unique([session.uid for session in texts], return_inverse=True)[1]
    came = Asking(pool, list(texts), lambda sessions: {session: texts[session] for session in sessions}).result()
    scores = step_scores(came.vectors, came.index, torch.from_numpy(group), graph_cut_smi)
    assert scores.scored.all()
    return came, scores
