"""An encoder behind OpenAI's `/v1/embeddings`: requests, what a server refuses, and texts that it calls too long."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from verl_dra.embedding.encoder import EmbeddingConfig, Encoded, EncoderUnavailableError
from verl_dra.embedding.model_path import model_path
from verl_dra.embedding.openai_client import OpenAIClient, Server, TooLargeError

# What text-embeddings-inference takes by default; vLLM makes batches of its own, whatever comes in one request.
_TEXTS_OF_A_REQUEST = 32
_TOKENS_OF_A_REQUEST = 16384
_REQUESTS_AT_A_TIME = 4
_BYTES_OF_A_TOKEN = 3
# From here on, what a server states is no number of tokens.
_NO_USAGE = 2**53


class OpenAIEncoder:
    """Asks a server for vectors, several texts a request and several requests at a time.

    A request holds at most 32 texts and about `batch_tokens` tokens: the tokenizer's, or without one a token for every
    3 bytes of UTF-8. One that the server calls too large is halved. A text that it refuses alone is halved too, at
    whitespace where there is some near the middle, and its parts are windows: what they are depends on the text and the
    server's limit alone.

    With a tokenizer, tokens are its own. Without one they are the server's usage, its special tokens included, shared
    out over the texts of a request by their characters; characters where it states no usage; and of a part that is not
    sent (`head`, `tail`) as many for each character as of the one that is.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        self._config = config
        if config.base_url is None:
            raise ValueError("dra.embedding.encoder=openai needs dra.embedding.base_url")
        self._client = OpenAIClient(
            Server(
                str(self),
                "dra.embedding",
                config.base_url,
                config.api_key_env,
                config.timeout_s,
                config.max_retries,
                EncoderUnavailableError,
            )
        )
        self._tokenizer = self._unknown_id = None
        if config.tokenizer is not None:
            self._tokenizer, self._unknown_id = _tokenizer(config.tokenizer, config.trust_remote_code)
        # A wrong URL, key or model shows here and not when the first completion is there.
        self._dimension = self._request(["a"])[0].shape[1]

    def __str__(self) -> str:
        return f"openai: {self._config.model} at {self._config.base_url}"

    def encode(self, texts: Sequence[str]) -> Encoded:
        windows, unsent, unknown = self._windows(texts)
        with ThreadPoolExecutor(_REQUESTS_AT_A_TIME) as pool:
            done = list(pool.map(self._embed, _batches(windows, self._config.batch_tokens or _TOKENS_OF_A_REQUEST)))
        sums = torch.zeros(len(texts), self._dimension)
        tokens, truncated = unsent.clone(), unsent
        for window, part in zip(windows, (part for parts, _ in done for part in parts), strict=True):
            sums[window.text_number] += part.vector
            tokens[window.text_number] += part.tokens + part.lost
            truncated[window.text_number] += part.lost
        return Encoded(
            vectors=torch.nn.functional.normalize(sums, dim=1),
            tokens=tokens,
            truncated_tokens=truncated,
            unknown_tokens=unknown,
            halved=sum(halved for _, halved in done),
        )

    def _windows(self, texts: Sequence[str]) -> tuple[list[_Window], Tensor, Tensor]:
        """What is sent of all texts, in order; each's tokens [n] known not to be; and those that are unknown [n]."""
        numbers = [i for i, text in enumerate(texts) if text.strip()]
        unsent = torch.zeros(len(texts), dtype=torch.long)
        unknown = torch.zeros_like(unsent)
        if self._tokenizer is None or self._config.max_seq_length is None:
            return [_Window(i, texts[i]) for i in numbers], unsent, unknown
        size = self._config.max_seq_length - self._tokenizer.num_special_tokens_to_add(is_pair=False)
        windows: list[_Window] = []
        encodings = self._tokenizer.encode_batch([texts[i] for i in numbers], add_special_tokens=False)
        for i, encoding in zip(numbers, encodings, strict=True):
            unsent[i] = len(encoding)
            unknown[i] = encoding.ids.count(self._unknown_id)
            for start, end in _spans(encoding.word_ids, size, from_end=self._config.long_text == "tail"):
                window = texts[i][encoding.offsets[start][0] : encoding.offsets[end - 1][1]]
                if not window.strip():
                    continue
                windows.append(_Window(i, window, end - start))
                unsent[i] -= end - start
                if self._config.long_text != "chunk":
                    break
        return windows, unsent, unknown

    def _embed(self, windows: Sequence[_Window]) -> tuple[list[_Part], int]:
        """Embed a batch, by halves where the server calls it too large; also gives how many were halved."""
        try:
            return self._embed_at_once(windows), 0
        except TooLargeError as refusal:
            if len(windows) == 1:
                return [self._embed_halves(windows[0], refusal)], 0
        middle = len(windows) // 2
        first, halved_first = self._embed(windows[:middle])
        second, halved_second = self._embed(windows[middle:])
        return first + second, 1 + halved_first + halved_second

    def _embed_at_once(self, windows: Sequence[_Window]) -> list[_Part]:
        vectors, usage = self._request([window.text for window in windows])
        if vectors.shape[1] != self._dimension:
            raise ValueError(
                f"{self} gave embeddings of {vectors.shape[1]} dimensions and at the start of {self._dimension}; is it "
                "another model now?"
            )
        tokens = [count if w.tokens is None else w.tokens for w, count in zip(windows, usage, strict=True)]
        weighted = vectors * torch.tensor(tokens).clamp(min=1)[:, None]
        return [_Part(vector, count) for vector, count in zip(weighted, tokens, strict=True)]

    def _embed_halves(self, window: _Window, refusal: TooLargeError) -> _Part:
        """Embed a window that the server refuses alone."""
        if len(window.text) == 1:
            raise ValueError(f"{refusal}; and it refuses every part of the text, down to one character") from None
        cut = _middle(window.text)
        halves = [half for half in (window.text[:cut], window.text[cut:]) if half.strip()]
        sent = {"chunk": halves, "head": halves[:1], "tail": halves[-1:]}[self._config.long_text]
        parts = [self._embed([_Window(window.text_number, half, self._count(half))])[0][0] for half in sent]
        total = window.tokens
        if total is None:
            total = sum(part.tokens + part.lost for part in parts)
            if self._config.long_text != "chunk":
                total = round(total * len(window.text) / len(sent[0]))
        tokens = total if self._config.long_text == "chunk" else min(parts[0].tokens, total)
        return _Part(torch.stack([part.vector for part in parts]).sum(0), tokens, total - tokens)

    def _count(self, text: str) -> int | None:
        return None if self._tokenizer is None else len(self._tokenizer.encode(text, add_special_tokens=False))

    def _request(self, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Unit vectors [n, D] of texts, and the tokens of each that the server counted.

        Raises:
            EncoderUnavailableError: no answer, or none for now, after all retries.
            TooLargeError: the server would take less.
            ValueError: any other refusal, or a wrong answer.
        """
        body = {"input": list(texts), "model": self._config.model, "encoding_format": "float"}
        return self._read(self._client.post("/embeddings", body, divisible=len(texts) > 1), texts)

    def _read(self, content: bytes, texts: Sequence[str]) -> tuple[Tensor, list[int]]:
        try:
            answer: Any = json.loads(content)
            # Some servers leave an index out, such as that of the first; the order is given all the same.
            numbered = sorted(
                ((row.get("index", i), row) for i, row in enumerate(answer["data"])), key=lambda pair: pair[0]
            )
            indices, rows = [index for index, _ in numbered], [row for _, row in numbered]
            vectors = [np.asarray(row["embedding"], dtype=np.float32) for row in rows]
            usage = (answer.get("usage") or {}).get("prompt_tokens")
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            start = self._client.without_key(content.decode(errors="replace"))[:200]
            raise ValueError(f"{self} gave no list of embeddings ({error!r}): {start}") from None
        if len(rows) != len(texts):
            raise ValueError(f"{self} gave {len(rows)} embeddings of {len(texts)} texts")
        if indices != list(range(len(texts))):
            raise ValueError(f"{self} gave embeddings with the indices {indices}")
        shapes = {vector.shape for vector in vectors}
        if len(shapes) != 1 or vectors[0].ndim != 1 or vectors[0].size == 0:
            raise ValueError(f"{self} gave embeddings of the shapes {sorted(shapes)}")
        if not all(np.isfinite(vector).all() for vector in vectors):
            raise ValueError(f"{self} gave NaN or infinity")
        if zero := sum(not vector.any() for vector in vectors):
            # Not one text that is sent is blank, and zero vectors would count as unlike all others.
            raise ValueError(f"{self} gave {zero} all-zero embeddings of {len(texts)} texts that are not blank")
        characters = [len(text) for text in texts]
        return (
            torch.nn.functional.normalize(torch.from_numpy(np.stack(vectors)), dim=1),
            _shares(usage, characters) if isinstance(usage, int) and 0 < usage < _NO_USAGE else characters,
        )


class _Window(NamedTuple):
    """A text, or the part of one that is sent."""

    text_number: int
    text: str
    tokens: int | None = None


class _Part(NamedTuple):
    """What came of a window."""

    vector: Tensor
    """[D]: the sum of unit vectors, each times its tokens."""
    tokens: int
    lost: int = 0
    """Tokens of the window that no vector holds."""


def _tokenizer(name: str, trust_remote_code: bool) -> tuple[Any, int | None]:
    """A fast tokenizer that neither truncates nor pads, and its id of what it has no token for."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        model_path(name, key="dra.embedding.tokenizer"), trust_remote_code=trust_remote_code
    )
    if not tokenizer.is_fast:
        raise ValueError(f"dra.embedding.tokenizer: {name!r} is no fast tokenizer, which cutting long texts needs")
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend, tokenizer.unk_token_id


