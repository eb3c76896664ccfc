"""The weights of DRA's neighbours against loops over their formulas, and their way through the estimator."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_dra.algorithm import adjust_rewards, cluster_smi, darling_weights, diversity_weights, unlikeliness_weights

groups = st.lists(st.integers(0, 4), min_size=1, max_size=24)


def near_copies(count: int, seed: int) -> torch.Tensor:
    """Vectors near three directions, at distances that a threshold divides."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.eye(6, dtype=torch.float64)[torch.randint(0, 3, (count,), generator=generator)]
    return kinds + 0.2 * torch.randn(count, 6, generator=generator, dtype=torch.float64)


@settings(max_examples=80)
@given(group=groups, seed=st.integers(0, 999), cosine=st.sampled_from([-0.5, 0.0, 0.7, 0.9]))
def test_clusters_are_what_a_walk_over_the_links_reaches(group: list[int], seed: int, cosine: float) -> None:
    vectors = near_copies(len(group), seed)
    smi = cluster_smi(vectors, torch.tensor(group), cosine)
    np.testing.assert_array_equal(smi, oracles.cluster_smi(vectors.numpy(), np.array(group), cosine))


@pytest.mark.parametrize("length", [2, 4, 8, 16, 17, 32])
def test_a_chain_is_one_cluster_though_its_ends_are_far_apart(length: int) -> None:
    angles = torch.arange(length, dtype=torch.float64) * 0.1  # cos 0.1 = 0.995, cos 1.6 < 0
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    group = torch.zeros(length, dtype=torch.long)
    assert cluster_smi(vectors, group, 0.99).tolist() == [length - 1] * length
    assert cluster_smi(vectors, group, 0.996).tolist() == [0] * length


def test_a_cosine_at_the_threshold_links_nothing() -> None:
    vectors = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])  # 1/2, which floating point holds
    assert cluster_smi(vectors, torch.tensor([0, 0]), 0.5).tolist() == [0, 0]
    assert cluster_smi(vectors, torch.tensor([0, 0]), 0.499).tolist() == [1, 1]


def test_zero_vectors_and_singletons_are_clusters_of_their_own() -> None:
    vectors = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert cluster_smi(vectors, torch.tensor([0, 0, 0, 0, 1])).tolist() == [0, 0, 1, 1, 0]
    assert cluster_smi(vectors, torch.tensor([0, 0, 0, 0, 1]), -0.5).tolist() == [0, 0, 1, 1, 0]


def test_clusters_with_inverse_weights_share_a_reward_out() -> None:
    vectors = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    group = torch.zeros(4, dtype=torch.long)
    adjusted = adjust_rewards(torch.ones(4), diversity_weights(cluster_smi(vectors, group)), group)
    torch.testing.assert_close(adjusted, torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]))


@settings(max_examples=80)
@given(group=groups, seed=st.integers(0, 999))
def test_darling_is_the_share_of_others_of_another_kind(group: list[int], seed: int) -> None:
    vectors = near_copies(len(group), seed)
    ids = torch.tensor(group)
    smi = cluster_smi(vectors, ids)
    np.testing.assert_allclose(darling_weights(smi, ids), oracles.darling_weights(smi.numpy(), np.array(group)))


def test_darling_s_weights_by_hand() -> None:
    # Six in one cluster, one alone, among seven others: (8 - 1 - 5) / 7 and (8 - 1 - 0) / 7; then all alike: the floor.
    smi = torch.tensor([5.0] * 6 + [0.0, 0.0] + [3.0] * 4 + [0.0])
    weights = darling_weights(smi, torch.tensor([0] * 8 + [1] * 4 + [2]))
    torch.testing.assert_close(weights, torch.tensor([2 / 7] * 6 + [1.0, 1.0] + [0.1] * 4 + [1.0]))


@settings(max_examples=80)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([-0.1, -0.5, -0.7, -2.0, -9.0])), min_size=1, max_size=24
    )
)
def test_unlikeliness_takes_most_from_the_likeliest(rows: list[tuple[int, float]]) -> None:
    group, log_probs = (np.array(column) for column in zip(*rows, strict=True))
    weights = unlikeliness_weights(torch.from_numpy(log_probs), torch.from_numpy(group))
    np.testing.assert_allclose(weights, oracles.unlikeliness_weights(log_probs, group))


def test_unlikeliness_by_hand() -> None:
    weights = unlikeliness_weights(torch.tensor([-1.0, -3.0, -2.0, -3.0, -5.0]), torch.tensor([7, 7, 7, 7, 2]))
    assert weights.tolist() == [1 - 0.25 * 3 / 4, 1.0, 1 - 0.25 * 2 / 4, 1.0, 1.0]


@pytest.mark.parametrize("weights", [darling_weights, unlikeliness_weights])
def test_what_is_not_finite_or_does_not_match_is_named(weights) -> None:
    with pytest.raises(ValueError, match=r"\[1\] \(group 4\) is nan"):
        weights(torch.tensor([0.0, float("nan")]), torch.tensor([4, 4]))
    with pytest.raises(ValueError, match=r"group must have the shape \[2\]"):
        weights(torch.tensor([0.0, 1.0]), torch.tensor([4]))
    with pytest.raises(ValueError, match=r"cosine must be between -1 and 1, not 1\.5"):
        cluster_smi(torch.eye(2), torch.tensor([0, 0]), 1.5)


@pytest.mark.parametrize("cosine", [-1.0, 1.0, 2.0, float("nan")])
def test_a_threshold_that_links_all_or_nothing_is_refused(cosine: float) -> None:
    with pytest.raises(ValueError, match=f"cosine must be between -1 and 1, not {cosine}"):
        cluster_smi(torch.eye(2), torch.tensor([0, 0]), cosine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_and_counts_have_the_dtype_of_what_they_come_from(dtype: torch.dtype) -> None:
    group, values = torch.tensor([3, 3, 3]), torch.tensor([-1.0, -2.0, -3.0], dtype=dtype)
    assert cluster_smi(torch.eye(3, dtype=dtype), group).dtype == dtype
    assert darling_weights(-values, group).dtype == dtype
    assert unlikeliness_weights(values, group).dtype == dtype
    assert cluster_smi(torch.eye(3, dtype=torch.bfloat16), group).dtype == torch.float32
