"""Embeddings as they come from a group that copies itself."""

from __future__ import annotations

import numpy as np


def with_copies(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`vectors` [N, D], changed in place, with copies and mirror images of the first, zero rows, and lengths of 1e-3 to
    1e3 times their own."""
    kind = rng.random(len(vectors))
    base = vectors[0].copy()
    vectors[kind < 0.3] = base
    vectors[(kind > 0.3) & (kind < 0.35)] = -base
    vectors[(kind > 0.35) & (kind < 0.4)] = 0
    vectors *= 10.0 ** rng.uniform(-3, 3, size=(len(vectors), 1))
    return vectors
