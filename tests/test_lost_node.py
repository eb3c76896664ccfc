"""A node of a Ray cluster is lost with its scorer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import oracles
import pytest
import ray
import torch
from clients import all_sent
from local_ray import come_up
from processes import alive
from ray.cluster_utils import Cluster

from verl_dra.algorithm import graph_cut_smi
from verl_dra.embedding import EmbeddingConfig
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.scorer.asking import Asking
from verl_dra.scorer.client import ScorerClient
from verl_dra.scorer.messages import Session
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.scorer.pool import ScorerPool, replica_of
from verl_dra.scorer.scores import step_scores

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes: processes of this machine, ended by their cluster."""
    cluster = come_up(Cluster, initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    come_up(cluster.add_node, num_cpus=4)
    ray.init(address=cluster.address, namespace=f"nodes_{uuid.uuid4().hex}", log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_scorer_moves_to_another_node_and_the_scores_stay(cluster: Any) -> None:
    trainer = ray.util.placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    ray.get(trainer.ready())
    config = ScorerConfig(placement="cpu", name="scorer", deadline_s=300)
    pool = ScorerPool(config, EmbeddingConfig(encoder="ngram"), trainer_pool=[trainer])
    assert len(pool) == 2
    client = ScorerClient("scorer")
    texts = {Session(f"{g}", i): f"way {(g * i) % 3}" for g in range(12) for i in range(4)}

    async def submit() -> None:
        for session, text in texts.items():
            client.submit(session, text)
        await all_sent()

    asyncio.run(submit())
    pids = ray.get([handle.ready.remote() for handle in pool.handles])
    (other,) = cluster.worker_nodes
    cluster.remove_node(other, allow_graceful=False)
    while all(map(alive, pids)):
        pass
    came = Asking(pool, list(texts), lambda sessions: {s: texts[s] for s in sessions}).result()
    vectors = NgramEncoder().encode(list(texts.values())).vectors.numpy()
    group = np.unique([session.uid for session in texts], return_inverse=True)[1]
    scores = step_scores(came.vectors, came.index, torch.from_numpy(group), graph_cut_smi)
    np.testing.assert_allclose(scores.smi, oracles.graph_cut_smi(vectors, group), atol=1e-5)
    per_replica = np.bincount([replica_of(session, 2) for session in texts])
    assert came.missing_rows in per_replica
    assert came.fallbacks >= 1
    pool.close()
