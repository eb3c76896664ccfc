"""The reward workers' side of the scorers: hand over a finished completion and go on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
from ray.exceptions import RayError

from verl_dra.scorer.messages import Session
from verl_dra.scorer.pool import replica_name, replica_of

logger = logging.getLogger(__name__)


class ScorerClient:
    """Sends completions to the scorer of their group; a completion that can't be sent is fetched by the trainer.

    Args:
        name: prefix of the actors' names (`dra.scorer.name`).
        replicas: number of scorers.
    """

    def __init__(self, name: str, replicas: int) -> None:
        self._names = [replica_name(name, i) for i in range(replicas)]
        self._handles: dict[int, Any] = {}
        self._sending: set[asyncio.Task[None]] = set()

    def submit(self, session: Session, text: str) -> None:
        """Send without waiting. Must be called from a running event loop."""
        task = asyncio.get_running_loop().create_task(self._send(session, text))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, session: Session, text: str) -> None:
        i = replica_of(session.uid, len(self._names))
        try:
            if i not in self._handles:
                self._handles[i] = ray.get_actor(self._names[i])
            await self._handles[i].submit.remote([(session, text)])
        except (RayError, ValueError) as error:
            # ValueError: no actor of that name. Either way it is looked up anew next time.
            self._handles.pop(i, None)
            logger.warning("completion %s did not reach its diversity scorer (%s)", session, type(error).__name__)
