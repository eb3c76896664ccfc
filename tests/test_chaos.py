"""200 steps on real actors with replicas killed, submissions late or twice, and rows evicted."""

from __future__ import annotations

import asyncio
import random
import threading
import uuid
from collections.abc import Iterator

import numpy as np
import processes
import pytest
import torch
from clients import all_sent
from local_ray import local_ray, process_of
from omegaconf import OmegaConf

from verl_dra.algorithm import diversity_weights, graph_cut_smi
from verl_dra.embedding import EmbeddingConfig
from verl_dra.scorer.asking import Asking, StepVectors
from verl_dra.scorer.client import ScorerClient
from verl_dra.scorer.messages import Events, Session
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.scorer.pool import ScorerPool
from verl_dra.scorer.scores import step_scores
from verl_dra.training.estimator import Step, compute_dra_advantage, estimating
from verl_dra.training.rows import Rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

STEPS, GROUPS, SIZE, REPLICAS, KILLS = 200, 8, 4, 3, 24
WAYS = ["add both sides", "draw the graph", "guess and check", "use the lemma", "", "count them all"]

Texts = dict[Session, str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=8):
        yield


class Run:
    """A pool and its client."""

    def __init__(self, max_rows: int) -> None:
        name = f"scorer_{uuid.uuid4().hex[:8]}"
        config = ScorerConfig(
            placement="cpu", name=name, num_replicas=REPLICAS, num_cpus=1, max_rows=max_rows, deadline_s=300
        )
        self.pool = ScorerPool(config, EmbeddingConfig(encoder="ngram"))
        self.client = ScorerClient(name)
        self.came: list[StepVectors] = []

    def submit(self, texts: list[tuple[Session, str]], wait: bool) -> None:
        async def submit() -> None:
            for session, text in texts:
                self.client.submit(session, text)
            if wait:
                await all_sent()
            else:
                await asyncio.sleep(0)

        asyncio.run(submit())

    def advantages(self, texts: Texts, rewards: torch.Tensor) -> torch.Tensor:
        """[N], of a step whose scores are taken."""
        came = Asking(self.pool, list(texts), lambda sessions: {s: texts[s] for s in sessions}).result()
        self.came.append(came)
        rows = Rows.of([f"{s.uid}_{s.session_id}_0" for s in texts], [False] * len(texts))
        scores = step_scores(came.vectors, came.index, rows.group, graph_cut_smi)
        step = Step(rows, scores.smi, diversity_weights(scores.smi), scores.scored, "grpo", "paper")
        config = OmegaConf.create({"gamma": 1.0, "lam": 1.0})
        uids = np.array([s.uid for s in texts], dtype=object)
        with estimating(step):
            advantages, _ = compute_dra_advantage(rewards[:, None], torch.ones(len(texts), 1), uids, config)
        return advantages[:, 0]


def step_texts(rng: random.Random, step: int) -> Texts:
    names = [Session(f"step{step}-{group}", i) for group in range(GROUPS) for i in range(SIZE)]
    rng.shuffle(names)
    return {name: f"{rng.choice(WAYS)} {rng.choice(['', step, step % 7])}" for name in names}


def kill(run: Run, replica: int) -> None:
    processes.kill(process_of(run.pool.handles[replica]))


def test_every_advantage_is_that_of_the_undisturbed_run(cluster: None) -> None:
    rng = random.Random(7)
    calm, disturbed = Run(max_rows=10_000), Run(max_rows=GROUPS)
    kills = dict(
        zip(rng.sample(range(STEPS), KILLS), rng.choices(["before", "after", "meanwhile"], k=KILLS), strict=True)
    )
    assert len(set(kills.values())) == 3
    earlier: list[tuple[Session, str]] = []
    for step in range(STEPS):
        texts = step_texts(rng, step)
        rewards = torch.tensor([rng.choice([0.0, 0.5, 1.0, -1.0]) for _ in texts])
        calm.submit(list(texts.items()), wait=True)
        expected = calm.advantages(texts, rewards)

        sent = [item for item in texts.items() if rng.random() > 0.1]
        sent += rng.sample(sent, 4) + rng.sample(earlier, min(4, len(earlier)))
        rng.shuffle(sent)
        when = kills.get(step)
        if when == "before":
            kill(disturbed, rng.randrange(REPLICAS))
        disturbed.submit(sent, wait=when != "before")
        killer = threading.Thread(target=kill, args=(disturbed, rng.randrange(REPLICAS)))
        if when == "after":
            killer.start()
            killer.join()
        if when == "meanwhile":
            killer.start()
        assert torch.equal(disturbed.advantages(texts, rewards), expected), (step, when)
        if when == "meanwhile":
            killer.join()
        earlier = list(texts.items())

    events = sum((came.events for came in disturbed.came), Events())
    assert events.late > STEPS
    assert events.evicted > STEPS
    assert sum(came.missing_rows for came in disturbed.came) > events.evicted
    assert sum(came.missing_rows for came in calm.came) == 0
    calm.pool.close()
    disturbed.pool.close()
