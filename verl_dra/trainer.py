"""veRL's trainer of whichever mode, with diversity scores at advantage time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.v1 import PPOTrainer
from verl.utils.debug import marked_timer

from verl_dra.algorithm import NegativeRewards
from verl_dra.config import DRAConfig
from verl_dra.estimator import Step, estimating
from verl_dra.metrics import step_metrics
from verl_dra.rows import Rows
from verl_dra.scorer.messages import Session
from verl_dra.scorer.placement import replica_count
from verl_dra.scorer.pool import PendingScores, ScorerPool
from verl_dra.summary import Summary
from verl_dra.text import completion_text

logger = logging.getLogger(__name__)


@cache
def with_dra(base: type[PPOTrainer]) -> type[PPOTrainer]:
    """A subclass of one of veRL's V1 trainers that keeps its mode's behaviour and owns the scorers.

    It overrides five methods and calls each one's original: `_setup` starts the scorers, `_balance_batch`, where the
    rows of a step are final, asks for their scores, `_compute_advantage` waits for them and holds them for the
    estimator, `_validate` and `_compute_metrics` note what the summary shows.
    """

    class DRATrainer(base):  # type: ignore[misc, valid-type]  # veRL has no type information
        def __init__(self, config: DictConfig) -> None:
            super().__init__(config)
            self._dra = cast(DRAConfig, OmegaConf.to_object(config.dra))
            self._scorers: ScorerPool | None = None
            self._pending: tuple[Rows, PendingScores] | None = None
            self.summary = Summary()

        def _setup(self) -> None:
            # Reward workers get the config inside super()._setup() and need the number of scorers.
            self._dra.scorer.num_replicas = replica_count(self._dra.scorer, self.config.trainer.nnodes)
            self.config.dra.scorer.num_replicas = self._dra.scorer.num_replicas
            on_cpu = self._dra.scorer.placement == "cpu"
            if on_cpu:
                self._scorers = ScorerPool(self._dra.scorer, self._dra.embedding, self._dra.smi)
            super()._setup()
            if not on_cpu:
                # After the trainer has booked its GPUs: veRL waits for ever for one that a scorer has taken.
                pool = self.resource_pool_manager.resource_pool_dict["global_pool"]
                self._scorers = ScorerPool(
                    self._dra.scorer, self._dra.embedding, self._dra.smi, pool.get_placement_groups()
                )

        def _balance_batch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
            batch = super()._balance_batch(batch, *args, **kwargs)
            assert self._scorers is not None
            rows = Rows.of(batch.keys, [tag.get("is_padding", False) for tag in batch.tags])
            self._pending = rows, self._scorers.request(rows.names)
            return batch

        def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
            assert self._scorers is not None
            assert self._pending is not None
            rows, pending = self._pending
            self._pending = None

            def fetch(sessions: Sequence[Session]) -> Mapping[Session, str]:
                key = {name: batch.keys[rows.final[at]] for at, name in zip(rows.real, rows.names, strict=True)}
                data = tq.kv_batch_get(
                    keys=[key[s] for s in sessions], partition_id=batch.partition_id, select_fields=["responses"]
                )
                responses = list(data["responses"].unbind())
                return {s: completion_text(self.tokenizer, r) for s, r in zip(sessions, responses, strict=True)}

            with marked_timer("dra_wait", self.timing_raw):
                scores = self._scorers.wait(pending, fetch)
            negative = cast(NegativeRewards, self._dra.negative_rewards)
            step = Step(rows, torch.from_numpy(scores.smi), self._dra.base_estimator, negative)
            with estimating(step):
                batch = super()._compute_advantage(batch, metrics)
            metrics.update(step_metrics(step, scores))
            return batch

        def _validate(self) -> dict[str, float]:
            metrics: dict[str, float] = super()._validate()
            self.summary.add(self.global_steps, metrics)
            return metrics

        def _compute_metrics(self, batch: Any, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            super()._compute_metrics(batch, metrics, *args, **kwargs)
            self.summary.add(self.global_steps, metrics)

    DRATrainer.__name__ = DRATrainer.__qualname__ = f"DRA{base.__name__}"
    return DRATrainer
