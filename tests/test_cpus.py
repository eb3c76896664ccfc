"""The GPUs and CPUs that a run books: counted of veRL's own configuration, and placed on nodes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from verl_dra.job.cpus import Need, Node, least_cpus, needs, unplaced

Composed = Callable[..., DictConfig]


def booked(config: DictConfig) -> dict[str, tuple[int, int, float]]:
    return {need.what: (need.groups, need.gpus, need.cpus) for need in needs(config)}


ALWAYS = {
    "TransferQueue's controller": (1, 0, 1),
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": (8, 0, 1),
}
DRA = {**ALWAYS, "veRL's task runner": (1, 0, 1)}
ONE = {"dra.scorer.num_cpus": (1, 0, 1)}
TRAINER = {"trainer.n_gpus_per_node": (1, 8, 24)}
TP2 = "actor_rollout_ref.rollout.tensor_model_parallel_size=2"
SEPARATE = ["trainer.v1.trainer_mode=separate_async", "actor_rollout_ref.rollout.nnodes=2", TP2]
OF_ROLLOUTS = "actor_rollout_ref.rollout.n_gpus_per_node"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], TRAINER | DRA),
        (["dra.enabled=False"], TRAINER | ALWAYS),
        (["trainer.nnodes=2"], DRA | {"trainer.n_gpus_per_node": (2, 8, 24)}),
        (["dra.scorer.placement=colocated", "trainer.device=cpu"], TRAINER | DRA),
        (["dra.scorer.placement=cpu"], TRAINER | DRA | ONE),
        (["trainer.device=cpu", "trainer.nnodes=2"], DRA | ONE | {"trainer.n_gpus_per_node": (2, 8, 24)}),
        (["dra.embedding.encoder=openai"], TRAINER | DRA | ONE),
        (
            ["dra.scorer.placement=cpu", "dra.scorer.num_cpus=2.5", "dra.scorer.num_replicas=4"],
            TRAINER | DRA | {"dra.scorer.num_cpus": (4, 0, 2.5)},
        ),
        (["dra.scorer.placement=cpu", "dra.scorer.num_cpus=0"], TRAINER | DRA | {"dra.scorer.num_cpus": (1, 0, 0)}),
        (["dra.scorer.placement=dedicated"], TRAINER | DRA | {"dra.scorer.placement=dedicated": (1, 1, 1)}),
        (SEPARATE, TRAINER | DRA | {OF_ROLLOUTS: (8, 2, 4)}),
        ([*SEPARATE, "actor_rollout_ref.rollout.n_gpus_per_node=1"], TRAINER | DRA | {OF_ROLLOUTS: (2, 1, 2)}),
        (
            [
                *SEPARATE,
                "actor_rollout_ref.rollout.disaggregation.enabled=True",
                "actor_rollout_ref.rollout.disaggregation.decode_replicas=3",
            ],
            TRAINER | DRA | {OF_ROLLOUTS: (2, 8, 16)},
        ),
        (
            [
                *("reward.reward_model.enable=True", "reward.reward_model.enable_resource_pool=True"),
                *("reward.reward_model.nnodes=1", "reward.reward_model.n_gpus_per_node=2"),
                "reward.reward_model.rollout.name=vllm",
            ],
            TRAINER | DRA | {"reward.reward_model.n_gpus_per_node": (1, 2, 6)},
        ),
        (
            ["distillation.enabled=True", "distillation.nnodes=1", "distillation.n_gpus_per_node=4"],
            TRAINER | DRA | {"distillation.n_gpus_per_node": (1, 4, 12)},
        ),
        (["dra.partition.by=answers"], TRAINER | DRA | {"dra.partition.num_cpus": (1, 0, 1)}),
        (
            ["dra.partition.by=answers", "dra.partition.num_actors=3", "dra.partition.num_cpus=0.5"],
            TRAINER | DRA | {"dra.partition.num_cpus": (3, 0, 0.5)},
        ),
        (["dra.partition.by=answers", "dra.enabled=False"], TRAINER | ALWAYS),
        (
            ["transfer_queue.backend.storage_backend=MooncakeStore"],
            TRAINER | {k: v for k, v in DRA.items() if "unit" not in k},
        ),
        (
            ["dra.base_reward_manager=remote", "reward.num_workers=3"],
            TRAINER | DRA | {"reward.num_workers=3 of the remote reward manager": (9, 0, 1)},
        ),
        (
            ["dra.enabled=False", "reward.reward_manager.name=remote"],
            TRAINER | ALWAYS | {"reward.num_workers=8 of the remote reward manager": (64, 0, 1)},
        ),
    ],
)
def test_what_verls_own_configuration_books(
    overrides: list[str], expected: dict[str, tuple[int, int, float]], configured: Composed
) -> None:
    assert booked(configured(*overrides)) == expected


def test_two_nodes_of_eight_gpus_need_30_cpus_each(configured: Composed) -> None:
    """48 are booked with the GPUs; then 8 units, and a controller and a task runner on either node."""
    found = needs(configured("trainer.nnodes=2"))
    assert sum(need.groups * need.cpus for need in found) == 58
    assert least_cpus(found, [Node("a", 8, 0), Node("b", 8, 0)]) == 30
    tight = [Node("a", 8, 29), Node("b", 8, 29)]
    assert unplaced(found, tight) is None
    assert unplaced(found, tight, at_worst=True) is not None


@pytest.mark.parametrize(
    ("nodes", "fits"),
    [
        ([(4, 16), (5, 16)], True),
        ([(8, 32), (1, 4)], True),
        ([(6, 32), (3, 16)], False),  # 9 GPUs, but not 4 and 4 together
        ([(4, 16), (4, 16)], False),
        ([(4, 12), (5, 12)], True),
        ([(4, 11), (5, 16)], False),
    ],
)
def test_each_group_must_find_one_node(nodes: list[tuple[int, int]], fits: bool) -> None:
    trainer, scorer = Need("trainer", 2, 4, 12), Need("scorer", 1, 1)
    found = unplaced([scorer, trainer], [Node("", *node) for node in nodes])
    assert (found is None) == fits


def test_what_comes_in_turn_is_on_its_own_node_or_nowhere() -> None:
    units = Need("units", 3, cpus=1, place="in turn")
    assert unplaced([units], [Node("a", 0, 2), Node("b", 0, 1)]) is None
    assert unplaced([units], [Node("a", 0, 1), Node("b", 0, 2)]) == units
    assert unplaced([units], [Node("a", 0, 9), Node("b", 0, 0)]) == units
    # It is booked before what may be anywhere is put there.
    fits = Need("fits", 1, cpus=1)
    assert unplaced([fits, units], [Node("a", 0, 2), Node("b", 0, 1)]) == fits


def test_what_can_be_anywhere_needs_room_on_every_node_at_worst() -> None:
    pool, runner = Need("pool", 1, 4, 12), Need("runner", 1, cpus=1, place="anywhere")
    scorers = Need("scorers", 2, cpus=2, place="in turn or fits")
    for nodes, at_best, at_worst in (
        ([Node("a", 4, 15), Node("b", 0, 3)], True, True),
        ([Node("a", 4, 14), Node("b", 0, 3)], True, False),  # the runner and a scorer may be on a
        ([Node("a", 4, 12), Node("b", 0, 5)], True, False),
        ([Node("a", 4, 12), Node("b", 0, 4)], False, False),
    ):
        assert (unplaced([pool, runner, scorers], nodes) is None) == at_best
        assert (unplaced([pool, runner, scorers], nodes, at_worst=True) is None) == at_worst


def test_a_scorer_on_cpus_is_on_a_node_of_the_run_s_gpus_or_nowhere() -> None:
    pool, scorer, larger = (
        Need("pool", 1, 4, 12),
        Need("scorer", 1, cpus=1, place="beside GPUs"),
        Need("any", 1, cpus=2),
    )
    assert unplaced([scorer, pool], [Node("a", 4, 13), Node("b", 0, 0)]) is None
    assert unplaced([scorer, pool], [Node("a", 4, 12), Node("b", 0, 9)]) == scorer
    # Others, which may be elsewhere, do not take its place.
    assert unplaced([larger, scorer, pool], [Node("a", 4, 14), Node("b", 0, 9)]) is None


@pytest.mark.parametrize("count", [1, 3])
def test_the_least_number_of_cpus_is_enough_and_one_less_is_not(count: int, configured: Composed) -> None:
    found = needs(configured(f"trainer.nnodes={count}", "dra.scorer.placement=cpu", "dra.scorer.num_cpus=1.5"))
    least = least_cpus(found, [Node("", 8, 0)] * count)
    assert least is not None
    assert unplaced(found, [Node("", 8, least)] * count, at_worst=True) is None
    assert unplaced(found, [Node("", 8, least - 1)] * count, at_worst=True) is not None
    assert least_cpus(found, [Node("", 7, math.inf)] * count) is None
