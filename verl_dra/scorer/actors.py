"""Actors that a run owns: started and waited for together, and brought back when they are lost."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]
from ray.exceptions import RayError, RayTaskError

from verl_dra.scorer.placement import describe

logger = logging.getLogger(__name__)

_State = ActorTableData.ActorState


@dataclass(frozen=True)
class InWords:
    """What messages call actors and their settings."""

    one: str
    """Such as `diversity scorer`."""
    loads: str
    """What each loads at its start, such as `encoder`."""
    asked: str
    """How they were asked for, such as `placement cpu`."""
    more_room: str
    """What to do where they find no place."""


class ActorPool(ABC):
    """Starts actors, each of which has a method `ready`; they end with the run.

    Args:
        words: for messages.
        options: Ray's, of each.
        timeout_s: seconds within which all must be ready (`dra.scorer.placement_timeout_s`).

    Raises:
        RuntimeError: one is not placed and ready within `timeout_s`, or fails or dies while it loads.
    """

    def __init__(self, words: InWords, options: Sequence[dict[str, Any]], timeout_s: float) -> None:
        self._words = words
        self._options = options
        self._timeout_s = timeout_s
        self._reviving = threading.Lock()
        self._replicas: list[Any] = []
        try:
            for i in range(len(self._options)):
                self._replicas.append(self._create(i))
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._replicas)

    @property
    def handles(self) -> Sequence[Any]:
        """The actors, in the order of their numbers."""
        return tuple(self._replicas)

    def close(self) -> None:
        """End the actors."""
        with self._reviving:
            ended, self._replicas = self._replicas, []
            for replica in ended:
                ray.kill(replica)

    def is_loading(self, replica: int) -> bool:
        """Whether it is being started again: ended for giving no answer, it would begin anew at every deadline."""
        return self._state(replica) not in (_State.ALIVE, _State.DEAD)

    def revive(self, i: int, dead: Any) -> bool:
        """Create an actor again that is dead for good, unless that is done; whether there is another one.

        The handle stays the one that made the actor: those that `ray.get_actor` gives don't keep it alive.
        """
        with self._reviving:
            if not self._replicas or self._replicas[i] is not dead:
                return bool(self._replicas)
            logger.warning("%s %d died; it is started again", self._words.one, i)
            # An actor whose constructor failed keeps its name until it is killed (Ray 2.60).
            ray.kill(dead)
            try:
                self._replicas[i] = self._create(i, recreated=True)
            except ValueError as taken:
                logger.info("%s", taken)
                return False
            return True

    def restart(self, replica: int, why: str) -> None:
        """End an actor's process and start it again."""
        logger.warning("%s %d is started again: %s", self._words.one, replica, why)
        ray.kill(self._replicas[replica], no_restart=False)

    @abstractmethod
    def _create(self, i: int, recreated: bool = False) -> Any:
        """Make the actor of a number."""

    def _state(self, replica: int) -> int:
        # The one call for this that needs no dashboard; Ray Data relies on it (Ray 2.60).
        return int(self._replicas[replica]._get_local_state())

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + self._timeout_s
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
                    raise RuntimeError(f"a {self._words.one} could not start: {error}") from error
                except RayError as error:
                    raise RuntimeError(
                        f"a {self._words.one} could not start: its process ended while it loaded its "
                        f"{self._words.loads}. What it wrote last is in worker-*-PID.err of Ray's logs on its node. "
                        f"Ray says: {error}"
                    ) from error

    def _why_not_ready(self, replicas: Sequence[int]) -> str:
        loading = sum(self._state(i) == _State.ALIVE for i in replicas)
        why = (
            f"{len(replicas)} of {len(self)} {self._words.one}s were not ready within "
            f"dra.scorer.placement_timeout_s={self._timeout_s:g} s."
        )
        if loading:
            why += (
                f" {loading} of them are placed and still load their {self._words.loads}, which a longer time may mend."
            )
        if loading < len(replicas):
            total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
            has = ", ".join(f"{name} {free.get(name, 0):g} of {total.get(name, 0):g} free" for name in ("CPU", "GPU"))
            why += (
                f" {len(replicas) - loading} of them are not placed. Asked for, with {self._words.asked}: "
                f"{describe(self._options)}. The cluster has: {has}. {self._words.more_room}"
            )
        return why
