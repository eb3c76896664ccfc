"""veRL's reward function: format and length-scaled correctness, weighted."""

from __future__ import annotations

from typing import Any

from verl_dra.rewards.checker import check
from verl_dra.rewards.terms import cosine_reward, format_reward

_LONGEST_CHECK_S = 3600
_UNREADABLE_GOLD = 1.0
"""The paper's code gives this where the gold answer can't be read, and so teaches nothing by such problems."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    format_weight: float = 1.0,
    cosine_weight: float = 2.0,
    accuracy_weight: float = 0.0,
    max_len: int = 1000,
    timeout_s: float = 5.0,
) -> dict[str, float]:
    """The paper's reward: format times 1 plus the length-scaled cosine times 2.

    The weights, `max_len` (characters) and `timeout_s` (seconds of a check) are set by
    `reward.custom_reward_function.reward_kwargs`.

    Returns:
        `score`, and what it is made of: `acc` (1.0 right, 0.0 wrong, 1.0 too where the gold answer can't be read),
        `format`, `cosine`; as 1.0 or 0.0 `gold_unparsed`, `answer_unparsed` and `check_failed` (it took too long, and
        counts as wrong). Always all of them: veRL takes the columns from the first sample.

    Raises:
        CheckerError: math-verify is not there.
        ValueError: `max_len` or `timeout_s` is not above 0, or `timeout_s` above an hour.
    """
    if not (max_len > 0 and 0 < timeout_s <= _LONGEST_CHECK_S):
        raise ValueError(
            f"max_len={max_len} must be above 0, and timeout_s={timeout_s} too, at most {_LONGEST_CHECK_S}"
        )
    verdict = check(str(ground_truth), solution_str, timeout_s)
    if verdict.gold_parsed:
        accuracy = float(verdict.right)
        cosine = cosine_reward(verdict.right, len(solution_str), max_len)
    else:
        accuracy = cosine = _UNREADABLE_GOLD
    formatted = format_reward(solution_str)
    return {
        "score": format_weight * formatted + cosine_weight * cosine + accuracy_weight * accuracy,
        "acc": accuracy,
        "format": formatted,
        "cosine": cosine,
        "gold_unparsed": float(not verdict.gold_parsed),
        "answer_unparsed": float(verdict.answer is None),
        "check_failed": float(verdict.failed),
    }
