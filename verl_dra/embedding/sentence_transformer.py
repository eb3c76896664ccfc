"""The default encoder: any sentence-transformers model, batched by tokens, long texts by windows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers.utils import import_utils

from verl_dra.embedding.encoder import EmbeddingConfig, Encoded, EncoderUnavailableError, model_path

logger = logging.getLogger(__name__)

# Of the CPU's allocator, of cuBLAS and of kernels, for which torch 2.13 has no class.
_OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


class SentenceTransformerEncoder:
    """Embeds texts beyond the model's window as `config.long_text` says.

    Windows are cut by the model's own tokenizer and go straight to the model, so that a text is tokenised once.
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
        self._tokenizer = self._model.tokenizer
        if not self._tokenizer.is_fast:
            raise ValueError(
                f"dra.embedding.model: {config.model!r} has no fast tokenizer, which cutting long texts needs"
            )
        self._tokenizer.truncation_side = "left" if config.long_text == "tail" else "right"
        self._all_windows = config.long_text == "chunk"
        self._most_tokens = self._batch_tokens = config.batch_tokens
        self._special_tokens = self._tokenizer.num_special_tokens_to_add(pair=False)
        if self._model.max_seq_length is None or self._model.max_seq_length <= self._special_tokens:
            raise ValueError(
                f"dra.embedding.model: {config.model!r} states no usable window "
                f"({self._model.max_seq_length} tokens); set dra.embedding.max_seq_length"
            )
        # What can't embed a word shows here, and not after the generation of a step.
        self.encode(["a"])

    def __str__(self) -> str:
        attention = getattr(self._transformer_config(), "_attn_implementation", "its own")
        dtype = str(next(self._model.parameters()).dtype).removeprefix("torch.")
        return (
            f"sentence_transformers {self._name} on {self._model.device}, {dtype}, attention {attention}, "
            f"windows of {self._model.max_seq_length} tokens"
        )

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Encoded:
        # What a neighbour on the GPU took for a while must not make all later batches small.
        self._batch_tokens = min(2 * self._batch_tokens, self._most_tokens)
        windows, of_text = self._windows(list(texts))
        lengths = torch.tensor([len(window) - self._special_tokens for window in windows])
        tokens = torch.zeros(len(texts), dtype=torch.long).index_add_(0, of_text, lengths)
        of_window = torch.tensor([window.count(self._tokenizer.unk_token_id) for window in windows])
        unknown = torch.zeros_like(tokens).index_add_(0, of_text, of_window)
        if not self._all_windows:
            # The tokenizer gives the window that truncation would leave first.
            first = torch.cat([of_text.new_ones(1, dtype=torch.bool), of_text[1:] != of_text[:-1]])
            windows = [window for window, kept in zip(windows, first.tolist(), strict=True) if kept]
            lengths, of_text = lengths[first], of_text[first]

        embedded, halved = self._embed(windows)
        sums = torch.zeros(len(texts), embedded.shape[1])
        sums.index_add_(0, of_text, torch.nn.functional.normalize(embedded, dim=1) * lengths[:, None])
        kept_tokens = torch.zeros_like(tokens).index_add_(0, of_text, lengths)
        return Encoded(torch.nn.functional.normalize(sums, dim=1), tokens, tokens - kept_tokens, unknown, halved)

    def _windows(self, texts: list[str]) -> tuple[list[list[int]], Tensor]:
        """Token ids of all windows of all texts, special tokens included, and the text [windows] of each."""
        encoding = self._tokenizer(
            texts,
            truncation=True,
            max_length=self._model.max_seq_length,
            return_overflowing_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return encoding["input_ids"], torch.tensor(encoding["overflow_to_sample_mapping"])

    def _embed(self, windows: list[list[int]]) -> tuple[Tensor, int]:
        """[windows, D] float32 on the CPU, and how often a batch did not fit in memory.

        Batches go by falling length, rows times longest length within the budget; one that does not fit halves it.
        """
        order = sorted(range(len(windows)), key=lambda i: len(windows[i]), reverse=True)
        parts: list[Tensor] = []
        start = halved = 0
        while start < len(order):
            longest = len(windows[order[start]])
            rows = max(min(self._batch_tokens // longest, len(order) - start), 1)
            part = self._forward([windows[i] for i in order[start : start + rows]])
            if part is not None:
                parts.append(part)
                start += rows
                continue
            if rows == 1:
                # What a neighbour on the GPU holds now it may not hold later.
                raise EncoderUnavailableError(
                    f"a window of {longest} tokens does not fit in the memory of {self._model.device}; lower "
                    "dra.embedding.max_seq_length, or leave more memory to the scorer"
                )
            self._batch_tokens = longest * (rows // 2)
            halved += 1
            logger.warning("out of memory: batches of %d tokens from now on", self._batch_tokens)
            if self._model.device.type == "cuda":
                torch.cuda.empty_cache()
        vectors = torch.cat(parts).cpu()
        return torch.empty_like(vectors).index_copy_(0, torch.tensor(order), vectors), halved

    def _forward(self, windows: list[list[int]]) -> Tensor | None:
        """[windows, D] float32 on the model's device, or None where memory does not suffice."""
        features: dict[str, Any] = dict(self._tokenizer.pad({"input_ids": windows}, return_tensors="pt"))
        try:
            output = self._model({name: value.to(self._model.device) for name, value in features.items()})
            vectors: Tensor = output["sentence_embedding"].float()
        except (RuntimeError, MemoryError) as error:
            if _is_out_of_memory(error):
                return None
            raise
        return vectors

    def _transformer_config(self) -> Any:
        return getattr(getattr(self._model[0], "auto_model", None), "config", None)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(w in str(error) for w in _OUT_OF_MEMORY)


def _load(config: EmbeddingConfig) -> SentenceTransformer:
    """The model, on a GPU with the newest flash attention that is installed and works for it there."""
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _dtype(config.dtype, device)
    settings: dict[str, Any] = {"device": device, "trust_remote_code": config.trust_remote_code}
    path = model_path(config.model)
    for attention in _flash_attentions() if device != "cpu" and dtype != torch.float32 else ():
        flash = {"dtype": dtype, "attn_implementation": attention}
        try:
            model = SentenceTransformer(path, model_kwargs=flash, **settings).eval()
            model.encode(["a"])  # some load on a GPU that they have no kernels for
            return model
        except (ValueError, ImportError, RuntimeError) as error:
            logger.warning("no %s for %s: %s", attention, config.model, error)
    return SentenceTransformer(path, model_kwargs={"dtype": dtype}, **settings).eval()


def _flash_attentions() -> list[str]:
    """Those that are installed, the newest first, by transformers' names."""
    available = {
        "flash_attention_4": import_utils.is_flash_attn_4_available,
        "flash_attention_3": import_utils.is_flash_attn_3_available,
        "flash_attention_2": import_utils.is_flash_attn_2_available,
    }
    return [name for name, is_there in available.items() if is_there()]


def _dtype(name: str, device: str) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if device != "cpu" or _cpu_has_bfloat16() else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16, which is twice as fast; elsewhere it would be slower than float32."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
