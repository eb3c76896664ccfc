"""The `openai` encoder against real servers, through a proxy that fails on order: vectors, counts, refusals, faults."""

from __future__ import annotations

import json
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch
from embedding_server import small_server
from fault_proxy import Answer, Change, Exchange, Fault, FaultProxy, Reset, Stall
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm_server import VllmServer

from verl_dra.embedding import EmbeddingConfig, Encoder, EncoderUnavailableError, build_encoder
from verl_dra.embedding.model_path import BUNDLED_MODEL, model_path
from verl_dra.embedding.ngram import NgramEncoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

KEY = "sesame-5f3a"
MODEL = "minilm"
LIMIT = 40
WINDOW = 16
TEXTS = [f"Step {i}: multiply {i} by {i + 3}." for i in range(9)]
LONG = " ".join(f"Step {i}: multiply {i} by {i + 3} so \\frac{{{i}}}{{2}} and unforgettable." for i in range(12))
AT_ONCE = {"retry-after-ms": "1"}

Build = Callable[..., Encoder]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of hashed trigrams, whose tokens are characters; it takes `LIMIT` of them a text."""
    with small_server(ngrams, len, LIMIT, MODEL, KEY) as url:
        yield url


@pytest.fixture
def proxy(server: str) -> Iterator[FaultProxy]:
    with FaultProxy(server) as proxy:
        yield proxy


@pytest.fixture
def build(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Encoders by configuration, with the server's key in the environment; the request at the start is not seen."""
    monkeypatch.setenv("EMBED_KEY", KEY)

    return builder(proxy)


def builder(proxy: FaultProxy) -> Build:
    def build(**settings: Any) -> Encoder:
        encoder = build_encoder(openai_config(**{"base_url": proxy.url, **settings}))
        proxy.seen.clear()
        return encoder

    return build


def openai_config(**settings: Any) -> EmbeddingConfig:
    defaults = {"base_url": "http://embed.example:8000/v1", "model": MODEL, "api_key_env": "EMBED_KEY"}
    return EmbeddingConfig(encoder="openai", **{**defaults, **settings})


def ngrams(texts: Sequence[str]) -> torch.Tensor:
    return NgramEncoder().encode(texts).vectors


