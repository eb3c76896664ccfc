"""veRL's reward function: format and length-scaled correctness, weighted."""

from __future__ import annotations

from typing import Any

from verl_dra.rewards.checker import Judge, check
from verl_dra.rewards.gold import gold_text
from verl_dra.rewards.terms import cosine_reward, format_reward

_LONGEST_CHECK_S = 3600
_UNREADABLE_GOLD: dict[Judge, float] = {"right": 0.0, "paper": 1.0, "lighteval": 0.0}
"""Given to all completions of a problem whose gold answer can't be read, so that it teaches nothing; the paper's code
gives 1."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    format_weight: float = 1.0,
    cosine_weight: float = 2.0,
    accuracy_weight: float = 0.0,
    max_len: int = 1000,
    timeout_s: float = 5.0,
    judge: Judge = "right",
) -> dict[str, float]:
    """The paper's reward: format times 1 plus the length-scaled cosine times 2.

    The weights, `max_len` (characters), `timeout_s` (seconds of a check) and `judge` (see `check`) are set by
    `reward.custom_reward_function.reward_kwargs`.

    Args:
        ground_truth: as `gold_text` takes it. What it refuses is a gold answer that can't be read.

    Returns:
        `score`, and what it is made of: `acc` (1.0 right, 0.0 wrong), `format`, `cosine`; as 1.0 or 0.0
        `gold_unparsed`, `answer_unparsed` and `check_failed` (it took too long, and counts as wrong). Always all of
        them: veRL takes the columns from the first sample. Where the gold answer can't be read, `acc` and `cosine` are
        0.0 unless the answer is the same letter for letter, and 1.0 with the judge `paper`, as in the paper's code.

    Raises:
        CheckerError: math-verify is not there.
        ValueError: `max_len` or `timeout_s` is not above 0, or `timeout_s` above an hour; there is no such judge.
    """
    if not (max_len > 0 and 0 < timeout_s <= _LONGEST_CHECK_S):
        raise ValueError(
            f"max_len={max_len} must be above 0, and timeout_s={timeout_s} too, at most {_LONGEST_CHECK_S}"
        )
    gold = gold_text(ground_truth)
    verdict = check(gold, solution_str, timeout_s, judge)
    gold_read = gold is not None and verdict.gold_parsed
    if gold_read or verdict.right:
        accuracy = float(verdict.right)
        cosine = cosine_reward(verdict.right, len(solution_str), max_len)
    else:
        accuracy = cosine = _UNREADABLE_GOLD[judge]
    formatted = format_reward(solution_str)
    return {
        "score": format_weight * formatted + cosine_weight * cosine + accuracy_weight * accuracy,
        "acc": accuracy,
        "format": formatted,
        "cosine": cosine,
        "gold_unparsed": float(not gold_read),
        "answer_unparsed": float(verdict.answer is None),
        "check_failed": float(verdict.failed),
    }
