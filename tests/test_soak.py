"""Texts that nobody wishes for, through the scorer with the real encoders: no crash, no NaN, each in its counter."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from clients import all_sent
from embedding_server import small_server
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from local_ray import local_ray

from verl_dra.algorithm import graph_cut_smi
from verl_dra.embedding import EmbeddingConfig, Encoder, build_encoder
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.scorer.asking import Asking
from verl_dra.scorer.client import ScorerClient
from verl_dra.scorer.messages import Session, Vectors
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.scorer.pool import ScorerPool
from verl_dra.scorer.scorer import Scorer
from verl_dra.scorer.scores import StepScores, put_together, step_scores

MEGABYTE = "We carry the one and double the rest. " * (2**20 // 38)
LINES = "so x = 4\n" * 100_000
POISON = [
    *("", " \n\t", "\x00", "\x00so\x00", "\ud83d", "so \udc00 and \ud800", "\ufeff", "\u200b\u200d", "\ufffd"),
    *("[CLS]", "[CLS][SEP][PAD]", "<|im_end|>", "[UNK]", "[MASK] is 4"),
    *("الجواب هو ٤", "התשובה היא 4", "\u202eso it is 4\u202c", "答案是四", "e\u0301" * 50, "🧮" * 40, "a" * 5000),
    "x = " + "(" * 500,
]


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    return {"ngram": build_encoder(EmbeddingConfig(encoder="ngram")), "model": build_encoder(EmbeddingConfig())}


def scored(encoder: Encoder, groups: Sequence[Sequence[str]]) -> tuple[Vectors, StepScores]:
    texts = {Session(f"u{g}", i): text for g, group in enumerate(groups) for i, text in enumerate(group)}
    scorer = Scorer(encoder, max_rows=10**6)
    half = list(texts.items())[::2]
    scorer.submit(half)
    late = {s: t for s, t in texts.items() if s not in dict(half)}
    answer = scorer.collect(list(texts), late, 600)
    vectors, index = put_together(len(texts), [(0, np.arange(len(texts)), answer)])
    scores = step_scores(vectors, index, torch.tensor([int(s.uid[1:]) for s in texts]), graph_cut_smi)
    assert scores.scored.all()
    everything = [text for group in groups for text in group]
    readable = [text.encode(errors="replace").decode() for text in everything]
    assert answer.replaced == sum(a != b for a, b in zip(everything, readable, strict=True))
    assert answer.cached == len(readable) - len(set(readable))
    assert scores.empty >= sum(not text.strip() for text in readable)
    assert 0 <= answer.truncated_tokens <= answer.tokens
    assert answer.events.failed == 0
    largest = max(len(group) for group in groups)
    assert np.isfinite(scores.smi).all()
    assert (scores.smi >= -1 - 1e-5).all()
    assert (scores.smi <= largest - 1 + 1e-3).all()
    assert np.isfinite(scores.effective_paths).all()
    assert (scores.effective_paths >= 1 - 1e-9).all()
    return answer, scores


small = st.one_of(
    st.sampled_from(POISON),
    st.text(max_size=60),
    st.text(st.characters(categories=["Cs", "Cc", "Cf", "Co", "Lo", "Mn"]), max_size=30),
    st.builds(lambda a, b: a + b, st.sampled_from(POISON), st.sampled_from(POISON)),
)
groups = st.lists(st.lists(small, min_size=1, max_size=6), min_size=1, max_size=4)
with_large = st.one_of(small, st.sampled_from([MEGABYTE, LINES]), small.map(lambda text: MEGABYTE + text))
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@given(groups=groups)
@example(groups=[POISON, POISON])
@settings(relaxed, max_examples=100)
def test_the_lexical_encoder_survives(encoders: dict[str, Encoder], groups: list[list[str]]) -> None:
    scored(encoders["ngram"], groups)


@given(groups=st.lists(st.lists(with_large, min_size=1, max_size=4), min_size=1, max_size=2))
@settings(relaxed, max_examples=30)
def test_the_lexical_encoder_survives_large_ones_among_them(
    encoders: dict[str, Encoder], groups: list[list[str]]
) -> None:
    assert scored(encoders["ngram"], groups)[0].truncated_tokens == 0


def test_a_server_survives() -> None:
    with small_server(lambda texts: NgramEncoder().encode(texts).vectors, len, 10**4, "grams") as url:
        encoder = build_encoder(EmbeddingConfig(encoder="openai", base_url=url, model="grams"))
        answer, _ = scored(encoder, [POISON, [*POISON, LINES[:30_000]]])
    assert answer.truncated_tokens == 0


@pytest.mark.slow
def test_what_an_actor_gets_is_what_was_sent(encoders: dict[str, Encoder]) -> None:
    groups = [POISON, [*POISON, MEGABYTE, LINES]]
    texts = {Session(f"u{g}", i): text for g, group in enumerate(groups) for i, text in enumerate(group)}
    with local_ray(num_cpus=2):
        config = ScorerConfig(placement="cpu", name="soak", num_replicas=1)
        pool = ScorerPool(config, EmbeddingConfig(encoder="ngram"))
        client = ScorerClient("soak")

        async def submit() -> None:
            for session, text in list(texts.items())[::2]:
                client.submit(session, text)
            await all_sent()

        asyncio.run(submit())
        came = Asking(pool, list(texts), lambda sessions: {s: texts[s] for s in sessions}).result()
        pool.close()
    assert came.missing_rows == len(texts) // 2
    scores = step_scores(came.vectors, came.index, torch.tensor([int(s.uid[1:]) for s in texts]), graph_cut_smi)
    np.testing.assert_array_equal(scores.smi, scored(encoders["ngram"], groups)[1].smi)


@given(groups=groups)
@example(groups=[POISON, POISON])
@settings(relaxed, max_examples=25)
def test_the_model_survives(encoders: dict[str, Encoder], groups: list[list[str]]) -> None:
    scored(encoders["model"], groups)


def test_clones_stay_clones_whatever_they_are(encoders: dict[str, Encoder]) -> None:
    for text in POISON:
        _, scores = scored(encoders["model"], [[text, text, text]])
        np.testing.assert_allclose(scores.smi, 0 if scores.empty else 2, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_very_long_texts_are_embedded_whole_or_counted() -> None:
    whole, _ = scored(build_encoder(EmbeddingConfig(encoder="ngram")), [[MEGABYTE, LINES, "so x = 4"]])
    assert whole.truncated_tokens == 0
    head, _ = scored(build_encoder(EmbeddingConfig(long_text="head")), [[MEGABYTE, LINES, "so x = 4"]])
    assert head.truncated_tokens > 0.9 * head.tokens
    chunks, scores = scored(build_encoder(EmbeddingConfig()), [[MEGABYTE, "so x = 4", "", "\ud800"], [LINES, LINES]])
    assert chunks.truncated_tokens == 0
    assert chunks.tokens > 10**6
    assert (scores.empty, chunks.cached, chunks.replaced) == (1, 1, 1)
