"""Where scorers run, and a clear failure where they can't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

PLACEMENTS = ("cpu", "dedicated", "colocated")
_LONGEST_S = 10**7


@dataclass
class ScorerConfig:
    """How many scorers run, where, and within which limits (`dra.scorer`)."""

    placement: str = "cpu"
    """`cpu`; `dedicated`, a GPU of its own that `trainer.n_gpus_per_node` leaves free; or `colocated`, a fraction of
    the trainer's GPUs."""
    num_replicas: int | None = None
    """Scorers; None for one a node (of the trainer's for `colocated`), for `dedicated` one. The completions of a group
    go to different ones in turn."""
    num_cpus: float = 1
    """CPUs that Ray reserves for each; also the threads of the encoder on a CPU."""
    gpu_fraction: float = 0.1
    """For `colocated`: the share of a GPU that Ray books for each; at most what the trainer's workers leave."""
    max_rows: int = 65536
    """Completions that each keeps at most; the oldest are evicted and counted."""
    max_queue_rows: int = 65536
    """Texts that wait for each one's encoder at most; then reward workers hold back, and the trainer fetches."""
    max_queue_bytes: int = 2**30
    """Bytes of those texts at most."""
    placement_timeout_s: float = 300
    """Seconds within which every scorer must be placed and have loaded its encoder."""
    deadline_s: float = 600
    """Seconds without a text embedded that a step waits for a scorer; then `dra.on_failure` decides. While a scorer
    embeds texts, the step waits."""
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
        if self.num_cpus < 0:
            raise ValueError(f"dra.scorer.num_cpus must not be negative, not {self.num_cpus}")


def replica_count(config: ScorerConfig, trainer_nodes: int) -> int:
    """Scorers of a run: as configured, or the placement's default."""
    if config.num_replicas is not None:
        return config.num_replicas
    return {"cpu": len(_nodes()), "dedicated": 1, "colocated": trainer_nodes}[config.placement]


def actor_options(config: ScorerConfig, count: int, trainer_pool: Sequence[PlacementGroup]) -> list[dict[str, Any]]:
    """Ray options of each scorer: resources and place.

    Args:
        config: the placement asked for.
        count: number of scorers.
        trainer_pool: for `colocated`, the placement groups of the trainer's workers, one bundle a GPU.
    """
    if config.placement == "colocated":
        bundles = [(group, index) for group in trainer_pool for index in range(group.bundle_count)]
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
    nodes = _nodes()
    return [
        {
            "num_cpus": config.num_cpus,
            "num_gpus": 1 if config.placement == "dedicated" else 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=nodes[i % len(nodes)], soft=True),
        }
        for i in range(count)
    ]


def describe(options: Sequence[dict[str, Any]]) -> str:
    """The resources that `options` ask for, in words."""
    first = options[0]
    return f"{len(options)} x (CPU {first['num_cpus']:g}, GPU {first['num_gpus']:g})"


def _nodes() -> list[str]:
    """Ids of the cluster's nodes that have CPUs to give."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["NodeID"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
