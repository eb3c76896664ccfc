"""From similarity to weights: without knobs what it was before there were any, and a draw for each completion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_dra.algorithm import SMI_FUNCTIONS, darling_weights, diversity_weights, fill_unscored, graph_cut_smi
from verl_dra.config import DRAConfig
from verl_dra.scorer.messages import Session
from verl_dra.scorer.scores import step_scores
from verl_dra.training.weighing import Weighing

pytestmark = pytest.mark.usefixtures("one_thread")


def weighing(group: torch.Tensor, step: int = 1, strength: float = 1.0, **dra: Any) -> Weighing:
    seen: dict[int, int] = {}
    names = []
    for g in group.tolist():
        seen[g] = seen.get(g, -1) + 1
        names.append(Session(f"prompt {g}", seen[g]))
    return Weighing(DRAConfig(**dra), step, strength, names, group, torch.ones(len(group), dtype=torch.bool))


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    seed=st.integers(0, 2**32 - 1),
    smi=st.sampled_from(["graph_cut", "log_det", "clusters"]),
    weight=st.sampled_from(["inverse", "darling"]),
)
def test_without_knobs_weights_are_those_of_before_to_the_bit(sizes, seed, smi, weight) -> None:
    rng = np.random.default_rng(seed)
    group = torch.from_numpy(rng.permutation(np.repeat(np.arange(len(sizes)), sizes)))
    vectors = rng.normal(size=(len(group), 24)).astype(np.float32) + 0.4
    index = np.where(rng.random(len(group)) < 0.95, np.arange(len(group)), -1)
    dra = DRAConfig(smi=smi, weight=weight)

    scored = ~torch.isin(group, group[torch.from_numpy(index) < 0])
    before = torch.zeros(len(group))
    if bool(scored.any()):
        before[scored] = SMI_FUNCTIONS[smi](torch.from_numpy(vectors)[scored], group[scored])
    of_scored = darling_weights(before, group) if weight == "darling" else diversity_weights(before)

    ours = weighing(group, smi=smi, weight=weight)
    scores = step_scores(vectors, index, group, dra.smi_function(), inside=ours.inside)
    acting = ours.smi(scores.smi, scores.scored, 24)
    assert torch.equal(acting, before)
    assert torch.equal(ours.weights(acting, scores.scored), fill_unscored(of_scored, scored))


def test_a_shuffle_is_any_order_and_another_one_every_step() -> None:
    group = torch.zeros(3, dtype=torch.long)
    smi, scored = torch.tensor([0.0, 1.0, 2.0]), torch.ones(3, dtype=torch.bool)
    orders = [tuple(weighing(group, step, smi="shuffled").smi(smi, scored, 8).tolist()) for step in range(300)]
    share = {order: orders.count(order) / 300 for order in set(orders)}
    assert len(share) == 6
    assert all(0.08 < of_order < 0.26 for of_order in share.values())
    assert orders[:20] == [tuple(weighing(group, s, smi="shuffled").smi(smi, scored, 8).tolist()) for s in range(20)]


def test_random_vectors_are_anew_for_each_completion_and_step() -> None:
    group = torch.arange(40) // 8
    vectors = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    smi, scored = graph_cut_smi(vectors, group), torch.ones(40, dtype=torch.bool)
    scored[:8] = False
    smi[:8] = 0
    made = [weighing(group, step, smi="random").smi(smi, scored, 16) for step in (1, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert not torch.isclose(made[0][8:], made[2][8:], atol=1e-3).any()
    assert len(set(made[0][8:].tolist())) == 32
    assert made[0][:8].tolist() == [0] * 8
    nothing = torch.zeros(40, dtype=torch.bool)
    assert weighing(group, smi="random").smi(torch.zeros(40), nothing, 0).tolist() == [0] * 40


def test_a_floor_levels_before_a_control_draws() -> None:
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    smi, scored = torch.tensor([1.9, 1.9001, 1.9002, 0.0, 1.0, 1.0]), torch.ones(6, dtype=torch.bool)
    dealt = weighing(group, smi="shuffled", spread_floor=0.01).smi(smi, scored, 8)
    assert len(set(dealt[:3].tolist())) == 1
    assert sorted(dealt[3:].tolist()) == [0, 1, 1]
