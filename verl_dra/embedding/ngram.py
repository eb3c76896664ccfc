"""Hashed character n-grams: a lexical baseline that needs no model."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch

from verl_dra.embedding.encoder import Encoded

_DIMENSION = 512
_N = 3


class NgramEncoder:
    """Counts of a text's character trigrams, hashed into 512 dimensions. A token is a character."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        vectors = torch.from_numpy(np.stack([_counts(text) for text in texts]))
        tokens = torch.tensor([len(text) for text in texts])
        return Encoded(torch.nn.functional.normalize(vectors, dim=1), tokens, torch.zeros_like(tokens))


def _counts(text: str) -> np.ndarray:
    if not text.strip():
        return np.zeros(_DIMENSION, dtype=np.float32)
    data = text.encode("utf-8", "replace")
    grams = [zlib.crc32(data[i : i + _N]) % _DIMENSION for i in range(max(len(data) - _N + 1, 1))]
    return np.bincount(grams, minlength=_DIMENSION).astype(np.float32)
