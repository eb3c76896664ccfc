"""The algorithm against float64 brute force, its invariants, its edge rules and its refusals."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import with_copies

import verl_dra
from verl_dra import adjust_rewards, diversity_weights, effective_paths, graph_cut_smi, log_det_smi
from verl_dra.algorithm import fill_unscored, group_diversity
from verl_dra.algorithm.groups import Groups

SMI = {
    "graph_cut": (graph_cut_smi, oracles.graph_cut_smi),
    "log_det": (log_det_smi, oracles.log_det_smi),
}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@st.composite
def ragged_batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings with clones, mirror images and zero rows in shuffled groups of 1 to 64 with arbitrary ids."""
    sizes = draw(st.lists(st.integers(1, 64), min_size=1, max_size=6))
    ids = draw(st.lists(st.integers(-(2**40), 2**40), min_size=len(sizes), max_size=len(sizes), unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    group = rng.permutation(np.repeat(ids, sizes))
    vectors = rng.normal(size=(len(group), draw(st.sampled_from([1, 2, 16, 96]))))
    return torch.from_numpy(with_copies(vectors, rng)).float(), torch.from_numpy(group)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SMI)
@settings(max_examples=60)
@given(batch=ragged_batches())
def test_smi_is_the_brute_force_value(name: str, device: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    ours, oracle = SMI[name]
    vectors, group = batch
    expected = oracle(vectors.double().numpy(), group.numpy())
    smi = ours(vectors.to(device), group.to(device)).cpu()
    assert smi.dtype == torch.float32
    # Relative to the sum of the absolute terms: where cosines cancel, no float32 sum can do better.
    size = np.array([(group == g).sum() for g in group])
    np.testing.assert_array_less(np.abs(smi.numpy() - expected), 1e-6 * size + 1e-5 * np.abs(expected))
    weights = diversity_weights(smi)
    assert ((weights > 0) & (weights <= 1)).all()
    positive = expected >= 0
    np.testing.assert_allclose(weights[positive], oracles.weights(expected[positive]), rtol=1e-5)


@pytest.mark.parametrize("name", SMI)
def test_relative_error_over_positive_cosines_is_at_most_1e_5(name: str) -> None:
    ours, oracle = SMI[name]
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(40), rng.integers(2, 65, size=40)))
    vectors = rng.random((len(group), 64), dtype=np.float32)
    expected = oracle(vectors, group)
    smi = ours(torch.from_numpy(vectors), torch.from_numpy(group))
    np.testing.assert_allclose(smi.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", SMI)
def test_float64_stays_float64(name: str) -> None:
    ours, oracle = SMI[name]
    vectors, group = torch.randn(50, 8, dtype=torch.float64), torch.randint(0, 9, (50,))
    smi = ours(vectors, group)
    assert smi.dtype == torch.float64
    np.testing.assert_allclose(smi.numpy(), oracle(vectors.numpy(), group.numpy()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SMI)
def test_half_precision_input_is_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    ours, oracle = SMI[name]
    vectors, group = torch.rand(200, 32).to(dtype), torch.randint(0, 9, (200,))
    smi = ours(vectors, group)
    assert smi.dtype == torch.float32
    np.testing.assert_allclose(smi.numpy(), oracle(vectors.double().numpy(), group.numpy()), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_group_ids(dtype: torch.dtype) -> None:
    vectors = torch.rand(6, 4)
    group = torch.tensor([7, 3, 7, 3, 3, 7])
    assert torch.equal(graph_cut_smi(vectors, group.to(dtype)), graph_cut_smi(vectors, group))


@pytest.mark.parametrize("name", SMI)
@settings(max_examples=25)
@given(batch=ragged_batches(), seed=st.integers(0, 1000))
def test_row_order_does_not_matter(name: str, batch: tuple[torch.Tensor, torch.Tensor], seed: int) -> None:
    vectors, group = batch
    order = torch.randperm(len(group), generator=torch.Generator().manual_seed(seed))
    ours = SMI[name][0]
    weights = diversity_weights(ours(vectors, group))
    # The sums of a large group of opposed vectors pass through numbers as large as the group.
    atol = max(1e-6, torch.finfo(torch.float32).eps * int(torch.unique(group, return_counts=True)[1].max()))
    torch.testing.assert_close(diversity_weights(ours(vectors[order], group[order])), weights[order], rtol=0, atol=atol)


@pytest.mark.parametrize("name", SMI)
@settings(max_examples=25)
@given(batch=ragged_batches())
def test_groups_do_not_see_each_other(name: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    vectors, group = batch
    together = SMI[name][0](vectors, group)
    for g in group.unique():
        alone = SMI[name][0](vectors[group == g], group[group == g])
        torch.testing.assert_close(together[group == g], alone, rtol=1e-5, atol=1e-5)


def test_a_batch_larger_than_one_set_of_sums_is_the_same() -> None:
    """Many small groups of wide vectors take several passes over the groups."""
    vectors, group = torch.randn(4000, 512), torch.randperm(4000) // 2
    cosines = torch.nn.functional.normalize(vectors.double(), dim=1)
    expected = torch.zeros(4000, dtype=torch.float64)
    order = group.argsort()
    pairs = (cosines[order[0::2]] * cosines[order[1::2]]).sum(1)
    expected[order[0::2]] = expected[order[1::2]] = pairs
    torch.testing.assert_close(graph_cut_smi(vectors, group).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [2, 8, 16, 64, 128])
def test_clones_have_smi_of_group_size_minus_one(size: int) -> None:
    smi = graph_cut_smi(torch.randn(1, 384).repeat(size, 1), torch.zeros(size, dtype=torch.long))
    torch.testing.assert_close(smi, torch.full((size,), size - 1.0), rtol=1e-6, atol=1e-6)


def test_clones_share_the_reward_of_one() -> None:
    group = torch.zeros(4, dtype=torch.long)
    weights = diversity_weights(graph_cut_smi(torch.ones(4, 3), group))
    torch.testing.assert_close(adjust_rewards(torch.ones(4), weights, group).sum(), torch.tensor(1.0))


@pytest.mark.parametrize("name", SMI)
def test_singletons_opposites_and_zero_vectors_count_as_unique(name: str) -> None:
    vectors = torch.tensor([[1.0, 2.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    smi = SMI[name][0](vectors, torch.tensor([0, 1, 1, 2, 2, 2]))
    assert smi[0] == 0
    assert smi[3:].tolist() == [0, 0, 0]
    weights = diversity_weights(smi)
    assert weights[0] == 1
    assert weights[3:].tolist() == [1, 1, 1]
    if name == "graph_cut":
        assert smi[1:3].tolist() == [-1, -1]
        assert weights[1:3].tolist() == [1, 1]


def test_weights_never_exceed_one_for_negative_smi() -> None:
    assert diversity_weights(torch.tensor([-1.0, -0.999999, -0.5, 0.0, 1.0])).tolist() == [1, 1, 1, 1, 0.5]


@pytest.mark.parametrize("name", SMI)
@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e25, 3e37])
def test_length_does_not_matter_at_the_ends_of_float32(name: str, scale: float) -> None:
    vectors, group = torch.rand(12, 8), torch.arange(12) % 3
    scaled = vectors.clone()
    scaled[::2] *= scale
    torch.testing.assert_close(SMI[name][0](scaled, group), SMI[name][0](vectors, group), rtol=1e-5, atol=1e-5)


def test_the_input_is_left_alone() -> None:
    vectors = torch.randn(10, 4)
    vectors[3] = 1e30
    before = vectors.clone()
    graph_cut_smi(vectors, torch.zeros(10, dtype=torch.long))
    log_det_smi(vectors, torch.zeros(10, dtype=torch.long))
    assert torch.equal(vectors, before)


def test_no_gradient_flows_into_the_embeddings() -> None:
    assert not graph_cut_smi(torch.randn(4, 3, requires_grad=True), torch.zeros(4, dtype=torch.long)).requires_grad


@settings(max_examples=50)
@given(batch=ragged_batches(), negative=st.sampled_from(["paper", "shift", "positive_only"]))
def test_adjusted_rewards_are_the_formula(batch: tuple[torch.Tensor, torch.Tensor], negative: str) -> None:
    vectors, group = batch
    rewards = torch.randn(len(group))
    weights = diversity_weights(graph_cut_smi(vectors, group))
    ours = adjust_rewards(rewards, weights, group, negative=negative)
    expected = oracles.adjust(rewards.numpy(), weights.numpy(), group.numpy(), negative)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_shift_never_rewards_the_worst_and_leaves_groups_without_negatives_alone() -> None:
    group = torch.tensor([0, 0, 1, 1])
    adjusted = adjust_rewards(torch.tensor([-1.0, 1.0, 0.5, 1.0]), torch.full((4,), 0.5), group, negative="shift")
    assert adjusted.tolist() == [0.0, 1.0, 0.25, 0.5]


@settings(max_examples=30)
@given(batch=ragged_batches())
def test_effective_paths_is_the_vendi_score(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    vectors, group = batch
    expected = oracles.effective_paths(vectors.double().numpy(), group.numpy())
    np.testing.assert_allclose(effective_paths(vectors, group).numpy(), expected, rtol=1e-5)


def test_effective_paths_counts_orthogonal_ways() -> None:
    vectors = torch.eye(4)[[0, 0, 1, 1, 0, 1, 2, 3, 0, 0]]
    scores = effective_paths(vectors, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2]))
    torch.testing.assert_close(scores, torch.tensor([2.0, 4.0, 1.0], dtype=torch.float64))


def test_duplicates_are_near_equal_siblings_of_the_same_group() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [1.0, 0.0]])
    assert group_diversity(vectors, torch.tensor([0, 0, 0, 1]))[0].tolist() == [True, True, False, False]


@pytest.mark.parametrize(("cosine", "duplicates"), [(0.9895, False), (0.9905, True)])
def test_duplicates_begin_at_a_cosine_of_0_99(cosine: float, duplicates: bool) -> None:
    vectors = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]], dtype=torch.float64)
    assert group_diversity(vectors, torch.tensor([3, 3]))[0].tolist() == [duplicates] * 2


