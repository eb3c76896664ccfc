"""How far the encoder alone spreads similarity: the same text, embedded in other batches; for `dra.spread_floor`."""

from __future__ import annotations

import numpy as np
import torch
from encode import DEVICE, Texts
from timing import show

from verl_dra.algorithm import graph_cut_smi
from verl_dra.embedding import EmbeddingConfig, build_encoder

TEXTS, BATCHES, COMPANY = 4, 8, 3
"""Texts; batches that each is embedded in, as if it had so many copies in a group; other texts of each batch."""


def main() -> None:
    made = Texts()
    texts = made(TEXTS)
    company = [made(COMPANY) for _ in range(TEXTS * BATCHES)]
    rows = []
    for dtype in ("float32", "bfloat16"):
        encoder = build_encoder(EmbeddingConfig(device=DEVICE, dtype=dtype))
        # Where in its batch a text stands differs as well.
        vectors = torch.stack(
            [
                encoder.encode([*others[:at], texts[i % TEXTS], *others[at:]]).vectors[at]
                for i, others in enumerate(company)
                for at in [i // TEXTS % (COMPANY + 1)]
            ]
        )
        group = torch.arange(TEXTS).repeat(BATCHES)
        smi = graph_cut_smi(vectors, group).reshape(BATCHES, TEXTS).numpy()
        spread = (smi.max(axis=0) - smi.min(axis=0)) / (BATCHES - 1)
        unit = torch.nn.functional.normalize(vectors.double(), dim=1).reshape(BATCHES, TEXTS, -1)
        apart = 1 - torch.einsum("bnd,cnd->nbc", unit, unit).numpy()
        rows.append([dtype, *(f"{value:.1e}" for value in (np.median(spread), spread.max(), apart.max()))])
    show(
        f"{TEXTS} texts, each embedded in {BATCHES} batches of {COMPANY + 1}, as a group of {BATCHES}; "
        f"{EmbeddingConfig.model}, {DEVICE}",
        ["dtype", "spread of SMI / (n - 1), median", "largest", "1 - cosine, largest"],
        rows,
    )


if __name__ == "__main__":
    main()
