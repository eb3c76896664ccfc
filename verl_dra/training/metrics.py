"""The `dra/*` metrics of a training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.v1.replay_buffer import DAPO_FILTERED_REWARD_COUNTS_KEY

from verl_dra.scorer.asking import StepVectors
from verl_dra.scorer.scores import StepScores
from verl_dra.training.estimator import Step

_EQUAL = 1e-6
_PERCENTILES = (10, 50, 90)


COUNTS = tuple(
    f"dra/{name}"
    for name in (
        *("missing_rows", "fallbacks", "unadjusted_groups", "empty_rows", "replaced_rows"),
        *("refused_rows", "unsent_rows", "skipped_rows", "late_rows", "evicted_rows"),
    )
)
"""Metrics that add up where a step has several updates; veRL averages the others over them."""


def record_metrics(counts: Mapping[str, int]) -> dict[str, float]:
    """Metrics of `Recorder.counts`."""
    return {f"dra/{name}_groups": float(groups) for name, groups in counts.items()}


def filter_metrics(of_verl: Mapping[str, Any]) -> dict[str, float]:
    """Of a step's metrics, with `algorithm.filter_groups`: groups that it took although they are right throughout."""
    groups: Mapping[float, int] = of_verl.get(DAPO_FILTERED_REWARD_COUNTS_KEY, {})
    return {"dra/filtered_groups": float(sum(count for value, count in groups.items() if value > 0))}


def step_metrics(step: Step, scores: StepScores, came: StepVectors, known: Tensor | None = None) -> dict[str, float]:
    """Metrics of one batch by name; `meanings.py` says what each means. Those of SMI are of the scored groups alone.

    Where SMI comes from elsewhere than from the vectors, `known` [n] bool says of which sessions it does.
    """
    known = scores.scored if known is None else known
    assert step.raw is not None
    assert step.adjusted is not None
    assert step.advantage is not None
    correct = step.raw > 0
    negative = correct & (step.advantage < 0)
    events = came.events
    inside = torch.ones_like(step.scored) if step.inside is None else step.inside
    metrics: dict[str, float] = {}
    if bool((known & inside).any()):
        metrics["dra/smi/mean"] = scores.smi[known & inside].mean().item()
    if bool(scores.scored.any()):
        metrics |= {
            "dra/effective_paths": scores.effective_paths.nanmean().item(),
            "dra/duplicates_frac": scores.duplicate[scores.scored].float().mean().item(),
        }
    if bool(step.scored.any()):
        weights = step.weights[step.scored]
        metrics |= {"dra/weight/mean": weights.mean().item(), "dra/weight/min": weights.min().item()}
    metrics |= {
        "dra/strength": step.strength,
        "dra/adjusted_frac": inside.float().mean().item() if step.strength else 0.0,
        "dra/correct_negative_adv_frac": negative.sum().item() / max(int(correct.sum()), 1),
        "dra/zero_std_frac/raw": _equal_groups(step.raw, step.rows.group),
        "dra/zero_std_frac/adjusted": _equal_groups(step.adjusted, step.rows.group),
        "dra/zero_std_frac/weight": _equal_groups(step.weights, step.rows.group),
        "dra/missing_rows": float(came.missing_rows),
        "dra/fallbacks": float(came.fallbacks),
        "dra/unadjusted_groups": float(len(torch.unique(step.rows.group[~step.scored]))),
        "dra/empty_rows": float(scores.empty),
        "dra/replaced_rows": float(came.replaced),
        "dra/refused_rows": float(events.refused),
        "dra/unsent_rows": float(events.unsent),
        "dra/skipped_rows": float(events.skipped),
        "dra/late_rows": float(events.late),
        "dra/evicted_rows": float(events.evicted),
        "dra/truncated_tokens_frac": came.truncated_tokens / max(came.tokens, 1),
        "dra/unknown_tokens_frac": came.unknown_tokens / max(came.tokens, 1),
        "dra/cached_frac": came.cached / len(step.smi),
        "dra/scorers/backlog_bytes": float(came.backlog_bytes),
    }
    return metrics | (_cosines(scores) if bool(scores.scored.any()) else {})


def _cosines(scores: StepScores) -> dict[str, float]:
    """Quantiles of the cosines of siblings; of those of one cluster, and of two, where there are any."""
    pairs = scores.pairs
    some = {"": pairs.cosines, "within/": pairs.cosines[pairs.within], "across/": pairs.cosines[~pairs.within]}
    quantiles = torch.tensor([percent / 100 for percent in _PERCENTILES], dtype=torch.float64)
    return {
        f"dra/cosine/{name}p{percent}": value
        for name, cosines in some.items()
        if len(cosines)
        for percent, value in zip(_PERCENTILES, torch.quantile(cosines, quantiles).tolist(), strict=True)
    }


def _equal_groups(rewards: Tensor, group: Tensor) -> float:
    """Share of groups whose rewards (or weights) are all equal, which therefore teach nothing."""
    spread = torch.zeros(int(group.max()) + 1, dtype=rewards.dtype)
    highest = spread.scatter_reduce(0, group, rewards, "amax", include_self=False)
    lowest = spread.scatter_reduce(0, group, rewards, "amin", include_self=False)
    return (highest - lowest <= _EQUAL).float().mean().item()
