"""The terms of the reward, as arXiv 2505.09655's code and open-rs have them."""

from __future__ import annotations

import math

_THINKING_ENDS = "\n</think>\n"
_RIGHT = (0.5, 1.0)
_WRONG = (-0.5, 0.0)


def format_reward(text: str) -> float:
    """1.0 if `text` ends its thinking exactly once, on a line of its own, and 0.0 otherwise.

    The opening tag is not asked for: DeepSeek's chat template has written it already.
    """
    return float(text.count(_THINKING_ENDS) == 1)


def cosine_reward(right: bool, characters: int, max_len: int) -> float:
    """The length-scaled reward: 0.5 + 0.5 c if right, else 0.5 c - 0.5, c = (1 + cos(pi * characters / max_len)) / 2.

    A right answer falls from 1.0 to 0.5 and a wrong one from 0.0 to -0.5 as its length goes to `max_len`, and beyond
    it both rise again: the paper's code has no limit there, and its recipes leave `max_len` at 1,000 characters.
    """
    low, high = _RIGHT if right else _WRONG
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * characters / max_len))
