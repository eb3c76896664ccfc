"""The streaming scorer beside other ways to score the same completions: how soon, with what work, how exactly.

The peers are written here from descriptions of what they compute.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from clients import all_sent
from local_ray import local_ray
from partition_servers import MODEL, Classifier, ObedientJudge, json_server
from scorers import scored, scorer_pool
from sentence_transformers import SentenceTransformer
from timing import show
from torch import Tensor
from torch.nn.functional import normalize

from verl_dra.embedding import EmbeddingConfig, build_encoder, encode_all
from verl_dra.embedding.model_path import model_path
from verl_dra.partition import Grouping, PartitionConfig, PromptGroup
from verl_dra.partition.answers import FoundAnswers
from verl_dra.partition.judge import JudgePartition
from verl_dra.partition.looking import Looking
from verl_dra.partition.pairs import PairsPartition
from verl_dra.partition.pool import PartitionPool
from verl_dra.scorer.client import ScorerClient
from verl_dra.scorer.messages import Session
from verl_dra.scorer.pool import ScorerPool

PROMPTS, N = 16, 8
SHORTEST, LONGEST, DUPLICATES = 50, 400, 0.2
ROWS_OF_A_RANK = 4
ROUNDS = 3
GROUP_SIZES = (4, 8, 16, 32, 64)
PAIRS = PROMPTS * N * (N - 1) // 2
AS_CONFIGURED = EmbeddingConfig(device="cpu")
# The arithmetic of SentenceTransformer.encode with its defaults.
AS_ENCODE = EmbeddingConfig(device="cpu", long_text="head", dtype="float32")
PARTITIONS = {
    "answers": PartitionConfig(by="answers"),
    "a class of one's own": PartitionConfig(by="peers:ByFirstWord"),
}
"""Beside cosines; each in one actor on one CPU."""
TRACE = """
first we subtract three from both sides of the equation and then divide by two so that x equals seven which is not a
prime number wait let me check this again the sum of the angles in a triangle is one hundred eighty degrees hence the
area must be half of base times height therefore the answer is
"""


class ByFirstWord:
    """What calling a class costs that does next to nothing."""

    def __init__(self, config: PartitionConfig) -> None:
        pass

    def __call__(self, group: PromptGroup) -> Grouping:
        words = [text.split()[0] for text in group.texts]
        return Grouping.of_labels([words.index(word) for word in words])


@dataclass(frozen=True)
class Scored:
    """One way to score a batch, once."""

    smi: Tensor
    """[PROMPTS * N]"""
    seconds: float
    """From the last completion until the scores are there."""
    embedded: int
    """Texts through the encoder."""


def main() -> None:
    torch.set_num_threads(1)  # as a scorer has by default; the other core generates
    rounds = [_completions(seed) for seed in range(ROUNDS)]
    generation_s = 2 * _seconds(AS_CONFIGURED, rounds[0])
    model = SentenceTransformer(model_path(EmbeddingConfig.model), device="cpu")
    with local_ray(num_cpus=8), scorer_pool(AS_CONFIGURED) as ours, scorer_pool(AS_ENCODE) as exact:
        ways: dict[str, Callable[[Sequence[str]], Scored]] = {
            "ours": lambda texts: _stream(*ours, texts, generation_s),
            "ours, float32, not streamed": lambda texts: _stream(*exact, texts, 0),
            "reward function": lambda texts: _reward_function(model, texts),
            "in the trainer, by rank": lambda texts: _in_trainer(model, texts),
        }
        done: dict[str, list[Scored]] = {name: [] for name in ways}
        for texts in rounds:
            for name, score in ways.items():
                done[name].append(score(texts))
        of_partitions = partitions(rounds)
    wait = {name: statistics.median(run.seconds for run in runs) for name, runs in done.items()}
    pairs = dict.fromkeys(ways, PAIRS) | {"in the trainer, by rank": PROMPTS * N * (ROWS_OF_A_RANK - 1) // 2}
    truth = dict.fromkeys(ways, _formula(AS_ENCODE, rounds[0]))
    truth["ours"] = _formula(replace(AS_CONFIGURED, dtype="float32"), rounds[0])
    show(
        f"{PROMPTS} prompts x {N} completions of {SHORTEST} to {LONGEST} words, all-MiniLM-L6-v2, one thread of a CPU, "
        f"generated within {generation_s:.1f} s; medians of {ROUNDS}",
        ["what", "seconds after the last", "each round", "against ours", "texts embedded", "pairs", "SMI off by"],
        [
            [
                name,
                f"{wait[name]:.2f}",
                ", ".join(f"{run.seconds:.2f}" for run in runs),
                f"{wait[name] / wait['ours']:.1f}",
                ", ".join(str(run.embedded) for run in runs),
                str(pairs[name]),
                f"{(runs[0].smi - truth[name]).abs().max():.1g}",
            ]
            for name, runs in done.items()
        ]
        + [["pairwise classifier", "", "", "", "", f"{PAIRS} calls", ""]],
    )
    show(
        "the same completions, told apart by a partition: for a step, all of it after the last completion",
        ["what", "calls", "tokens", "seconds"],
        of_partitions,
    )
    servers_asked()


def partitions(rounds: Sequence[Sequence[str]]) -> list[list[str]]:
    """Calls, tokens and seconds of each partition for a step, by medians over `rounds`; needs Ray."""
    rows = [["cosines", "0", "0", f"{statistics.median(_seconds(AS_CONFIGURED, texts) for texts in rounds):.2f}"]]
    for name, config in PARTITIONS.items():
        pool = PartitionPool(config)
        seconds = []
        for texts in [rounds[0], *rounds]:
            groups = [_group(str(i), texts[i * N : (i + 1) * N]) for i in range(PROMPTS)]
            start = time.perf_counter()
            came = Looking(pool, [group.uid for group in groups], lambda uids, of=groups: of).result()
            seconds.append(time.perf_counter() - start)
        pool.close()
        rows.append([name, str(came.calls), str(came.tokens), f"{statistics.median(seconds[1:]):.2f}"])
    return rows


def _group(uid: str, texts: Sequence[str]) -> PromptGroup:
    """With one of three answers at the end of each completion, by its first letter."""
    ends = [f"{text} \\boxed{{{ord(text[0]) % 3}/2}}" for text in texts]
    return PromptGroup(uid, "What is x?", ends, [1.0] * len(ends), FoundAnswers(ends))


def servers_asked() -> None:
    """What partitions ask of a server in a step, by the size of a group, all groups at a time.

    The servers are stand-ins that answer at once, so that the seconds are of this side and theirs; a token is counted
    for every 4 characters that they get.
    """
    rows = []
    with (
        json_server(_charged(Classifier(limit=10**6)), None) as pairs_url,
        json_server(_charged(ObedientJudge()), None) as judge_url,
    ):
        for n in GROUP_SIZES:
            texts = _completions(0, n)
            groups = [
                PromptGroup(str(at), "What is 8 + 5?", list(dict.fromkeys(texts[at : at + n])), [], [])
                for at in range(0, len(texts), n)
            ]
            for name, url, made in (("pairs", pairs_url, PairsPartition), ("judge", judge_url, JudgePartition)):
                partition = made(PartitionConfig(by=name, base_url=url, model=MODEL))
                start = time.perf_counter()
                with ThreadPoolExecutor(PROMPTS) as pool:
                    done = list(pool.map(partition, groups))
                seconds = time.perf_counter() - start
                calls, tokens = (sum(getattr(grouping, cost) for grouping in done) for cost in ("calls", "tokens"))
                compared = {"pairs": sum(math.comb(len(group.texts), 2) for group in groups), "judge": ""}[name]
                rows.append([name, str(n), str(compared), str(calls), f"{tokens:,}", f"{seconds:.2f}"])
    show(
        f"{PROMPTS} prompts, {SHORTEST} to {LONGEST} words, a fifth copies; stand-ins of the servers",
        ["partition", "completions a prompt", "pairs", "requests a step", "tokens a step", "seconds"],
        rows,
    )


def _charged(answer: Callable[[str, Any], tuple[int, Any]]) -> Callable[[str, Any], tuple[int, Any]]:
    def charged(path: str, request: Any) -> tuple[int, Any]:
        status, said = answer(path, request)
        texts = [message["content"] for message in request.get("messages", ())]
        texts += [*request.get("text_1", ()), *request.get("text_2", ())]
        return status, {**said, "usage": {"total_tokens": sum(map(len, texts)) // 4}}

    return charged


def _completions(seed: int, n: int = N) -> list[str]:
    """Group by group, lengths log-uniform, a fifth copies of an earlier sibling; no cache knows another seed's."""
    rng = random.Random(seed)
    texts: list[str] = []
    for i in range(PROMPTS * n):
        if i % n and rng.random() < DUPLICATES * n / (n - 1):
            texts.append(rng.choice(texts[i - i % n :]))
        else:
            words = int(SHORTEST * (LONGEST / SHORTEST) ** rng.random())
            texts.append(" ".join(rng.choices(TRACE.split(), k=words)))
    return texts