EMBEDDINGS, GROUP, REWARDS, WEIGHTS = torch.ones(3, 2), torch.tensor([5, 5, 9]), torch.ones(3), torch.ones(3)


def poisoned(values: torch.Tensor, value: float) -> torch.Tensor:
    values = values.clone()
    values[1] = value
    return values


@pytest.mark.parametrize("smi", [graph_cut_smi, log_det_smi, effective_paths, group_diversity])
@pytest.mark.parametrize(
    ("embeddings", "group", "error", "says"),
    [
        (EMBEDDINGS, GROUP[:2], ValueError, r"group must have the shape \[3\].*\[2\]"),
        (EMBEDDINGS, GROUP[:, None], ValueError, r"\[3, 1\]"),
        (EMBEDDINGS, ["a", "a", "b"], TypeError, "number string ids first"),
        (EMBEDDINGS, np.array(["a", "a", "b"]), TypeError, "number string ids first"),
        (EMBEDDINGS, GROUP.float(), TypeError, "integers, not torch.float32"),
        (EMBEDDINGS.long(), GROUP, TypeError, "floating point, not torch.int64"),
        (EMBEDDINGS.numpy(), GROUP, TypeError, "torch tensor, not ndarray"),
        (EMBEDDINGS[0], GROUP, ValueError, r"\[N, D\]"),
        (EMBEDDINGS[:0], GROUP[:0], ValueError, r"at least one row.*\[0, 2\]"),
        (EMBEDDINGS[:, :0], GROUP, ValueError, r"\[3, 0\]"),
        (
            poisoned(EMBEDDINGS, float("nan")),
            GROUP,
            ValueError,
            r"embeddings\[1\] \(group 5\) has a NaN or infinite",
        ),
        (
            poisoned(EMBEDDINGS, float("inf")),
            GROUP,
            ValueError,
            r"embeddings\[1\] \(group 5\) has a NaN or infinite",
        ),
    ],
)
def test_bad_embeddings_are_refused(smi, embeddings, group, error, says) -> None:
    with pytest.raises(error, match=says):
        smi(embeddings, group)


