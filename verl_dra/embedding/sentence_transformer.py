"""The default encoder: any sentence-transformers model, long texts by windows, batches by tokens.

Texts are tokenised some ahead of the model: on a GPU in threads, while it works on those before. Nothing waits for the
GPU until all are there.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import normalize
from transformers.utils import logging as transformers_logging

from verl_dra.embedding.encoder import EmbeddingConfig, Encoded, EncoderUnavailableError
from verl_dra.embedding.model_path import model_path
from verl_dra.embedding.packed import CannotPackError, PackedModel
from verl_dra.embedding.padded import PaddedModel
from verl_dra.embedding.windows import Cutter, Windows

logger = logging.getLogger(__name__)

_BATCH_TOKENS = {"cuda": 65536, "cpu": 4096}
_TEXTS_AT_A_TIME = {"cpu": 128}
# Few at first, so that a GPU soon has work, and then twice as many each time: at the end of each slice its longest text
# is tokenised by one core alone.
_FIRST_TEXTS_OF_A_GPU, _MOST_TEXTS_OF_A_GPU = 32, 512
# Slices of texts that are tokenised ahead of a GPU; a CPU has no time for it. By two threads: ids of one become arrays,
# which takes the interpreter, while the other's texts are tokenised.
_AHEAD = {"cpu": 0}
_AHEAD_OF_A_GPU = 2
# Of a GPU's memory beside weights and batches: gaps between the blocks that torch keeps, and a slice's vectors.
_GAPS, _VECTORS_BYTES = 1.25, 2**28
# Of the CPU's allocator, of cuBLAS and of kernels, for which torch 2.13 has no class.
_OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


class SentenceTransformerEncoder:
    """Embeds texts beyond the model's window as `config.long_text` says.

    Windows are cut from the ids of the model's own tokenizer and go straight to the model, so that a text is tokenised
    once; without padding where the model can be packed.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        self._model = _load(config)
        if config.max_seq_length is not None:
            positions = getattr(self._transformer_config(), "max_position_embeddings", None)
            if positions is not None and config.max_seq_length > positions:
                raise ValueError(
                    f"dra.embedding.max_seq_length={config.max_seq_length} is more than the {positions} tokens that "
                    f"{config.model!r} has positions for"
                )
            self._model.max_seq_length = config.max_seq_length
        self._name = config.model
        tokenizer: Any = self._model.tokenizer
        if not tokenizer.is_fast:
            raise ValueError(
                f"dra.embedding.model: {config.model!r} has no fast tokenizer, which cutting long texts needs"
            )
        self._tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._unknown_id = tokenizer.unk_token_id
        before, self._word, after = _template(self._tokenizer)
        size = (self._model.max_seq_length or 0) - len(before) - len(after)
        if size < 1:
            raise ValueError(
                f"dra.embedding.model: {config.model!r} states no usable window "
                f"({self._model.max_seq_length} tokens); set dra.embedding.max_seq_length"
            )
        self._cutter = Cutter(size, before, after, config.long_text, config.max_windows)

        device = self._model.device
        self._ahead = _AHEAD.get(device.type, _AHEAD_OF_A_GPU)
        self._threads = ThreadPoolExecutor(max(self._ahead, 1), thread_name_prefix="dra-tokenize")
        if device.type == "cpu":
            # Else it takes all cores of a machine of which the scorer has some.
            os.environ.setdefault("RAYON_NUM_THREADS", str(torch.get_num_threads()))
        self._batch: PackedModel | PaddedModel
        try:
            self._batch = PackedModel(self._model, before, after, size)
            self._how = "packed"
        except CannotPackError as error:
            self._batch = PaddedModel(self._model)
            self._how = f"padded ({error})"
        self._most_tokens = self._batch_tokens = config.batch_tokens or _BATCH_TOKENS.get(device.type, 16384)
        # What can't embed a word shows here, and not after the generation of a step.
        with torch.inference_mode():
            self._dimension = self._embed(self._windows(["a"], 0).windows)[0].shape[1]
            peak = self._peak_of_a_batch() if device.type == "cuda" else None
        self.memory_bound = None if peak is None else memory_bound(torch.cuda.memory_allocated(device), peak)
        """Bytes of a GPU within which it works, weights and what torch keeps included; None on a CPU."""

    def __str__(self) -> str:
        attention = "" if self._how == "packed" else f", attention {self._transformer_config()._attn_implementation}"
        dtype = str(next(self._model.parameters()).dtype).removeprefix("torch.")
        memory = "" if self.memory_bound is None else f", at most {self.memory_bound / 2**30:.2f} GiB"
        return (
            f"sentence_transformers {self._name} on {self._model.device}, {dtype}, windows of "
            f"{self._model.max_seq_length} tokens {self._how}{attention}, batches of {self._most_tokens} tokens{memory}"
        )

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Encoded:
        # What a neighbour on the GPU took for a while must not make all later batches small.
        self._batch_tokens = min(2 * self._batch_tokens, self._most_tokens)
        tokenised: list[_Tokenised] = []
        parts: list[Tensor] = []
        halved = 0
        with closing(self._tokenise(texts)) as slices:
            for part in slices:
                tokenised.append(part)
                vectors, times = self._embed(part.windows)
                parts.append(vectors)
                halved += times

        text = torch.from_numpy(np.concatenate([part.windows.text + part.first for part in tokenised]))
        kept = torch.from_numpy(np.concatenate([part.windows.tokens for part in tokenised]))
        tokens = torch.from_numpy(np.concatenate([part.tokens for part in tokenised]))
        unknown = torch.from_numpy(np.concatenate([part.unknown for part in tokenised]))
        weighted = torch.cat(parts).cpu() * kept[:, None]
        sums = torch.zeros(len(texts), self._dimension).index_add_(0, text, weighted)
        return Encoded(
            vectors=normalize(sums, dim=1),
            tokens=tokens,
            truncated_tokens=tokens - torch.zeros_like(tokens).index_add_(0, text, kept),
            unknown_tokens=unknown,
            halved=halved,
        )

    def _tokenise(self, texts: Sequence[str]) -> Generator[_Tokenised]:
        """Windows of all texts, some texts at a time, those that come next made meanwhile."""
        waiting: deque[Future[_Tokenised]] = deque()
        first, size = 0, _TEXTS_AT_A_TIME.get(self._model.device.type, _FIRST_TEXTS_OF_A_GPU)
        try:
            while first < len(texts):
                waiting.append(self._threads.submit(self._windows, texts[first : first + size], first))
                first += size
                if self._ahead:
                    size = min(2 * size, _MOST_TEXTS_OF_A_GPU)
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)

    def _windows(self, texts: Sequence[str], first: int) -> _Tokenised:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        counts = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        total = int(counts.sum())
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), dtype=np.int32, count=total)
        unknown = np.searchsorted(np.cumsum(counts), np.flatnonzero(ids == self._unknown_id), side="right")
        windows = self._cutter.cut(ids, counts)
        return _Tokenised(first, windows, counts, np.bincount(unknown, minlength=len(counts)))

    def _embed(self, windows: Windows) -> tuple[Tensor, int]:
        """[windows, D] float32 unit vectors on the model's device, and how often a batch did not fit in memory.

        One that does not fit halves the budget of tokens.
        """
        parts: list[Tensor] = []
        ends = np.concatenate([[0], np.cumsum(windows.lengths)])
        start = halved = 0
        while start < len(windows.lengths):
            rows = max(self._batch.fitting(windows.lengths[start:], self._batch_tokens), 1)
            lengths = windows.lengths[start : start + rows]
            part = self._forward(windows.ids[ends[start] : ends[start + rows]], lengths)
            if part is not None:
                parts.append(part)
                start += rows
                continue
            if rows == 1:
                # What a neighbour on the GPU holds now it may not hold later.
                raise EncoderUnavailableError(
                    f"a window of {lengths[0]} tokens does not fit in the memory of {self._model.device}; lower "
                    "dra.embedding.max_seq_length, or leave more memory to the scorer"
                )
            self._batch_tokens = self._batch.cost(lengths) // 2
            halved += 1
            logger.warning("out of memory: batches of %d tokens from now on", self._batch_tokens)
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()
        return (torch.cat(parts) if parts else torch.zeros(0, self._dimension, device=self._model.device)), halved

    def _forward(self, ids: np.ndarray, lengths: np.ndarray) -> Tensor | None:
        """[windows, D] float32 on the model's device, or None where memory does not suffice."""
        try:
            return normalize(self._batch(ids, lengths).float(), dim=1)
        except (RuntimeError, MemoryError) as error:
            if _is_out_of_memory(error):
                return None
            raise

    def _peak_of_a_batch(self) -> int:
        """Bytes that the GPU holds at most beside the weights; afterwards they are free again."""
        device = self._model.device
        length = int(self._model.max_seq_length or 1)
        rows = max(self._most_tokens // length, 1)
        lengths = np.full(rows, length)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        self._embed(Windows(np.full(rows * length, self._word, dtype=np.int32), lengths, lengths, np.arange(rows)))
        peak = torch.cuda.max_memory_allocated(device) - before
        torch.cuda.empty_cache()
        return peak

    def _transformer_config(self) -> Any:
        return getattr(getattr(self._model[0], "auto_model", None), "config", None)


def memory_bound(weights: int, peak: int) -> int:
    """Bytes of a GPU for weights and for the largest batch, with room for gaps between blocks and for vectors."""
    return int(_GAPS * (weights + peak)) + _VECTORS_BYTES


class _Tokenised(NamedTuple):
    """Some of the texts."""

    first: int
    """Number of the first of them."""
    windows: Windows
    tokens: np.ndarray
    """[texts] int64."""
    unknown: np.ndarray
    """[texts] int64: those of them that are unknown."""


def _template(tokenizer: Any) -> tuple[list[int], int, list[int]]:
    """The special tokens that go before a text, a token of its own, and the special tokens that go after it."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    own = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    return encoding.ids[: own[0]], encoding.ids[own[0]], encoding.ids[own[-1] + 1 :]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(w in str(error) for w in _OUT_OF_MEMORY)


def _load(config: EmbeddingConfig) -> SentenceTransformer:
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu":
        # It makes a plan for every shape, and shapes of padded batches are new all the time.
        torch.backends.cuda.enable_cudnn_sdp(False)
    path = model_path(config.model)
    # The bar of a download stays.
    with _without_bars() if Path(path).is_dir() else nullcontext():
        model = SentenceTransformer(
            path,
            device=device,
            trust_remote_code=config.trust_remote_code,
            model_kwargs={"dtype": _dtype(config.dtype, device)},
        ).eval()
    settings: Any = getattr(getattr(model[0], "auto_model", None), "config", None)
    if getattr(settings, "use_cache", False):
        settings.use_cache = False  # keys and values are of no use after a forward pass
    return model


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without transformers' bars of the weights that it loads."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _dtype(name: str, device: str) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if device != "cpu" or _cpu_has_bfloat16() else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16, which is twice as fast; elsewhere it would be slower than float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
