"""The `dra/*` metrics of a training step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from verl_dra.estimator import Step
from verl_dra.scorer.messages import Session
from verl_dra.scorer.pool import StepScores

_EQUAL = 1e-6


def step_metrics(step: Step, scores: StepScores) -> dict[str, float]:
    """Metrics of one batch by name; README lists what each means."""
    assert step.raw is not None
    assert step.adjusted is not None
    assert step.advantage is not None
    weights = step.weights
    correct = step.raw > 0
    negative = correct & (step.advantage < 0)
    tokens = scores.counts.tokens
    return {
        "dra/smi/mean": step.smi.mean().item(),
        "dra/weight/mean": weights.mean().item(),
        "dra/weight/min": weights.min().item(),
        "dra/effective_paths": float(np.mean(scores.effective_paths)),
        "dra/duplicates_frac": float(scores.duplicate.mean()),
        "dra/correct_negative_adv_frac": negative.sum().item() / max(int(correct.sum()), 1),
        "dra/zero_std_frac/raw": _equal_groups(step.raw, step.rows.names),
        "dra/zero_std_frac/adjusted": _equal_groups(step.adjusted, step.rows.names),
        "dra/missing_rows": float(scores.missing_rows),
        "dra/fallbacks": float(scores.fallbacks),
        "dra/evicted_rows": float(scores.counts.evicted),
        "dra/truncated_tokens_frac": scores.counts.truncated_tokens / tokens if tokens else 0.0,
    }


def _equal_groups(rewards: Tensor, sessions: Sequence[Session]) -> float:
    """Share of groups whose rewards are all equal, which therefore teach nothing."""
    uids, group = np.unique([s.uid for s in sessions], return_inverse=True)
    position = torch.from_numpy(group.reshape(-1))
    spread = torch.zeros(len(uids), dtype=rewards.dtype)
    highest = spread.scatter_reduce(0, position, rewards, "amax", include_self=False)
    lowest = spread.scatter_reduce(0, position, rewards, "amin", include_self=False)
    return (highest - lowest <= _EQUAL).float().mean().item()
