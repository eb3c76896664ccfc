"""A stand-in for Ray's part in looking at groups: actors are objects of this process, each look has a thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import InvalidStateError
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from in_process_ray import STATE, Reply, _get, _kill, _wait
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from verl_dra.partition import Partition, PartitionConfig, PromptGroup
from verl_dra.partition.actor import PartitionActor
from verl_dra.partition.pool import PartitionPool


class Handle:
    """As a handle of a `PartitionActor`."""

    def __init__(self, owner: Actors, config: PartitionConfig) -> None:
        self._owner = owner
        self._actor = PartitionActor(config)
        self._replies: list[Reply] = []
        self.state = STATE.ALIVE
        for name in ("ready", "describe", "most_calls"):
            setattr(
                self, name, SimpleNamespace(remote=lambda *of, name=name: self._call(getattr(self._actor, name), *of))
            )
        self.look = SimpleNamespace(remote=self._look)

    def end(self, restart: bool) -> None:
        """The process ends; Ray starts it again, or it is dead for good."""
        for reply in self._replies:
            with suppress(InvalidStateError):
                reply.set_exception(ActorUnavailableError("its process ended", None) if restart else ActorDiedError())
        self._replies.clear()
        self._owner.ended.append(restart)
        self.state = STATE.ALIVE if restart else STATE.DEAD

    def _get_local_state(self) -> int:
        return self.state

    def _look(self, group: PromptGroup) -> Reply:
        self._owner.looked.append(group)
        fault = self._owner.faults.popleft() if self._owner.faults else None
        if fault is None:
            return self._call(self._actor.look, group)
        reply = self._call(lambda: None, wait_for=False)
        if fault != "says nothing":
            self.end(restart=fault == "restarts")
        return reply

    def _call(self, method: Callable[..., Any], *of: Any, wait_for: bool = True) -> Reply:
        reply = Reply()
        if self.state == STATE.DEAD:
            reply.set_exception(ActorDiedError())
            return reply
        self._replies.append(reply)

        def answer() -> None:
            try:
                value, error = method(*of), None
            except Exception as raised:
                value, error = None, raised
            with suppress(InvalidStateError):  # its process ended meanwhile
                reply.set_exception(RayTaskError("a method", str(error), error)) if error else reply.set_result(value)

        if wait_for:
            threading.Thread(target=answer, daemon=True).start()
        return reply


class Actors:
    """What befell the actors, and what is to befall them."""

    def __init__(self) -> None:
        self.looked: list[PromptGroup] = []
        """Every group that an actor was sent."""
        self.faults: deque[str | None] = deque()
        """What befalls the next looks: `restarts`, `dies`, `says nothing`, or None."""
        self.ended: list[bool] = []
        """Processes that ended: whether Ray started them again."""


@contextmanager
def partitions_of(
    partition: Callable[[PartitionConfig], Partition], on_failure: str = "raise", **config: Any
) -> Iterator[tuple[PartitionPool, Actors]]:
    """A pool of such actors with partitions that `partition` makes; pauses are short."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_ASK_AGAIN_S", "_PAUSE_S"):
            patch.setattr(f"verl_dra.partition.looking.{name}", 0.01)
        for name, stand_in in (("get", _get), ("wait", _wait), ("kill", _kill)):
            patch.setattr(ray, name, stand_in)
        actors = Actors()
        made = SimpleNamespace(remote=lambda config: Handle(actors, config))
        patch.setattr("verl_dra.partition.actor.build_partition", partition)
        patch.setattr("verl_dra.partition.pool.remote_partition", lambda: SimpleNamespace(options=lambda **_: made))
        patch.setattr(
            "verl_dra.partition.pool.cpu_options",
            lambda pools, count, cpus, key: [{"num_cpus": cpus, "num_gpus": 0}] * count,
        )
        pool = PartitionPool(
            PartitionConfig(**{"by": "fake_partitions:ByFirstWord", "deadline_s": 30, **config}), on_failure
        )
        try:
            yield pool, actors
        finally:
            pool.close()