@pytest.mark.parametrize(
    ("rewards", "weights", "group", "negative", "error", "says"),
    [
        (REWARDS.long(), WEIGHTS, GROUP, "paper", TypeError, "rewards must be a floating-point.*int64"),
        ([1.0, 1.0, 1.0], WEIGHTS, GROUP, "paper", TypeError, "not list"),
        (REWARDS, WEIGHTS.long(), GROUP, "paper", TypeError, "weights must be a floating-point"),
        (REWARDS, WEIGHTS[:2], GROUP, "paper", ValueError, "must be of one shape"),
        (REWARDS, WEIGHTS, GROUP[:2], "paper", ValueError, r"group must have the shape \[3\]"),
        (REWARDS, WEIGHTS, ["a", "a", "b"], "paper", TypeError, "number string ids first"),
        (REWARDS[:0], WEIGHTS[:0], GROUP[:0], "paper", ValueError, "N >= 1"),
        (REWARDS[:, None], WEIGHTS[:, None], GROUP, "paper", ValueError, r"\[3, 1\]"),
        (
            poisoned(REWARDS, float("nan")),
            WEIGHTS,
            GROUP,
            "paper",
            ValueError,
            r"rewards\[1\] \(group 5\) is nan",
        ),
        (
            REWARDS,
            poisoned(WEIGHTS, float("inf")),
            GROUP,
            "paper",
            ValueError,
            r"weights\[1\] \(group 5\) is inf",
        ),
        (REWARDS, poisoned(WEIGHTS, 0.0), GROUP, "paper", ValueError, r"weights must be in \(0, 1\]"),
        (REWARDS, poisoned(WEIGHTS, 1.5), GROUP, "paper", ValueError, r"weights must be in \(0, 1\].*1.5"),
        (REWARDS, WEIGHTS, GROUP, "abs", ValueError, "one of paper, shift, positive_only, not 'abs'"),
    ],
)
def test_bad_rewards_are_refused(rewards, weights, group, negative, error, says) -> None:
    with pytest.raises(error, match=says):
        adjust_rewards(rewards, weights, group, negative=negative)


