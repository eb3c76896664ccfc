"""The groups that a report shows: those that a run recorded, and those of veRL's validation dumps."""

from __future__ import annotations

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from verl_dra.algorithm import adjust_rewards, diversity_weights, effective_paths, graph_cut_smi
from verl_dra.embedding import Encoder, encode_all

CLUSTER_COSINE = 0.9
"""Completions whose mean cosine is above this are shown as one cluster."""
_EPSILON = 1e-6  # veRL 0.9.1's in compute_grpo_outcome_advantage

Embed = Callable[[Sequence[str]], Tensor]


@dataclass
class Completion:
    """One completion of a group."""

    text: str
    reward: float
    adjusted: float | None = None
    smi: float | None = None
    weight: float | None = None
    advantage: float | None = None
    advantage_without: float | None = None
    """What the base estimator gives for the raw rewards."""
    cluster: int = 0


@dataclass
class Group:
    """A prompt and its completions, those of a cluster side by side."""

    prompt: str
    ground_truth: str | None
    completions: list[Completion]
    similarity: np.ndarray | None = None
    """[n, n] cosines, in the order of the completions."""
    effective_paths: float | None = None


@dataclass
class Step:
    """The groups of a step that a file holds."""

    groups: list[Group] = field(default_factory=list)
    unreadable: int = 0
    """Lines that can't be read."""
    left_out: int = 0
    """Groups that were not sampled."""


def recorded(path: Path, most: int) -> Step:
    """The groups of a training step that `dra.record` wrote, `most` at most."""
    lines, unreadable = _lines(path, ("prompt", "completions"))
    step = Step(unreadable=unreadable, left_out=max(len(lines) - most, 0))
    for line in lines[:most]:
        completions = [
            Completion(
                *(c["text"], c["reward"], c["adjusted"], c["smi"], c["weight"]),
                *(c["advantage"], c["advantage_without"]),
            )
            for c in line["completions"]
        ]
        similarity = None if line["similarity"] is None else np.array(line["similarity"])
        step.groups.append(
            _ordered(Group(line["prompt"], line["ground_truth"], completions, similarity, line["effective_paths"]))
        )
    return step


def dumped(path: Path, most: int, embed: Embed | None) -> Step:
    """The same `most` prompts of each of veRL's dumps; with `embed`, what DRA-GRPO and GRPO would make of them."""
    lines, unreadable = _lines(path, ("input", "output", "score"))
    of_prompt: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if isinstance(line["score"], (int, float)) and math.isfinite(line["score"]):
            of_prompt[line["input"]].append(line)
        else:
            unreadable += 1
    prompts = sorted(of_prompt, key=lambda prompt: (zlib.crc32(prompt.encode(errors="replace")), prompt))
    step = Step(unreadable=unreadable, left_out=max(len(prompts) - most, 0))
    for prompt in prompts[:most]:
        samples = of_prompt[prompt]
        gold = samples[0].get("gts")
        group = Group(
            prompt,
            gold if gold is None or isinstance(gold, str) else json.dumps(gold),
            [Completion(sample["output"], float(sample["score"])) for sample in samples],
        )
        step.groups.append(group if embed is None else _ordered(_as_training_would(group, embed)))
    return step


def embedding(encoder: Encoder) -> Embed:
    """Vectors [n, D] of n texts; a text that comes again is not embedded again."""
    known: dict[str, Tensor] = {}

    def embed(texts: Sequence[str]) -> Tensor:
        new = list(dict.fromkeys(text for text in texts if text not in known))
        if new:
            known.update(zip(new, encode_all(encoder, new), strict=True))
        return torch.stack([known[text] for text in texts])

    return embed


def _as_training_would(group: Group, embed: Embed) -> Group:
    vectors = embed([completion.text for completion in group.completions])
    one = torch.zeros(len(vectors), dtype=torch.int64)
    rewards = torch.tensor([completion.reward for completion in group.completions], dtype=torch.float64)
    smi = graph_cut_smi(vectors, one)
    weights = diversity_weights(smi).double()
    adjusted = adjust_rewards(rewards, weights, one)
    columns = (adjusted, smi, weights, _grpo(adjusted), _grpo(rewards))
    for completion, row in zip(group.completions, torch.stack([c.double() for c in columns], dim=1), strict=True):
        (
            completion.adjusted,
            completion.smi,
            completion.weight,
            completion.advantage,
            completion.advantage_without,
        ) = row.tolist()
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    group.similarity = (unit @ unit.T).clamp(-1, 1).numpy()
    group.effective_paths = effective_paths(vectors, one).item()
    return group


def _grpo(rewards: Tensor) -> Tensor:
    """[n] GRPO's advantages of one group."""
    if len(rewards) < 2:
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + _EPSILON)


def _ordered(group: Group) -> Group:
    """Completions in the order of a dendrogram's leaves, with the number of their cluster."""
    n = len(group.completions)
    if group.similarity is None or n < 2:
        return group
    distances = np.clip(1 - (group.similarity + group.similarity.T) / 2, 0, None)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average", optimal_ordering=True)
    order = leaves_list(tree)
    clusters = fcluster(tree, 1 - CLUSTER_COSINE, "distance")
    number: dict[int, int] = {}
    for at in order:
        group.completions[at].cluster = number.setdefault(int(clusters[at]), len(number))
    group.completions = [group.completions[at] for at in order]
    group.similarity = group.similarity[np.ix_(order, order)]
    return group


def _lines(path: Path, needed: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a file that have what is `needed`, and the number of its other lines."""
    found: list[dict[str, Any]] = []
    unreadable = 0
    # Not splitlines: texts may hold other characters that it takes for the end of a line.
    for line in filter(None, path.read_text(encoding="utf-8", errors="replace").split("\n")):
        try:
            read = json.loads(line)
            if not all(key in read for key in needed):
                raise ValueError(f"no {needed}")
            found.append(read)
        except (ValueError, TypeError):
            unreadable += 1
    return found, unreadable
