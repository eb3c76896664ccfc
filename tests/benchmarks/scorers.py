"""Real scorers in a Ray of the program's own."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from verl_dra.algorithm import graph_cut_smi
from verl_dra.embedding import EmbeddingConfig
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.scorer.pool import ScorerPool


@contextmanager
def local_ray() -> Iterator[None]:
    """Its workers import what this process can, and the modules beside this one."""
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        namespace=f"bench_{uuid.uuid4().hex}",
        object_store_memory=2**30,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(path)}},
    )
    yield
    ray.shutdown()


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
