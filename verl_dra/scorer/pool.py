"""The owner's side of the scorers: starts them, asks them for a step's scores, brings lost ones back."""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup

from verl_dra.algorithm import SMIFunction
from verl_dra.embedding import EmbeddingConfig
from verl_dra.scorer.actor import remote_scorer
from verl_dra.scorer.messages import Events, Failed, Missing, Scores, Session, Shown
from verl_dra.scorer.placement import ScorerConfig, actor_options, describe

logger = logging.getLogger(__name__)

_ASK_AGAIN_S = 0.5
# What a scorer may take beyond the deadline to say why it has no scores.
_GRACE_S = 2.0
_SALVAGE_S = 10.0
_ACCEPT_S = 5.0
_ENCODER_TRIES = 3
# Before the second try of what the encoder can't embed; four times as long before the third, and so on to the last.
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
# In which a scorer says what it lacks.
_SAY_S = 0.02
_LOADING = "it is starting again"
_State = ActorTableData.ActorState

FetchTexts = Callable[[Sequence[Session]], Mapping[Session, str]]


class NoScoresError(RuntimeError):
    """A step has no scores of some groups, and `dra.on_failure` is `raise`."""


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
    scored: np.ndarray
    """[n] bool: False where a group has no scores (`dra.on_failure=unadjusted`)."""
    effective_paths: list[float] = field(default_factory=list)
    """Vendi score of each scored group, in no order."""
    unadjusted_groups: int = 0
    missing_rows: int = 0
    """Sessions whose text had to be fetched and embedded when the scores were needed."""
    fallbacks: int = 0
    """Times that a scorer lacked something or was lost, and was asked again."""
    tokens: int = 0
    truncated_tokens: int = 0
    cached: int = 0
    empty: int = 0
    replaced: int = 0
    events: Events = field(default_factory=Events)
    shown: dict[str, Shown] = field(default_factory=dict)
    """Of the groups that were asked for and are scored, by uid; their sessions in the order of the request."""

    def add(self, rows: np.ndarray, scores: Scores) -> None:
        """Put in the scores of the sessions at `rows`."""
        self.smi[rows] = scores.smi
        self.duplicate[rows] = scores.duplicate
        self.scored[rows] = True
        self.effective_paths += scores.effective_paths.tolist()
        self.shown |= scores.shown
        for name in ("tokens", "truncated_tokens", "cached", "empty", "replaced", "events"):
            setattr(self, name, getattr(self, name) + getattr(scores, name))


@dataclass
class _Part:
    """What a step asks of one scorer."""

    replica: int
    rows: np.ndarray
    """Positions of its sessions in the request."""
    sessions: list[Session]
    show: list[str]
    """Uids of its groups whose similarities are wanted."""
    asked: Any = None
    """The actor that was asked last."""
    reply: Any = None
    """Object reference, or None while it is to be asked again at `ask_at`."""
    ask_at: float = 0.0
    deadline: float = 0.0
    """When it is given up; moves on while its scorer embeds texts."""
    texts: dict[Session, str] = field(default_factory=dict)
    """Those fetched so far."""
    error: str = "it gives no answer"
    encoder_failures: int = 0
    lost: bool = False
    """Whether the scorer was not there when it was asked last, or did not answer."""
    hung: bool = False
    """Whether it is there and does not come back from what it does."""


@dataclass
class PendingScores:
    """Scores asked for and not yet all there."""

    step: StepScores
    parts: list[_Part]
    """Those not answered."""