def _spans(words: list[int | None], size: int, from_end: bool) -> Iterator[tuple[int, int]]:
    """Windows of at most `size` tokens, where `words` is the word of each token.

    They end between words, if the half of a window in question has such a place: a word cut in two may become more
    tokens than it was, and the server would refuse the window.
    """
    if from_end:
        yield from ((len(words) - end, len(words) - start) for start, end in _spans(words[::-1], size, from_end=False))
        return
    start = 0
    while start < len(words):
        end = min(start + size, len(words))
        if end < len(words):
            end = next((cut for cut in range(end, end - size // 2, -1) if words[cut] != words[cut - 1]), end)
        yield start, end
        start = end


def _batches(windows: Sequence[_Window], budget: int) -> Iterator[list[_Window]]:
    batch: list[_Window] = []
    size = 0
    for window in windows:
        tokens = window.tokens or -(-len(window.text.encode()) // _BYTES_OF_A_TOKEN)
        if batch and (size + tokens > budget or len(batch) == _TEXTS_OF_A_REQUEST):
            yield batch
            batch, size = [], 0
        batch.append(window)
        size += tokens
    if batch:
        yield batch


def _middle(text: str) -> int:
    """Where to cut: before the whitespace nearest the middle, in the middle half of the text; else in the middle."""
    middle = len(text) // 2
    places = (cut for distance in range(len(text) // 4) for cut in (middle - distance, middle + distance))
    return next((cut for cut in places if text[cut].isspace()), middle)


def _shares(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` in whole parts in proportion to `sizes`, exact in sum."""
    ends = [total * size // sum(sizes) for size in accumulate(sizes)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