@pytest.mark.parametrize("smi", [torch.ones(3).long(), torch.ones(0), torch.tensor([1.0, float("nan")])])
def test_bad_smi_is_refused(smi: torch.Tensor) -> None:
    with pytest.raises((TypeError, ValueError), match="smi"):
        diversity_weights(smi)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_bad_ridge_is_refused(ridge: float) -> None:
    with pytest.raises(ValueError, match="ridge must be above 0"):
        log_det_smi(EMBEDDINGS, GROUP, ridge=ridge)


def test_the_algorithm_needs_neither_verl_nor_ray() -> None:
    code = "import sys, verl_dra; sys.exit(any(m in sys.modules for m in ('verl', 'ray', 'vllm', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(verl_dra.__all__) >= {"graph_cut_smi", "log_det_smi", "diversity_weights", "adjust_rewards"}


def test_what_is_not_scored_gets_the_mean_weight_of_what_is() -> None:
    weights, scored = torch.tensor([0.2, 1.0, 0.4, 1.0]), torch.tensor([True, False, True, False])
    torch.testing.assert_close(fill_unscored(weights, scored), torch.tensor([0.2, 0.3, 0.4, 0.3]))
    assert torch.equal(fill_unscored(weights, torch.ones(4, dtype=torch.bool)), weights)
    assert fill_unscored(weights, torch.zeros(4, dtype=torch.bool)).tolist() == [1, 1, 1, 1]


def test_more_groups_than_are_compared_at_a_time_are_all_the_formula() -> None:
    """Cosine matrices are made of 8,192 rows at a time; of a pair I = log(s^2 / (s^2 - c^2)), s = 1 + ridge."""
    angles = torch.linspace(0, 3, 4500, dtype=torch.float64)
    vectors = torch.stack([torch.ones(4500), torch.zeros(4500), angles.cos(), angles.sin()], 1).reshape(-1, 2)
    group = torch.arange(4500).repeat_interleave(2)
    expected = torch.log(1.001**2 / (1.001**2 - angles.cos() ** 2)).repeat_interleave(2)
    torch.testing.assert_close(log_det_smi(vectors, group), expected, rtol=1e-9, atol=1e-9)
    found, _ = group_diversity(vectors, group)
    assert torch.equal(found, (angles.cos() > 0.99).repeat_interleave(2))


def test_a_few_very_wide_vectors_are_the_formula() -> None:
    """A row is more than the memory that sums get at least."""
    vectors, group = torch.rand(5, 40_000), torch.tensor([0, 1, 0, 1, 0])
    expected = oracles.graph_cut_smi(vectors.numpy(), group.numpy())
    np.testing.assert_allclose(graph_cut_smi(vectors, group), expected, rtol=1e-5)


