"""What `dra.embedding.max_windows` saves, and what it does to the order of SMIs in groups of long texts."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import torch
import transformers
from encode import DEVICE
from scipy.stats import kendalltau
from timing import show

from verl_dra.algorithm import graph_cut_smi
from verl_dra.embedding import EmbeddingConfig, build_encoder

GROUPS, SIZE = 16, 8
SOURCES = (1, 4)
"""Of a group: its completions are of so many files, from one to another, as of so many ways to an answer."""
CHARACTERS, SPREAD = 9000, 0.6
PARAGRAPHS = re.compile(r"\n\s*\n")


def main() -> None:
    texts = _groups()
    group = torch.arange(GROUPS).repeat_interleave(SIZE)
    smi, embedded = {}, {}
    settings: dict[str, dict[str, object]] = {
        "all": {},
        **{f"max_windows={n}": {"max_windows": n} for n in (16, 8, 4, 2, 1)},
        "head": {"long_text": "head"},
        "all, bfloat16": {"dtype": "bfloat16"},
    }
    for name, setting in settings.items():
        encoder = build_encoder(EmbeddingConfig(**{"device": DEVICE, "dtype": "float32", **setting}))  # type: ignore[arg-type]
        encoded = encoder.encode(texts)
        smi[name] = graph_cut_smi(encoded.vectors, group).reshape(GROUPS, SIZE).numpy()
        embedded[name] = float((encoded.tokens - encoded.truncated_tokens).sum() / encoded.tokens.sum())
        tokens = encoded.tokens.numpy()
    weights = {name: 1 / (1 + np.maximum(of, 0)) for name, of in smi.items()}
    show(
        f"{GROUPS} groups of {SIZE} texts of {np.median(tokens):,.0f} tokens in the median (a tenth below "
        f"{np.percentile(tokens, 10):,.0f}, a tenth above {np.percentile(tokens, 90):,.0f}); against all, float32",
        [
            "windows",
            "tokens embedded",
            "Kendall's tau",
            "least of a group",
            "pairs in order",
            "rarest is the rarest",
            "weight off by",
        ],
        [
            [
                name,
                f"{embedded[name]:.0%}",
                f"{np.mean(taus):.2f}",
                f"{min(taus):.2f}",
                f"{np.mean([_in_order(a, b) for a, b in zip(smi['all'], of, strict=True)]):.1%}",
                f"{np.mean(of.argmin(axis=1) == smi['all'].argmin(axis=1)):.0%}",
                f"{np.mean(np.abs(weights[name] / weights['all'] - 1)):.1%}",
            ]
            for name, of in smi.items()
            for taus in [[kendalltau(a, b).statistic for a, b in zip(smi["all"], of, strict=True)]]
        ],
    )


def _in_order(expected: np.ndarray, found: np.ndarray) -> float:
    """The share of pairs that are ordered alike."""
    return float(
        np.mean(
            [(expected[i] < expected[j]) == (found[i] < found[j]) for i, j in itertools.combinations(range(SIZE), 2)]
        )
    )


def _groups() -> list[str]:
    """Paragraphs of code of installed packages, those of a text of one file; the same in every run."""
    numbers = np.random.default_rng(0)
    folder = Path(transformers.__file__).parent / "models"
    files = [file for file in sorted(folder.glob("*/modeling_*.py")) if file.stat().st_size > 60_000]
    texts = []
    for _ in range(GROUPS):
        chosen = numbers.choice(len(files), numbers.integers(SOURCES[0], SOURCES[1] + 1), replace=False)
        for _ in range(SIZE):
            paragraphs = PARAGRAPHS.split(files[numbers.choice(chosen)].read_text(errors="replace"))
            length = int(CHARACTERS * numbers.lognormal(0, SPREAD))
            start = int(numbers.integers(len(paragraphs)))
            texts.append("\n\n".join([*paragraphs[start:], *paragraphs[:start]])[:length])
    return texts


if __name__ == "__main__":
    main()