def weighted_mean(vectors: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    total = (vectors.double() * torch.tensor(weights, dtype=torch.float64)[:, None]).sum(0)
    return (total / total.norm()).float()


def close(ours: torch.Tensor, expected: Any, atol: float = 1e-6) -> None:
    torch.testing.assert_close(ours, torch.as_tensor(expected), rtol=0, atol=atol)


def more_than(texts: int, fault: Fault) -> Callable[[Exchange], Fault | None]:
    return lambda exchange: fault if len(exchange.texts) > texts else None


# Vectors


def test_vectors_are_the_servers_in_the_order_of_the_texts(build: Build) -> None:
    encoded = build().encode(TEXTS)
    assert encoded.vectors.dtype == torch.float32
    close(encoded.vectors, ngrams(TEXTS))
    assert encoded.tokens.dtype == encoded.truncated_tokens.dtype == torch.int64
    assert encoded.tokens.tolist() == [len(text) for text in TEXTS]
    assert encoded.truncated_tokens.tolist() == [0] * len(TEXTS)
    assert encoded.halved == 0


def test_blank_texts_are_zero_vectors_and_never_sent(build: Build, proxy: FaultProxy) -> None:
    encoder = build()
    encoded = encoder.encode(["", TEXTS[0], " \n\t ", TEXTS[1]])
    assert [exchange.texts for exchange in proxy.seen] == [TEXTS[:2]]
    close(encoded.vectors, ngrams(["", TEXTS[0], " ", TEXTS[1]]))
    assert encoded.tokens.tolist() == [0, len(TEXTS[0]), 0, len(TEXTS[1])]
    proxy.seen.clear()
    encoded = encoder.encode(["", "  "])
    assert not proxy.seen
    assert encoded.vectors.shape == (2, 512)
    assert not encoded.vectors.any()


@given(data=st.data(), texts=st.lists(st.text(max_size=90), min_size=1, max_size=8, unique=True))
@settings(max_examples=40)
def test_vectors_depend_neither_on_order_nor_on_the_batch(alike: list[Encoder], data: Any, texts: list[str]) -> None:
    whole, small = alike
    order = data.draw(st.permutations(range(len(texts))))
    together = whole.encode(texts)
    apart = small.encode([texts[i] for i in order])
    close(apart.vectors, together.vectors[list(order)])
    alone = [whole.encode([text]) for text in texts]
    close(torch.cat([encoded.vectors for encoded in alone]), together.vectors)
    for text, encoded in zip(texts, alone, strict=True):
        blank = not text.strip()
        assert encoded.vectors.norm().item() == pytest.approx(0 if blank else 1, abs=1e-5)
        assert encoded.tokens.item() <= len(text)


@pytest.fixture(scope="module")
def alike(server: str) -> Iterator[list[Encoder]]:
    """Encoders that differ in their batches alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBED_KEY", KEY)
        yield [build_encoder(openai_config(base_url=server, batch_tokens=tokens)) for tokens in (16384, 20)]


# Requests


def test_requests_hold_32_texts_and_batch_tokens_by_bytes(build: Build, proxy: FaultProxy) -> None:
    texts = [f"{i} 方程 {'x' * (i % 20)}" for i in range(100)]
    close(build().encode(texts).vectors, ngrams(texts))
    assert sorted(len(exchange.texts) for exchange in proxy.seen) == [4, 32, 32, 32]
    encoder = build(batch_tokens=24)
    close(encoder.encode([*texts, "y" * 40]).vectors[:-1], ngrams(texts))
    sizes = [[-(-len(text.encode()) // 3) for text in exchange.texts] for exchange in proxy.seen]
    assert all(sum(size) <= 24 for size in sizes)
    assert sum(map(len, sizes)) / len(sizes) > 2
    proxy.seen.clear()
    build(batch_tokens=1).encode(TEXTS)
    assert [len(exchange.texts) for exchange in proxy.seen] == [1] * len(TEXTS)


def test_four_requests_are_under_way_at_once_and_any_may_be_the_last(build: Build, proxy: FaultProxy) -> None:
    all_there = threading.Barrier(4)

    def hold(exchange: Exchange) -> None:
        all_there.wait(timeout=20)
        deadline = time.monotonic() + 20
        while TEXTS[0] in exchange.texts and len(proxy.answered) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    encoder = build(batch_tokens=20)
    proxy.rule = hold
    close(encoder.encode(TEXTS[:8]).vectors, ngrams(TEXTS[:8]))
    assert len(proxy.answered) == 4


def test_the_key_of_the_environment_is_sent(build: Build, proxy: FaultProxy) -> None:
    build().encode(TEXTS)
    assert {exchange.headers["Authorization"] for exchange in proxy.seen} == {f"Bearer {KEY}"}


def test_a_line_break_after_the_key_is_no_part_of_it(
    build: Build, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBED_KEY", f"{KEY}\n")
    close(build().encode(TEXTS).vectors, ngrams(TEXTS))


def test_without_a_key_a_placeholder_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBED_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "of-another-server")
    with small_server(ngrams, len, LIMIT, MODEL) as url, FaultProxy(url) as proxy:
        close(build_encoder(openai_config(base_url=proxy.url)).encode(TEXTS).vectors, ngrams(TEXTS))
        assert {exchange.headers["Authorization"] for exchange in proxy.seen} == {"Bearer none"}


def test_the_start_of_a_run_shows_model_and_url(build: Build, proxy: FaultProxy) -> None:
    assert str(build()) == f"openai: minilm at {proxy.url}"


# Faults that pass


@pytest.mark.parametrize(
    "faults",
    [
        [Answer(500, headers=AT_ONCE), Answer(502, headers=AT_ONCE), Answer(503, headers=AT_ONCE)],
        [Answer(408, headers=AT_ONCE), Answer(409, headers=AT_ONCE), Answer(429, headers=AT_ONCE)],
        [Answer(500, "upstream <html> died", headers=AT_ONCE)],
        [Reset()],
        [Stall()],
    ],
    ids=lambda faults: "-".join(str(getattr(fault, "status", type(fault).__name__)) for fault in faults),
)
def test_what_passes_within_the_retries_changes_nothing(build: Build, proxy: FaultProxy, faults: list[Fault]) -> None:
    encoder = build(timeout_s=2 if Stall() in faults else 60)
    proxy.faults.extend(faults)
    close(encoder.encode(TEXTS).vectors, ngrams(TEXTS))
    assert len(proxy.seen) == len(faults) + 1


def test_a_busy_server_is_left_alone_for_as_long_as_it_says(build: Build, proxy: FaultProxy) -> None:
    encoder = build()
    proxy.faults.append(Answer(429, headers={"Retry-After": "1"}))
    start = time.monotonic()
    close(encoder.encode(TEXTS).vectors, ngrams(TEXTS))
    assert time.monotonic() - start >= 1


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Answer(500, '{"error": {"message": "engine is dead"}}'), "answered 500: engine is dead"),
        (Answer(503, "<html>no backend</html>"), "answered 503: <html>no backend</html>"),
        (Answer(429, "slow down"), "answered 429: slow down"),
        (Answer(408), "answered 408: on order"),
        (Answer(409), "answered 409: on order"),
        (Answer(424, '{"message": "backend error", "type": "Backend"}'), "answered 424: backend error"),
        (Reset(), "can't be reached: .*(reset|ReadError|without sending complete)"),
        (Stall(), "gave no answer within dra.embedding.timeout_s=2"),
    ],
    ids=lambda value: str(getattr(value, "status", type(value).__name__)),
)
def test_what_does_not_pass_makes_the_encoder_unavailable_until_it_does(
    build: Build, proxy: FaultProxy, fault: Fault, says: str
) -> None:
    encoder = build(timeout_s=2, max_retries=0)
    proxy.rule = lambda _: fault
    with pytest.raises(EncoderUnavailableError, match=f"^openai: minilm at {re.escape(proxy.url)} {says}"):
        encoder.encode(TEXTS)
    assert len(proxy.seen) == 1
    proxy.rule = lambda _: None
    close(encoder.encode(TEXTS).vectors, ngrams(TEXTS))


def test_a_request_is_sent_again_max_retries_times(build: Build, proxy: FaultProxy) -> None:
    encoder = build(max_retries=2)
    proxy.rule = lambda _: Answer(500, headers=AT_ONCE)
    with pytest.raises(EncoderUnavailableError):
        encoder.encode(TEXTS)
    assert len(proxy.seen) == 3


def test_one_request_without_an_answer_makes_the_whole_call_unavailable(build: Build, proxy: FaultProxy) -> None:
    encoder = build(max_retries=0, batch_tokens=10)
    proxy.rule = lambda exchange: Answer(503) if TEXTS[4] in exchange.texts else None
    with pytest.raises(EncoderUnavailableError):
        encoder.encode(TEXTS)


def test_a_server_that_goes_away_is_unavailable(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBED_KEY", KEY)
    with FaultProxy(server) as proxy:
        encoder = build_encoder(openai_config(base_url=proxy.url, max_retries=0))
    with pytest.raises(EncoderUnavailableError, match=r"can't be reached: ConnectError.*refused"):
        encoder.encode(TEXTS)


# Too large a batch


@pytest.mark.parametrize(
    "refusal",
    [
        Answer(413, "<html>Request Entity Too Large</html>"),
        Answer(422, '{"message": "batch size 9 > maximum allowed batch size 2", "code": 422, "type": "Validation"}'),
        Answer(400, '{"error": {"message": "Too many inputs in one request"}}'),
        Answer(500, '{"error": {"message": "CUDA out of memory. Tried to allocate 2 GiB"}}', AT_ONCE),
        Answer(424, '{"message": "backend error: CUDA_ERROR_OUT_OF_MEMORY, out of memory", "type": "Backend"}'),
    ],
    ids=lambda refusal: str(refusal.status),
)
def test_a_batch_that_is_too_large_is_halved_and_counted(build: Build, proxy: FaultProxy, refusal: Answer) -> None:
    encoder = build(max_retries=0)
    proxy.rule = more_than(2, refusal)
    encoded = encoder.encode(TEXTS[:8])
    close(encoded.vectors, ngrams(TEXTS[:8]))
    assert encoded.halved == 3
    assert [len(exchange.texts) for exchange in proxy.seen] == [8, 4, 2, 2, 4, 2, 2]


def test_a_body_that_is_too_large_is_halved_down_to_single_texts(build: Build, proxy: FaultProxy) -> None:
    encoder = build()
    proxy.rule = lambda exchange: Answer(413) if len(exchange.body) > 90 else None
    encoded = encoder.encode(TEXTS[:4])
    close(encoded.vectors, ngrams(TEXTS[:4]))
    assert encoded.halved == 3
    assert proxy.answered == [[text] for text in TEXTS[:4]]


def test_a_single_text_that_memory_lacks_for_is_not_cut_but_waits(build: Build, proxy: FaultProxy) -> None:
    encoder = build(max_retries=0)
    proxy.rule = lambda _: Answer(500, '{"error": {"message": "CUDA out of memory"}}')
    with pytest.raises(EncoderUnavailableError, match="CUDA out of memory"):
        encoder.encode(TEXTS[:2])
    assert [len(exchange.texts) for exchange in proxy.seen] == [2, 1]


def test_another_refusal_is_raised_at_once_in_the_servers_words(build: Build, proxy: FaultProxy) -> None:
    encoder = build()
    proxy.rule = lambda _: Answer(400, '{"error": {"message": "no such thing as user"}}')
    with pytest.raises(ValueError, match="answered 400: no such thing as user"):
        encoder.encode(TEXTS)
    assert len(proxy.seen) == 1


# Too long a text

PARTS = ["aaaa bbbb cccc dddd eeee", " ffff gggg hhhh iiii", " jjjj kkkk llll mmmm nnnn oooo pppp qqqq"]
TOO_LONG = "".join(PARTS)


def test_the_parts_of_a_text_that_is_too_long_are_averaged_by_their_tokens(build: Build, proxy: FaultProxy) -> None:
    encoder = build()
    encoded = encoder.encode([TEXTS[0], TOO_LONG, TEXTS[1]])
    parts = [part for (part,) in proxy.answered if part not in TEXTS]
    assert parts == PARTS
    close(encoded.vectors[1], weighted_mean(ngrams(parts), [len(part) for part in parts]))
    close(encoded.vectors[[0, 2]], ngrams(TEXTS[:2]))
    assert encoded.tokens.tolist() == [len(TEXTS[0]), len(TOO_LONG), len(TEXTS[1])]
    assert encoded.truncated_tokens.tolist() == [0, 0, 0]
    assert encoded.halved == 2


def test_parts_have_length_1_whatever_the_servers_vectors_have(build: Build, proxy: FaultProxy) -> None:
    def longer(answer: Any) -> Any:
        for row in answer["data"]:
            row["embedding"] = [x * answer["usage"]["prompt_tokens"] for x in row["embedding"]]
        return answer

    expected = build().encode([TEXTS[0], TOO_LONG]).vectors
    proxy.rule = lambda exchange: Change(longer) if max(map(len, exchange.texts)) <= LIMIT else None
    close(build().encode([TEXTS[0], TOO_LONG]).vectors, expected)


@pytest.mark.parametrize(("long_text", "part"), [("head", PARTS[0]), ("tail", PARTS[-1])])
def test_head_and_tail_are_the_first_and_last_part_that_is_taken(
    build: Build, proxy: FaultProxy, long_text: str, part: str
) -> None:
    encoded = build(long_text=long_text).encode([TOO_LONG, TEXTS[0]])
    assert proxy.answered == [[part], [TEXTS[0]]]
    close(encoded.vectors, ngrams([part, TEXTS[0]]))
    assert encoded.tokens.tolist() == [len(TOO_LONG), len(TEXTS[0])]
    assert encoded.truncated_tokens.tolist() == [len(TOO_LONG) - len(part), 0]


def test_a_text_without_spaces_is_cut_in_the_middle(build: Build, proxy: FaultProxy) -> None:
    text = "所以答案是四十二" * 10
    encoded = build().encode([text])
    assert proxy.answered == [[text[:40]], [text[40:]]]
    close(encoded.vectors[0], weighted_mean(ngrams([text[:40], text[40:]]), [1, 1]))


def test_blank_parts_are_not_sent(build: Build, proxy: FaultProxy) -> None:
    text = " " * 150 + "x = 6"
    encoded = build(long_text="head").encode([text])
    assert len(proxy.answered) == 1
    assert proxy.answered[0][0].strip() == "x = 6"
    close(encoded.vectors, ngrams(proxy.answered[0]))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        *((status, "input is too large to process") for status in (413, 422, 500)),
        (500, "input is larger than the max context size. skipping"),
        (500, "the request exceeds the available context size. try increasing the context size"),
    ],
)
def test_a_text_may_be_called_too_long_in_other_ways(build: Build, proxy: FaultProxy, status: int, words: str) -> None:
    encoder = build(max_retries=0)
    refusal = Answer(status, f'{{"error": {{"message": "{words}"}}}}')
    proxy.rule = lambda exchange: refusal if max(map(len, exchange.texts)) > 10 else None
    encoded = encoder.encode(["aaaa bbbb cccc dddd"])
    assert proxy.answered == [["aaaa bbbb"], [" cccc dddd"]]
    close(encoded.vectors[0], weighted_mean(ngrams(["aaaa bbbb", " cccc dddd"]), [9, 10]))


def test_a_text_that_is_refused_at_every_length_is_its_own_fault(build: Build, proxy: FaultProxy) -> None:
    encoder = build()
    proxy.rule = lambda exchange: Answer(400, "maximum is 0 tokens") if "Q" in "".join(exchange.texts) else None
    with pytest.raises(ValueError, match="answered 400: maximum is 0 tokens; and it refuses every part") as refusal:
        encoder.encode(["a text that has one Q in its middle"])
    assert len(traceback.format_exception(refusal.value)) < 40


# Tokens


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 0}, {"prompt_tokens": None}, {"prompt_tokens": 10**400}])
def test_without_usage_tokens_are_characters(build: Build, proxy: FaultProxy, usage: Any) -> None:
    encoder = build()
    proxy.rule = lambda _: Change(lambda answer: {**answer, "usage": usage})
    assert encoder.encode(TEXTS).tokens.tolist() == [len(text) for text in TEXTS]


@given(total=st.integers(1, 500), lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12))
@settings(max_examples=30)
def test_usage_is_shared_out_by_characters_and_exact_in_sum(
    counting: tuple[Encoder, FaultProxy], total: int, lengths: list[int]
) -> None:
    encoder, proxy = counting
    proxy.rule = lambda _: Change(lambda answer: {**answer, "usage": {"prompt_tokens": total}})
    encoded = encoder.encode([chr(ord("a") + i) * length for i, length in enumerate(lengths)])
    assert encoded.tokens.sum() == total
    assert encoded.tokens.tolist() == pytest.approx([total * n / sum(lengths) for n in lengths], abs=1)
    assert encoded.vectors.norm(dim=1).tolist() == pytest.approx([1] * len(lengths), abs=1e-5)


@pytest.fixture(scope="module")
def counting() -> Iterator[tuple[Encoder, FaultProxy]]:
    with small_server(ngrams, len, LIMIT, MODEL) as url, FaultProxy(url) as proxy:
        yield build_encoder(openai_config(base_url=proxy.url)), proxy


# Windows by a tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_path(BUNDLED_MODEL))


@pytest.fixture
def by_windows(tokenizer: Any) -> Iterator[tuple[Build, FaultProxy]]:
    """Encoders with the bundled model's tokenizer, and a server that takes `WINDOW` tokens of it and no more."""
    with (
        small_server(ngrams, lambda text: len(tokenizer(text)["input_ids"]), WINDOW, MODEL) as url,
        FaultProxy(url) as proxy,
    ):

        def build(**settings: Any) -> Encoder:
            windows = {"tokenizer": BUNDLED_MODEL, "max_seq_length": WINDOW}
            encoder = build_encoder(openai_config(base_url=proxy.url, **{**windows, **settings}))
            proxy.seen.clear()
            return encoder

        yield build, proxy


def content(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_windows_are_cut_so_that_the_server_takes_each(by_windows: Any, tokenizer: Any) -> None:
    build, proxy = by_windows
    encoded = build().encode([LONG, TEXTS[0]])
    ((*windows, short),) = proxy.answered
    assert len(proxy.seen) == 1
    assert short == TEXTS[0]
    lengths = [len(content(tokenizer, window)) for window in windows]
    assert max(lengths) <= WINDOW - 2
    assert min(lengths[:-1]) > WINDOW - 6
    assert [token for window in windows for token in content(tokenizer, window)] == content(tokenizer, LONG)
    close(encoded.vectors[0], weighted_mean(ngrams(windows), lengths))
    close(encoded.vectors[1], ngrams(TEXTS[:1])[0])
    assert encoded.tokens.tolist() == [sum(lengths), len(content(tokenizer, TEXTS[0]))]
    assert encoded.truncated_tokens.tolist() == [0, 0]


@pytest.mark.parametrize("long_text", ["head", "tail"])
def test_head_and_tail_send_one_window_and_count_the_rest(by_windows: Any, tokenizer: Any, long_text: str) -> None:
    build, proxy = by_windows
    encoded = build(long_text=long_text).encode([LONG, TEXTS[0]])
    ((window, short),) = [exchange.texts for exchange in proxy.seen]
    assert short == TEXTS[0]
    assert LONG.startswith(window) if long_text == "head" else LONG.endswith(window)
    kept, ids = len(content(tokenizer, window)), len(content(tokenizer, LONG))
    assert WINDOW - 6 < kept <= WINDOW - 2
    close(encoded.vectors, ngrams([window, TEXTS[0]]))
    assert encoded.tokens.tolist() == [ids, len(content(tokenizer, TEXTS[0]))]
    assert encoded.truncated_tokens.tolist() == [ids - kept, 0]


def test_tokens_that_the_tokenizer_does_not_know_are_counted(by_windows: Any, build: Build) -> None:
    texts = ["ไทย a", TEXTS[0], "", f"ไทย {LONG} ไทย"]
    by_tokenizer, _ = by_windows
    assert by_tokenizer().encode(texts).unknown_tokens.tolist() == [1, 0, 0, 2]
    assert build().encode(texts).unknown_tokens.tolist() == [0] * 4


def test_an_exactly_full_window_is_one_window(by_windows: Any, tokenizer: Any) -> None:
    build, proxy = by_windows
    text = " ".join(["apple"] * (WINDOW - 2))
    for long_text in ("chunk", "head", "tail"):
        encoded = build(long_text=long_text).encode([text])
        assert proxy.answered == [[text]]
        assert (encoded.tokens.item(), encoded.truncated_tokens.item()) == (WINDOW - 2, 0)


def test_a_word_longer_than_a_window_is_cut_all_the_same(by_windows: Any, tokenizer: Any) -> None:
    build, proxy = by_windows
    text = "antidisestablishmentarianism" * 3
    assert len(content(tokenizer, text)) > WINDOW - 2
    encoded = build().encode([text])
    assert len(proxy.answered[0]) > 1 or len(proxy.answered) > 1
    assert encoded.tokens.tolist() == [len(content(tokenizer, text))]
    assert encoded.vectors.norm().item() == pytest.approx(1)


@pytest.mark.parametrize("long_text", ["chunk", "head", "tail"])
def test_windows_that_the_server_finds_too_long_are_halved(by_windows: Any, tokenizer: Any, long_text: str) -> None:
    build, proxy = by_windows
    encoded = build(max_seq_length=4 * WINDOW, long_text=long_text).encode([LONG])
    parts = [part for texts in proxy.answered for part in texts]
    lengths = [len(content(tokenizer, part)) for part in parts]
    ids = len(content(tokenizer, LONG))
    assert encoded.tokens.tolist() == [ids]
    if long_text == "chunk":
        assert sum(lengths) == ids
        assert encoded.truncated_tokens.tolist() == [0]
    else:
        assert len(parts) == 1
        assert LONG.startswith(parts[0]) if long_text == "head" else LONG.endswith(parts[0])
        assert encoded.truncated_tokens.tolist() == [ids - lengths[0]]
    close(encoded.vectors[0], weighted_mean(ngrams(parts), lengths))


def test_a_text_of_no_tokens_is_a_zero_vector(by_windows: Any, tokenizer: Any) -> None:
    build, proxy = by_windows
    assert content(tokenizer, "\u200b\u200b") == []
    encoded = build().encode(["", "\u200b\u200b"])
    assert not proxy.seen
    assert not encoded.vectors.any()
    assert encoded.tokens.tolist() == [0, 0]


# Wrong answers


def rows(change: Callable[[list[Any]], list[Any]]) -> Change:
    return Change(lambda answer: {**answer, "data": change(answer["data"])})


def first(**changed: Any) -> Change:
    return rows(lambda data: [{**data[0], **changed}, *data[1:]])


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (rows(lambda data: data[:-1]), "gave 8 embeddings of 9 texts"),
        (first(index=1), r"gave embeddings with the indices \[1, 1, 2"),
        (first(index=9), r"gave embeddings with the indices \[1, .*, 9\]"),
        (first(index=None), "gave no list of embeddings"),
        (first(embedding=[1.0, 2.0]), r"gave embeddings of the shapes \[\(2,\), \(512,\)\]"),
        (rows(lambda data: [{**row, "embedding": 1.0} for row in data]), r"gave embeddings of the shapes \[\(\)\]"),
        (first(embedding=[float("nan")] * 512), "gave NaN or infinity"),
        (first(embedding=[None] * 512), "gave NaN or infinity"),
        (first(embedding=["x"] * 512), "gave no list of embeddings"),
        (first(embedding=[0.0] * 512), "gave 1 all-zero embeddings of 9 texts that are not blank"),
        (
            rows(lambda data: [*data[1:], {"embedding": data[0]["embedding"]}]),
            r"gave embeddings with the indices \[1, .*, 8, 8\]",
        ),
        (
            rows(lambda data: [{**row, "embedding": [1.0, 2.0]} for row in data]),
            "of 2 dimensions and at the start of 5",
        ),
        (Change(lambda _: {"result": "fine"}), r"gave no list of embeddings \(KeyError\('data'\)\): .*fine"),
        (Change(lambda answer: {**answer, "usage": [9]}), r"gave no list of embeddings \(AttributeError"),
        (Change(lambda _: "fine"), 'gave no list of embeddings.*"fine"'),
        (first(embedding=[10**400] * 512), r"gave no list of embeddings \(OverflowError"),
        (Answer(200, "[" * 100_000), r"gave no list of embeddings \(RecursionError"),
        (Answer(200, "<html>Welcome</html>"), "gave no list of embeddings.*<html>Welcome"),
    ],
)
def test_a_wrong_answer_is_an_error_that_says_what(build: Build, proxy: FaultProxy, fault: Fault, says: str) -> None:
    encoder = build()
    proxy.rule = lambda _: fault
    with pytest.raises(ValueError, match=f"^openai: minilm at {re.escape(proxy.url)}.*{says}"):
        encoder.encode(TEXTS)


JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.sampled_from([10**400, 1e308, float("nan"), float("inf"), "", "x", "embedding"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["embedding", "index", "data"]), inner),
    max_leaves=4,
)
PLACES = st.sampled_from(
    [
        *((), ("data",), ("data", 0), ("data", 1, "embedding"), ("data", 0, "index"), ("data", 0, "embedding", 7)),
        *(("usage",), ("usage", "prompt_tokens"), ("error",), ("error", "message")),
    ]
)


def with_junk(place: tuple[Any, ...], junk: Any) -> Change:
    def change(answer: Any) -> Any:
        inner = answer = {"error": {}, **answer}
        for key in place[:-1]:
            inner = inner[key]
        if place:
            inner[place[-1]] = junk
        return answer if place else junk

    return Change(change)


ANSWERS = st.builds(with_junk, PLACES, JUNK) | st.builds(
    Answer,
    st.sampled_from([200, 200, 302, 400, 401, 404, 413, 422, 424, 429, 500, 503, 599]),
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=30),
        JUNK.map(json.dumps),
        JUNK.map(lambda junk: json.dumps({"error": {"message": junk}})),
        st.sampled_from(["maximum context length", f"key {KEY}", "out of memory"]),
        st.just(100_000).map(lambda deep: "[" * deep),
    ),
)


