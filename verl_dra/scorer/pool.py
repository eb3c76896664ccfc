"""The owner's side of the scorers: starts them, asks them for a step's scores, brings lost ones back."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.placement_group import PlacementGroup

from verl_dra.embedding import EmbeddingConfig
from verl_dra.scorer.actor import remote_scorer
from verl_dra.scorer.messages import Counts, Scores, Session
from verl_dra.scorer.placement import ScorerConfig, actor_options, describe

logger = logging.getLogger(__name__)

_ASK_AGAIN_S = 0.5
_COUNTS_S = 5.0

FetchTexts = Callable[[Sequence[Session]], Mapping[Session, str]]


def replica_of(uid: str, replicas: int) -> int:
    """The scorer that a group belongs to, the same in every process."""
    return zlib.crc32(uid.encode()) % replicas


def replica_name(prefix: str, replica: int) -> str:
    """The Ray actor name of a scorer."""
    return f"{prefix}_{replica}"


@dataclass
class StepScores:
    """The scores of a step's n sessions, and how they came about."""

    smi: np.ndarray
    """[n] float32, in the order of the request."""
    duplicate: np.ndarray
    """[n] bool."""
    effective_paths: list[float] = field(default_factory=list)
    """Vendi score of each group, in no order."""
    missing_rows: int = 0
    """Sessions whose text had to be fetched and embedded when the scores were needed."""
    fallbacks: int = 0
    """Times that a scorer lacked something or was lost, and was asked again."""
    counts: Counts = field(default_factory=Counts)


@dataclass
class PendingScores:
    """Scores asked for and not yet waited for."""

    sessions: Sequence[Session]
    rows: list[np.ndarray]
    """For each scorer, the positions of its sessions."""
    replies: list[Any]
    """For each scorer, the reply's object reference, or None where it has no session."""


