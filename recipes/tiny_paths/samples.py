"""What the samples of a validation say of the policy that made them."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tiny_paths.task import STRATEGIES
from verl_dra import effective_paths
from verl_dra.algorithm.coverage import pass_at_k
from verl_dra.embedding import EmbeddingConfig
from verl_dra.report.groups import Embed

K = 8


def encoder_config() -> EmbeddingConfig:
    """The encoder that all runs are measured with, whichever they train with."""
    return EmbeddingConfig(device="cpu", dtype="float32")


def samples_of(path: Path) -> list[dict[str, Any]]:
    """The samples of a dump of validation."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def validation(samples: Sequence[dict[str, Any]], embed: Embed) -> dict[str, float]:
    """Accuracy and diversity of the samples of a validation, means over questions; pass@K where all have K samples."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for sample in samples:
        groups[sample["input"]].append(sample)
    right = [[bool(s["acc"]) for s in group] for group in groups.values()]
    paths = Counter(s["strategy"] for s in samples if s["acc"])
    of_k = [pass_at_k(len(group), sum(group), K) for group in right if len(group) >= K]
    return {
        "accuracy": statistics.mean(statistics.mean(group) for group in right),
        **({f"pass@{K}": statistics.mean(of_k)} if len(of_k) == len(right) else {}),
        "strategy_entropy": _entropy([paths[name] for name in STRATEGIES]),
        "right_paths": statistics.mean(len({s["strategy"] for s in group if s["acc"]}) for group in groups.values()),
        "effective_paths": _effective_paths(list(groups.values()), embed),
        **{f"share/{name}": paths[name] / max(sum(paths.values()), 1) for name in STRATEGIES},
    }


def _entropy(counts: Sequence[int]) -> float:
    """Of the paths of right answers, in nats; log 4 where all four are equally common."""
    total = sum(counts)
    return -sum(c / total * math.log(c / total) for c in counts if c) if total else 0.0


def _effective_paths(groups: Sequence[Sequence[dict[str, Any]]], embed: Embed) -> float:
    vectors = embed([sample["output"] for group in groups for sample in group])
    ids = torch.tensor([i for i, group in enumerate(groups) for _ in group])
    return float(effective_paths(vectors, ids).mean())
