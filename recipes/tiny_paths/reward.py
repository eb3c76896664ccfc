"""The reward, for veRL's `reward.custom_reward_function.path`: 1 for the right final answer by whatever path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# veRL loads this file by its path, outside any package.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from tiny_paths.task import UNKNOWN, answer_of, strategy_of


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, float | str]:
    """`score` and `acc` are 1.0 or 0.0; `strategy` is a path's name or "none" and plays no part in the score.

    veRL takes the keys of its extra columns from the first sample, so all three are always there.
    """
    score = float(answer_of(solution_str) == int(ground_truth))
    return {"score": score, "acc": score, "strategy": strategy_of(solution_str) or UNKNOWN}
