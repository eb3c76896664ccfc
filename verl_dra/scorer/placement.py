"""Where scorers run, and a clear failure where they can't."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

PLACEMENTS = ("auto", "colocated", "dedicated", "cpu")
_LONGEST_S = 10**7
# 8 GPUs make 40,000 to 160,000 tokens a second with models of 1 to 8 B, a core embeds 5,000 to 12,500 with the default
# encoder: ten cores, where so many are free.
_CORES_OF_A_GPU = 1.25
# What a run may take of the CPUs that it finds free.
_SHARE_OF_FREE = 0.5
# Of one scorer; with more, threads wait for each other.
_MOST_THREADS = 4


@dataclass
class ScorerConfig:
    """How many scorers run, where, and within which limits (`dra.scorer`)."""

    placement: str = "auto"
    """`colocated`, a fraction of the trainer's GPUs; `dedicated`, a GPU of its own that `trainer.n_gpus_per_node`
    leaves free; `cpu`; or `auto`: colocated where the trainer is on CUDA GPUs and the encoder can use one (not
    `openai`, not `ngram`), else cpu."""
    num_replicas: int | None = None
    """Scorers. None for one a GPU for `colocated`, one for `dedicated`, and for `cpu` what the free CPUs of the run's
    nodes allow: at most half of them and 10 cores for 8 GPUs, 4 cores a scorer. The completions of a group go to
    different ones in turn."""
    num_cpus: float | None = None
    """CPUs that Ray reserves for each, also the threads of the encoder on a CPU, whatever OMP_NUM_THREADS says; 0
    reserves none. None for what is free for `cpu`, 1 for `dedicated`. Nothing for `colocated`, which is within what the
    trainer has reserved."""
    gpu_fraction: float = 0.1
    """For `colocated`: the share of a GPU that Ray books for each; at most what the trainer's workers leave."""
    max_rows: int = 65536
    """Completions that each keeps at most; the oldest are evicted and counted."""
    max_queue_rows: int = 65536
    """Texts that wait for each one's encoder at most; then reward workers hold back, and the trainer fetches."""
    max_queue_bytes: int = 2**30
    """Bytes of those texts at most."""
    placement_timeout_s: float = 300
    """Seconds within which every scorer must be placed and have loaded its encoder, and every actor of dra.partition
    have made its partition."""
    deadline_s: float = 600
    """Seconds without a text embedded that a step waits for a scorer; then `dra.on_failure` decides. While a scorer
    embeds texts, the step waits on."""
    name: str | None = None
    """Prefix of the actors' names; None for one made for the run."""

    def check(self) -> None:
        """Raise a ValueError that says which setting can't work."""
        if self.placement not in PLACEMENTS:
            raise ValueError(f"dra.scorer.placement must be one of {', '.join(PLACEMENTS)}, not {self.placement!r}")
        if not 0 < self.gpu_fraction <= 1:
            raise ValueError(f"dra.scorer.gpu_fraction must be above 0 and at most 1, not {self.gpu_fraction}")
        for name in ("num_replicas", "max_rows", "max_queue_rows", "max_queue_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"dra.scorer.{name} must be at least 1, not {value}")
        for name in ("placement_timeout_s", "deadline_s"):
            if not 0 < getattr(self, name) <= _LONGEST_S:
                raise ValueError(
                    f"dra.scorer.{name} must be above 0 and at most {_LONGEST_S:,} s, not {getattr(self, name)}"
                )
        if self.num_cpus is not None and self.num_cpus < 0:
            raise ValueError(f"dra.scorer.num_cpus must not be negative, not {self.num_cpus}")


def settled(placement: str, trainer_device: str, encoder: str, encoder_device: str | None) -> str:
    """What a placement comes to, `auto` being the best for a run.

    Args:
        placement: `dra.scorer.placement`.
        trainer_device: `trainer.device`.
        encoder: `dra.embedding.encoder`.
        encoder_device: `dra.embedding.device`.
    """
    if placement != "auto":
        return placement
    on_gpu = trainer_device == "cuda" and encoder not in ("openai", "ngram") and encoder_device != "cpu"
    return "colocated" if on_gpu else "cpu"


@dataclass(frozen=True)
class Room:
    """A node on which the run has GPUs."""

    node: str
    """Its Ray id."""
    gpus: int
    free: float
    """CPUs that nobody has booked."""
    cpus: float
    """All of them."""


def rooms(groups: Sequence[PlacementGroup]) -> list[Room]:
    """The nodes of placement groups, one bundle a GPU; without any, this process's node."""
    bundles = [placement_group_table(group)["bundles_to_node_id"].values() for group in groups]
    gpus = Counter(node for of_group in bundles for node in of_group)
    free: dict[str, dict[str, float]] = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cpus = {node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in nodes}
    return [
        Room(node, of_run, free.get(node, {}).get("CPU", 0.0), cpus[node])
        for node, of_run in (gpus or {ray.get_runtime_context().get_node_id(): 1}).items()
    ]


def on_cpus(
    nodes: Sequence[Room], num_replicas: int | None, num_cpus: float | None, key: str = "dra.scorer.num_cpus"
) -> list[tuple[str, float]]:
    """The node and the CPUs of each scorer: what is asked for, and where nothing is, what the free CPUs allow.

    At least one, which waits for its CPUs where none are free. `key` is the setting that `num_cpus` is of.

    Raises:
        ValueError: no node has as many CPUs as one is to have.
    """
    most = max(node.cpus for node in nodes)
    nodes = [node for node in nodes if node.cpus >= (num_cpus or 0)]
    if not nodes:
        raise ValueError(f"{key}={num_cpus:g}, and the nodes of the run's GPUs have at most {most:g} CPUs; lower it")
    if num_replicas is None:
        shares = [(node, *_scorers_of(_cores(node), num_cpus)) for node in nodes]
        found = [(node.node, each) for node, count, each in shares if node.free >= each for _ in range(count)]
        return found or [(max(nodes, key=lambda node: node.free).node, 1 if num_cpus is None else num_cpus)]
    if num_cpus is not None:
        return _in_turn(nodes, num_replicas, num_cpus)[0]
    each = min(max(sum(map(_cores, nodes)) // num_replicas, 1), _MOST_THREADS)
    while not (turn := _in_turn(nodes, num_replicas, each))[1] and each > 1:
        each -= 1
    return turn[0]


def _in_turn(nodes: Sequence[Room], count: int, each: float) -> tuple[list[tuple[str, float]], bool]:
    """So many scorers, the next one where most is free, and whether there is room for all."""
    left = {node.node: node.free for node in nodes}
    found: list[tuple[str, float]] = []
    for _ in range(count):
        node = max(left, key=left.__getitem__)
        left[node] -= each or 1  # in turn as well where nothing is booked
        found.append((node, each))
    return found, min(left.values()) >= 0


def _cores(node: Room) -> int:
    """Those that a node's scorers may have: what its GPUs can make use of, and no more than a share of the free."""
    return max(min(cores_of(node.gpus), int(_SHARE_OF_FREE * node.free)), 1)


def cores_of(gpus: int) -> int:
    """Cores that the scorers of so many GPUs can make use of."""
    return max(round(_CORES_OF_A_GPU * gpus), 1)


def _scorers_of(cores: int, num_cpus: float | None) -> tuple[int, float]:
    """How many have so many cores together, and the CPUs of each."""
    if num_cpus is None:
        count = math.ceil(cores / _MOST_THREADS)
        return count, cores // count
    return max(int(cores / num_cpus), 1) if num_cpus else 1, num_cpus


def actor_options(
    config: ScorerConfig, trainer_pool: Sequence[PlacementGroup], rollout_pool: Sequence[PlacementGroup] = ()
) -> list[dict[str, Any]]:
    """Ray options of each scorer: resources and place.

    Args:
        config: the placement asked for; not `auto`.
        trainer_pool: the placement groups of the trainer's workers, one bundle a GPU.
        rollout_pool: those of rollouts that have GPUs of their own.

    Raises:
        ValueError: no node has as many CPUs as one scorer is to have.
    """
    if config.placement == "colocated":
        bundles = [(group, index) for group in trainer_pool for index in range(group.bundle_count)]
        count = config.num_replicas or len(bundles)
        stride = max(len(bundles) // count, 1)
        return [
            {
                "num_cpus": 0,
                "num_gpus": config.gpu_fraction,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=index
                ),
            }
            for group, index in (bundles[i * stride % len(bundles)] for i in range(count))
        ]
    if config.placement == "dedicated":
        num_cpus = 1 if config.num_cpus is None else config.num_cpus
        return [{"num_cpus": num_cpus, "num_gpus": 1}] * (config.num_replicas or 1)
    return cpu_options([*trainer_pool, *rollout_pool], config.num_replicas, config.num_cpus)


def cpu_options(
    pools: Sequence[PlacementGroup],
    count: int | None,
    num_cpus: float | None,
    key: str = "dra.scorer.num_cpus",
) -> list[dict[str, Any]]:
    """Ray options of actors on the CPUs of the nodes of `pools`; arguments and errors as of `on_cpus`."""
    placed = on_cpus(rooms(pools), count, num_cpus, key)
    return [
        {
            "num_cpus": cpus,
            "num_gpus": 0,
            # An actor whose node is lost goes to another one.
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node, soft=True),
        }
        for node, cpus in placed
    ]


def describe(options: Sequence[dict[str, Any]]) -> str:
    """The resources that `options` ask for, and on how many nodes where that is asked for too, in words."""
    alike = Counter((option["num_cpus"], option["num_gpus"]) for option in options)
    asked = " and ".join(f"{count} x (CPU {cpus:g}, GPU {gpus:g})" for (cpus, gpus), count in alike.items())
    places = [option["scheduling_strategy"] for option in options if "scheduling_strategy" in option]
    # veRL's placement groups have a node each.
    nodes = {place.node_id if hasattr(place, "node_id") else place.placement_group.id for place in places}
    return f"{asked} on {len(nodes)} node{'s' * (len(nodes) > 1)}" if nodes else asked
