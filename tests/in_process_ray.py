"""A stand-in for Ray's part in running scorers: actors are objects of this process, each with a real `Scorer`."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.core.generated.gcs_pb2 import ActorTableData
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from verl_dra.embedding import EmbeddingConfig, Encoder
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.scorer.pool import ScorerPool
from verl_dra.scorer.scorer import Scorer

STATE = ActorTableData.ActorState


class Reply(Future[Any]):
    """As an object reference."""

    def future(self) -> Future[Any]:
        return self


class InProcessActor:
    """As a handle of a `DiversityScorer`."""

    def __init__(self, owner: InProcessRay, name: str) -> None:
        self.name = name
        self.state = STATE.ALIVE
        self.asked: list[dict[Any, str]] = []
        """The texts that came with each request."""
        self._owner = owner
        self._replies: list[Reply] = []
        self.ready = SimpleNamespace(remote=lambda: self._call(self._load))
        self.encoder = SimpleNamespace(remote=lambda: self._call(lambda: "an encoder in this process"))
        self.rate = SimpleNamespace(remote=lambda: self._call(owner.rate))
        self.collect = SimpleNamespace(remote=self._collect)
        for method in ("forget", "submit"):
            call = SimpleNamespace(
                remote=lambda *of, method=method: self._call(lambda: getattr(self._scorer, method)(*of))
            )
            setattr(self, method, call)

    def start(self) -> None:
        self._scorer = Scorer(self._owner.encoder(), max_rows=10**6)

    def end(self, restart: bool) -> None:
        """The process ends, and all that it knew; Ray starts it again, or it is dead for good."""
        self._fail(ActorUnavailableError("its process ended", None) if restart else ActorDiedError())
        if restart:
            self.start()
        else:
            self.state = STATE.DEAD

    def _get_local_state(self) -> int:
        return self.state

    def _load(self) -> int:
        self.start()
        return 7

    def _collect(self, sessions: Sequence[Any], texts: Any, within_s: float) -> Reply:
        self.asked.append(dict(texts))
        faults = self._owner.faults[self.name]
        fault = faults.popleft() if faults else None
        reply = self._call(lambda: self._scorer.collect(sessions, texts, within_s), wait_for=fault is None)
        if fault == "raises":
            self._fail(RayTaskError("collect", "its traceback", ZeroDivisionError("a defect")))
        elif fault == "is away":
            self._fail(ActorUnavailableError("the network is down", None))
        elif fault in ("restarts", "dies"):
            self.end(restart=fault == "restarts")
        return reply

    def _fail(self, error: Exception) -> None:
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(error)
        self._replies.clear()

    def _call(self, method: Callable[[], Any], wait_for: bool = True) -> Reply:
        reply = Reply()
        if self.state == STATE.DEAD:
            reply.set_exception(ActorDiedError())
            return reply
        self._replies.append(reply)

        def answer() -> None:
            try:
                value, error = method(), None
            except Exception as raised:
                value, error = None, raised
            with suppress(concurrent.futures.InvalidStateError):  # its process ended meanwhile
                reply.set_exception(RayTaskError("a method", str(error), error)) if error else reply.set_result(value)

        if wait_for:
            threading.Thread(target=answer, daemon=True).start()
        return reply


class InProcessRay:
    """What `verl_dra.scorer` calls of Ray.

    Args:
        encoder: makes one for each process of an actor.
        patch: undoes it.
        without_place: names of actors that it finds no place for.
    """

    def __init__(
        self, encoder: Callable[[], Encoder], patch: pytest.MonkeyPatch, without_place: Collection[str] = ()
    ) -> None:
        self._without_place = without_place
        self.encoder = encoder
        self.faults: dict[str, deque[str]] = defaultdict(deque)
        """What befalls the next requests for vectors, by the actor's name: `raises`, `is away`, `restarts`, `dies`,
        `says nothing`."""
        self.rate: Callable[[], float] = lambda: 1000.0
        """What each scorer says that it embeds."""
        self.made: list[InProcessActor] = []
        self.options: list[dict[str, Any]] = []
        """Ray's, of each that was made."""
        self.announced: dict[str, int] = {}
        self.config = ScorerConfig()
        for name, stand_in in (
            *(("get", _get), ("wait", _wait), ("kill", _kill)),
            *(("cluster_resources", lambda: {"CPU": 4.0}), ("available_resources", lambda: {"CPU": 1.0})),
        ):
            patch.setattr(ray, name, stand_in)
        for name, stand_in in (
            ("remote_scorer", lambda: SimpleNamespace(options=self._options)),
            ("actor_options", lambda config, *_: [{"num_cpus": 2, "num_gpus": 0}] * config.num_replicas),
            ("announce", self.announced.__setitem__),
            ("withdraw", lambda name: self.announced.pop(name, None)),
        ):
            patch.setattr(f"verl_dra.scorer.pool.{name}", stand_in)

    def _options(self, name: str, **options: Any) -> Any:
        return SimpleNamespace(remote=lambda _, config, recreated: self._make(name, options, config, recreated))

    def _make(self, name: str, options: dict[str, Any], config: ScorerConfig, recreated: bool) -> InProcessActor:
        if any(actor.name == name and actor.state != STATE.DEAD for actor in self.made):
            raise ValueError(f"the name {name} is taken")
        self.options.append({**options, "of config": config.num_cpus})
        actor = InProcessActor(self, name)
        if name in self._without_place:
            actor.state = STATE.PENDING_CREATION
        self.made.append(actor)
        if recreated:
            actor.start()
        return actor


def _get(reply: Reply | list[Reply], timeout: float | None = None) -> Any:
    return [one.result(timeout) for one in reply] if isinstance(reply, list) else reply.result(timeout)


def _wait(replies: list[Reply], num_returns: int = 1, timeout: float | None = None) -> tuple[list[Any], list[Any]]:
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        done = [reply for reply in replies if reply.done()]
        left = None if end is None else end - time.monotonic()
        if len(done) >= num_returns or (left is not None and left <= 0):
            there = done[:num_returns]
            return there, [reply for reply in replies if reply not in there]
        concurrent.futures.wait([reply for reply in replies if reply not in done], left, "FIRST_COMPLETED")


def _kill(actor: InProcessActor, no_restart: bool = True) -> None:
    actor.end(restart=not no_restart)


@contextmanager
def pool_of(
    encoder: Callable[[], Encoder] = NgramEncoder,
    replicas: int = 3,
    on_failure: str = "raise",
    without_place: Sequence[int] = (),
    **config: Any,
) -> Iterator[tuple[ScorerPool, InProcessRay]]:
    """A pool of such actors, whose pauses are short."""
    with pytest.MonkeyPatch.context() as patch:
        for name, seconds in (("_ASK_AGAIN_S", 0.01), ("_PAUSE_S", 0.01)):
            patch.setattr(f"verl_dra.scorer.asking.{name}", seconds)
        ray = InProcessRay(encoder, patch, [f"s_{i}" for i in without_place])
        ray.config = ScorerConfig(
            **{"name": "s", "placement": "cpu", "num_replicas": replicas, "deadline_s": 30, **config}
        )
        pool = ScorerPool(ray.config, EmbeddingConfig(encoder="ngram"), on_failure)
        try:
            yield pool, ray
        finally:
            pool.close()
