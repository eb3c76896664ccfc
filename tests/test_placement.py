"""How many scorers a run has, where, and with how many CPUs each: of what Ray says is free, without Ray."""

from __future__ import annotations

import pytest

from verl_dra.scorer.placement import Room, on_cpus, settled


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
