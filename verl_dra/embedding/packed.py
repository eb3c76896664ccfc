"""A model over windows that lie one after the other in a single row: no padding, and nothing planned for a shape.

Attention is what must know where a window ends. It is put under the model through transformers' `AttentionInterface`:
torch's own variable-length kernel on a GPU, and on a CPU `scaled_dot_product_attention` over runs of equal windows.

Many classes of models accept all this and mix the windows without an error: those whose attention is not called through
the interface, and those that have another way from token to token (convolutions, n-grams, states). So what a model says
of itself is the gate, and then its vectors are held against those of each window alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, groupby
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from verl_dra.embedding.padded import on_device

NAME = "dra_packed"

_LAYER_TYPES = {"full_attention", "sliding_attention"}
# Encoder-decoders that are loaded as encoders, and one that mixes neighbouring tokens before its first layer.
_NEVER = {"mobilebert", "t5gemma", "t5gemma2"}
# What models pass to their attention and that is nothing to it where the windows' ends are known.
_HARMLESS = {
    *("cu_seq_lens_k", "max_length_k", "seq_idx"),
    *("position_ids", "cache_position", "use_cache", "deterministic"),
}
_HALF = (torch.bfloat16, torch.float16)

# Differences as a share of the median distance between texts. In float32 right models have at most 7e-7, and wrong ones
# at least 5e-5; in half precision, which hides a window that is off by one, only a kernel that fails is seen.
_FLOAT32_GAP = 2e-5
_HALF_GAP = 0.2
_CHECKED_TOKENS = (1, 2, 3, 100, 5, 1, 40, 2)


class CannotPackError(Exception):
    """Why a model's windows must be padded."""