def _seconds(config: EmbeddingConfig, texts: Sequence[str]) -> float:
    """The encoder alone."""
    encoder = build_encoder(config)
    encode_all(encoder, texts[:N])
    start = time.perf_counter()
    encode_all(encoder, texts)
    return time.perf_counter() - start


def _formula(config: EmbeddingConfig, texts: Sequence[str]) -> Tensor:
    """[PROMPTS * N]: cosines to the siblings, summed over the whole group in float64."""
    units = normalize(encode_all(build_encoder(config), texts).double(), dim=1).view(PROMPTS, N, -1)
    cosines = units @ units.transpose(1, 2)
    return (cosines.sum(2) - cosines.diagonal(dim1=1, dim2=2)).flatten()


def _stream(pool: ScorerPool, actor: str, texts: Sequence[str], generation_s: float) -> Scored:
    """As in production: a reward worker's client hands over what is finished, and the trainer asks at the end."""
    prefix = time.monotonic_ns()
    named = {Session(f"{prefix}-{i // N}", i % N): text for i, text in enumerate(texts)}
    last = asyncio.run(_generate(ScorerClient(actor), named, generation_s))
    came, scores = scored(pool, named)
    seconds = time.perf_counter() - last
    assert came.missing_rows == 0
    return Scored(scores.smi, seconds, came.events.embedded)


