"""Groups spread over several scorers, without Ray: balance, one vector a text, and the scores of the formula."""

from __future__ import annotations

import statistics
import uuid
from collections.abc import Callable
from itertools import count

import numpy as np
import oracles
import pytest
import torch
from fake_encoders import NoisyEncoder
from hypothesis import given
from hypothesis import strategies as st

from verl_dra.algorithm import SMI_FUNCTIONS, SMIFunction, graph_cut_smi
from verl_dra.embedding import Encoder
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.scorer.messages import Session, Vectors
from verl_dra.scorer.pool import replica_of
from verl_dra.scorer.scorer import Scorer
from verl_dra.scorer.scores import StepScores, put_together, step_scores

pytestmark = pytest.mark.usefixtures("one_thread")
Texts = dict[Session, str]
WORDS = ["add both sides", "draw the graph", "guess and check", "use the lemma", "", "count them all"]


def numbers(texts: Texts) -> np.ndarray:
    return np.unique([session.uid for session in texts], return_inverse=True)[1].reshape(-1)


def answers(texts: Texts, scorers: int, encoder: Callable[[], Encoder]) -> list[tuple[int, np.ndarray, Vectors]]:
    """Of one scorer after the other, each with an encoder of its own."""
    names = list(texts)
    given = []
    for i in range(scorers):
        rows = np.array([row for row, name in enumerate(names) if replica_of(name, scorers) == i], dtype=np.int64)
        asked = [names[row] for row in rows]
        given.append((i, rows, Scorer(encoder(), max_rows=10**6).collect(asked, texts, 60)))
    return given


def scores(texts: Texts, scorers: int, smi: SMIFunction = graph_cut_smi) -> StepScores:
    vectors, index = put_together(len(texts), answers(texts, scorers, NgramEncoder))
    return step_scores(vectors, index, torch.from_numpy(numbers(texts)), smi)


@pytest.mark.parametrize("smi", ["graph_cut", "log_det"])
@pytest.mark.parametrize("scorers", [1, 3, 8])
def test_groups_on_several_scorers_have_the_scores_of_the_formula(scorers: int, smi: str) -> None:
    rng = np.random.default_rng(scorers)
    names = [Session(f"u{g}", i) for g, size in enumerate([8, 1, 5, 16, 2, 8]) for i in range(size)]
    texts = {names[at]: f"{rng.choice(WORDS)} {rng.integers(3)}" for at in rng.permutation(len(names))}
    found = scores(texts, scorers, SMI_FUNCTIONS[smi])
    vectors, group = NgramEncoder().encode(list(texts.values())).vectors.numpy(), numbers(texts)
    oracle = {"graph_cut": oracles.graph_cut_smi, "log_det": oracles.log_det_smi}[smi]
    assert found.scored.all()
    np.testing.assert_allclose(found.smi, oracle(vectors, group), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.effective_paths, oracles.effective_paths(vectors, group), rtol=1e-6)
    of_group = np.flatnonzero(group == 3).tolist()
    np.testing.assert_allclose(found.similarity(of_group), vectors[of_group] @ vectors[of_group].T, atol=1e-6)


@given(
    names=st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=15),
    scorers=st.integers(1, 5),
    random=st.randoms(use_true_random=False),
)
def test_neither_the_order_of_rows_nor_the_number_of_scorers_changes_a_score(names, scorers, random) -> None:
    texts = {Session(*name): random.choice(WORDS) for name in sorted(names)}
    shuffled = dict(random.sample(list(texts.items()), len(texts)))
    alone = dict(zip(texts, scores(texts, 1).smi.tolist(), strict=True))
    spread = dict(zip(shuffled, scores(shuffled, scorers).smi.tolist(), strict=True))
    for name in texts:
        assert spread[name] == pytest.approx(alone[name], abs=1e-6)


def test_equal_texts_have_one_vector_whichever_scorers_embedded_them() -> None:
    seeds = count(step=100)
    texts = {Session("a", i): "add both sides" for i in range(6)} | {Session("b", i): WORDS[i % 3] for i in range(6)}
    given = answers(texts, 3, lambda: NoisyEncoder(next(seeds)))
    assert not np.allclose(given[0][2].vectors[0], given[1][2].vectors[0], atol=1e-3)
    vectors, index = put_together(len(texts), given)
    assert len(vectors) == 3
    group = torch.from_numpy(numbers(texts))
    np.testing.assert_allclose(step_scores(vectors, index, group, graph_cut_smi).smi[:6], 5, rtol=1e-6)
    # Which one it is does not hang on which scorer answered first.
    np.testing.assert_array_equal(vectors, put_together(len(texts), given[::-1])[0])
    np.testing.assert_array_equal(vectors[index[0]], given[0][2].vectors[given[0][2].index[0]])


