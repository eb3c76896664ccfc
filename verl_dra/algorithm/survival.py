"""When a rare way of reasoning survives: how right it must be, beside the common one, to grow from a collapsed group.

A group of G has one completion of the rare way among G - 1 of the common one. Any two of one way have the cosine
`within`, any two of different ways `across`. A right answer has the reward 1, a wrong one 0; SMI is Graph-Cut. As the
rare way's share goes to 0, its logit has the sign of its completion's expected advantage in this group.
"""

from __future__ import annotations

from math import comb, sqrt

_EPSILON = 1e-6  # veRL 0.9.1's in compute_grpo_outcome_advantage


def survival_ratio(within: float, across: float, group_size: int) -> float:
    """The ratio of accuracies, rare over common, above which the rare way grows under DRA-Dr.GRPO.

    It is (1 + across (G - 1)) / (1 + within (G - 2) + across), each side clamped from below at 1, as weights are. 1 is
    GRPO's own: of ways that are equally right none grows.

    Raises:
        ValueError: a cosine that is none, or a group of less than 2.
    """
    rare, common = _weights(within, across, group_size)
    return common / rare


def batch_survival_ratio(within: float, across: float, group_size: int) -> float:
    """The same where the baseline is the mean of a batch, whose other groups have the common way alone.

    It is (1 + across (G - 1)) / (1 + within (G - 1)): a little lower, where the ways are alike within.

    Raises:
        ValueError: as `survival_ratio`.
    """
    rare, _ = _weights(within, across, group_size)
    return 1 / max(1 + within * (group_size - 1), 1) / rare


def normalised_survival_ratio(within: float, across: float, group_size: int, accuracy: float) -> float:
    """The same under DRA-GRPO, which divides by the group's sample standard deviation.

    There it depends on `accuracy`, the common way's: the mean is over the number of right ones among its G - 1.

    Raises:
        ValueError: as `survival_ratio`; also an accuracy that is not between 0 and 1.
    """
    if not 0 < accuracy < 1:
        raise ValueError(f"accuracy must be between 0 and 1, not {accuracy}")
    rare, common = _weights(within, across, group_size)
    others = group_size - 1
    right = wrong = 0.0
    for k in range(group_size):
        chance = comb(others, k) * accuracy**k * (1 - accuracy) ** (others - k)
        right += chance * _advantage(rare, k * common, k * common**2, group_size)
        wrong += chance * _advantage(0.0, k * common, k * common**2, group_size)
    # Its expected advantage is linear in its own accuracy.
    return wrong / (wrong - right) / accuracy


def _weights(within: float, across: float, group_size: int) -> tuple[float, float]:
    """1 / (1 + SMI) of the rare completion and of each common one."""
    if group_size < 2:
        raise ValueError(f"a group must have at least 2 completions, not {group_size}")
    for name, cosine in (("within", within), ("across", across)):
        if not -1 <= cosine <= 1:
            raise ValueError(f"{name} must be a cosine, from -1 to 1, not {cosine}")
    common = 1 + within * (group_size - 2) + across
    return 1 / max(1 + across * (group_size - 1), 1), 1 / max(common, 1)


def _advantage(reward: float, others: float, squares: float, group_size: int) -> float:
    """Of one completion, with the sums of the others' rewards and of their squares."""
    mean = (reward + others) / group_size
    variance = max(reward**2 + squares - group_size * mean**2, 0.0) / (group_size - 1)
    return (reward - mean) / (sqrt(variance) + _EPSILON)