@pytest.mark.parametrize("smi", [log_det_smi, graph_cut_smi, effective_paths])
def test_the_first_row_that_is_not_finite_is_named_and_all_are_counted(smi) -> None:
    vectors = torch.ones(6, 2)
    vectors[0] *= 1e30  # out of the usual range, but finite
    vectors[3, 1], vectors[4, 0], vectors[5] = float("nan"), float("-inf"), 0
    says = r"^embeddings\[3\] \(group 8\) has a NaN or infinite entry, as 2 of 6 rows have; check the encoder"
    with pytest.raises(ValueError, match=says):
        smi(vectors, torch.tensor([5, 5, 5, 8, 9, 9]))


def test_a_refusal_says_what_is_there() -> None:
    nan, inf = float("nan"), float("inf")
    with pytest.raises(ValueError, match=r"^smi\[1\] is nan; 1 entries are not finite$"):
        diversity_weights(torch.tensor([1.0, nan, 1.0]))
    with pytest.raises(ValueError, match=r"^rewards\[1\] \(group 6\) is -inf; 2 entries are not finite$"):
        adjust_rewards(torch.tensor([1.0, -inf, nan]), WEIGHTS, torch.tensor([5, 6, 7]))
    with pytest.raises(ValueError, match=r"^rewards\[1\] is nan"):  # of which group, ids that don't match can't say
        adjust_rewards(torch.tensor([1.0, nan, 1.0]), WEIGHTS, GROUP[:2])
    with pytest.raises(ValueError, match=r"not 0\.25 to 1\.5; make them by diversity_weights"):
        adjust_rewards(REWARDS, torch.tensor([0.5, 1.5, 0.25]), GROUP)
    with pytest.raises(ValueError, match=r"not -0\.5 to 1;"):
        adjust_rewards(REWARDS, torch.tensor([1.0, -0.5, 1.0]), GROUP)
    with pytest.raises(ValueError, match=r"^rewards \[3\] and weights \[2\] must be of one shape$"):
        adjust_rewards(REWARDS, WEIGHTS[:2], GROUP)
    with pytest.raises(TypeError, match=r"group must hold integers, not torch\.bool"):
        adjust_rewards(REWARDS, WEIGHTS, GROUP > 5)


@pytest.mark.parametrize("negative", ["paper", "shift", "positive_only"])
def test_adjusted_rewards_have_the_rewards_dtype(negative) -> None:
    for rewards, weights in ((torch.float64, torch.float32), (torch.float32, torch.float64), (torch.bfloat16,) * 2):
        made = adjust_rewards(REWARDS.to(rewards), WEIGHTS.to(weights) / 2, GROUP, negative=negative)
        assert made.dtype == rewards
        assert made.tolist() == [0.5] * 3


def test_no_gradient_flows_through_cosine_matrices() -> None:
    vectors = torch.randn(4, 3, requires_grad=True)
    assert not log_det_smi(vectors, torch.zeros(4, dtype=torch.long)).requires_grad
    assert not effective_paths(vectors, torch.zeros(4, dtype=torch.long)).requires_grad


def test_the_ridge_bounds_the_smi_of_clones() -> None:
    clones = torch.ones(2, 3, dtype=torch.float64)
    for ridge in (0.5, 1e-6):
        expected = np.log((1 + ridge) ** 2 / ((1 + ridge) ** 2 - 1))
        smi = log_det_smi(clones, torch.zeros(2, dtype=torch.long), ridge=ridge)
        np.testing.assert_allclose(smi, [expected] * 2, rtol=1e-9)


def test_what_is_unscored_has_the_mean_of_the_scored_in_their_dtype() -> None:
    weights = torch.tensor([0.25, 0.75, 1.0], dtype=torch.float16)
    filled = fill_unscored(weights, torch.tensor([True, True, False]))
    assert filled.dtype == torch.float16
    assert filled.tolist() == [0.25, 0.75, 0.5]


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_each_row_is_in_one_rectangle_and_padding_is_never_more(sizes: list[int], seed: int) -> None:
    ids = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    group = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))]
    rectangles = list(Groups.of(group).padded())
    assert torch.cat([rows[real] for _, rows, real in rectangles]).sort().values.tolist() == list(range(len(group)))
    for groups, rows, real in rectangles:
        assert all(set(group[of[there]].tolist()) == {int(g)} for g, of, there in zip(groups, rows, real, strict=True))
        assert 2 * real.sum() >= real.numel()