async def _generate(client: ScorerClient, named: dict[Session, str], generation_s: float) -> float:
    """Submit each text when its words would be generated, all side by side at one speed; the time of the last."""
    words = {session: len(text.split()) for session, text in named.items()}
    longest = max(words.values())
    start = time.perf_counter()
    for session in sorted(words, key=lambda session: words[session]):
        await asyncio.sleep(start + generation_s * words[session] / longest - time.perf_counter())
        client.submit(session, named[session])
    last = time.perf_counter()
    await all_sent()
    return last


def _reward_function(model: SentenceTransformer, texts: Sequence[str]) -> Scored:
    """As TRL calls one: once, with all completions; `encode` with its defaults, then prompt by prompt."""
    start = time.perf_counter()
    vectors = model.encode(texts, show_progress_bar=False)
    smi = []
    for first in range(0, len(texts), N):
        units = vectors[first : first + N] / np.linalg.norm(vectors[first : first + N], axis=1, keepdims=True)
        smi.append((units @ units.T).sum(axis=1) - 1)
    return Scored(torch.from_numpy(np.concatenate(smi)), time.perf_counter() - start, len(texts))


def _in_trainer(model: SentenceTransformer, texts: Sequence[str]) -> Scored:
    """As the paper's trainer computes: each rank embeds its own rows and sums similarities over those alone.

    The ranks take their turn here.
    """
    start = time.perf_counter()
    smi = []
    for first in range(0, len(texts), ROWS_OF_A_RANK):
        vectors = model.encode(texts[first : first + ROWS_OF_A_RANK], convert_to_tensor=True, show_progress_bar=False)
        units = normalize(vectors, dim=1)
        smi.append((units @ units.T).sum(dim=1) - 1)
    return Scored(torch.cat(smi), time.perf_counter() - start, len(texts))
