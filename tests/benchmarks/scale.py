"""The scorers under load, without an encoder: balance and waits simulated, the submit path, 64 nodes' traffic."""

from __future__ import annotations

import asyncio
import pickle
import re
import statistics
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray
import torch
from clients import all_sent
from local_ray import local_ray
from scorers import scored, scorer_pool
from timing import show

from verl_dra.embedding import EmbeddingConfig, Encoded
from verl_dra.scorer.client import ScorerClient
from verl_dra.scorer.messages import Session
from verl_dra.scorer.pool import replica_of

Texts = dict[Session, str]

SENTENCE = "We subtract three from both sides of it and divide by two. "


class PrecomputedEncoder:
    """Vectors from a table, by the number that a text begins with: the traffic alone costs."""

    def __init__(self, config: EmbeddingConfig) -> None:
        generator = torch.Generator().manual_seed(0)
        self._table = torch.nn.functional.normalize(torch.randn(4096, 384, generator=generator), dim=1)

    def encode(self, texts: Sequence[str]) -> Encoded:
        vectors = self._table[[int(text[:8]) % len(self._table) for text in texts]]
        tokens = torch.tensor([len(text) // 4 for text in texts])
        none = torch.zeros_like(tokens)
        return Encoded(vectors, tokens, truncated_tokens=none, unknown_tokens=none)


def main() -> None:
    for prompts in (64, 1024):
        _simulated(prompts)
    with local_ray(num_cpus=8, object_store_memory=2**30):
        _submit_path()
        _nodes()


def _simulated(prompts: int, n: int = 16, draws: int = 7) -> None:
    """Log-normal lengths; all completions grow at one speed, and a scorer embeds them as they come, one by one."""
    rows = []
    for replicas in (1, 2, 4, 8, 16):
        balance = []
        waits: dict[float, list[float]] = {1.0: [], 1.5: [], 2.0: [], 4.0: []}
        for draw in range(draws):
            numbers = np.random.default_rng(draw)
            tokens = 512 * numbers.lognormal(0, 0.5, (prompts, 1)) * numbers.lognormal(0, 0.6, (prompts, n))
            tokens = tokens.reshape(-1)
            scorer = np.array([replica_of(Session(f"{draw} {i // n}", i % n), replicas) for i in range(len(tokens))])
            work = np.bincount(scorer, tokens, replicas)
            balance.append(work.max() / work.mean())
            for capacity, of_capacity in waits.items():
                # The longest takes a second; together the scorers would embed all in `1 / capacity` of it.
                rate = capacity * tokens.sum() / replicas
                of_capacity.append(max(_ends(tokens[scorer == i], tokens.max(), rate) for i in range(replicas)) - 1)
        rows.append(
            [
                str(replicas),
                f"{statistics.median(balance):.2f} ({min(balance):.2f} to {max(balance):.2f})",
                *(f"{statistics.median(of_capacity):.1%}" for of_capacity in waits.values()),
            ]
        )
    show(
        f"Simulated: {prompts} prompts x {n}, the wait after the last completion as a share of the generation, by what "
        f"all scorers embed against what the rollout makes; medians of {draws}",
        ["scorers", "slowest over mean", *(f"{capacity:g} times" for capacity in waits)],
        rows,
    )


def _ends(tokens: np.ndarray, longest: float, rate: float) -> float:
    """When a scorer is done with completions, each of which comes after `tokens / longest` seconds."""
    at = 0.0
    for each in np.sort(tokens).tolist():
        at = max(at, each / longest) + each / rate
    return at


def _submit_path(completions: int = 20_000, characters: int = 2400) -> None:
    """N-gram encoder, texts of 600 tokens, one sender."""
    rows = []
    for replicas in (1, 2, 4):
        with scorer_pool(EmbeddingConfig(encoder="ngram"), replicas) as (pool, name):
            client = ScorerClient(name, max_rows=completions, max_characters=2**30)
            rates = []
            for step in range(3):
                texts = _texts(step, completions // 8, 8, characters)
                start = time.perf_counter()
                asyncio.run(_submit([client], texts))
                submitted = time.perf_counter()
                came, _ = scored(pool, texts)
                end = time.perf_counter()
                assert came.missing_rows == 0
                rates.append((completions / (submitted - start), completions / (end - start)))
            taken, done = (statistics.median(rate) for rate in zip(*rates, strict=True))
            rows.append([str(replicas), f"{taken:,.0f}", f"{done:,.0f}"])
    show(
        f"{completions:,} completions of {characters:,} characters into N scorers with the ngram encoder; medians of 3",
        ["scorers", "taken/s", "embedded and scored/s"],
        rows,
    )


def _nodes(nodes: int = 64, prompts: int = 1024, n: int = 16, steps: int = 50, replicas: int = 4) -> None:
    with scorer_pool(EmbeddingConfig(encoder="scale:PrecomputedEncoder"), replicas) as (pool, name):
        clients = [ScorerClient(name) for _ in range(nodes)]
        pids = ray.get([handle.ready.remote() for handle in pool.handles])
        seconds, waits, memory = [], [], []
        for step in range(1, steps + 1):
            texts = _texts(step, prompts, n, 12_000)
            start = time.perf_counter()
            asyncio.run(_submit(clients, texts))
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            came, _ = scored(pool, texts)
            waits.append(time.perf_counter() - start)
            assert came.missing_rows == 0
            memory.append([_resident(pid) for pid in pids])
        sent = len(pickle.dumps(list(texts.items())))
        asked = len(pickle.dumps(list(texts)))
        answered = came.vectors.nbytes + came.index.nbytes
    # What a scorer holds swings with the texts that are on their way: its fullest of three steps counts.
    fullest = {step: np.max(memory[max(step - 3, 0) : step], axis=0) for step in (1, 5, 10, 25, steps)}
    show(
        f"{nodes} nodes' traffic: {prompts:,} prompts x {n}, 3,000 tokens each, {replicas} scorers, {steps} steps",
        ["after step", "submitting s", "wait ms", "MiB of each in 3 steps", "largest / after 5", "all / after 5"],
        [
            [
                str(step),
                f"{seconds[step - 1]:.2f}",
                f"{1e3 * waits[step - 1]:.0f}",
                " ".join(f"{size / 2**20:.0f}" for size in sizes),
                f"{(sizes / fullest[5]).max():.2f}",
                f"{sizes.sum() / fullest[5].sum():.2f}",
            ]
            for step, sizes in fullest.items()
        ],
    )
    show(
        "Of a step, serialised",
        ["texts to the scorers", "request", "vectors", "median wait"],
        [
            [
                *(f"{size / 2**20:.1f} MiB" for size in (sent, asked, answered)),
                f"{1e3 * statistics.median(waits):.0f} ms",
            ]
        ],
    )


def _texts(step: int, prompts: int, n: int, characters: int) -> Texts:
    """All different."""
    filler = (SENTENCE * (characters // len(SENTENCE) + 1))[: characters - 17]
    run = uuid.uuid4().hex[:8]
    return {
        Session(f"{run}-{prompt}", session): f"{prompt * n + session:08d} {step:07d} {filler}"
        for prompt in range(prompts)
        for session in range(n)
    }


async def _submit(clients: Sequence[ScorerClient], texts: Texts) -> None:
    """Each completion by one of the clients, in turn; until all are taken."""
    for i, (session, text) in enumerate(texts.items()):
        clients[i % len(clients)].submit(session, text)
        if i % 64 == 0:
            await asyncio.sleep(0)
    await all_sent()


def _resident(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return 1024 * int(found[1])
