"""Real scorers, as benchmarks want them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from verl_dra.algorithm import graph_cut_smi
from verl_dra.embedding import EmbeddingConfig
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.scorer.pool import ScorerPool


@contextmanager
def scorer_pool(embedding: EmbeddingConfig, replicas: int = 1, num_cpus: float = 1) -> Iterator[tuple[ScorerPool, str]]:
    """Graph-Cut scorers that are ready, and the prefix of their names, which a `ScorerClient` needs."""
    name = f"scorer_{uuid.uuid4().hex[:8]}"
    config = ScorerConfig(name=name, num_replicas=replicas, num_cpus=num_cpus)
    pool = ScorerPool(config, embedding, graph_cut_smi)
    yield pool, name
    pool.close()


async def all_sent() -> None:
    """Wait until the scorers have taken what clients of this event loop were given."""
    await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
