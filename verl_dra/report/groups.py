"""The groups that a report shows: those that a run recorded, and those of veRL's validation dumps."""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from verl_dra.algorithm import adjust_rewards, diversity_weights, effective_paths, graph_cut_smi
from verl_dra.algorithm.coverage import pass_at_k
from verl_dra.embedding import Encoder, encode_all
from verl_dra.files import Unreadable, UnreadableFileError, lines
from verl_dra.record import shortened

CLUSTER_COSINE = 0.9
"""Completions whose mean cosine is above this are shown as one cluster."""
CHARACTERS = 4000
"""Of a validation text that is shown; all of it is embedded."""
_EPSILON = 1e-6  # veRL 0.9.1's in compute_grpo_outcome_advantage

_JUDGED: tuple[set[float | None], ...] = ({0, 1}, {-1, 1})
"""Values that say wrong and right."""

Embed = Callable[[Sequence[str]], Tensor]
Read = TypeVar("Read")


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
    """0 for the largest of its group."""


@dataclass
class Group:
    """A prompt and its completions, those of a cluster side by side."""

    prompt: str
    ground_truth: str | None
    completions: list[Completion]
    similarity: np.ndarray | None = None
    """[n, n] cosines, in the order of the completions."""
    effective_paths: float | None = None
    scored: bool = True
    """False where its scores were not there in time; its rewards then have the mean weight of the others."""
    method: str = ""
    """How its rewards were adjusted; empty where nothing is known of it."""


class _Sample(NamedTuple):
    """A line of veRL's dumps."""

    prompt: str
    truth: str | None
    completion: Completion
    accuracy: float | None
    """What its `acc` says; None without one."""


@dataclass
class Step:
    """The groups of a step that a file holds."""

    groups: list[Group] = field(default_factory=list)
    pass_at: dict[int, float] = field(default_factory=dict)
    """pass@k by k, the mean over all prompts of a validation dump, also those that are not shown; empty where its
    prompts have one sample or nothing says which are right."""
    unreadable: int = 0
    """Lines that can't be read."""


def recorded(path: Path, most: int) -> Step:
    """The groups of a training step that `dra.record` wrote, `most` at most."""
    groups, unreadable = _lines(path, _recorded_group)
    return Step(groups[:most], unreadable=unreadable)


def dumped(path: Path, most: int, embed: Embed | None) -> Step:
    """The same `most` prompts of each of veRL's dumps; with `embed`, what DRA-GRPO and GRPO would make of them."""
    samples, unreadable = _lines(path, _sample)
    of_prompt: dict[str, list[_Sample]] = defaultdict(list)
    for sample in samples:
        of_prompt[sample.prompt].append(sample)
    prompts = sorted(of_prompt, key=lambda prompt: (zlib.crc32(prompt.encode(errors="replace")), prompt))
    step = Step(pass_at=_pass_at(samples), unreadable=unreadable)
    for prompt in prompts[:most]:
        group = Group(prompt, of_prompt[prompt][0].truth, [sample.completion for sample in of_prompt[prompt]])
        if embed is not None:
            group = _ordered(_as_training_would(group, embed))
        group.prompt = shortened(prompt, CHARACTERS)
        for completion in group.completions:
            completion.text = shortened(completion.text, CHARACTERS)
        step.groups.append(group)
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
        ) = (value if math.isfinite(value) else None for value in row.tolist())
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    group.similarity = (unit @ unit.T).clamp(-1, 1).numpy()
    if len(vectors) > 1:  # one alone is one path, whatever the policy
        group.effective_paths = effective_paths(vectors, one).item()
    group.method = "measured by the report: SMI graph_cut, weight inverse, over grpo"
    return group


def _grpo(rewards: Tensor) -> Tensor:
    """[n] GRPO's advantages of one group."""
    if len(rewards) < 2:
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + _EPSILON)


def _ordered(group: Group) -> Group:
    """Completions by cluster, the largest first; within each, and clusters of one size, in the order of a dendrogram's
    leaves."""
    n = len(group.completions)
    if group.similarity is None or n < 2:
        return group
    distances = np.clip(1 - (group.similarity + group.similarity.T) / 2, 0, None)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average", optimal_ordering=True)
    leaves = leaves_list(tree)
    clusters = fcluster(tree, 1 - CLUSTER_COSINE, "distance")
    size = Counter(clusters[leaves].tolist())
    number = {cluster: at for at, (cluster, _) in enumerate(size.most_common())}
    for completion, cluster in zip(group.completions, clusters.tolist(), strict=True):
        completion.cluster = number[cluster]
    order = sorted(leaves, key=lambda at: group.completions[at].cluster)
    group.completions = [group.completions[at] for at in order]
    group.similarity = group.similarity[np.ix_(order, order)]
    return group


