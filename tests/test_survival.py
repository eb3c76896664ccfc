"""The law of a rare way's survival, against every group of a nearly collapsed policy, in float64."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from verl_dra.algorithm.survival import batch_survival_ratio, normalised_survival_ratio, survival_ratio

cosines = st.floats(-0.4, 1)
sizes = st.integers(2, 6)
accuracies = st.floats(0.05, 0.95)


def push(within: float, across: float, size: int, common: float, rare: float, normalised: bool) -> float:
    """Expected advantage of the first of a group, which alone is of the rare way, over all outcomes of all."""
    cosine = np.full((size, size), within)
    cosine[0, 1:] = cosine[1:, 0] = across
    np.fill_diagonal(cosine, 1)
    weights = 1 / np.maximum(cosine.sum(1), 1)
    chances = np.array([rare, *[common] * (size - 1)])
    total = 0.0
    for outcome in product((0, 1), repeat=size):
        right = np.array(outcome)
        reward = right * weights
        advantage = reward - reward.mean()
        if normalised:
            advantage = advantage / (reward.std(ddof=1) + 1e-6)
        total += np.where(right, chances, 1 - chances).prod() * advantage[0]
    return total


@settings(deadline=None)
@given(cosines, cosines, sizes, accuracies, st.floats(0.5, 2))
def test_the_rare_way_grows_above_the_ratio_and_not_below(
    within: float, across: float, size: int, common: float, times: float
) -> None:
    rare = common * survival_ratio(within, across, size) * times
    assume(rare <= 1 and abs(times - 1) > 1e-6)
    assert (push(within, across, size, common, rare, normalised=False) > 0) == (times > 1)


@settings(deadline=None)
@given(cosines, cosines, sizes, accuracies, st.floats(0.5, 2))
def test_so_it_does_where_the_standard_deviation_divides(
    within: float, across: float, size: int, common: float, times: float
) -> None:
    rare = common * normalised_survival_ratio(within, across, size, common) * times
    assume(rare <= 1 and abs(times - 1) > 1e-6)
    assert (push(within, across, size, common, rare, normalised=True) > 0) == (times > 1)


@settings(deadline=None)
@given(cosines, cosines, sizes, accuracies, st.floats(0.5, 2))
def test_with_a_batch_s_baseline_a_collapsed_group_is_what_it_must_beat(
    within: float, across: float, size: int, common: float, times: float
) -> None:
    assume(abs(times - 1) > 1e-6)
    rare = common * batch_survival_ratio(within, across, size) * times
    collapsed, mixed = (np.full((size, size), within) for _ in range(2))
    mixed[0, 1:] = mixed[1:, 0] = across
    for cosine in (collapsed, mixed):
        np.fill_diagonal(cosine, 1)
    baseline = (common / np.maximum(collapsed.sum(1), 1)).mean()
    assert (rare / max(mixed[0].sum(), 1) > baseline) == (times > 1)


def test_by_hand() -> None:
    assert survival_ratio(0.92, 0.45, 8) == pytest.approx((1 + 7 * 0.45) / (1 + 6 * 0.92 + 0.45))
    assert survival_ratio(0.7, 0.7, 8) == pytest.approx(1)
    assert survival_ratio(0.5, 0.9, 8) > 1
    assert batch_survival_ratio(0.92, 0.45, 8) == pytest.approx((1 + 7 * 0.45) / (1 + 7 * 0.92))
    assert survival_ratio(0.9, 0.3, 10_000) == pytest.approx(1 / 3, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((1.2, 0, 8), "within"), ((0.9, float("nan"), 8), "across"), ((0.9, 0.1, 1), "at least 2")],
)
def test_what_is_no_cosine_or_group_is_refused(arguments: tuple[float, float, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        survival_ratio(*arguments)
    with pytest.raises(ValueError, match=words):
        normalised_survival_ratio(*arguments, accuracy=0.5)


def test_an_accuracy_is_between_0_and_1() -> None:
    with pytest.raises(ValueError, match="accuracy"):
        normalised_survival_ratio(0.9, 0.1, 8, accuracy=1)