@pytest.fixture(scope="module")
def impatient(server: str) -> Iterator[tuple[FaultProxy, Encoder]]:
    """An encoder that sends nothing again, and the proxy that it asks."""
    with FaultProxy(server) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBED_KEY", KEY)
        yield proxy, builder(proxy)(max_retries=0)


@settings(max_examples=80)
@given(answer=ANSWERS)
def test_whatever_a_server_answers_vectors_are_whole_or_there_is_a_sentence(
    impatient: tuple[FaultProxy, Encoder], answer: Fault
) -> None:
    proxy, encoder = impatient
    proxy.rule = lambda _: answer
    said = shown = ""
    try:
        encoded = encoder.encode(TEXTS[:2])
        close(encoded.vectors.norm(dim=1), [1.0, 1.0], atol=1e-5)
        assert (encoded.tokens >= 0).all()
    except (ValueError, EncoderUnavailableError) as error:
        said, shown = str(error), "".join(traceback.format_exception(error))
    assert not said or said.startswith(f"openai: minilm at {proxy.url} ")
    assert KEY not in shown
    proxy.rule = lambda _: None
    close(encoder.encode(TEXTS[:2]).vectors, ngrams(TEXTS[:2]))


@pytest.mark.parametrize("without", [slice(None), slice(1)])
def test_an_index_that_is_left_out_is_the_place_of_its_row(build: Build, proxy: FaultProxy, without: slice) -> None:
    encoder = build()

    def leave_out(data: list[Any]) -> list[Any]:
        for row in data[without]:
            del row["index"]
        return data

    proxy.rule = lambda _: rows(leave_out)
    close(encoder.encode(TEXTS).vectors, ngrams(TEXTS))


