"""veRL's trainer of whichever mode, with diversity scores at advantage time."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from verl.trainer.ppo.v1 import PPOTrainer
from verl.utils.debug import marked_timer

from verl_dra.algorithm import NegativeRewards, SMIFunction
from verl_dra.config import DRAConfig
from verl_dra.config.schema import TEXTS
from verl_dra.config.streaming import why_not_streamed
from verl_dra.partition.looking import Looking
from verl_dra.partition.pool import PartitionPool
from verl_dra.partition.step import StepGroupings, members
from verl_dra.record import Recorder, trackers
from verl_dra.rewards.thinking import ENDS
from verl_dra.scorer.asking import Asking, FetchTexts, StepVectors, forgo, take
from verl_dra.scorer.messages import Session
from verl_dra.scorer.pool import ScorerPool
from verl_dra.scorer.scores import StepScores, step_scores
from verl_dra.terminal.console import say
from verl_dra.training.estimator import Step, estimating
from verl_dra.training.load import Load
from verl_dra.training.metrics import COUNTS, filter_metrics, record_metrics, step_metrics
from verl_dra.training.recording import FetchedGroup, fetched_groups
from verl_dra.training.rows import Rows
from verl_dra.training.summary import Summary
from verl_dra.training.text import columns_of, diversity_texts, end_thinking
from verl_dra.training.transfer import fetch_columns
from verl_dra.training.validation import Marking
from verl_dra.training.weighing import Weighing
from verl_dra.training.whole_groups import group_fetcher, rewards_of

logger = logging.getLogger(__name__)

# Share of groups above which a run's first step says that what a server answers can't be read.
_MUCH_UNREADABLE = 0.2
# Share of tokens above which a run's first step says that the encoder does not know them.
_MUCH_UNKNOWN = 0.2
# Completions of the first step in which an end of the thinking is looked for.
_LOOKED_AT = 64


class DRATrainerMixin(PPOTrainer):
    """Diversity scores at advantage time, put over one of veRL's V1 trainers, whose mode keeps its behaviour.

    It owns the scorers. It overrides some methods and calls each one's original: `_setup` starts the scorers,
    `_balance_batch`, where the rows of a step are final, asks for their vectors in a thread, `_compute_advantage` waits
    for them, makes scores of them, holds those for the estimator and records groups, `step` adds counts up, `_validate`
    and `_compute_metrics` note what the summary shows. README.md beside this file says what each relies on.

    With `dra.partition.by` its actors are asked about the groups in the place of that, and vectors are only shown.
    """

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self._dra = cast(DRAConfig, OmegaConf.to_object(config.dra))
        self._scorers: ScorerPool | None = None
        self._partitions: PartitionPool | None = None
        self._smi: SMIFunction = self._dra.smi_function()
        self._schedule = self._dra.schedule()
        self._off = False
        self._only_shown = self._dra.weight == "unlikeliness"
        self._filters = bool(OmegaConf.select(config, "algorithm.filter_groups.enable"))
        self._rows: Rows | None = None
        self._asking: Asking | None = None
        self._looking: Looking | None = None
        self._calls = 0
        self._knows_unreadable = False
        self._knows_unknown = self._knows_thinking = False
        self._last_at = time.monotonic()
        self._behind: bool | None = None
        self._counts: Counter[str] = Counter()
        self._recorder = Recorder(self._dra.record) if self._dra.record.every_n_steps else None
        self._recorded_step: int | None = None
        self.summary = Summary()

    def _init_dataloader(self) -> None:
        super()._init_dataloader()  # type: ignore[no-untyped-call]
        self.val_dataloader.collate_fn = Marking(self.val_dataloader.collate_fn)

    def _setup(self) -> None:
        super()._setup()  # type: ignore[no-untyped-call]
        # After all that veRL books: it waits for ever for a GPU or a CPU that a scorer has taken.
        self._start_actors()

    def _start_actors(self) -> None:
        dra = self._dra
        global_pool = self.resource_pool_manager.resource_pool_dict["global_pool"]
        trainer_pool = global_pool.get_placement_groups()  # type: ignore[no-untyped-call]
        own = getattr(self, "standalone_server_manager", None)  # of separate_async
        rollout_pools = [replica.resource_pool for replica in own.get_replicas()] if own else []
        rollout_pool = [group for pool in rollout_pools for group in pool.get_placement_groups()]
        if dra.partition.by is not None:
            # Before the scorers, whose number is what the free CPUs allow.
            within_s = dra.scorer.placement_timeout_s
            self._partitions = PartitionPool(dra.partition, dra.on_failure, within_s, trainer_pool, rollout_pool)
            say(f"dra.partition.by={dra.partition.by}: {self._partitions.describe()}")
        self._scorers = ScorerPool(dra.scorer, dra.embedding, dra.on_failure, trainer_pool, rollout_pool)
        say(f"diversity scorers: {self._scorers.describe()}")
        if dra.text != "response":
            say(f"diversity is that of {TEXTS[dra.text]} (dra.text={dra.text})")
        if why := why_not_streamed(self.config):
            say(
                "completions are embedded after the generation and not during it, so that steps wait for scores "
                f"({why})"
            )

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> Any:
        self._counts.clear()
        self._calls = 0
        if self._behind is None:
            self._last_at = time.monotonic()
        try:
            batch = super().step(metrics, timing_raw)
        finally:
            self._stop_asking()
        metrics.update(self._counts)
        if self._filters:
            metrics.update(filter_metrics(metrics))
        return batch

    def _balance_batch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        batch = super()._balance_batch(batch, *args, **kwargs)
        assert self._scorers is not None
        self._rows = Rows.of(batch.keys, [tag.get("is_padding", False) for tag in batch.tags])
        self._switch()
        if self._partitions is not None and not self._off:
            self._looking = self._look(batch, self._rows)
        elif not self._only_shown and not self._off:
            self._asking = Asking(self._scorers, self._rows.names, self._texts_of(batch, self._rows))
        return batch

    def _switch(self) -> None:
        """Put DRA on or off, as `dra.strength` has it for this step."""
        off = self._schedule.at(self.global_steps) == 0
        if off != self._off:
            self._off = off
            is_off = "DRA is off: rewards are as they are, and no completion is embedded"
            say(f"dra.strength, step {self.global_steps}: {is_off if off else 'DRA is on again'}")

    def _stop_asking(self) -> None:
        """For a step that ended before it took its vectors, or groupings."""
        for thread in (self._asking, self._looking):
            if thread is not None:
                thread.stop()
        self._asking = self._looking = None

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        assert self._scorers is not None
        assert self._rows is not None
        rows = self._rows
        sampled = self._sampled(rows)
        asked_at = time.monotonic()
        with marked_timer("dra_wait", self.timing_raw):
            groupings = self._groupings()
            look_s = time.monotonic() - asked_at
            came = self._vectors(rows)
            weighing = self._weighing(batch, rows)
            scores = step_scores(
                came.vectors,
                came.index,
                weighing.group,
                self._smi,
                center=self._dra.cosine == "centered",
                inside=weighing.inside,
                cluster_cosine=self._dra.cluster_cosine,
            )
            smi, known = scores.smi, scores.scored
            if groupings is not None:
                smi, known = groupings.smi(rows.names, weighing.inside)
            scores = replace(scores, smi=weighing.smi(smi, known, scores.vectors.shape[1]))
        load = self._measured(came, time.monotonic() - asked_at - look_s)
        # Where SMI is only shown, or DRA is off, a group without it is adjusted all the same.
        scored = torch.ones_like(known) if self._only_shown or self._off else known
        log_probs = _mean_log_probs(batch, rows) if self._only_shown and not self._off else None
        step = Step(
            rows,
            smi=scores.smi,
            weights=weighing.weights(scores.smi, scored, log_probs),
            scored=scored,
            base_estimator=cast(str, self._dra.base_estimator),
            # Weights of 1 leave rewards as they are, but for a shift.
            negative_rewards="paper" if self._off else cast(NegativeRewards, self._dra.negative_rewards),
            strength=weighing.strength,
            inside=weighing.inside,
            keep_scale=self._dra.keep_scale,
            epsilon=self._dra.epsilon,
            compare=bool(sampled),
        )
        with estimating(step):
            batch = super()._compute_advantage(batch, metrics)
        of_step = step_metrics(step, scores, came, known) | load.metrics()
        self._warn_of_unknown(came)
        self._warn_of_no_thinking(batch, rows)
        self._counts.update({name: of_step[name] for name in COUNTS})
        if groupings is not None:
            self._warn_of_unreadable(groupings, rows)
            adding = groupings.counts() | {"dra/partition/wait_s": look_s}
            self._counts.update(adding)
            of_step |= adding | groupings.metrics()
        metrics.update(of_step)
        if self._recorder is not None:
            with marked_timer("dra_record", self.timing_raw):
                self._record(batch, sampled, step, scores, groupings)
            self.timing_raw["dra_record"] += step.compare_s
            counts = record_metrics(self._recorder.counts())
            self._counts.update(counts)
            metrics.update(counts)
        return batch

    def _measured(self, came: StepVectors, wait_s: float) -> Load:
        """The scorers' work since the step before; said after the first, and when they fall behind or catch up."""
        assert self._scorers is not None
        now = time.monotonic()
        step_s, self._last_at = now - self._last_at, now
        load = Load(came.events.tokens, came.tokens_per_s, came.busy_s, len(self._scorers), step_s, wait_s)
        if load.behind != self._behind and not self._off:
            self._behind = load.behind
            say(load.line(self._dra.scorer.placement))
        return load

    def _warn_of_unknown(self, came: StepVectors) -> None:
        """Say once, at the first step, that the encoder does not know the language or script."""
        if not self._knows_unknown and came.tokens:
            self._knows_unknown = True
            share = came.unknown_tokens / came.tokens
            if share > _MUCH_UNKNOWN:
                say(
                    f"the encoder does not know {share:.0%} of the tokens, and takes texts that differ in those "
                    "alone for equal: set dra.embedding.model to one for their language or script"
                )

    def _warn_of_no_thinking(self, batch: Any, rows: Rows) -> None:
        """Say once, at the first step, that `dra.text` looks for thinking where there is none."""
        if self._knows_thinking or self._off or self._dra.text not in ("after_thinking", "thinking"):
            return
        self._knows_thinking = True
        data = fetch_columns(batch, rows.real_final[:_LOOKED_AT], ["responses"])
        responses = list(data["responses"].unbind())
        if not end_thinking(self.tokenizer, responses):
            what = (
                "are embedded whole" if self._dra.text == "after_thinking" else "count as unique, and DRA does nothing"
            )
            say(
                f"none of {len(responses)} completions of this step has a {ENDS}: with dra.text={self._dra.text} such "
                f"completions {what}; is there room for the thinking in data.max_response_length, and does this model "
                "think?"
            )

    def _warn_of_unreadable(self, groupings: StepGroupings, rows: Rows) -> None:
        """Say once, at the first step, that a server answers what is no partition."""
        if not self._knows_unreadable:
            self._knows_unreadable = True
            share = groupings.unreadable / len({name.uid for name in rows.names})
            if share > _MUCH_UNREADABLE:
                say(
                    f"what dra.partition.model={self._dra.partition.model} answers can't be read for {share:.0%} of "
                    "the groups, which get the mean weight of the others: train.log says why, and another model may "
                    "do better"
                )

    def _sampled(self, rows: Rows) -> list[str]:
        """The groups to record of a batch; of a step that has several, of the first."""
        if self._recorder is None or not self._recorder.wants(self.global_steps):
            return []
        if self._recorded_step == self.global_steps:
            return []
        self._recorded_step = self.global_steps
        return self._recorder.sample(name.uid for name in rows.names)

    def _record(
        self,
        batch: Any,
        sampled: list[str],
        step: Step,
        scores: StepScores,
        groupings: StepGroupings | None = None,
    ) -> None:
        assert self._recorder is not None
        if not sampled:
            return
        try:
            groups = fetched_groups(batch, self.global_steps, sampled, step, scores, self._dra, groupings)
        except Exception as error:  # whatever it is: a record must not end the run
            self._recorder.drop(self.global_steps, len(sampled), repr(error))
            return
        decode = partial(_records, self.tokenizer)
        most = self._dra.record.max_characters
        self._recorder.put(self.global_steps, len(groups), partial(decode, groups, most))
        shown = groups[: trackers.GROUPS]
        trackers.show(self.logger.logger, self.global_steps, partial(decode, shown, min(trackers.CHARACTERS, most)))

    def close_records(self) -> None:
        """Write what of the records is not written yet; for the end of the run."""
        if self._recorder is not None:
            self._recorder.close()

    def _vectors(self, rows: Rows) -> StepVectors:
        assert self._scorers is not None
        if self._off:
            return forgo(self._scorers, rows.names)
        if self._asking is None:
            return take(self._scorers, rows.names)
        came = self._asking.result()
        self._asking = None
        return came

    def _look(self, batch: Any, rows: Rows) -> Looking:
        assert self._partitions is not None
        dra = self._dra
        most = dra.partition.max_calls
        return Looking(
            self._partitions,
            list(members(rows.names)),
            group_fetcher(batch, rows, self.tokenizer, self._texts_of(batch, rows)),
            dra.correct_above if dra.among == "correct" else None,
            None if most is None else most - self._calls,
        )

    def _groupings(self) -> StepGroupings | None:
        if self._looking is None:
            return None
        came = self._looking.result()
        self._looking = None
        self._calls += came.spent
        return came

    def _weighing(self, batch: Any, rows: Rows) -> Weighing:
        inside = torch.ones(len(rows.names), dtype=torch.bool)
        if self._dra.among == "correct" and not self._off:
            inside = rewards_of(batch, rows.real_final) > self._dra.correct_above
        strength = self._schedule.at(self.global_steps)
        return Weighing(self._dra, self.global_steps, strength, rows.names, rows.group, inside)

    def _texts_of(self, batch: Any, rows: Rows) -> FetchTexts:
        """What gives texts of sessions of `batch`; other threads may fetch of it meanwhile."""
        row = dict(zip(rows.names, rows.real_final, strict=True))
        names = columns_of(self._dra.text)

        def texts_of(sessions: Sequence[Session]) -> Mapping[Session, str]:
            data = fetch_columns(batch, [row[session] for session in sessions], names)
            columns = [list(data[name].unbind()) for name in names]
            texts = diversity_texts(self._dra.text, self.tokenizer, *columns)
            return dict(zip(sessions, texts, strict=True))

        return texts_of

    def _validate(self) -> dict[str, float]:
        metrics: dict[str, float] = super()._validate()
        self.summary.add(self.global_steps, metrics)
        return metrics

    def _compute_metrics(self, batch: Any, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super()._compute_metrics(batch, metrics, *args, **kwargs)
        self.summary.add(self.global_steps, metrics)


@cache
def with_dra(base: type[PPOTrainer]) -> type[PPOTrainer]:
    """A subclass of one of veRL's V1 trainers that adjusts rewards by diversity; its config needs the group `dra`."""
    return type(f"DRA{base.__name__}", (DRATrainerMixin, base), {"__module__": __name__})


def _records(tokenizer: Any, groups: Sequence[FetchedGroup], max_characters: int) -> list[dict[str, Any]]:
    return [group.record(tokenizer, max_characters) for group in groups]


def _mean_log_probs(batch: Any, rows: Rows) -> Tensor:
    """[n] float32: mean log-probability of the response tokens of each session's final output."""
    data = fetch_columns(batch, rows.real_final, ["old_log_probs", "response_mask"])
    pairs = zip(data["old_log_probs"].unbind(), data["response_mask"].unbind(), strict=True)
    means = torch.stack([log_probs[mask.bool()].float().mean() for log_probs, mask in pairs])
    # A response without tokens has no mean; it counts as the rarest, as elsewhere it counts as unique.
    return means.nan_to_num(nan=torch.finfo(torch.float32).min)
