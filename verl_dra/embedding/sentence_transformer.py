"""The default encoder: any sentence-transformers model, batched by tokens, long texts by windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from verl_dra.embedding.encoder import EmbeddingConfig, Encoded, model_path


class SentenceTransformerEncoder:
    """Embeds identical texts once and texts beyond the model's window as `config.long_text` says.

    Windows are cut by the model's own tokenizer and go straight to the model, so that a text is tokenised once.
    """

    def __init__(self, config: EmbeddingConfig) -> None:
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = SentenceTransformer(
            model_path(config.model),
            device=device,
            trust_remote_code=config.trust_remote_code,
            model_kwargs={"dtype": _dtype(config.dtype, device)},
        ).eval()
        if config.max_seq_length is not None:
            positions = getattr(getattr(self._model[0], "auto_model", None), "config", None)
            positions = getattr(positions, "max_position_embeddings", None)
            if positions is not None and config.max_seq_length > positions:
                raise ValueError(
                    f"dra.embedding.max_seq_length={config.max_seq_length} is more than the {positions} tokens that "
                    f"{config.model!r} has positions for"
                )
            self._model.max_seq_length = config.max_seq_length
        self._tokenizer = self._model.tokenizer
        if not self._tokenizer.is_fast:
            raise ValueError(
                f"dra.embedding.model: {config.model!r} has no fast tokenizer, which cutting long texts needs"
            )
        self._tokenizer.truncation_side = "left" if config.long_text == "tail" else "right"
        self._all_windows = config.long_text == "chunk"
        self._batch_tokens = config.batch_tokens
        self._special_tokens = self._tokenizer.num_special_tokens_to_add(pair=False)
        if self._model.max_seq_length is None or self._model.max_seq_length <= self._special_tokens:
            raise ValueError(
                f"dra.embedding.model: {config.model!r} states no usable window "
                f"({self._model.max_seq_length} tokens); set dra.embedding.max_seq_length"
            )

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Encoded:
        number: dict[str, int] = {}
        position = torch.tensor([number.setdefault(text, len(number)) for text in texts])
        copies = torch.bincount(position)

        windows, of_text = self._windows([text.encode("utf-8", "replace").decode() for text in number])
        lengths = torch.tensor([len(window) - self._special_tokens for window in windows])
        tokens = torch.zeros(len(number), dtype=torch.long).index_add_(0, of_text, lengths)
        if not self._all_windows:
            # The tokenizer gives the window that truncation would leave first.
            first = torch.cat([of_text.new_ones(1, dtype=torch.bool), of_text[1:] != of_text[:-1]])
            windows = [window for window, kept in zip(windows, first.tolist(), strict=True) if kept]
            lengths, of_text = lengths[first], of_text[first]

        embedded = self._embed(windows)
        sums = torch.zeros(len(number), embedded.shape[1])
        sums.index_add_(0, of_text, torch.nn.functional.normalize(embedded, dim=1) * lengths[:, None])
        kept_tokens = torch.zeros_like(tokens).index_add_(0, of_text, lengths)
        return Encoded(
            vectors=torch.nn.functional.normalize(sums, dim=1)[position],
            tokens=int(tokens @ copies),
            truncated_tokens=int((tokens - kept_tokens) @ copies),
        )

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

    def _embed(self, windows: list[list[int]]) -> Tensor:
        """[windows, D] float32 on the CPU."""
        embedded: list[Tensor] = []
        order: list[int] = []
        for batch in _batches([len(window) for window in windows], self._batch_tokens):
            features: dict[str, Any] = dict(
                self._tokenizer.pad({"input_ids": [windows[i] for i in batch]}, return_tensors="pt")
            )
            output = self._model({name: value.to(self._model.device) for name, value in features.items()})
            embedded.append(output["sentence_embedding"].float().cpu())
            order += batch
        vectors = torch.cat(embedded)
        return torch.empty_like(vectors).index_copy_(0, torch.tensor(order), vectors)


def _batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Positions by falling length, in batches whose rows times longest length stay within `budget`."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _dtype(name: str, device: str) -> torch.dtype:
    if name == "auto":
        name = "float32" if device == "cpu" else "bfloat16"
    dtype: torch.dtype = getattr(torch, name)
    return dtype
