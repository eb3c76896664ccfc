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
    wrong: float = 0.0,
    **kwargs: Any,
) -> dict[str, float | str]:
    """`score` is 1.0 or `wrong`, which `reward.custom_reward_function.reward_kwargs` sets; `acc` is 1.0 or 0.0;
    `strategy` is a path's name or "none" and plays no part in the score.

    veRL takes the keys of its extra columns from the first sample, so all three are always there.
    """
    right = answer_of(solution_str) == int(ground_truth)
    return {
        "score": 1.0 if right else wrong,
        "acc": float(right),
        "strategy": strategy_of(solution_str) or UNKNOWN,
    }
