"""How many scorers a run has, where, and with how many CPUs each: of what Ray says is free, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from verl_dra.scorer.placement import Room, ScorerConfig, actor_options, cores_of, describe, on_cpus, settled


@pytest.mark.parametrize(
    ("trainer", "encoder", "device", "expected"),
    [
        ("cuda", "sentence_transformers", None, "colocated"),
        ("cuda", "package.module:Encoder", None, "colocated"),
        ("cuda", "sentence_transformers", "cpu", "cpu"),
        ("cuda", "openai", None, "cpu"),
        ("cuda", "ngram", None, "cpu"),
        ("npu", "sentence_transformers", None, "cpu"),
        ("cpu", "sentence_transformers", None, "cpu"),
    ],
)
def test_auto_is_the_trainers_gpus_where_the_encoder_can_use_one(
    trainer: str, encoder: str, device: str | None, expected: str
) -> None:
    assert settled("auto", trainer, encoder, device) == expected
    assert settled("dedicated", trainer, encoder, device) == "dedicated"


def room(name: str, gpus: int, free: float, cpus: float = 96) -> Room:
    return Room(name, gpus, free, cpus)


@pytest.mark.parametrize(
    ("nodes", "num_replicas", "num_cpus", "expected"),
    [
        # Ten cores for 8 GPUs where they are, and never more than half of what is free.
        ([room("a", 8, 70)], None, None, [("a", 3)] * 3),
        ([room("a", 8, 11)], None, None, [("a", 2)] * 2),
        ([room("a", 8, 3)], None, None, [("a", 1)]),
        ([room("a", 1, 30)], None, None, [("a", 1)]),
        ([room("a", 4, 70), room("b", 4, 1)], None, None, [("a", 2)] * 2 + [("b", 1)]),
        ([room("a", 8, 8), room("b", 8, 0)], None, None, [("a", 4)]),
        # None free: one waits for its CPU.
        ([room("a", 8, 0), room("b", 8, 0.5)], None, None, [("b", 1)]),
        ([room("a", 8, 70)], None, 2, [("a", 2)] * 5),
        ([room("a", 1, 30), room("b", 1, 30)], None, 2, [("a", 2), ("b", 2)]),
        ([room("a", 1, 30), room("b", 1, 1)], None, 2, [("a", 2)]),
        ([room("a", 8, 70)], None, 0, [("a", 0)]),
        ([room("a", 8, 0), room("b", 8, 0)], None, 0, [("a", 0), ("b", 0)]),
        ([room("a", 8, 70)], 1, None, [("a", 4)]),
        ([room("a", 8, 70), room("b", 8, 69)], 4, None, [("a", 4), ("b", 4), ("a", 4), ("b", 4)]),
        ([room("a", 4, 8), *(room(f"{i}", 1, 2) for i in range(4))], 3, None, [("a", 2), ("a", 2), ("a", 2)]),
        ([room("a", 4, 5), *(room(f"{i}", 4, 2) for i in range(9))], 3, None, [("a", 2), ("a", 2), ("0", 2)]),
        ([room("a", 1, 0), room("b", 1, 1)], 3, None, [("b", 1), ("a", 1), ("b", 1)]),
        ([room("a", 8, 70), room("b", 8, 2)], 3, 7.5, [("a", 7.5)] * 3),
        ([room("a", 1, 2), room("b", 1, 2)], 4, 0, [("a", 0), ("b", 0), ("a", 0), ("b", 0)]),
    ],
)
def test_number_and_cpus_are_what_is_asked_for_or_what_is_free(
    nodes: list[Room], num_replicas: int | None, num_cpus: float | None, expected: list[tuple[str, float]]
) -> None:
    assert on_cpus(nodes, num_replicas, num_cpus) == expected


@pytest.mark.parametrize("free", [range(40)])
@pytest.mark.parametrize("num_replicas", [None, 1, 2, 5])
def test_what_is_not_asked_for_has_room(free: range, num_replicas: int | None) -> None:
    for of_a in free:
        nodes = [room("a", 8, of_a), room("b", 2, 40 - of_a)]
        placed = on_cpus(nodes, num_replicas, None)
        assert num_replicas is None or len(placed) == num_replicas
        for node in nodes:
            assert sum(cpus for name, cpus in placed if name == node.node) <= node.free


def test_a_scorer_that_fits_on_no_node_is_refused_at_once() -> None:
    nodes = [room("a", 8, 50, cpus=96), room("b", 8, 60, cpus=64)]
    assert on_cpus(nodes, None, 96) == [("a", 96)]
    with pytest.raises(
        ValueError, match=r"num_cpus=97, and the nodes of the run's GPUs have at most 96 CPUs; lower it"
    ):
        on_cpus(nodes, None, 97)


# --- as Ray is asked for it ---


A, B, C = (letter * 56 for letter in "abc")


class Group:
    """In place of veRL's placement group, a node of its own with a bundle a GPU."""

    def __init__(self, node: str, gpus: int) -> None:
        self.id, self.bundle_count = f"id of {node[0]}", gpus
        self.table = {"bundles_to_node_id": dict.fromkeys(range(gpus), node)}


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Of two nodes, beside a third one of the cluster, which this process is on."""
    free: dict[str, dict[str, float]] = {A: {"CPU": 10.0}, B: {"GPU": 1.0}, C: {"CPU": 40.0}}
    nodes = [{"NodeID": name, "Resources": {"CPU": 48.0} if name != B else {}} for name in (A, B, C)]
    monkeypatch.setattr("verl_dra.scorer.placement.placement_group_table", lambda group: group.table)
    monkeypatch.setattr(ray._private.state, "available_resources_per_node", lambda: free)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: C))
    return [Group(A, 2), Group(B, 4)]


def bundles(options: list[dict[str, Any]]) -> list[tuple[str, int]]:
    places = [option["scheduling_strategy"] for option in options]
    return [(place.placement_group.id, place.placement_group_bundle_index) for place in places]


@pytest.mark.parametrize(
    ("num_replicas", "expected"),
    [
        (None, ["a0", "a1", "b0", "b1", "b2", "b3"]),
        (3, ["a0", "b0", "b2"]),
        (2, ["a0", "b1"]),
        (4, ["a0", "a1", "b0", "b1"]),
        (8, ["a0", "a1", "b0", "b1", "b2", "b3", "a0", "a1"]),
    ],
)
def test_colocated_scorers_are_spread_over_the_trainers_gpus(
    num_replicas: int | None, expected: list[str], groups: list[Any]
) -> None:
    config = ScorerConfig(placement="colocated", num_replicas=num_replicas, gpu_fraction=0.25, num_cpus=3)
    options = actor_options(config, groups, [Group(C, 8)])  # type: ignore[list-item]
    assert bundles(options) == [(f"id of {node}", int(bundle)) for node, bundle in expected]
    assert {(option["num_cpus"], option["num_gpus"]) for option in options} == {(0, 0.25)}
    shown = f"{len(expected)} x (CPU 0, GPU 0.25) on 2 nodes"
    assert describe(options) == shown


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, [(1, 1)]), ({"num_cpus": 0}, [(0, 1)]), ({"num_replicas": 2, "num_cpus": 4}, [(4, 1)] * 2)],
)
def test_dedicated_scorers_have_a_gpu_each_wherever_it_is(
    settings: dict[str, Any], expected: list[tuple[int, int]], groups: list[Any]
) -> None:
    options = actor_options(ScorerConfig(placement="dedicated", **settings), groups)
    assert options == [{"num_cpus": cpus, "num_gpus": gpus} for cpus, gpus in expected]
    assert describe(options) == f"{len(expected)} x (CPU {expected[0][0]}, GPU 1)"


def test_scorers_on_cpus_are_on_the_nodes_of_trainer_and_rollouts_and_go_elsewhere_when_those_are_lost(
    groups: list[Any],
) -> None:
    config = ScorerConfig(placement="cpu", num_replicas=3, num_cpus=2)
    options = actor_options(config, groups[:1], [Group(C, 8)])  # type: ignore[list-item]
    places = [option["scheduling_strategy"] for option in options]
    assert [(place.node_id, place.soft) for place in places] == [(C, True)] * 3
    assert {(option["num_cpus"], option["num_gpus"]) for option in options} == {(2, 0)}
    assert describe(options) == "3 x (CPU 2, GPU 0) on 1 node"
    # Without any groups, this process's node; on a, half of its ten free cores would be less than its GPUs' share.
    alone = actor_options(ScorerConfig(placement="cpu"), [])
    assert [(option["scheduling_strategy"].node_id, option["num_cpus"]) for option in alone] == [(C, 1)]
    of_a = actor_options(ScorerConfig(placement="cpu"), groups)
    assert [(option["scheduling_strategy"].node_id, option["num_cpus"]) for option in of_a] == [(A, 2)]


def test_a_node_whose_cpus_nobody_knows_has_none(groups: list[Any]) -> None:
    with pytest.raises(ValueError, match="have at most 0 CPUs"):
        actor_options(ScorerConfig(placement="cpu", num_cpus=1), groups[1:])


def test_different_scorers_are_described_apart() -> None:
    options = [{"num_cpus": cpus, "num_gpus": 0} for cpus in (2, 1.5, 2)]
    assert describe(options) == "2 x (CPU 2, GPU 0) and 1 x (CPU 1.5, GPU 0)"


def test_a_gpu_keeps_a_core_and_a_quarter_of_the_scorers_busy() -> None:
    assert [cores_of(gpus) for gpus in (0, 1, 2, 3, 8)] == [1, 1, 2, 4, 10]