class ScorerPool:
    """Owns the scorer actors of a run; they end with it.

    Args:
        config: number, placement and limits.
        embedding: the encoder that each loads.
        smi: name of the SMI function.
        trainer_pool: for colocated placement, the placement groups of the trainer's workers.

    Raises:
        RuntimeError: a scorer is not placed and ready within `config.placement_timeout_s`, or its encoder fails.
    """

    def __init__(
        self,
        config: ScorerConfig,
        embedding: EmbeddingConfig,
        smi: str,
        trainer_pool: Sequence[PlacementGroup] = (),
    ) -> None:
        if config.name is None:
            raise ValueError("dra.scorer.name must be set before the scorers start")
        self._config = config
        self._embedding = embedding
        self._smi = smi
        self._options = actor_options(config, trainer_pool)
        logger.info("diversity scorers: %s, placement %s", describe(self._options), config.placement)
        self._replicas: list[Any] = [self._create(i) for i in range(len(self._options))]
        try:
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

    def request(self, sessions: Sequence[Session]) -> PendingScores:
        """Ask for the scores of complete groups without waiting; each session once, all of a group's at once."""
        replica = np.array([replica_of(s.uid, len(self)) for s in sessions])
        rows = [np.flatnonzero(replica == i) for i in range(len(self))]
        replies = [
            self._replicas[i].collect.remote([sessions[row] for row in mine], {}) if len(mine) else None
            for i, mine in enumerate(rows)
        ]
        return PendingScores(sessions, rows, replies)

    def wait(self, pending: PendingScores, fetch_texts: FetchTexts) -> StepScores:
        """The scores asked for; what a scorer lacks is fetched by `fetch_texts` and embedded now.

        Raises:
            TimeoutError: after `dra.scorer.deadline_s`.
            RayTaskError: the encoder failed on the step's texts.
        """
        deadline = time.monotonic() + self._config.deadline_s
        n = len(pending.sessions)
        step = StepScores(smi=np.zeros(n, dtype=np.float32), duplicate=np.zeros(n, dtype=bool))
        for i, (rows, reply) in enumerate(zip(pending.rows, pending.replies, strict=True)):
            if reply is None:
                continue
            sessions = [pending.sessions[row] for row in rows]
            scores = self._resolve(i, sessions, reply, fetch_texts, deadline, step)
            step.smi[rows] = scores.smi
            step.duplicate[rows] = scores.duplicate
            step.effective_paths += scores.effective_paths.tolist()
        step.counts = self._take_counts()
        return step

    def close(self) -> None:
        """End the actors."""
        for replica in self._replicas:
            ray.kill(replica)

    def _resolve(
        self,
        i: int,
        sessions: list[Session],
        reply: Any,
        fetch_texts: FetchTexts,
        deadline: float,
        step: StepScores,
    ) -> Scores:
        texts: dict[Session, str] = {}
        while True:
            try:
                answer = ray.get(reply, timeout=max(deadline - time.monotonic(), 0))
            except (GetTimeoutError, RayActorError) as error:
                if isinstance(error, GetTimeoutError) or time.monotonic() >= deadline:
                    raise TimeoutError(
                        f"diversity scorer {i} gave no scores of {len(sessions)} completions within "
                        f"dra.scorer.deadline_s={self._config.deadline_s:g} s ({type(error).__name__})"
                    ) from error
                step.fallbacks += 1
                logger.warning("diversity scorer %d was lost (%s); it is started again", i, type(error).__name__)
                self._revive(i, deadline)
            else:
                if isinstance(answer, Scores):
                    return answer
                fetched = fetch_texts(answer.sessions)
                step.fallbacks += 1
                step.missing_rows += len(fetched.keys() - texts.keys())
                texts.update(fetched)
            reply = self._replicas[i].collect.remote(sessions, texts)

    def _revive(self, i: int, deadline: float) -> None:
        """Wait until replica `i`, which restarts, is back; one that is dead for good is created again by its name.

        The handle stays the one that made the actor: those that `ray.get_actor` gives don't keep it alive.
        """
        while time.monotonic() < deadline:
            try:
                ray.get(self._replicas[i].ready.remote(), timeout=max(deadline - time.monotonic(), 0))
                return
            except GetTimeoutError:
                return
            except RayActorError:
                try:
                    self._replicas[i] = self._create(i)
                except ValueError:
                    time.sleep(_ASK_AGAIN_S)  # its name is not free yet

    def _create(self, i: int) -> Any:
        # Restarts and retries without limit: what bounds a step is dra.scorer.deadline_s.
        return (
            remote_scorer()
            .options(
                name=replica_name(str(self._config.name), i),
                max_restarts=-1,
                max_task_retries=-1,
                **self._options[i],
            )
            .remote(self._embedding, self._smi, self._config.max_rows)
        )

    def _wait_until_ready(self) -> None:
        waiting = [replica.ready.remote() for replica in self._replicas]
        ready, not_ready = ray.wait(waiting, num_returns=len(waiting), timeout=self._config.placement_timeout_s)
        if not_ready:
            total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
            has = ", ".join(f"{name} {free.get(name, 0):g} of {total.get(name, 0):g} free" for name in ("CPU", "GPU"))
            raise RuntimeError(
                f"{len(not_ready)} of {len(waiting)} diversity scorers were not placed and ready within "
                f"dra.scorer.placement_timeout_s={self._config.placement_timeout_s:g} s. Asked for, with placement "
                f"{self._config.placement}: {describe(self._options)}. The cluster has: {has}. Leave room for them "
                "(for dedicated: lower trainer.n_gpus_per_node), ask for fewer, or use dra.scorer.placement=cpu"
            )
        try:
            ray.get(ready)
        except RayActorError as error:
            raise RuntimeError(f"a diversity scorer could not start: {error}") from error

    def _take_counts(self) -> Counts:
        counts = Counts()
        replies = [replica.take_counts.remote() for replica in self._replicas]
        ready, late = ray.wait(replies, num_returns=len(replies), timeout=_COUNTS_S)
        for reply in ready:
            try:
                counts += ray.get(reply)
            except RayActorError:
                late.append(reply)
        if late:
            logger.warning("the counts of %d diversity scorers are lost with them", len(late))
        return counts