class PackedModel:
    """Vectors of windows without padding.

    Args:
        model: is given attention over packed windows; left as it was where that can't be.
        before: special tokens at the start of each window.
        after: those at its end.
        size: tokens between them at most.

    Raises:
        CannotPackError: the model is of a kind that can't be packed, or its vectors came out wrong.
    """

    def __init__(self, model: SentenceTransformer, before: Sequence[int], after: Sequence[int], size: int) -> None:
        _gate(model)
        self._model = model
        self._transformer: Any = cast(Any, model[0])
        auto_model: Any = self._transformer.auto_model
        self._first_position = _first_position(auto_model)
        usual: str = auto_model.config._attn_implementation
        try:
            self._check(_checked_windows(model, before, after, size))
        except CannotPackError:
            self._use(usual)
            raise
        except Exception as error:
            self._use(usual)
            raise CannotPackError(
                f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
            ) from error

    def fitting(self, lengths: np.ndarray, budget: int) -> int:
        """How many of windows of `lengths` make a batch of at most `budget` tokens."""
        return int(np.searchsorted(np.cumsum(lengths), budget, side="right"))

    def cost(self, lengths: np.ndarray) -> int:
        """Tokens of a batch."""
        return int(lengths.sum())

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> Tensor:
        """[windows, D] on the model's device of windows whose `ids` lie one after the other."""
        vectors: Tensor = self._forward(ids, lengths)["sentence_embedding"]
        return vectors

    def _forward(self, ids: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
        device = self._model.device
        ends = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=ends[1:])
        borders, row = on_device(ends, device), on_device(ids, device).long()
        window = torch.repeat_interleave(
            torch.arange(len(lengths), device=device), borders.diff(), output_size=len(ids)
        )
        features: dict[str, Any] = {
            "input_ids": row[None],
            "position_ids": self._positions(row, borders[:-1].long()[window])[None],
            "seq_idx": window.int()[None],
            "cu_seq_lens_q": borders,
            "cu_seq_lens_k": borders,
            "max_length_q": int(lengths.max()),
            "max_length_k": int(lengths.max()),
        }
        for module in self._model:
            features = _means(features) if _is_mean(module) else module(features)
        return features

    def _positions(self, row: Tensor, start: Tensor) -> Tensor:
        """[T] from 0 on in each window, or as RoBERTa and its kin count them."""
        if self._first_position is None:
            return torch.arange(len(row), device=row.device) - start
        padding = self._first_position - 1
        counted = (row != padding).long()
        before = counted.cumsum(0) - counted
        return (before - before[start] + 1) * counted + padding

    def _use(self, attention: str) -> None:
        self._transformer.auto_model.set_attn_implementation(attention)

    def _check(self, windows: list[np.ndarray]) -> None:
        """Hold packed windows against each alone.

        In the model's own precision and on its own device they are packed in two orders, which shows a kernel that
        fails; in float32, with plain attention, they show a model that is not made for it.
        """
        layers = getattr(self._transformer.auto_model.config.get_text_config(), "num_hidden_layers", None)
        parameters = getattr(self._transformer, "model_forward_params", None)
        if parameters is not None:  # else all are passed
            parameters |= {"position_ids", "seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
        with torch.no_grad():
            with _in_float32(self._model):
                alone = torch.cat([self._alone(window) for window in windows])
                self._use(NAME)
                attention.calls = 0
                packed, _ = self._packed(windows)
                calls = attention.calls
            own, tokens = self._packed(windows)
            turned, turned_tokens = self._packed(windows[::-1])
        if calls != layers:
            raise CannotPackError(f"attention is called {calls} times in {layers} layers")
        gap = _gap(packed, alone)
        if not gap <= _FLOAT32_GAP:
            raise CannotPackError(f"packed texts differ from texts alone by {gap:.1g}")
        limit = _HALF_GAP if own.dtype in _HALF else _FLOAT32_GAP
        same = all(map(torch.equal, tokens, turned_tokens[::-1]))
        gap = max(_gap(own, alone), 0 if same else _gap(turned.flip(0), own))
        if not gap <= limit:
            raise CannotPackError(f"packed texts differ from texts alone by {gap:.1g} in {own.dtype}")

    def _alone(self, window: np.ndarray) -> Tensor:
        row = on_device(window, self._model.device).long()[None]
        vector: Tensor = self._model({"input_ids": row, "attention_mask": torch.ones_like(row)})["sentence_embedding"]
        return vector

    def _packed(self, windows: Sequence[np.ndarray]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Vectors [windows, D], and of each window its tokens' [L, D]."""
        lengths = np.array([len(window) for window in windows])
        features = self._forward(np.concatenate(windows), lengths)
        vectors: Tensor = features["sentence_embedding"]
        if len(vectors) != len(windows):
            raise CannotPackError(f"{len(windows)} packed texts have {len(vectors)} vectors")
        return vectors, features["token_embeddings"][0].split(lengths.tolist())


class _PackedAttention:
    """What models call for attention under `NAME`; refuses what it does not know."""

    calls = 0

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        cu_seq_lens_q: Tensor | None = None,
        max_length_q: int | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """[1, T, heads, d] of `query` [1, heads, T, d], `key` and `value` [1, heads or fewer, T, d]."""
        self.calls += 1
        if cu_seq_lens_q is None or max_length_q is None:
            raise CannotPackError("attention is not told where windows end")
        given = {name for name, value in others.items() if value is not None and value is not False}
        unknown = sorted(given - _HARMLESS)
        if attention_mask is not None or dropout or unknown:
            raise CannotPackError(f"attention is asked for {', '.join(unknown) or 'a mask or dropout'}")
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        left = -1 if sliding_window is None else sliding_window - 1
        right = 0 if is_causal else left
        heads = query.shape[1] // key.shape[1]
        if heads > 1:
            key, value = key.repeat_interleave(heads, dim=1), value.repeat_interleave(heads, dim=1)
        if query.is_cuda and query.dtype in _HALF:
            out = _varlen(query, key, value, cu_seq_lens_q, max_length_q, scaling, (left, right))
        else:
            out = _by_runs(query, key, value, cu_seq_lens_q, scaling, (left, right))
        return out[None], None


attention = _PackedAttention()
# Without a mask function of the name transformers makes no mask, and so does not wait for a GPU to see whether it must.
AttentionInterface.register(NAME, attention)


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Tensor,
    longest: int,
    scale: float | None,
    reach: tuple[int, int],
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    out = varlen_attn(query, key, value, borders, borders, longest, longest, scale=scale, window_size=reach)
    return cast(Tensor, out)


def _by_runs(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, scale: float | None, reach: tuple[int, int]
) -> Tensor:
    """[T, heads, d]: each run of equal windows is a batch that needs no padding."""
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
    start = 0
    for length, run in groupby(borders.diff().tolist()):
        rows = len(list(run))
        end = start + rows * length
        # [rows, heads, length, d]
        of_run = [x[0, :, start:end].view(-1, rows, length, x.shape[3]).transpose(0, 1) for x in (query, key, value)]
        mask = _band(length, reach, query.device) if 0 <= reach[0] < length - 1 else None
        causal = mask is None and reach[1] == 0
        attended = scaled_dot_product_attention(
            of_run[0], of_run[1], of_run[2], attn_mask=mask, is_causal=causal, scale=scale
        )
        out[start:end] = attended.transpose(1, 2).flatten(0, 1)
        start = end
    return out


def _band(length: int, reach: tuple[int, int], device: torch.device) -> Tensor:
    position = torch.arange(length, device=device)
    ahead = position - position[:, None]
    return (ahead >= -reach[0]) & (ahead <= reach[1])


def _gate(model: SentenceTransformer) -> None:
    transformer: Any = model[0]
    auto_model = getattr(transformer, "auto_model", None)
    config = getattr(auto_model, "config", None)
    if config is None:
        raise CannotPackError("its first module is no transformer")
    device, dtype = model.device.type, next(model.parameters()).dtype
    if device not in ("cpu", "cuda"):
        raise CannotPackError(f"no attention over packed windows for {device}")
    if device == "cuda" and dtype not in _HALF:
        raise CannotPackError(f"on a GPU attention over packed windows has no {dtype}".replace("torch.", ""))
    kind = config.model_type
    said = {
        "is_backend_compatible": getattr(auto_model, "is_backend_compatible", bool)(),
        "_supports_flash_attn": getattr(auto_model, "_supports_flash_attn", False),
        "_can_set_attn_implementation": getattr(auto_model, "_can_set_attn_implementation", bool)(),
    }
    if missing := [name for name, holds in said.items() if not holds]:
        raise CannotPackError(f"{kind} is not made for other attention ({', '.join(missing)})")
    layers = set(getattr(config.get_text_config(), "layer_types", None) or ())
    stateful = getattr(auto_model, "_is_stateful", True)
    if kind in _NEVER or config.is_encoder_decoder or stateful or not layers <= _LAYER_TYPES:
        raise CannotPackError(f"{kind} has more ways between tokens than attention")


def _first_position(auto_model: torch.nn.Module) -> int | None:
    """The position of a window's first token where the embeddings of positions keep some for padding."""
    for module in auto_model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), torch.nn.Embedding):
            return padding + 1
    return None


