"""The reward, for veRL's `reward.custom_reward_function.path`: 1 for the right answer by a way that counts."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

# veRL loads this file by its path, outside any package.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from tiny_locks.task import UNKNOWN, Question, answer_of, opens, way_of


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any],
    lock: str = "even",
    **kwargs: Any,
) -> dict[str, float | str]:
    """`score` is 1.0 for the right answer by a way that counts under `lock` (`even` or `rare`), which
    `reward.custom_reward_function.reward_kwargs` sets; `acc` is 1.0 for the right answer by any; `locked` is 1.0 for
    the right answer by the question's key; `way` is a way's name or "none".
    """
    first, *others = map(int, re.findall(r"\d+", extra_info["question"]))
    question = Question(first, (others[0], others[1], others[2]))
    way = way_of(solution_str)
    right = answer_of(solution_str) == int(ground_truth)
    return {
        "score": float(right and opens(question, way, lock)),
        "acc": float(right),
        "locked": float(right and way == extra_info["key"]),
        "way": way or UNKNOWN,
    }