def test_an_answer_in_another_order_is_put_right_by_its_indices(build: Build, proxy: FaultProxy) -> None:
    encoder = build()
    proxy.rule = lambda _: rows(lambda data: data[::-1])
    close(encoder.encode(TEXTS).vectors, ngrams(TEXTS))


# The start


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "other"}, "answered 404: The model `other` does not exist.; check dra.embedding.model, and"),
        ({"path": ""}, "answered 404: .*Not Found.*; check .* dra.embedding.base_url, which is the URL without"),
        ({"api_key_env": "NOT_SET"}, "answered 401: .*Unauthorized.*; the environment variable NOT_SET is not set"),
        ({"api_key_env": "WRONG_KEY"}, "answered 401: .*; the environment variable WRONG_KEY holds the key that was"),
    ],
)
def test_a_wrong_setting_fails_at_the_start(
    server: str, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], says: str
) -> None:
    monkeypatch.setenv("EMBED_KEY", KEY)
    monkeypatch.setenv("WRONG_KEY", "open-up")
    url = server if settings.pop("path", None) is None else server.removesuffix("/v1")
    with pytest.raises(ValueError, match=f"^openai: .* at {re.escape(url)} {says}"):
        build_encoder(openai_config(base_url=url, **settings))


def test_a_server_that_is_not_there_fails_at_the_start(server: str) -> None:
    with FaultProxy(server) as proxy:
        url = proxy.url
    with pytest.raises(EncoderUnavailableError, match=rf"{re.escape(url)} can't be reached: .*refused"):
        build_encoder(openai_config(base_url=url, max_retries=0))