def _is_mean(module: torch.nn.Module) -> bool:
    return getattr(module, "pooling_mode", None) == "mean"


def _means(features: dict[str, Any]) -> dict[str, Any]:
    """As sentence-transformers pools, summed in float32 and without waiting for a GPU, which its 6.0 does not do."""
    tokens, window, borders = features["token_embeddings"][0], features["seq_idx"][0], features["cu_seq_lens_q"]
    sums = torch.zeros(len(borders) - 1, tokens.shape[1], device=tokens.device, dtype=torch.float32)
    sums.index_add_(0, window, tokens.float())
    features["sentence_embedding"] = (sums / borders.diff()[:, None]).to(tokens.dtype)
    return features


def _checked_windows(
    model: SentenceTransformer, before: Sequence[int], after: Sequence[int], size: int
) -> list[np.ndarray]:
    """Windows of random ids: many short ones, and one that local attention does not see as a whole."""
    auto_model: Any = model[0].auto_model
    config = auto_model.config.get_text_config()
    reach = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None) or 0
    tokenizer: Any = model.tokenizer
    vocabulary = min(len(tokenizer), auto_model.get_input_embeddings().num_embeddings)
    ids = np.setdiff1d(np.arange(vocabulary), tokenizer.all_special_ids)
    numbers = np.random.default_rng(0)
    return [
        np.array([*before, *numbers.choice(ids, min(tokens, size)), *after], dtype=np.int32)
        for tokens in (*_CHECKED_TOKENS, reach + 20)
    ]


@contextmanager
def _in_float32(model: SentenceTransformer) -> Iterator[None]:
    """The model in float32, with all its bits; afterwards as it was, bit for bit."""
    half = [(t, t.dtype) for t in chain(model.parameters(), model.buffers()) if t.dtype in _HALF]
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for tensor, _ in half:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in half:
            tensor.data = tensor.data.to(dtype)
        torch.set_float32_matmul_precision(precision)


def _gap(vectors: Tensor, expected: Tensor) -> float:
    """The largest difference of two vectors of a text, as a share of the median distance between texts."""
    vectors, expected = vectors.double().cpu(), expected.double().cpu()
    return float((vectors - expected).norm(dim=1).max() / torch.pdist(expected).median())
