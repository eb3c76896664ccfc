"""The owner of the partition's actors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from verl_dra.partition.actor import remote_partition
from verl_dra.partition.config import PartitionConfig
from verl_dra.scorer.actors import ActorPool, InWords
from verl_dra.scorer.placement import cpu_options, describe

_MOST_CALLS_S = 10.0
_WORDS = InWords(
    "partition actor",
    "partition",
    "dra.partition.num_actors and num_cpus",
    "Leave CPUs to them, ask for fewer (dra.partition.num_actors), or book none (dra.partition.num_cpus=0)",
)


class PartitionPool(ActorPool):
    """Owns the actors of a run that look at groups; they end with it.

    Args:
        config: which partition, on how many CPUs.
        on_failure: `raise`, or `unadjusted` to go on without the groups that can't be had (`dra.on_failure`).
        timeout_s: seconds within which they must be ready (`dra.scorer.placement_timeout_s`).
        trainer_pool: the placement groups of the trainer's workers; none: they are on this process's node.
        rollout_pool: those of rollouts that have GPUs of their own.

    Raises:
        ValueError: no node has as many CPUs as one actor is to have.
        RuntimeError: an actor is not placed and ready in time, or fails or dies while it makes its partition.
    """

    def __init__(
        self,
        config: PartitionConfig,
        on_failure: str = "raise",
        timeout_s: float = 300,
        trainer_pool: Sequence[PlacementGroup] = (),
        rollout_pool: Sequence[PlacementGroup] = (),
    ) -> None:
        self.config = config
        self.on_failure = on_failure
        self._most_calls: dict[int, int] = {}
        pools = [*trainer_pool, *rollout_pool]
        options = cpu_options(pools, config.num_actors, config.num_cpus, "dra.partition.num_cpus")
        super().__init__(_WORDS, options, timeout_s)

    def describe(self) -> str:
        """Resources and partition, in words."""
        partition = ray.get(self._replicas[0].describe.remote())
        return f"{describe(self._options)}, {self.config.at_once} groups at a time each; {partition}"

    def most_calls(self, completions: int) -> int:
        """Requests that a group of so many different completions takes at most.

        Raises:
            RayError: the actor is not there, or does not answer.
        """
        if completions not in self._most_calls:
            reply = self._replicas[0].most_calls.remote(completions)
            self._most_calls[completions] = ray.get(reply, timeout=_MOST_CALLS_S)
        return self._most_calls[completions]

    def _create(self, i: int, recreated: bool = False) -> Any:
        # Restarts without limit: what bounds a step is dra.partition.deadline_s. One thread more than groups at a time
        # answers what is asked besides.
        return (
            remote_partition()
            .options(max_restarts=-1, max_concurrency=self.config.at_once + 1, **self._options[i])
            .remote(self.config)
        )
