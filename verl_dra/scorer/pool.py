"""The owner's side of the scorers: starts them, asks them for a step's vectors, brings lost ones back."""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from verl_dra.embedding import EmbeddingConfig
from verl_dra.scorer.actor import remote_scorer
from verl_dra.scorer.directory import announce, withdraw
from verl_dra.scorer.messages import Events, Session, Vectors
from verl_dra.scorer.placement import ScorerConfig, actor_options, describe
from verl_dra.scorer.scores import put_together

logger = logging.getLogger(__name__)

_ASK_AGAIN_S = 0.5
# What a scorer may take beyond the deadline to say what it has.
_GRACE_S = 2.0
_ENCODER_TRIES = 3
# Before the second try of what the encoder can't embed; four times as long before the third, and so on to the last.
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
# In which a scorer says what it lacks.
_SAY_S = 0.02
_LOADING = "it is starting again"
# For the trial at the start, which takes half a second of a scorer that works.
_RATE_S = 30.0
_MORE_ROOM = {
    "cpu": "Leave CPUs to them, ask for fewer (dra.scorer.num_replicas), or book none (dra.scorer.num_cpus=0)",
    "dedicated": "Lower trainer.n_gpus_per_node, ask for fewer, or use dra.scorer.placement=colocated or cpu",
    "colocated": "Lower dra.scorer.gpu_fraction, ask for fewer, or use dra.scorer.placement=cpu",
}
_State = ActorTableData.ActorState

FetchTexts = Callable[[Sequence[Session]], Mapping[Session, str]]


class NoScoresError(RuntimeError):
    """A step has no scores of some groups, and `dra.on_failure` is `raise`."""


def replica_of(session: Session, replicas: int) -> int:
    """The scorer that a completion belongs to, the same in every process: those of a group go to different ones."""
    return (zlib.crc32(session.uid.encode()) + session.session_id) % replicas


def replica_name(prefix: str, replica: int) -> str:
    """The Ray actor name of a scorer."""
    return f"{prefix}_{replica}"


@dataclass
class StepVectors:
    """The vectors of a step's n sessions, and how they came about."""

    vectors: np.ndarray
    """[m, D] float32, one for each different text."""
    index: np.ndarray
    """[n] int64, in the order of the request: the row of each session in `vectors`; -1 where it has none."""
    missing_rows: int = 0
    """Sessions whose text had to be fetched and embedded when the vectors were needed."""
    fallbacks: int = 0
    """Times that a scorer lacked something or was lost, and was asked again."""
    tokens: int = 0
    truncated_tokens: int = 0
    unknown_tokens: int = 0
    cached: int = 0
    replaced: int = 0
    busy_s: float = 0.0
    """Seconds that the scorers' encoders worked, all together."""
    tokens_per_s: float = 0.0
    """What all scorers embed together while they work."""
    backlog_bytes: int = 0
    """Bytes of texts that scorers had not embedded when they were asked first."""
    events: Events = field(default_factory=Events)


@dataclass
class _Part:
    """What a step asks of one scorer."""

    replica: int
    rows: np.ndarray
    """Positions in the request of the sessions that it has given no vector of."""
    sessions: list[Session]
    """Those sessions."""
    asked: Any = None
    """The actor that was asked last."""
    reply: Any = None
    """Object reference, or None while it is to be asked again at `ask_at`."""
    ask_at: float = 0.0
    deadline: float = 0.0
    """When it is given up; moves on while its scorer embeds texts."""
    texts: dict[Session, str] = field(default_factory=dict)
    """Those to send when it is asked next."""
    error: str = "it gives no answer"
    encoder_error: str = ""
    """What the encoder failed with, which a scorer that was started again since can't say."""
    encoder_failures: int = 0
    lost: bool = False
    """Whether the scorer was not there when it was asked last, or did not answer."""
    hung: bool = False
    """Whether it is there and does not come back from what it does."""