@pytest.mark.parametrize(
    "answer", [Answer(401, f"{KEY} is no key"), Answer(500, f"{KEY}?"), Answer(200, f"{KEY}?"), Answer(403, KEY)]
)
def test_the_key_is_in_no_message(build: Build, proxy: FaultProxy, answer: Answer) -> None:
    proxy.rule = lambda _: answer
    with pytest.raises((ValueError, EncoderUnavailableError), match=r"\*\*\*") as failure:
        build(max_retries=0)
    assert KEY not in "".join(traceback.format_exception(failure.value))


@pytest.mark.parametrize("key", ["sesame\nopen", "sesame…"])
def test_what_cannot_be_a_key_is_refused_unshown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("EMBED_KEY", key)
    with pytest.raises(ValueError, match="the environment variable EMBED_KEY holds characters that no") as refusal:
        build_encoder(openai_config())
    assert "sesame" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"base_url": None}, "openai needs dra.embedding.base_url, such as http://embed.example:8000/v1"),
        ({"base_url": "embed.example:8000"}, "base_url must be an http or https URL .*, not 'embed.example:8000'"),
        ({"base_url": "ftp://embed.example/v1"}, "base_url must be an http or https URL .*, not 'ftp://embed.ex"),
        ({"base_url": "http://:8000/v1"}, "base_url must be an http or https URL .*, not 'http://:8000/v1'"),
        ({"base_url": "http://embed.example:eight/v1"}, "base_url must be an http or https URL .*:eight/v1'"),
        ({"base_url": "http://embed.example/v1?key=1"}, r"base_url must be an http or https URL .*key=1'"),
        ({"base_url": "http://me:secret@embed.example"}, "base_url holds a user or password, .* dra.embedding.api_key"),
        ({"model": BUNDLED_MODEL}, "model=pkg://.* set dra.embedding.model to the server's name of the model"),
        ({"api_key_env": "sk-1234"}, "api_key_env must be the name of an environment variable"),
        ({"timeout_s": 0}, "timeout_s must be above 0, not 0"),
        ({"timeout_s": float("nan")}, "timeout_s must be above 0, not nan"),
        ({"max_retries": -1}, "max_retries must not be negative, not -1"),
        ({"max_seq_length": 64}, "tokenizer=None and dra.embedding.max_seq_length=64: .*; set both, or neither"),
        ({"tokenizer": BUNDLED_MODEL}, "tokenizer=pkg://.* and dra.embedding.max_seq_length=None: .*; set both"),
        ({"tokenizer": "/no/such", "max_seq_length": 64}, "dra.embedding.tokenizer: there is no folder '/no/such'"),
        ({"device": "cuda"}, "device=cuda has no effect with .*encoder=openai, .*; remove it"),
        ({"dtype": "float16"}, "dtype=float16 has no effect with .*encoder=openai, .*; remove it"),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as refusal:
        openai_config(**settings).check()
    assert "secret" not in str(refusal.value)
    assert "sk-1234" not in str(refusal.value)


