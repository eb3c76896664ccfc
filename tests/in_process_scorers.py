"""Stand-ins for a pool of scorer actors and for Ray's part in asking them: real scorers, in threads of this process."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from verl_dra.embedding import Encoder
from verl_dra.scorer.messages import Session
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.scorer.scorer import Scorer


class InProcessActor:
    """A scorer whose calls return futures; `asked` holds the texts that came with each request."""

    def __init__(self, encoder: Encoder) -> None:
        self.asked: list[dict[Session, str]] = []
        self.collect = SimpleNamespace(remote=self._collect)
        self.forget = SimpleNamespace(remote=lambda sessions: self._scorer.forget(sessions))
        self._scorer = Scorer(encoder, max_rows=10**6)
        self._replies: list[Future[Any]] = []
        self._dead = False

    def die(self) -> None:
        """Fail what is asked, before and from now on."""
        self._dead = True
        for reply in self._replies:
            if not reply.done():
                reply.set_exception(ActorDiedError())

    def _collect(self, sessions: Sequence[Session], texts: Mapping[Session, str], within_s: float) -> Future[Any]:
        self.asked.append(dict(texts))
        reply: Future[Any] = Future()
        self._replies.append(reply)

        def answer() -> None:
            answer = self._scorer.collect(sessions, texts, within_s)
            if not reply.done():
                reply.set_result(answer)

        if self._dead:
            reply.set_exception(ActorDiedError())
        else:
            threading.Thread(target=answer, daemon=True).start()
        return reply


class InProcessPool:
    """As `ScorerPool`, for `Asking`."""

    def __init__(
        self, make: Callable[[], Encoder], replicas: int = 1, on_failure: str = "raise", deadline_s: float = 60
    ) -> None:
        self.config = ScorerConfig(deadline_s=deadline_s)
        self.on_failure = on_failure
        self.handles = [InProcessActor(make()) for _ in range(replicas)]
        self.restarted: list[str] = []
        self._make = make

    def __len__(self) -> int:
        return len(self.handles)

    def is_loading(self, replica: int) -> bool:
        return False

    def revive(self, replica: int, dead: InProcessActor) -> bool:
        if self.handles[replica] is dead:
            self.handles[replica] = InProcessActor(self._make())
        return True

    def restart(self, replica: int, why: str) -> None:
        self.restarted.append(why)


def in_place_of_ray(patch: pytest.MonkeyPatch) -> None:
    """Let `verl_dra.scorer.asking` wait for futures."""

    def wait(replies: list[Future[Any]], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        concurrent.futures.wait(replies, timeout, concurrent.futures.FIRST_COMPLETED)
        done = [reply for reply in replies if reply.done()][:num_returns]
        return done, [reply for reply in replies if reply not in done]

    patch.setattr("verl_dra.scorer.asking.ray", SimpleNamespace(wait=wait, get=lambda reply: reply.result()))
