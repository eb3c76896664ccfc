"""What a step waits for its diversity scores, as this package finds them and as its peers do, on the same completions.

Generation is simulated: completions arrive at given times with a long tail, whoever waits for them. The peers are
written from the descriptions of what they compute, not from their code.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from encode import TRACE
from scale import local_ray, scorer_pool
from sentence_transformers import SentenceTransformer
from timing import show

from verl_dra.embedding import EmbeddingConfig
from verl_dra.embedding.encoder import model_path
from verl_dra.scorer.client import ScorerClient
from verl_dra.scorer.messages import Session
from verl_dra.scorer.pool import ScorerPool

PROMPTS, SIZE, ROUNDS = 32, 8, 3
ROWS = 4
"""Rows of a rank, of which the paper's code takes the similarities before it gathers them: 4 with groups of 6."""
DUPLICATES = 0.2
GENERATION = 2.0
"""Length of the generation, in times that encoding everything takes."""


@dataclass
class Outcome:
    """What one way of scoring a step came to."""

    waited: list[float]
    """Seconds from the last completion until all scores were there, of each round."""
    texts: int
    """Texts through the encoder in a round."""
    error: float
    """Largest difference of an SMI from that of the prompt's group in float64."""


def main() -> None:
    model = SentenceTransformer(model_path(EmbeddingConfig.model), device="cpu")
    texts = _completions()
    start = time.perf_counter()
    model.encode(texts, show_progress_bar=False)
    arrivals = _arrivals(len(texts), GENERATION * (time.perf_counter() - start))
    found: dict[str, Outcome] = {}
    with local_ray(), scorer_pool("sentence_transformers", 1) as (pool, name):
        ways: dict[str, Callable[[Sequence[str]], tuple[float, np.ndarray]]] = {
            "verl_dra: streamed to a scorer": lambda texts: _streamed(pool, ScorerClient(name, 1), texts, arrivals),
            "reward function over the batch (as TRL's)": lambda texts: _afterwards(model, texts, arrivals, SIZE),
            f"in the trainer, over a rank's {ROWS} rows (as the paper's code)": lambda texts: _afterwards(
                model, texts, arrivals, ROWS
            ),
        }
        for number in range(ROUNDS + 1):
            # Or else the scorer would know the texts from the round before.
            of_round = [f"{number} {text}" for text in texts]
            truth = _smi(model.encode(of_round, show_progress_bar=False), np.arange(len(texts)) // SIZE)
            for way, score in ways.items():
                waited, smi = score(of_round)
                outcome = found.setdefault(way, Outcome([], len(texts), 0.0))
                if number:  # the first warms up
                    outcome.waited.append(waited)
                outcome.error = max(outcome.error, float(np.abs(smi - truth).max()))
    (ours, *_) = found
    found[ours].texts = len(set(texts))
    wait = {way: statistics.median(outcome.waited) for way, outcome in found.items()}
    show(
        f"{PROMPTS} prompts x {SIZE}, {DUPLICATES:.0%} duplicates, all-MiniLM-L6-v2 on a CPU; generation simulated, "
        f"{arrivals.max():.1f} s, {GENERATION:g} times what encoding everything takes; medians of {ROUNDS}",
        ["what", "waits s", "against ours", "texts encoded", "pairs compared", "largest error of an SMI"],
        [
            *(
                [
                    way,
                    f"{wait[way]:.2f}",
                    f"{wait[way] / wait[ours]:.1f}",
                    str(outcome.texts),
                    "0",
                    f"{outcome.error:.3f}",
                ]
                for way, outcome in found.items()
            ),
            [
                "classifier of pairs (as DARLING's), by count",
                *["not measured"] * 2,
                "0",
                str(PROMPTS * SIZE * (SIZE - 1) // 2),
                "another measure",
            ],
        ],
    )


def _streamed(
    pool: ScorerPool, client: ScorerClient, texts: Sequence[str], arrivals: np.ndarray
) -> tuple[float, np.ndarray]:
    """Each completion goes to the scorer when it is there; seconds after the last, and SMIs in the texts' order."""
    run = uuid.uuid4().hex
    sessions = [Session(f"{run}-{i // SIZE}", i % SIZE) for i in range(len(texts))]

    async def generate() -> float:
        start = time.perf_counter()
        for i in np.argsort(arrivals):
            await asyncio.sleep(max(0.0, start + arrivals[i] - time.perf_counter()))
            client.submit(sessions[i], texts[i])
        last = time.perf_counter()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
        return last

    last = asyncio.run(generate())
    named = dict(zip(sessions, texts, strict=True))
    scores = pool.wait(pool.request(sessions), lambda missing: {session: named[session] for session in missing})
    return time.perf_counter() - last, scores.smi


def _afterwards(
    model: SentenceTransformer, texts: Sequence[str], arrivals: np.ndarray, group: int
) -> tuple[float, np.ndarray]:
    """Everything is embedded when the last is there; `group` rows at a time are taken for a group."""
    time.sleep(arrivals.max())
    last = time.perf_counter()
    smi = _smi(model.encode(list(texts), show_progress_bar=False), np.arange(len(texts)) // group)
    return time.perf_counter() - last, smi


def _smi(vectors: np.ndarray, group: np.ndarray) -> np.ndarray:
    """[n] float64 Graph-Cut SMI of each row with the others of its group."""
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = (unit @ unit.T) * (group[:, None] == group)
    return cosines.sum(axis=1) - 1


def _completions() -> list[str]:
    """50 to 200 words, which one window holds; one in five equal to an earlier one of its group."""
    rng = random.Random(0)
    texts: list[str] = []
    for i in range(PROMPTS * SIZE):
        if i % SIZE and rng.random() < DUPLICATES:
            texts.append(rng.choice(texts[i - i % SIZE :]))
        else:
            texts.append(" ".join(rng.choices(TRACE.split(), k=rng.randint(50, 200))))
    return texts


def _arrivals(n: int, seconds: float) -> np.ndarray:
    """[n] seconds at which completions are finished: log-normal, the last at `seconds`."""
    times = np.random.default_rng(0).lognormal(0, 0.7, size=n)
    return times / times.max() * seconds


if __name__ == "__main__":
    main()
