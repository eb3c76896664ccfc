"""Hashed character n-grams: a lexical baseline that needs no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from verl_dra.embedding.encoder import Encoded

_DIMENSION_BITS = 9
_N = 3
_GOLDEN = np.uint32(0x9E3779B1)  # Knuth's multiplicative hash


class NgramEncoder:
    """Counts of a text's trigrams of UTF-8 bytes, hashed into 512 dimensions. A token is a character."""

    def __str__(self) -> str:
        return f"hashed character {_N}-grams"

    def encode(self, texts: Sequence[str]) -> Encoded:
        vectors = torch.from_numpy(np.stack([_counts(text) for text in texts]))
        tokens = torch.tensor([len(text) for text in texts])
        none = torch.zeros_like(tokens)
        return Encoded(
            torch.nn.functional.normalize(vectors, dim=1), tokens, truncated_tokens=none, unknown_tokens=none
        )


def _counts(text: str) -> np.ndarray:
    """[512] float32; a text of fewer bytes than a gram is one gram."""
    if not text.strip():
        return np.zeros(2**_DIMENSION_BITS, dtype=np.float32)
    data = np.frombuffer(text.encode().ljust(_N, b"\0"), dtype=np.uint8).astype(np.uint32)
    grams = (data[:-2] << 16 | data[1:-1] << 8 | data[2:]) * _GOLDEN >> np.uint32(32 - _DIMENSION_BITS)
    return np.bincount(grams, minlength=2**_DIMENSION_BITS).astype(np.float32)
