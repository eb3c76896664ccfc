"""What similarity means and how strongly it acts: each knob against loops over its definition, in float64."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import with_copies

from verl_dra.algorithm import (
    adjust_rewards,
    centered,
    cluster_smi,
    cosine_pairs,
    diversity_weights,
    gated,
    graph_cut_smi,
    kept_scale,
    level_small_spreads,
    log_det_smi,
    power_smi,
    random_smi,
    shuffled_smi,
    temper,
)
from verl_dra.config.schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, np.random.Generator]:
    """Vectors with copies, mirror images and zero rows in shuffled groups of any ids, and what else is drawn."""
    sizes = draw(st.lists(st.integers(1, 17), min_size=1, max_size=6))
    ids = draw(st.lists(st.integers(-(2**40), 2**40), min_size=len(sizes), max_size=len(sizes), unique=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    group = rng.permutation(np.repeat(ids, sizes))
    vectors = rng.normal(size=(len(group), draw(st.sampled_from([2, 16, 48])))) + 0.3
    return torch.from_numpy(with_copies(vectors, rng)), torch.from_numpy(group), rng


@settings(max_examples=40)
@given(batch=batches())
def test_centered_is_less_the_mean_of_all_rows(batch) -> None:
    vectors, group, _ = batch
    found = centered(vectors, group)
    np.testing.assert_allclose(found, oracles.centered(vectors.numpy()), atol=1e-9)
    single = centered(vectors.float(), group)
    assert single.dtype == torch.float32
    # What is left of a vector near the mean is as exact as float32 holds it.
    left = np.linalg.norm(oracles.unit(vectors.numpy()) - oracles.unit(vectors.numpy()).mean(0), axis=1)
    close = left > 0.05
    np.testing.assert_allclose(single[close], oracles.centered(vectors.numpy())[close], atol=1e-4)
    order = torch.randperm(len(group))
    torch.testing.assert_close(centered(vectors[order], group[order]), found[order], rtol=0, atol=1e-9)


def test_centered_takes_out_what_all_share_and_leaves_ways_apart() -> None:
    ways = torch.tensor([[1.0, 0.3, 0.0], [1.0, 0.3, 0.0], [1.0, 0.0, 0.3], [1.0, 0.0, 0.3]])
    group = torch.zeros(4, dtype=torch.long)
    assert graph_cut_smi(ways, group).min() > 2.7
    torch.testing.assert_close(graph_cut_smi(centered(ways, group), group), torch.full((4,), -1.0), atol=1e-5, rtol=0)
    copies = torch.full((5, 3), 0.7)
    copies[2] = 0
    assert centered(copies, torch.arange(5)).tolist() == [[0, 0, 0]] * 5
    assert torch.equal(copies[0], torch.full((3,), 0.7))


@settings(max_examples=40)
@given(batch=batches(), power=st.sampled_from([1.0, 1.5, 2.0, 4.0, 9.0]))
def test_power_is_the_brute_force_value(batch, power: float) -> None:
    vectors, group, _ = batch
    smi = power_smi(vectors, group, power)
    np.testing.assert_allclose(smi, oracles.power_smi(vectors.numpy(), group.numpy(), power), atol=1e-9)
    assert power_smi(vectors.float(), group, power).dtype == torch.float32


def test_a_power_of_one_is_graph_cut() -> None:
    vectors, group = torch.randn(40, 8, dtype=torch.float64), torch.arange(40) % 6
    torch.testing.assert_close(power_smi(vectors, group, 1.0), graph_cut_smi(vectors, group), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["graph_cut", "log_det", "clusters", "power"])
@settings(max_examples=25)
@given(batch=batches())
def test_a_gate_leaves_those_outside_out_of_everybodys_smi(name: str, batch) -> None:
    vectors, group, rng = batch
    inside = rng.random(len(group)) < 0.6
    ours, oracle = {
        "graph_cut": (graph_cut_smi, oracles.graph_cut_smi),
        "log_det": (log_det_smi, oracles.log_det_smi),
        "clusters": (cluster_smi, oracles.cluster_smi),
        "power": (lambda e, g: power_smi(e, g, 3.0), lambda e, g: oracles.power_smi(e, g, 3.0)),
    }[name]
    smi = ours(vectors, gated(group, torch.from_numpy(inside)))
    expected = oracles.among(oracle, vectors.numpy(), group.numpy(), inside)
    np.testing.assert_allclose(smi, expected, atol=1e-8)
    np.testing.assert_allclose(diversity_weights(smi)[~inside], 1, atol=1e-12)


def test_a_gate_that_all_pass_changes_no_bit() -> None:
    vectors, group = torch.randn(60, 8), torch.randint(-4, 5, (60,))
    ids = gated(group, torch.ones(60, dtype=torch.bool))
    assert torch.equal(graph_cut_smi(vectors, ids), graph_cut_smi(vectors, group))


@settings(max_examples=60)
@given(batch=batches(), floor=st.sampled_from([0.0, 0.05, 0.3, 0.9]))
def test_small_spreads_are_levelled_and_no_others(batch, floor: float) -> None:
    vectors, group, _ = batch
    smi = graph_cut_smi(vectors, group)
    levelled = level_small_spreads(smi, group, floor)
    np.testing.assert_allclose(levelled, oracles.level_small_spreads(smi.numpy(), group.numpy(), floor), atol=1e-12)
    if not floor:
        assert torch.equal(levelled, smi)


def test_a_levelled_group_has_one_weight_to_the_bit_and_a_spread_at_the_floor_is_none() -> None:
    smi = torch.tensor([5.9, 5.901, 5.9005, 1.0, 2.0])
    levelled = level_small_spreads(smi, torch.tensor([0, 0, 0, 1, 1]), 0.01)
    assert len(set(levelled[:3].tolist())) == 1
    assert levelled[3:].tolist() == [1.0, 2.0]
    assert level_small_spreads(smi, torch.tensor([0, 0, 0, 1, 1]), 1.0)[3:].tolist() == [1.0, 2.0]
    assert level_small_spreads(smi, torch.tensor([0, 0, 0, 1, 1]), 1.01)[3:].tolist() == [1.5, 1.5]


@settings(max_examples=40)
@given(batch=batches(), strength=st.sampled_from([0.0, 0.25, 1.0, 2.0]))
def test_strength_is_a_power_of_the_weight(batch, strength: float) -> None:
    vectors, group, _ = batch
    weights = diversity_weights(graph_cut_smi(vectors, group).float())
    found = temper(weights, strength)
    np.testing.assert_allclose(found, [w**strength for w in weights.double().tolist()], rtol=1e-6)
    if strength in (0.0, 1.0):
        assert torch.equal(found, weights if strength else torch.ones_like(weights))
    assert ((found > 0) & (found <= 1)).all()


@settings(max_examples=40)
@given(batch=batches(), negative=st.sampled_from(["paper", "positive_only"]))
def test_the_scale_that_is_kept_is_one_over_the_mean_weight_of_those_it_acts_on(batch, negative) -> None:
    vectors, group, rng = batch
    weights = diversity_weights(graph_cut_smi(vectors, group))
    rewards = torch.from_numpy(rng.normal(size=len(group)))
    acted = (rewards > 0) if negative == "positive_only" else torch.ones(len(group), dtype=torch.bool)
    scale = kept_scale(weights, acted)
    np.testing.assert_allclose(scale, oracles.kept_scale(weights.numpy(), acted.numpy()), rtol=1e-12)
    adjusted = adjust_rewards(torch.ones_like(rewards), weights, group, "paper") * scale
    if bool(acted.any()):
        assert adjusted[acted].mean().item() == pytest.approx(1)


@settings(max_examples=40)
@given(batch=batches())
def test_shuffled_deals_each_groups_values_out_by_the_draws(batch) -> None:
    vectors, group, rng = batch
    smi = graph_cut_smi(vectors, group)
    rank, draw = rng.permutation(len(group)), rng.permutation(len(group))
    found = shuffled_smi(smi, group, torch.from_numpy(rank), torch.from_numpy(draw))
    np.testing.assert_array_equal(found, oracles.shuffled_smi(smi.numpy(), group.numpy(), rank, draw))
    for g in group.unique():
        assert sorted(found[group == g].tolist()) == sorted(smi[group == g].tolist())
    order = torch.from_numpy(rng.permutation(len(group)))
    again = shuffled_smi(smi[order], group[order], torch.from_numpy(rank)[order], torch.from_numpy(draw)[order])
    assert torch.equal(again, found[order])


@settings(max_examples=40)
@given(batch=batches())
def test_random_is_the_smi_of_random_vectors_of_the_groups_mean_cosine(batch) -> None:
    vectors, group, rng = batch
    smi = graph_cut_smi(vectors, group)
    noise = rng.normal(size=(len(group), 7))
    found = random_smi(smi, group, torch.from_numpy(noise))
    np.testing.assert_allclose(found, oracles.random_smi(smi.numpy(), group.numpy(), noise), atol=1e-9)


def test_random_keeps_the_mean_weight_and_forgets_who_is_alike() -> None:
    rng = np.random.default_rng(0)
    ways = np.eye(4)[[0] * 6 + [1, 2]] + 0.7
    vectors = torch.from_numpy(np.tile(ways, (200, 1)) + 0.01 * rng.normal(size=(1600, 4)))
    group = torch.arange(200).repeat_interleave(8)
    smi = graph_cut_smi(vectors, group)
    made = random_smi(smi, group, torch.from_numpy(rng.normal(size=(1600, 384))))
    assert diversity_weights(made).mean().item() == pytest.approx(diversity_weights(smi).mean().item(), rel=0.05)
    assert abs(np.corrcoef(made, smi)[0, 1]) < 0.1


@settings(max_examples=40)
@given(batch=batches(), cosine=st.sampled_from([-0.5, 0.0, 0.7, 0.95]), most=st.sampled_from([1, 30, 10**6]))
def test_pairs_are_all_siblings_of_whole_groups_until_there_are_enough(batch, cosine: float, most: int) -> None:
    vectors, group, _ = batch
    found = cosine_pairs(vectors, group, cosine, most)
    e, pairs, seen = oracles.unit(vectors.numpy()), [], 0
    for g in sorted(set(group.tolist())):
        if seen < most:
            rows = np.flatnonzero(group.numpy() == g)
            seen += len(rows) * (len(rows) - 1) // 2
            pairs += [
                (float(e[i] @ e[j]), j in oracles.linked(e, rows, i, cosine))
                for i in rows
                for j in rows
                if i < j and e[i].any() and e[j].any()
            ]
    np.testing.assert_allclose(found.cosines.sort().values, sorted(c for c, _ in pairs), atol=1e-9)
    for of_kind in (True, False):
        expected = sorted(c for c, within in pairs if within == of_kind)
        np.testing.assert_allclose(found.cosines[found.within == of_kind].sort().values, expected, atol=1e-9)


@settings(max_examples=80)
@given(
    points=st.lists(st.tuples(st.integers(0, 500), st.floats(0, 8)), min_size=1, max_size=6, unique_by=lambda p: p[0]),
    step=st.integers(0, 600),
)
def test_strength_goes_in_straight_lines_between_its_points(points, step: int) -> None:
    ordered = [list(point) for point in sorted(points)]
    assert Schedule.of(ordered).at(step) == pytest.approx(oracles.strength_at(ordered, step), abs=1e-9)
    for at, value in ordered:
        assert Schedule.of(ordered).at(at) == value


def test_a_number_is_the_strength_of_every_step() -> None:
    assert [Schedule.of(value).at(step) for value in (1, 0.5, 0) for step in (0, 7, 10**6)] == [1] * 3 + [0.5] * 3 + [
        0
    ] * 3
    # Level stretches are level to the bit: weights to the power of 1 are themselves.
    assert [Schedule.of([[3, 1], [5, 0]]).at(step) for step in range(7)] == [1, 1, 1, 1, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("strong", r"must be a number, or points as \[\[0,1\],\[100,0\]\], not 'strong'"),
        (None, "must be a number, or points"),
        ([], "must be a number, or points"),
        (True, "must be a number, or points"),
        (math.nan, "must be a number, or points"),
        ([[0, 1], 5], r"5 is no \[step, value\]"),
        ([[0, 1, 2]], r"\[0, 1, 2\] is no \[step, value\]"),
        (["01"], r"'01' is no \[step, value\]"),
        ([[0.5, 1]], "a point at step 0.5; a step is a whole number"),
        ([[-1, 1]], "a point at step -1"),
        ([[0, -0.1]], "must be from 0 to 8, not -0.1"),
        (9, "must be from 0 to 8, not 9"),
        ([[0, "one"]], "must be from 0 to 8, not 'one'"),
        ([[5, 1], [5, 0]], r"ascending order of their steps, not \[5, 5\]"),
        ([[5, 1], [3, 0]], r"ascending order of their steps, not \[5, 3\]"),
    ],
)
def test_a_strength_that_can_not_be_is_refused(setting: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Schedule.of(setting)


def test_what_can_not_be_is_named() -> None:
    vectors, group, smi = torch.ones(3, 2), torch.tensor([5, 5, 9]), torch.ones(3)
    for call, says in (
        (lambda: power_smi(vectors, group, 0.5), "power must be 1 or more"),
        (lambda: power_smi(vectors, group, math.inf), "power must be 1 or more"),
        (lambda: level_small_spreads(smi, group, -0.1), "floor must be 0 or more"),
        (lambda: temper(smi, -1.0), "strength must be 0 or more"),
        (lambda: gated(group, torch.ones(2, dtype=torch.bool)), r"group must have the shape \[2\]"),
        (lambda: shuffled_smi(smi * math.nan, group, group, group), r"smi\[0\] \(group 5\) is nan"),
        (lambda: random_smi(smi, group[:2], vectors), r"group must have the shape \[3\]"),
        (lambda: centered(vectors * math.nan, group), r"embeddings\[0\] \(group 5\) has a NaN"),
        (lambda: cosine_pairs(vectors * math.inf, group), r"embeddings\[0\] \(group 5\) has a NaN"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
