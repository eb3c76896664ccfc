"""The owner of the scorers: starts them and brings lost ones back."""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from verl_dra.embedding import EmbeddingConfig
from verl_dra.scorer.actor import remote_scorer
from verl_dra.scorer.directory import announce, withdraw
from verl_dra.scorer.messages import Session
from verl_dra.scorer.placement import ScorerConfig, actor_options, describe

logger = logging.getLogger(__name__)

# For the trial at the start, which takes half a second of a scorer that works.
_RATE_S = 30.0
_MORE_ROOM = {
    "cpu": "Leave CPUs to them, ask for fewer (dra.scorer.num_replicas), or book none (dra.scorer.num_cpus=0)",
    "dedicated": "Lower trainer.n_gpus_per_node, ask for fewer, or use dra.scorer.placement=colocated or cpu",
    "colocated": "Lower dra.scorer.gpu_fraction, ask for fewer, or use dra.scorer.placement=cpu",
}
_State = ActorTableData.ActorState


def replica_of(session: Session, replicas: int) -> int:
    """The scorer that a completion belongs to, the same in every process: those of a group go to different ones."""
    return (zlib.crc32(session.uid.encode()) + session.session_id) % replicas


def replica_name(prefix: str, replica: int) -> str:
    """The Ray actor name of a scorer."""
    return f"{prefix}_{replica}"


class ScorerPool:
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
        self._options = actor_options(config, trainer_pool, rollout_pool)
        self._reviving = threading.Lock()
        self._replicas: list[Any] = []
        try:
            for i in range(len(self._options)):
                self._replicas.append(self._create(i))
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        announce(self._name, len(self._replicas))

    def __len__(self) -> int:
        return len(self._replicas)

    def describe(self) -> str:
        """Resources, placement, encoder and what they embed, tried on all at the same time, in words."""
        encoder = ray.get(self._replicas[0].encoder.remote())
        return f"{describe(self._options)}, placement {self.config.placement}; {encoder}; {self._rate()}"

    @property
    def handles(self) -> Sequence[Any]:
        """The actors, in the order of their numbers."""
        return tuple(self._replicas)

    def close(self) -> None:
        """End the actors."""
        withdraw(self._name)
        with self._reviving:
            ended, self._replicas = self._replicas, []
            for replica in ended:
                ray.kill(replica)

    def is_loading(self, replica: int) -> bool:
        """Whether it is being started again: ended for giving no answer, it would begin anew at every deadline."""
        return self._state(replica) not in (_State.ALIVE, _State.DEAD)

    def revive(self, i: int, dead: Any) -> bool:
        """Create a scorer again that is dead for good, unless that is done; whether there is another one.

        The handle stays the one that made the actor: those that `ray.get_actor` gives don't keep it alive.
        """
        with self._reviving:
            if not self._replicas or self._replicas[i] is not dead:
                return bool(self._replicas)
            logger.warning("diversity scorer %d died; it is started again", i)
            # An actor whose constructor failed keeps its name until it is killed (Ray 2.60).
            ray.kill(dead)
            try:
                self._replicas[i] = self._create(i, recreated=True)
            except ValueError as taken:
                logger.info("%s", taken)
                return False
            return True

    def restart(self, replica: int, why: str) -> None:
        """End a scorer's process and start it again."""
        logger.warning("diversity scorer %d is started again: %s", replica, why)
        ray.kill(self._replicas[replica], no_restart=False)

    def _state(self, replica: int) -> int:
        # The one call for this that needs no dashboard; Ray Data relies on it (Ray 2.60).
        return int(self._replicas[replica]._get_local_state())

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

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + self.config.placement_timeout_s
        waiting = {replica.ready.remote(): i for i, replica in enumerate(self._replicas)}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=max(until - time.monotonic(), 0))
            if not ready:
                raise RuntimeError(self._why_not_ready(list(waiting.values())))
            for reply in ready:
                del waiting[reply]
                try:
                    ray.get(reply)
                except RayTaskError as error:
                    raise RuntimeError(f"a diversity scorer could not start: {error}") from error
                except RayError as error:
                    raise RuntimeError(
                        "a diversity scorer could not start: its process ended while it loaded its encoder. What it "
                        f"wrote last is in worker-*-PID.err of Ray's logs on its node. Ray says: {error}"
                    ) from error

    def _why_not_ready(self, replicas: Sequence[int]) -> str:
        loading = sum(self._state(i) == _State.ALIVE for i in replicas)
        why = (
            f"{len(replicas)} of {len(self)} diversity scorers were not ready within "
            f"dra.scorer.placement_timeout_s={self.config.placement_timeout_s:g} s."
        )
        if loading:
            why += f" {loading} of them are placed and still load their encoder, which a longer time may mend."
        if loading < len(replicas):
            total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
            has = ", ".join(f"{name} {free.get(name, 0):g} of {total.get(name, 0):g} free" for name in ("CPU", "GPU"))
            why += (
                f" {len(replicas) - loading} of them are not placed. Asked for, with placement "
                f"{self.config.placement}: {describe(self._options)}. The cluster has: {has}. "
                f"{_MORE_ROOM[self.config.placement]}"
            )
        return why
