"""From SMI to adjusted rewards: R~_i = R_i / (1 + I_i)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from verl_dra.algorithm.groups import Groups, check_group

NegativeRewards = Literal["paper", "shift", "positive_only"]


def diversity_weights(smi: Tensor) -> Tensor:
    """Weights 1 / (1 + I_i), with 1 + I_i clamped from below at 1 (cosines, and so SMI, can be negative).

    Args:
        smi: [N] floating point.

    Returns:
        [N] in (0, 1], of the same dtype.

    Raises:
        TypeError: `smi` is no floating-point tensor.
        ValueError: it is not one-dimensional, is empty, or has a NaN or infinite entry.
    """
    check_finite(smi, "smi")
    return (1 + smi.clamp(min=0)).reciprocal_()


def level_small_spreads(smi: Tensor, group: Tensor, floor: float) -> Tensor:
    """SMI in which groups that hardly differ don't: below `floor`, a spread of similarity counts as none.

    The spread of a group of n is (highest I - lowest I) / (n - 1), in units of a cosine. Where it is below `floor`,
    each of its rows gets the group's mean: weights keep their size and tell nobody apart.

    Args:
        smi: [N] floating point: Graph-Cut SMI.
        group: [N] any integer ids.
        floor: a cosine, at least 0; 0 levels nothing.

    Returns:
        [N], of the same dtype.

    Raises:
        TypeError, ValueError: as `diversity_weights`; also group ids that don't match, a floor below 0.
    """
    if not floor >= 0:
        raise ValueError(f"floor must be 0 or more, not {floor}")
    check_finite(smi, "smi", group)
    groups = Groups.of(check_group(group, len(smi), "smi"))
    position, ends = groups.index(), torch.zeros(2, len(groups), dtype=smi.dtype, device=smi.device)
    highest = ends[0].scatter_reduce(0, position, smi, "amax", include_self=False)
    lowest = ends[1].scatter_reduce(0, position, smi, "amin", include_self=False)
    small = (highest - lowest) / (groups.sizes - 1).clamp(min=1) < floor
    return torch.where(small[position], groups.mean(smi), smi)


def temper(weights: Tensor, strength: float) -> Tensor:
    """Weights to the power of `strength`: 1 for the weights as they are, 0 for none, above 1 for sharper ones.

    Args:
        weights: [N] in (0, 1].
        strength: at least 0.

    Returns:
        [N] in (0, 1], of the same dtype.

    Raises:
        ValueError: a strength below 0 or without end.
    """
    if not 0 <= strength < float("inf"):
        raise ValueError(f"strength must be 0 or more and finite, not {strength}")
    return weights.pow(strength)


def kept_scale(weights: Tensor, acted: Tensor) -> Tensor:
    """What adjusted rewards are multiplied by so that they keep the scale of raw ones: 1 / (mean weight).

    Without a division by the standard deviation, weights shrink advantages, and a KL or entropy term of the same
    coefficient outweighs them. The mean is over the batch, not the group: a group of copies stays smaller than others.

    Args:
        weights: [N] in (0, 1].
        acted: [N] bool: where a weight was multiplied by; elsewhere a reward is as it was, and stays so.

    Returns:
        [N], of the same dtype, at least 1.
    """
    mean = weights[acted].double().mean() if bool(acted.any()) else torch.ones(())
    return torch.where(acted, (1 / mean).to(weights), 1)


def fill_unscored(weights: Tensor, scored: Tensor) -> Tensor:
    """Weights in which what has no score gets the mean weight of what has one.

    Where nothing divides by the standard deviation, an advantage is as large as its rewards' weights: a group that kept
    a weight of 1 among others of 0.14 would get seven times their gradient.

    Args:
        weights: [N] in (0, 1]; whatever there is where a completion is not scored.
        scored: [N] bool.

    Returns:
        [N], of the same dtype; 1 everywhere where none is scored.
    """
    mean = weights[scored].double().mean() if bool(scored.any()) else torch.ones(())
    return torch.where(scored, weights, mean.to(weights))


def adjust_rewards(rewards: Tensor, weights: Tensor, group: Tensor, negative: NegativeRewards = "paper") -> Tensor:
    """Diversity-adjusted rewards (arXiv 2505.09655): R~_i = w_i R_i, with a choice for negative rewards.

    - `paper`: negative rewards are weighted like the others. A redundant wrong answer is punished less than a
      unique wrong one.
    - `shift`: where a group's minimum is below 0, it is subtracted from the group's rewards before weighting. The
      worst answers get 0 whatever their weight; redundant ones are neither favoured nor punished.
    - `positive_only`: rewards below 0 keep their value. Redundant and unique wrong answers are punished alike.

    Args:
        rewards: [N] floating point.
        weights: [N] in (0, 1], from `diversity_weights`.
        group: [N] any integer ids.
        negative: what happens to rewards below 0.

    Returns:
        [N], of the rewards' dtype.

    Raises:
        TypeError: rewards or weights that are not floating point, group ids that are no integers.
        ValueError: an unknown policy, shapes that don't match, empty input, NaN or infinite rewards or weights
            (names the row and the group), weights outside (0, 1].
    """
    if negative not in get_args(NegativeRewards):
        raise ValueError(f"negative must be one of {', '.join(get_args(NegativeRewards))}, not {negative!r}")
    check_finite(rewards, "rewards", group)
    check_finite(weights, "weights", group)
    if rewards.shape != weights.shape:
        raise ValueError(f"rewards {list(rewards.shape)} and weights {list(weights.shape)} must be of one shape")
    group = check_group(group, len(rewards), "rewards")
    if bool(((weights <= 0) | (weights > 1)).any()):
        raise ValueError(
            f"weights must be in (0, 1], not {weights.min().item():.4g} to {weights.max().item():.4g}; "
            "make them by diversity_weights(smi)"
        )
    weights = weights.to(rewards.dtype)
    if negative == "positive_only":
        return torch.where(rewards > 0, rewards * weights, rewards)
    if negative == "shift":
        position = Groups.of(group).index()
        minimum = torch.zeros(len(rewards), dtype=rewards.dtype, device=rewards.device)
        rewards = rewards - minimum.scatter_reduce(0, position, rewards, "amin")[position]
    return rewards * weights


def check_finite(values: Tensor, name: str, group: Tensor | None = None) -> None:
    """Raise a TypeError or ValueError that says what is wrong with `values`, unless they are [N] finite floats."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a floating-point torch tensor, not {kind}")
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} must have the shape [N] with N >= 1, not {list(values.shape)}")
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        row = int(torch.nonzero(~finite)[0])
        where = f" (group {int(group[row])})" if isinstance(group, Tensor) and group.shape == values.shape else ""
        raise ValueError(f"{name}[{row}]{where} is {values[row].item()}; {int((~finite).sum())} entries are not finite")
