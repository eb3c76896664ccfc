"""The owner of the scorers: starts them and brings lost ones back."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup

from verl_dra.embedding import EmbeddingConfig
from verl_dra.scorer.actor import remote_scorer
from verl_dra.scorer.actors import ActorPool, InWords
from verl_dra.scorer.directory import announce, withdraw
from verl_dra.scorer.messages import Session
from verl_dra.scorer.placement import ScorerConfig, actor_options, describe

# For the trial at the start, which takes half a second of a scorer that works.
_RATE_S = 30.0
_MORE_ROOM = {
    "cpu": "Leave CPUs to them, ask for fewer (dra.scorer.num_replicas), or book none (dra.scorer.num_cpus=0)",
    "dedicated": "Lower trainer.n_gpus_per_node, ask for fewer, or use dra.scorer.placement=colocated or cpu",
    "colocated": "Lower dra.scorer.gpu_fraction, ask for fewer, or use dra.scorer.placement=cpu",
}


def replica_of(session: Session, replicas: int) -> int:
    """The scorer that a completion belongs to, the same in every process: those of a group go to different ones."""
    return (zlib.crc32(session.uid.encode()) + session.session_id) % replicas


def replica_name(prefix: str, replica: int) -> str:
    """The Ray actor name of a scorer."""
    return f"{prefix}_{replica}"


class ScorerPool(ActorPool):
    """Owns the scorer actors of a run; they end with it.

    Args:
        config: placement and limits.
        embedding: the encoder that each loads.
        on_failure: `raise`, or `unadjusted` to go on without the vectors that can't be had (`dra.on_failure`).
        trainer_pool: the placement groups of the trainer's workers; none: scorers on CPUs are on this process's node.
        rollout_pool: those of rollouts that have GPUs of their own.

    Raises:
        ValueError: no node has as many CPUs as one scorer is to have.
        RuntimeError: a scorer is not placed and ready within `config.placement_timeout_s`, or fails or dies while it
            loads its encoder.
    """

    def __init__(
        self,
        config: ScorerConfig,
        embedding: EmbeddingConfig,
        on_failure: str = "raise",
        trainer_pool: Sequence[PlacementGroup] = (),
        rollout_pool: Sequence[PlacementGroup] = (),
    ) -> None:
        if config.name is None or config.placement == "auto":
            raise ValueError("dra.scorer.name and dra.scorer.placement must be settled before the scorers start")
        self.config = config
        self._embedding = embedding
        self.on_failure = on_failure
        self._name = config.name
        super().__init__(
            InWords("diversity scorer", "encoder", f"placement {config.placement}", _MORE_ROOM[config.placement]),
            actor_options(config, trainer_pool, rollout_pool),
            config.placement_timeout_s,
        )
        announce(self._name, len(self))

    def describe(self) -> str:
        """Resources, placement, encoder and what they embed, tried on all at the same time, in words."""
        encoder = ray.get(self._replicas[0].encoder.remote())
        return f"{describe(self._options)}, placement {self.config.placement}; {encoder}; {self._rate()}"

    def close(self) -> None:
        """End the actors."""
        withdraw(self._name)
        super().close()

    def _create(self, i: int, recreated: bool = False) -> Any:
        # Restarts and retries without limit: what bounds a step is dra.scorer.deadline_s.
        options = self._options[i]
        return (
            remote_scorer()
            .options(name=replica_name(self._name, i), max_restarts=-1, max_task_retries=-1, **options)
            .remote(self._embedding, replace(self.config, num_cpus=options["num_cpus"]), recreated)
        )

    def _rate(self) -> str:
        replies = [replica.rate.remote() for replica in self._replicas]
        try:
            return f"{sum(ray.get(replies, timeout=_RATE_S)):,.0f} tokens/s in a trial"
        except (RayError, TimeoutError) as error:
            return f"no tokens/s were measured ({type(error).__name__})"