def _recorded_group(line: dict[str, Any]) -> Group:
    """The group of a line that `dra.record` wrote."""
    if not isinstance(scored := line.get("scored", True), bool):
        raise TypeError(scored)
    completions = [
        Completion(
            _text(c["text"]),
            _number(c["reward"]),
            _known(c.get("adjusted")),
            # Placeholders where the group has no scores.
            _known(c.get("smi")) if scored else None,
            _known(c.get("weight")) if scored else None,
            _known(c.get("advantage")),
            _known(c.get("advantage_without")),
        )
        for c in line["completions"]
    ]
    group = Group(
        _text(line["prompt"]),
        _truth(line.get("ground_truth")),
        completions,
        effective_paths=_known(line.get("effective_paths")),
        scored=scored or line.get("strength") == 0,
        method=_method(line),
    )
    if (similarity := line.get("similarity")) is not None:
        group.similarity = np.array(similarity, dtype=np.float64)
        if group.similarity.shape != (len(completions),) * 2 or not np.isfinite(group.similarity).all():
            raise ValueError("similarity")
    return _ordered(group)


def _method(line: dict[str, Any]) -> str:
    """How the rewards of a recorded group were adjusted; of what can be left out, only what is not the default."""
    if line.get("strength") == 0:
        return f"DRA off, over {line.get('base_estimator')}"
    by = line.get("partition")
    parts = [f"SMI {line.get('smi')}"] if by is None else [f"ways by {by}"]
    if by is not None and line.get("smi") == "shuffled":
        parts.append("shuffled")
    if (text := line.get("text", "response")) != "response":
        parts.append(f"text {text}")
    if (cosine := line.get("cosine", "raw")) != "raw":
        parts.append(f"cosines {cosine}")
    if (among := line.get("among", "all")) != "all":
        parts.append(f"among {among}")
    parts.append(f"weight {line.get('weight')}")
    if (strength := line.get("strength", 1)) != 1:
        parts.append(f"strength {_number(strength):.3g}")
    return ", ".join([*parts, f"over {line.get('base_estimator')}"])


def _sample(line: dict[str, Any]) -> _Sample:
    """What a line of veRL's dumps holds."""
    said = line.get("acc")
    return _Sample(
        _text(line["input"]),
        _truth(line.get("gts")),
        Completion(_text(line["output"]), _number(line["score"])),
        float(said) if isinstance(said, (bool, int, float)) else None,
    )


def _pass_at(samples: Sequence[_Sample]) -> dict[int, float]:
    """pass@k for k = 1, 2, 4, ... and as many samples as each prompt has; right is what `acc` says, and without that a
    score, where all are of two values."""
    judged = [sample.accuracy for sample in samples]
    if all(said is None for said in judged):
        judged = [sample.completion.reward for sample in samples]
    if not any(set(judged) <= of for of in _JUDGED):
        return {}
    of_prompt: dict[str, list[bool]] = defaultdict(list)
    for sample, said in zip(samples, judged, strict=True):
        of_prompt[sample.prompt].append(said == 1)
    most = min((len(right) for right in of_prompt.values()), default=0)
    if most < 2:
        return {}
    ks = [2**power for power in range(most.bit_length()) if 2**power < most]
    return {k: fmean(pass_at_k(len(right), sum(right), k) for right in of_prompt.values()) for k in (*ks, most)}


def _truth(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)


def _known(value: Any) -> float | None:
    return None if value is None else _number(value)


def _lines(path: Path, read: Callable[[dict[str, Any]], Read]) -> tuple[list[Read], int]:
    """What `read` makes of a file's lines, each a JSON object, and the number of those that it can't read; a file that
    can't be read as a whole counts as one."""
    found: list[Read] = []
    unreadable = 0
    try:
        for _, line in lines(path):
            try:
                if isinstance(line, Unreadable):
                    raise ValueError(line)
                found.append(read(line))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
                unreadable += 1
    except UnreadableFileError:
        unreadable += 1
    return found, unreadable
