"""A model over batches of windows that are padded to the longest: right for every model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor


class PaddedModel:
    """Vectors of windows, one a row."""

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model
        tokenizer: Any = model.tokenizer
        self._padding_id = tokenizer.pad_token_id or 0
        self._from_left = tokenizer.padding_side == "left"

    def fitting(self, lengths: np.ndarray, budget: int) -> int:
        """How many of windows of `lengths`, the longest first, make a batch of at most `budget` tokens."""
        return min(budget // int(lengths[0]), len(lengths))

    def cost(self, lengths: np.ndarray) -> int:
        """Tokens of a batch, padding included."""
        return int(lengths[0]) * len(lengths)

    def __call__(self, ids: np.ndarray, lengths: np.ndarray) -> Tensor:
        """[windows, D] on the model's device of windows whose `ids` lie one after the other, the longest first."""
        mask = np.arange(lengths[0]) < lengths[:, None]
        if self._from_left:
            mask = mask[:, ::-1]
        rows = np.full(mask.shape, self._padding_id, dtype=np.int64)
        rows[mask] = ids
        device = self._model.device
        features = {
            "input_ids": on_device(rows, device),
            "attention_mask": on_device(mask.astype(np.int64), device),
        }
        vectors: Tensor = self._model(features)["sentence_embedding"]
        return vectors


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy there, which a GPU is not waited for."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