class ScorerPool:
    """Owns the scorer actors of a run; they end with it.

    Args:
        config: placement and limits.
        embedding: the encoder that each loads.
        smi: the SMI function.
        on_failure: `raise`, or `unadjusted` to leave groups without scores out (`dra.on_failure`).
        trainer_pool: for colocated placement, the placement groups of the trainer's workers.

    Raises:
        RuntimeError: a scorer is not placed and ready within `config.placement_timeout_s`, or fails or dies while it
            loads its encoder.
    """

    def __init__(
        self,
        config: ScorerConfig,
        embedding: EmbeddingConfig,
        smi: SMIFunction,
        on_failure: str = "raise",
        trainer_pool: Sequence[PlacementGroup] = (),
    ) -> None:
        if config.name is None or config.num_replicas is None:
            raise ValueError("dra.scorer.name and dra.scorer.num_replicas must be set before the scorers start")
        self._config = config
        self._embedding = embedding
        self._smi = smi
        self._on_failure = on_failure
        self._options = actor_options(config, config.num_replicas, trainer_pool)
        self._reviving = threading.Lock()
        self._replicas: list[Any] = []
        try:
            for i in range(len(self._options)):
                self._replicas.append(self._create(i))
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        for i, replica in enumerate(self._replicas):
            self._revive_at_its_end(i, replica)

    def __len__(self) -> int:
        return len(self._replicas)

    def describe(self) -> str:
        """Resources, placement and encoder, in words."""
        return (
            f"{describe(self._options)}, placement {self._config.placement}; "
            f"{ray.get(self._replicas[0].encoder.remote())}"
        )

    @property
    def handles(self) -> Sequence[Any]:
        """The actors, in the order of their numbers."""
        return tuple(self._replicas)

    def request(self, sessions: Sequence[Session], show: Collection[str] = ()) -> PendingScores:
        """Ask for the scores of complete groups without waiting; each session once, all of a group's at once.

        Args:
            sessions: those of all groups.
            show: uids of the groups whose similarity matrices are wanted.
        """
        n = len(sessions)
        step = StepScores(np.zeros(n, dtype=np.float32), np.zeros(n, dtype=bool), np.zeros(n, dtype=bool))
        replica = np.array([replica_of(s.uid, len(self)) for s in sessions])
        parts = []
        for i in range(len(self)):
            rows = np.flatnonzero(replica == i)
            if len(rows):
                of_part = [uid for uid in show if replica_of(uid, len(self)) == i]
                parts.append(_Part(i, rows, [sessions[row] for row in rows], of_part))
        pending = PendingScores(step, parts)
        self._set_deadlines(pending)
        for part in parts:
            self._ask(part)
        return pending

    def advance(self, pending: PendingScores, fetch_texts: FetchTexts) -> None:
        """Send the texts of what scorers say within a moment that they lack."""
        if pending.parts:
            self._set_deadlines(pending)
            self._answer(pending, fetch_texts, timeout_s=_SAY_S, replies=len(pending.parts))

    def wait(self, pending: PendingScores, fetch_texts: FetchTexts) -> StepScores:
        """The scores asked for; what a scorer lacks is fetched by `fetch_texts` and embedded now.

        Raises:
            NoScoresError: with `dra.on_failure=raise`, some are not there and their scorer has embedded nothing for
                `dra.scorer.deadline_s`, or the encoder fails on a text again and again while it embeds others, or a
                scorer can't score what it has.
        """
        self._set_deadlines(pending)
        while pending.parts:
            now = time.monotonic()
            if late := [part for part in pending.parts if now >= part.deadline + _GRACE_S]:
                for part in late:
                    loading = part.reply is not None and self._is_loading(part.replica)
                    part.error = f"{_LOADING if loading else part.error}, and {self._deadline()}"
                    part.hung = part.reply is not None and not part.lost and not loading
                    part.lost |= part.hung or loading
                    pending.parts.remove(part)
                self._give_up(late, pending.step)
                continue
            left = min(part.deadline for part in pending.parts) + _GRACE_S - now
            asked = all(part.reply is not None for part in pending.parts)
            self._answer(pending, fetch_texts, left if asked else _ASK_AGAIN_S)
        return pending.step

    def accept(self, accepting: bool) -> None:
        """Tell the scorers to take or to skip what comes; one that is starting again takes all."""
        replies = [replica.accept.remote(accepting) for replica in self._replicas]
        ray.wait(replies, num_returns=len(replies), timeout=_ACCEPT_S)

    def close(self) -> None:
        """End the actors."""
        with self._reviving:
            ended, self._replicas = self._replicas, []
            for replica in ended:
                ray.kill(replica)

    def _set_deadlines(self, pending: PendingScores) -> None:
        for part in pending.parts:
            part.deadline = time.monotonic() + self._config.deadline_s

    def _answer(self, pending: PendingScores, fetch_texts: FetchTexts, timeout_s: float, replies: int = 1) -> None:
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
            if self._settle(part, pending.step, fetch_texts):
                pending.parts.remove(part)

    def _ask(self, part: _Part) -> None:
        within_s = max(part.deadline - time.monotonic(), 0)
        part.asked = self._replicas[part.replica]
        part.reply = part.asked.collect.remote(part.sessions, part.texts, within_s, part.show)

    def _settle(self, part: _Part, step: StepScores, fetch_texts: FetchTexts) -> bool:
        """Act on a reply; whether the part is done with."""
        try:
            answer = ray.get(part.reply)
        except RayTaskError as error:
            part.error = f"it failed: {error}"
            self._give_up([part], step)
            return True
        except RayError as error:
            self._bring_back(part, error)
            step.fallbacks += 1
            return False
        part.lost = False
        if isinstance(answer, Scores):
            step.add(part.rows, answer)
            return True
        if isinstance(answer, Missing):
            fetched = fetch_texts(answer.sessions)
            step.fallbacks += 1
            step.missing_rows += len(fetched.keys() - part.texts.keys())
            part.texts.update(fetched)
        elif self._is_hopeless(part, answer):
            part.hung = answer.timed_out and answer.broken
            self._give_up([part], step)
            return True
        else:
            step.fallbacks += 1
            if not answer.timed_out:
                pause = min(_PAUSE_S * 4 ** (part.encoder_failures - 1), _LONGEST_PAUSE_S)
                part.reply, part.ask_at = None, min(time.monotonic() + pause, part.deadline)
                return False
        self._ask(part)
        return False

    def _bring_back(self, part: _Part, error: RayError) -> None:
        """See to it that a lost scorer comes back; Ray restarts those that are not dead for good."""
        part.error = f"it was lost ({type(error).__name__})"
        part.lost = True
        part.reply, part.ask_at = None, time.monotonic()
        if not isinstance(error, ActorDiedError) or not self._revive(part.replica, part.asked):
            part.ask_at += _ASK_AGAIN_S

    def _revive_at_its_end(self, i: int, first: Any) -> None:
        """Start a scorer again as soon as its first process ends, which Ray does not restart."""
        ended = first.live.remote().future()
        # Ray's own thread, which calls back, can't make an actor.
        ended.add_done_callback(lambda _: threading.Thread(target=self._revive, args=(i, first), daemon=True).start())

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

    def _is_hopeless(self, part: _Part, answer: Failed) -> bool:
        now = time.monotonic()
        if answer.timed_out:
            part.error = f"{self._deadline()}: {answer.error}"
            part.deadline = max(part.deadline, now - answer.stalled_s + self._config.deadline_s)
            return now >= part.deadline
        part.error = (
            f"the encoder can't embed {len(answer.sessions)} of them, such as the completion "
            f"{answer.sessions[0].session_id} of uid {answer.sessions[0].uid}: {answer.error}"
        )
        part.encoder_failures += 1
        if answer.broken:
            self._restart(part, "its encoder fails on everything")
            return now >= part.deadline
        return part.encoder_failures >= _ENCODER_TRIES

    def _restart(self, part: _Part, why: str) -> None:
        logger.warning("diversity scorer %d is started again: %s", part.replica, why)
        ray.kill(self._replicas[part.replica], no_restart=False)

    def _give_up(self, parts: Sequence[_Part], step: StepScores) -> None:
        """Go on without what can't be scored, or raise."""
        for part in parts:
            message = (
                f"diversity scorer {part.replica} gave no scores of {len(part.sessions)} completions: {part.error}"
            )
            if self._on_failure == "raise":
                raise NoScoresError(f"{message}. dra.on_failure=unadjusted would train on with their raw rewards")
            logger.warning("%s; their groups keep their raw rewards, but for those that are there", message)
        asked = [
            (part, rows, self._replicas[part.replica].collect.remote([part.sessions[row] for row in rows], {}, 0))
            for part in parts
            for rows in _by_group(part.sessions)
            if not part.lost
        ]
        replies = [reply for _, _, reply in asked]
        ready = set(ray.wait(replies, num_returns=len(replies), timeout=_SALVAGE_S)[0]) if replies else set()
        for part, rows, reply in asked:
            try:
                answer = ray.get(reply) if reply in ready else None
            except RayError:
                answer = None
            if isinstance(answer, Scores):
                step.add(part.rows[rows], answer)
        for part in parts:
            lost = [rows for rows in _by_group(part.sessions) if not step.scored[part.rows[rows]].all()]
            step.unadjusted_groups += len(lost)
            self._replicas[part.replica].forget.remote([part.sessions[row] for rows in lost for row in rows])
            if part.hung:
                self._restart(part, "it does not come back from what it does")

    def _create(self, i: int, recreated: bool = False) -> Any:
        # Restarts and retries without limit: what bounds a step is dra.scorer.deadline_s. But none of what never was
        # ready: Ray would start it for ever and not say how it ended.
        return (
            remote_scorer()
            .options(
                name=replica_name(str(self._config.name), i),
                max_restarts=-1 if recreated else 0,
                max_task_retries=-1,
                **self._options[i],
            )
            .remote(self._embedding, self._smi, self._config, recreated)
        )

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
                f"{self._config.placement}: {describe(self._options)}. The cluster has: {has}. Leave room for them "
                "(for dedicated: lower trainer.n_gpus_per_node), ask for fewer, or use dra.scorer.placement=cpu"
            )
        return why


def _by_group(sessions: Sequence[Session]) -> list[np.ndarray]:
    """Positions of the sessions of each group."""
    uids = np.array([session.uid for session in sessions])
    return [np.flatnonzero(uids == uid) for uid in dict.fromkeys(uids.tolist())]
