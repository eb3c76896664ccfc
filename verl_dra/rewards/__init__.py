"""The rewards of the paper's runs, and the check of mathematical answers that they and `verl-dra evaluate` share.

In a veRL configuration: `reward.custom_reward_function.path=pkg://verl_dra.rewards` and `name=compute_score`. Needs
math-verify (`pip install 'verl_dra[math]'`).
"""

from verl_dra.rewards.checker import CheckerError, Verdict, alike, check
from verl_dra.rewards.gold import gold_text
from verl_dra.rewards.score import compute_score
from verl_dra.rewards.terms import cosine_reward, format_reward

__all__ = ["CheckerError", "Verdict", "alike", "check", "compute_score", "cosine_reward", "format_reward", "gold_text"]