def test_a_group_that_lacks_a_vector_is_not_scored_and_no_other_suffers() -> None:
    texts = {Session("abc"[g], i): f"{WORDS[i]} {g}" for i in range(4) for g in range(3)}
    names = list(texts)
    lost = names.index(Session("b", 2))
    vectors, index = put_together(len(texts), answers(texts, 3, NgramEncoder))
    whole = step_scores(vectors, index, torch.from_numpy(numbers(texts)), graph_cut_smi)
    index[lost] = -1
    found = step_scores(vectors, index, torch.from_numpy(numbers(texts)), graph_cut_smi)
    there = torch.tensor([name.uid != "b" for name in names])
    assert found.scored.tolist() == there.tolist()
    torch.testing.assert_close(found.smi, torch.where(there, whole.smi, 0))
    assert found.effective_paths.isnan().tolist() == [False, True, False]


def test_no_vector_at_all_scores_nothing() -> None:
    found = step_scores(*put_together(3, []), torch.tensor([0, 0, 1]), graph_cut_smi)
    assert not found.scored.any()
    assert found.smi.tolist() == [0, 0, 0]
    assert found.empty == 0


def test_scorers_with_different_encoders_are_told_apart() -> None:
    one = Vectors(np.eye(3, dtype=np.float32)[:1], [b"1"], np.zeros(1, np.int64))
    other = Vectors(np.eye(4, dtype=np.float32)[:1], [b"2"], np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="diversity scorer 1 gave vectors of 4 dimensions, and another one of 3"):
        put_together(2, [(0, np.array([0]), one), (1, np.array([1]), other)])


@pytest.mark.parametrize(("groups", "replicas"), [(1024, 64), (256, 32), (64, 16)])
def test_scorers_have_about_the_same_to_do(groups: int, replicas: int) -> None:
    rng = np.random.default_rng(0)
    worst = []
    for _ in range(7):
        tokens = np.zeros(replicas)
        for _ in range(groups):
            uid, of_prompt = str(uuid.UUID(bytes=rng.bytes(16))), rng.normal(0, 0.5)
            for i in range(16):
                tokens[replica_of(Session(uid, i), replicas)] += np.exp(of_prompt + rng.normal(0, 0.6))
        worst.append(tokens.max() / tokens.mean())
    assert statistics.median(worst) <= 1.3


def test_empty_texts_are_counted_by_sessions_and_lost_ones_not_with_them() -> None:
    vectors = np.array([[0.0, 0.0], [1.0, 0.0]], np.float32)
    found = step_scores(vectors, np.array([0, 1, 0, -1, 0]), torch.tensor([0, 0, 0, 1, 1]), graph_cut_smi)
    assert found.empty == 3
    assert found.scored.tolist() == [True, True, True, False, False]
    assert found.smi.tolist() == [0, 0, 0, 0, 0]
    assert found.duplicate.tolist() == [False] * 5
    torch.testing.assert_close(found.effective_paths, torch.tensor([3, torch.nan], dtype=torch.float64), equal_nan=True)


def test_a_step_without_sessions_has_scores_of_none() -> None:
    found = step_scores(*put_together(0, []), torch.zeros(0, dtype=torch.long), graph_cut_smi)
    assert [len(part) for part in (found.smi, found.duplicate, found.scored, found.effective_paths)] == [0, 0, 0, 0]


def test_duplicates_are_those_of_their_own_group() -> None:
    vectors = np.eye(3, dtype=np.float32)
    found = step_scores(vectors, np.array([0, 1, 0, 2, 1]), torch.tensor([2, 0, 2, 0, 1]), graph_cut_smi)
    assert found.duplicate.tolist() == [True, False, True, False, False]
    torch.testing.assert_close(found.effective_paths, torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))


def test_similarities_are_cosines_in_the_order_asked_for_and_never_above_1() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32) * 9
    row = np.arange(40).repeat(2)[::-1].copy()
    found = step_scores(vectors, row, torch.zeros(80, dtype=torch.long), graph_cut_smi)
    asked = [3, 2, 70, 9]
    unit = oracles.unit(vectors[row[asked]])
    np.testing.assert_allclose(found.similarity(asked), unit @ unit.T, atol=1e-6)
    whole = found.similarity(range(80))
    assert np.abs(whole).max() == 1
    assert whole.dtype == np.float32


def test_answers_that_lack_sessions_are_put_in_their_places() -> None:
    eye = np.eye(4, dtype=np.float32)
    of_two = Vectors(eye[[3, 1]], [b"x", b"y"], np.array([1, -1, 0]))
    of_one = Vectors(eye[[2, 0]], [b"y", b"z"], np.array([-1, 0, 1]))
    nothing = Vectors(np.empty((0, 0), np.float32), [], np.array([-1]))
    answers = [(2, np.array([6, 1, 3]), of_two), (1, np.array([0, 5, 2]), of_one), (0, np.array([4]), nothing)]
    vectors, index = put_together(8, answers)
    # Of the text y both have a vector: that of the lower scorer is taken.
    np.testing.assert_array_equal(vectors, eye[[2, 0, 3]])
    assert index.tolist() == [-1, -1, 1, 2, -1, 0, 0, -1]