@dataclass
class PendingVectors:
    """Vectors asked for and not yet all there."""

    sessions: int
    parts: list[_Part]
    """Those that are not done with."""
    answers: list[tuple[int, np.ndarray, Vectors]] = field(default_factory=list)
    """Scorer, the rows that it was asked for, and what it gave."""
    fetched: set[Session] = field(default_factory=set)
    fallbacks: int = 0

    def take(self, part: _Part, answer: Vectors) -> None:
        """Keep what a scorer gave; the part has left what it did not give."""
        self.answers.append((part.replica, part.rows, answer))
        lacking = np.flatnonzero(answer.index < 0)
        part.rows, part.sessions = part.rows[lacking], [part.sessions[at] for at in lacking]

    def together(self) -> StepVectors:
        """What all scorers gave."""
        vectors, index = put_together(self.sessions, self.answers)
        step = StepVectors(vectors, index, missing_rows=len(self.fetched), fallbacks=self.fallbacks)
        for _, _, answer in self.answers:
            for name in ("tokens", "truncated_tokens", "unknown_tokens", "cached", "replaced", "busy_s", "events"):
                setattr(step, name, getattr(step, name) + getattr(answer, name))
        for replica in {replica for replica, _, _ in self.answers}:
            answers = [answer for of, _, answer in self.answers if of == replica]
            step.backlog_bytes += answers[0].backlog_bytes
            busy_s = sum(answer.busy_s for answer in answers)
            step.tokens_per_s += sum(answer.events.tokens for answer in answers) / busy_s if busy_s else 0.0
        return step


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
        self._config = config
        self._embedding = embedding
        self._on_failure = on_failure
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
        return f"{describe(self._options)}, placement {self._config.placement}; {encoder}; {self._rate()}"

    @property
    def handles(self) -> Sequence[Any]:
        """The actors, in the order of their numbers."""
        return tuple(self._replicas)

    def request(self, sessions: Sequence[Session]) -> PendingVectors:
        """Ask for the vectors of a step's sessions, each once, without waiting."""
        pending = self._parts(sessions)
        self._set_deadlines(pending, self._config.deadline_s)
        for part in pending.parts:
            self._ask(part)
        return pending

    def advance(self, pending: PendingVectors, fetch_texts: FetchTexts) -> None:
        """Send the texts of what scorers say within a moment that they lack."""
        if pending.parts:
            self._set_deadlines(pending, self._config.deadline_s)
            self._answer(pending, fetch_texts, timeout_s=_SAY_S, replies=len(pending.parts))

    def wait(self, pending: PendingVectors, fetch_texts: FetchTexts) -> StepVectors:
        """The vectors asked for; what a scorer lacks is fetched by `fetch_texts` and embedded now.

        Raises:
            NoScoresError: with `dra.on_failure=raise`, some are not there and their scorer has embedded nothing for
                `dra.scorer.deadline_s`, or the encoder fails on a text again and again while it embeds others.
        """
        self._set_deadlines(pending, self._config.deadline_s)
        while pending.parts:
            now = time.monotonic()
            if late := [part for part in pending.parts if now >= part.deadline + _GRACE_S]:
                for part in late:
                    loading = part.reply is not None and self._is_loading(part.replica)
                    part.error = f"{_LOADING if loading else part.error}, and {self._deadline()}"
                    part.hung = part.reply is not None and not part.lost and not loading
                    part.lost |= part.hung or loading
                    pending.parts.remove(part)
                    self._give_up(part, part.sessions)
                continue
            left = min(part.deadline for part in pending.parts) + _GRACE_S - now
            asked = all(part.reply is not None for part in pending.parts)
            self._answer(pending, fetch_texts, left if asked else _ASK_AGAIN_S)
        return pending.together()

    def take(self, sessions: Sequence[Session]) -> StepVectors:
        """The vectors of sessions that are there by now; the others are given up. For what is only shown."""
        pending = self._parts(sessions)
        self._set_deadlines(pending, 0)
        for part in pending.parts:
            self._ask(part)
        replies = [part.reply for part in pending.parts]
        there = set(ray.wait(replies, num_returns=len(replies), timeout=_GRACE_S)[0]) if replies else set()
        for part in pending.parts:
            try:
                if part.reply in there:
                    pending.take(part, ray.get(part.reply))
            except RayError as error:
                logger.warning("diversity scorer %d gave nothing to show: %s", part.replica, type(error).__name__)
            self._replicas[part.replica].forget.remote(part.sessions)
        return pending.together()

    def close(self) -> None:
        """End the actors."""
        withdraw(self._name)
        with self._reviving:
            ended, self._replicas = self._replicas, []
            for replica in ended:
                ray.kill(replica)

    def _parts(self, sessions: Sequence[Session]) -> PendingVectors:
        replica = np.array([replica_of(session, len(self)) for session in sessions])
        of_replica = [(i, np.flatnonzero(replica == i)) for i in range(len(self))]
        return PendingVectors(
            len(sessions), [_Part(i, rows, [sessions[row] for row in rows]) for i, rows in of_replica if len(rows)]
        )

    def _set_deadlines(self, pending: PendingVectors, seconds: float) -> None:
        for part in pending.parts:
            part.deadline = time.monotonic() + seconds

    def _answer(self, pending: PendingVectors, fetch_texts: FetchTexts, timeout_s: float, replies: int = 1) -> None:
        """Wait at most `timeout_s` for so many replies, and act on those that are there."""
        for part in pending.parts:
            if part.reply is None and time.monotonic() >= part.ask_at:
                self._ask(part)
        part_of = {part.reply: part for part in pending.parts if part.reply is not None}
        if not part_of:
            time.sleep(timeout_s)
            return
        for reply in ray.wait(list(part_of), num_returns=min(replies, len(part_of)), timeout=timeout_s)[0]:
            part = part_of[reply]
            self._settle(part, pending, fetch_texts)
            if not part.sessions:
                pending.parts.remove(part)

    def _ask(self, part: _Part) -> None:
        within_s = max(part.deadline - time.monotonic(), 0)
        part.asked = self._replicas[part.replica]
        part.reply = part.asked.collect.remote(part.sessions, part.texts, within_s)

    def _settle(self, part: _Part, pending: PendingVectors, fetch_texts: FetchTexts) -> None:
        """Act on a reply; the part is done with when it has no sessions left."""
        try:
            answer: Vectors = ray.get(part.reply)
        except RayTaskError as error:
            part.error = f"it failed: {error}"
            self._give_up(part, part.sessions)
            return
        except RayError as error:
            self._bring_back(part, error)
            pending.fallbacks += 1
            return
        part.lost = False
        pending.take(part, answer)
        if not part.sessions:
            return
        pending.fallbacks += 1
        pause = self._pause_after(part, answer)
        part.texts = {session: part.texts[session] for session in answer.failed if session in part.texts}
        if answer.missing and part.sessions:
            fetched = fetch_texts(answer.missing)
            pending.fetched.update(fetched)
            part.texts.update(fetched)
        if pause:
            part.reply, part.ask_at = None, min(time.monotonic() + pause, part.deadline)
        elif part.sessions:
            self._ask(part)

    def _pause_after(self, part: _Part, answer: Vectors) -> float:
        """Seconds before the scorer is asked again for what it did not give; what is hopeless is given up."""
        part.deadline = max(part.deadline, time.monotonic() - answer.stalled_s + self._config.deadline_s)
        past = time.monotonic() >= part.deadline
        if answer.failed:
            part.error = part.encoder_error = (
                f"the encoder can't embed {len(answer.failed)} of them, such as the completion "
                f"{answer.failed[0].session_id} of uid {answer.failed[0].uid}: {answer.error}"
            )
            part.encoder_failures += 1
            if answer.broken:
                self._restart(part, "its encoder fails on everything")
            elif part.encoder_failures >= _ENCODER_TRIES:
                part.encoder_failures = 0
                self._give_up(part, answer.failed)
                return 0.0
        elif answer.waiting:
            part.error = f"{self._deadline()}: {answer.error}"
            part.hung = past and answer.broken
        if past and (answer.waiting or answer.failed):
            self._give_up(part, part.sessions)
            return 0.0
        return min(_PAUSE_S * 4 ** (part.encoder_failures - 1), _LONGEST_PAUSE_S) if answer.failed else 0.0

    def _bring_back(self, part: _Part, error: RayError) -> None:
        """See to it that a lost scorer comes back; Ray restarts those that are not dead for good."""
        part.error = f"it was lost ({type(error).__name__})"
        part.lost = True
        part.reply, part.ask_at = None, time.monotonic()
        if not isinstance(error, ActorDiedError) or not self._revive(part.replica, part.asked):
            part.ask_at += _ASK_AGAIN_S

    def _revive(self, i: int, dead: Any) -> bool:
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

    def _is_loading(self, replica: int) -> bool:
        """Whether it is being started again: ended for giving no answer, it would begin anew at every deadline."""
        return self._state(replica) not in (_State.ALIVE, _State.DEAD)

    def _state(self, replica: int) -> int:
        # The one call for this that needs no dashboard; Ray Data relies on it (Ray 2.60).
        return int(self._replicas[replica]._get_local_state())

    def _deadline(self) -> str:
        return f"dra.scorer.deadline_s={self._config.deadline_s:g} s have passed without a text embedded"

    def _restart(self, part: _Part, why: str) -> None:
        logger.warning("diversity scorer %d is started again: %s", part.replica, why)
        ray.kill(self._replicas[part.replica], no_restart=False)

    def _give_up(self, part: _Part, sessions: Sequence[Session]) -> None:
        """Go on without sessions that the part still lacks, or raise."""
        message = f"diversity scorer {part.replica} gave no scores of {len(sessions)} completions: {part.error}"
        if part.encoder_error not in part.error:
            message += f". Before that, {part.encoder_error}"
        if self._on_failure == "raise":
            raise NoScoresError(f"{message}. dra.on_failure=unadjusted would train on with a mean weight for them")
        logger.warning("%s; their groups get the mean weight of the others", message)
        self._replicas[part.replica].forget.remote(list(sessions))
        gone = set(sessions)
        left = [at for at, session in enumerate(part.sessions) if session not in gone]
        part.rows, part.sessions = part.rows[left], [part.sessions[at] for at in left]
        if part.hung:
            self._restart(part, "it does not come back from what it does")

    def _create(self, i: int, recreated: bool = False) -> Any:
        # Restarts and retries without limit: what bounds a step is dra.scorer.deadline_s.
        options = self._options[i]
        return (
            remote_scorer()
            .options(name=replica_name(self._name, i), max_restarts=-1, max_task_retries=-1, **options)
            .remote(self._embedding, replace(self._config, num_cpus=options["num_cpus"]), recreated)
        )

    def _rate(self) -> str:
        replies = [replica.rate.remote() for replica in self._replicas]
        try:
            return f"{sum(ray.get(replies, timeout=_RATE_S)):,.0f} tokens/s in a trial"
        except (RayError, TimeoutError) as error:
            return f"no tokens/s were measured ({type(error).__name__})"

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + self._config.placement_timeout_s
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
            f"dra.scorer.placement_timeout_s={self._config.placement_timeout_s:g} s."
        )
        if loading:
            why += f" {loading} of them are placed and still load their encoder, which a longer time may mend."
        if loading < len(replicas):
            total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
            has = ", ".join(f"{name} {free.get(name, 0):g} of {total.get(name, 0):g} free" for name in ("CPU", "GPU"))
            why += (
                f" {len(replicas) - loading} of them are not placed. Asked for, with placement "
                f"{self._config.placement}: {describe(self._options)}. The cluster has: {has}. "
                f"{_MORE_ROOM[self._config.placement]}"
            )
        return why