@pytest.mark.parametrize("encoder", ["sentence_transformers", "ngram"])
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("base_url", "http://embed.example/v1"),
        ("api_key_env", "EMBED_KEY"),
        ("tokenizer", BUNDLED_MODEL),
        ("timeout_s", 5),
        ("max_retries", 1),
    ],
)
def test_a_servers_settings_are_refused_for_other_encoders(encoder: str, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{setting}={value} has no effect .*encoder={encoder}, .*; remove it"):
        EmbeddingConfig(encoder=encoder, **{setting: value}).check()


def test_good_settings_pass_without_a_server() -> None:
    openai_config().check()
    openai_config(base_url="https://embed.example/", tokenizer=BUNDLED_MODEL, max_seq_length=64, max_retries=0).check()


# vLLM


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(model_path(BUNDLED_MODEL), device="cpu").eval()


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, work = model_path(BUNDLED_MODEL), tmp_path_factory.mktemp("vllm")
    with VllmServer(folder, MODEL, KEY, work, "--runner", "pooling") as server:
        yield server.url


@pytest.fixture
def vllm_proxy(vllm: str) -> Iterator[FaultProxy]:
    with FaultProxy(vllm) as proxy:
        yield proxy


@pytest.fixture
def vllm_build(vllm_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Build:
    monkeypatch.setenv("EMBED_KEY", KEY)

    return builder(vllm_proxy)


def direct(model: SentenceTransformer, texts: Sequence[str]) -> torch.Tensor:
    return torch.from_numpy(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False))


@pytest.mark.slow
def test_vllms_vectors_are_sentence_transformers_own(vllm_build: Build, model: SentenceTransformer) -> None:
    texts = [*TEXTS, "x = 6 \u00d7 7 = 42, 所以答案是 42 🚀", "a", *(f"{i} {LONG[:i]}" for i in range(200))]
    encoded = vllm_build().encode(texts)
    close(encoded.vectors, direct(model, texts), atol=1e-4)
    # vLLM counts two special tokens a text.
    lengths = [len(content(model.tokenizer, text)) + 2 for text in texts]
    assert encoded.tokens.sum() == sum(lengths)
    assert (encoded.truncated_tokens == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("long_text", ["chunk", "head", "tail"])
def test_what_vllm_calls_too_long_is_halved(
    vllm_build: Build, vllm_proxy: FaultProxy, model: SentenceTransformer, long_text: str
) -> None:
    text = LONG * 3
    encoded = vllm_build(long_text=long_text).encode([TEXTS[0], text])
    close(encoded.vectors[0], direct(model, TEXTS[:1])[0], atol=1e-4)
    parts = [texts[0] for texts in vllm_proxy.answered if texts != TEXTS[:1]]
    lengths = [len(content(model.tokenizer, part)) + 2 for part in parts]
    if long_text == "chunk":
        assert "".join(parts) == text
        assert encoded.tokens[1] == sum(lengths)
        assert encoded.truncated_tokens.tolist() == [0, 0]
    else:
        (part,) = parts
        assert text.startswith(part) if long_text == "head" else text.endswith(part)
        assert (encoded.tokens - encoded.truncated_tokens)[1] == lengths[0]
        assert encoded.tokens[1].item() == pytest.approx(lengths[0] * len(text) / len(part), rel=0.01)
    assert max(lengths) <= 256
    close(encoded.vectors[1], weighted_mean(direct(model, parts), lengths), atol=1e-4)
    assert {exchange.status for exchange in vllm_proxy.seen} == {200, 400}
    assert encoded.halved == 1


@pytest.mark.slow
def test_windows_of_vllms_own_tokenizer_are_all_taken(
    vllm_build: Build, vllm_proxy: FaultProxy, model: SentenceTransformer
) -> None:
    texts = [LONG * 3, TEXTS[0], LONG[100:] * 5]
    encoded = vllm_build(tokenizer=BUNDLED_MODEL, max_seq_length=256).encode(texts)
    assert {exchange.status for exchange in vllm_proxy.seen} == {200}
    for text, vector, tokens in zip(texts, encoded.vectors, encoded.tokens.tolist(), strict=True):
        ids = content(model.tokenizer, text)
        assert tokens == len(ids)
        close(vector, by_words(model, text, ids), atol=1e-4)


def by_words(model: SentenceTransformer, text: str, ids: list[int]) -> torch.Tensor:
    """The mean over windows of at most 254 token ids that end with a word, one forward pass each."""
    words = model.tokenizer(text, add_special_tokens=False).word_ids()
    starts = [0]
    while starts[-1] + 254 < len(ids):
        end = starts[-1] + 254
        while words[end] == words[end - 1]:
            end -= 1
        starts.append(end)
    windows = [ids[a:b] for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    vectors = []
    for window in windows:
        row = torch.tensor([[model.tokenizer.cls_token_id, *window, model.tokenizer.sep_token_id]])
        with torch.inference_mode():
            vectors.append(model({"input_ids": row, "attention_mask": torch.ones_like(row)})["sentence_embedding"][0])
    return weighted_mean(torch.nn.functional.normalize(torch.stack(vectors), dim=1), [len(w) for w in windows])


@pytest.mark.slow
def test_faults_before_vllm_pass(vllm_build: Build, vllm_proxy: FaultProxy, model: SentenceTransformer) -> None:
    encoder = vllm_build(timeout_s=5, max_retries=4)
    vllm_proxy.faults.extend(
        [Answer(500, headers=AT_ONCE), Reset(), Stall(), Answer(429, headers={"Retry-After": "1"})]
    )
    close(encoder.encode(TEXTS).vectors, direct(model, TEXTS), atol=1e-4)
    assert len(vllm_proxy.seen) == 5
    vllm_proxy.rule = more_than(2, Answer(413))
    encoded = encoder.encode(TEXTS[:8])
    close(encoded.vectors, direct(model, TEXTS[:8]), atol=1e-4)
    assert encoded.halved == 3


@pytest.mark.slow
def test_vllm_refuses_a_wrong_model_and_a_wrong_key(vllm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBED_KEY", KEY)
    with pytest.raises(ValueError, match=r"answered 404: The model `other` does not exist.*check dra.embedding.model"):
        build_encoder(openai_config(base_url=vllm, model="other"))
    monkeypatch.setenv("EMBED_KEY", "open-up")
    with pytest.raises(ValueError, match=r"answered 401: .*Unauthorized.*EMBED_KEY holds the key"):
        build_encoder(openai_config(base_url=vllm))
