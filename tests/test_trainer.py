"""A step of the trainer, from texts to advantages and metrics: veRL's trainer, TransferQueue and Ray are stand-ins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from fake_encoders import POISON, GatedEncoder
from in_process_ray import pool_of
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo.v1.replay_buffer import DAPO_FILTERED_REWARD_COUNTS_KEY
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from verl_dra.config import DRAConfig
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.record import RecordConfig
from verl_dra.training import estimator
from verl_dra.training.trainer import with_dra

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTH = 3
WAYS = ("add both sides", "add both sides", "draw a graph", "guess")
ALGORITHM = OmegaConf.create({"gamma": 1.0, "lam": 1.0, "norm_adv_by_std_in_grpo": False})


class Batch:
    """Rows in TransferQueue: groups of four, of which some answers are right, and a padding row before them."""

    def __init__(self, *uids: str) -> None:
        self.keys = ["pad0_0_0", *(f"{uid}_{i}_0" for i in range(len(WAYS)) for uid in uids)]
        self.partition_id = "train"
        self.tags = [{"is_padding": key.startswith("pad")} for key in self.keys]
        self.extra_info: dict[str, Any] = {}
        self.texts = {key: f"{WAYS[int(key.split('_')[1])]} in {key[0]}" for key in self.keys}
        rng = np.random.default_rng(sum(map(ord, "".join(uids))))
        self.rewards = torch.from_numpy(rng.choice([0.0, 0.5, 1.0, -1.0], len(self.keys))).float()
        self.log_probs = torch.from_numpy(-rng.random((len(self.keys), LENGTH))).float()
        self.mask = torch.from_numpy(np.where(rng.random((len(self.keys), LENGTH)) < 0.7, 1, 0))
        self.mask[:, 0] = 1
        self.mask[0] = 0
        self.advantages = torch.zeros(0)


class TrainerInOutline(PPOTrainerSync):
    """The methods of veRL's trainer that a step calls, in its order; a step may have several updates."""

    def __init__(self, config: Any) -> None:
        self.config, self.batches = config, [Batch("a")]
        self.global_steps = 1
        self.timing_raw: dict[str, float] = {}
        self.of_filter: dict[str, Any] = {}
        self.logger = SimpleNamespace(logger={})
        self.tokenizer = SimpleNamespace(decode=_decode)

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> Any:
        self.timing_raw = timing_raw
        metrics.update(self.of_filter)
        for batch in self.batches:
            self._compute_advantage(self._compute_old_log_prob(self._balance_batch(batch), metrics), metrics)
        return self.batches[-1]

    def _balance_batch(self, batch: Any) -> Any:
        return batch

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        return batch

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        rewards = torch.zeros(len(batch.keys), LENGTH)
        rewards[:, 0] = batch.rewards
        uids = np.array([key.rsplit("_", 2)[0] for key in batch.keys], dtype=object)
        data = DataProto.from_dict({"token_level_rewards": rewards, "response_mask": batch.mask}, {"uid": uids})
        batch.advantages = compute_advantage_for_multi_trajectories(
            data,
            batch_keys=batch.keys,
            adv_estimator="dra",
            gamma=1.0,
            lam=1.0,
            num_repeat=4,
            norm_adv_by_std_in_grpo=False,
            config=ALGORITHM,
        ).batch["advantages"]
        return batch


def _decode(ids: torch.Tensor, skip_special_tokens: bool) -> str:
    assert skip_special_tokens
    return "".join(map(chr, ids.tolist()))


class Queue:
    """In place of TransferQueue."""

    def __init__(self, *batches: Batch) -> None:
        self.batches = batches

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        assert partition_id == "train"
        columns: dict[str, list[torch.Tensor]] = {}
        for key in keys:
            batch = next(batch for batch in self.batches if key in batch.keys)
            at = batch.keys.index(key)
            row = {
                "responses": torch.tensor(list(map(ord, batch.texts[key]))),
                "prompts": torch.tensor(list(map(ord, f"prompt of {key[0]}"))),
                "old_log_probs": batch.log_probs[at],
                "response_mask": batch.mask[at],
            }
            for name in row.keys() & set(select_fields):
                columns.setdefault(name, []).append(row[name])
        nested = {name: torch.nested.nested_tensor(rows, layout=torch.jagged) for name, rows in columns.items()}
        return TensorDict(nested, batch_size=len(keys))


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    estimator.register()


@pytest.fixture
def pool() -> Iterator[Any]:
    """Scorers that can't embed `POISON`."""

    def encoder() -> GatedEncoder:
        made = GatedEncoder()
        made.gate.set()
        return made

    with pool_of(encoder, on_failure="unadjusted") as (made, _):
        yield made


def trained(patch: pytest.MonkeyPatch, pool: Any, *batches: Batch, **dra: Any) -> tuple[Any, dict[str, Any]]:
    """The trainer after a step, and its metrics."""
    patch.setattr("verl_dra.training.transfer.tq", Queue(*batches))
    config = DRAConfig(base_estimator="grpo", on_failure="unadjusted", **dra)
    trainer: Any = with_dra(TrainerInOutline)(OmegaConf.create({"dra": OmegaConf.structured(config)}))
    trainer._scorers, trainer.batches = pool, list(batches)
    metrics: dict[str, Any] = {}
    trainer.step(metrics, {})
    return trainer, metrics


def expected(batch: Batch, weight: str, smi: str, lost: str) -> np.ndarray:
    """[real rows] advantages by the papers' formulas; over a standard deviation, a group's scale would go unseen."""
    keys = [key for key in batch.keys if not key.startswith("pad")]
    group = np.array([key[0] for key in keys])
    rows = [batch.keys.index(key) for key in keys]
    if weight == "unlikeliness":
        mask = batch.mask[rows].numpy()
        means = (batch.log_probs[rows].numpy() * mask).sum(1) / mask.sum(1)
        weights = oracles.unlikeliness_weights(means, group)
    else:
        vectors = NgramEncoder().encode([batch.texts[key] for key in keys]).vectors.numpy()
        value = {"graph_cut": oracles.graph_cut_smi, "clusters": oracles.cluster_smi}[smi](vectors, group)
        weights = oracles.darling_weights(value, group) if weight == "darling" else oracles.weights(value)
        weights = oracles.fill_unscored(weights, np.array([uid not in lost for uid in group]))
    return oracles.grpo(oracles.adjust(batch.rewards.numpy()[rows], weights, group), group, norm_by_std=False)


@pytest.mark.parametrize("lost", ["", "b"])
@pytest.mark.parametrize(
    ("weight", "smi"),
    [
        *(("inverse", "graph_cut"), ("inverse", "clusters"), ("darling", "graph_cut"), ("darling", "clusters")),
        ("unlikeliness", "graph_cut"),
    ],
)
def test_advantages_are_the_papers_whatever_is_not_scored(
    pool: Any, monkeypatch: pytest.MonkeyPatch, weight: str, smi: str, lost: str
) -> None:
    batch = Batch("a", "b", "c")
    if lost:
        batch.texts["b_2_0"] = POISON
    _, metrics = trained(monkeypatch, pool, batch, weight=weight, smi=smi)
    real = [row for row, key in enumerate(batch.keys) if not key.startswith("pad")]
    assert not batch.advantages[0].any()
    np.testing.assert_allclose(batch.advantages[real, 0], expected(batch, weight, smi, lost), rtol=1e-3, atol=1e-4)
    # Where SMI is only shown, a group without it is adjusted all the same.
    assert metrics["dra/unadjusted_groups"] == (len(lost) if weight != "unlikeliness" else 0)
    assert ("dra/weight/mean" in metrics, "dra/smi/mean" in metrics) == (True, weight != "unlikeliness")


def test_what_is_counted_adds_up_over_the_updates_of_a_step(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, metrics = trained(monkeypatch, pool, Batch("a", "b"), Batch("c"))
    assert metrics["dra/missing_rows"] == 3 * len(WAYS)
    trainer.batches = [Batch("a")]
    again: dict[str, Any] = {}
    trainer.step(again, {})
    assert again["dra/missing_rows"] == len(WAYS)


def test_groups_that_dapos_filter_took_though_they_are_right_are_counted(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, metrics = trained(monkeypatch, pool, Batch("a"))
    assert "dra/filtered_groups" not in metrics
    for taken, right in (({1.0: 3, 0.0: 5, 0.5: 1, -1.0: 2}, 4), (None, 0)):
        trainer._filters, trainer.of_filter = True, {} if taken is None else {DAPO_FILTERED_REWARD_COUNTS_KEY: taken}
        of_step: dict[str, Any] = {}
        trainer.step(of_step, {})
        assert of_step["dra/filtered_groups"] == right


def test_of_a_step_with_several_updates_the_first_is_recorded(
    pool: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = RecordConfig(every_n_steps=2, groups=1, folder=str(tmp_path))
    batches = [Batch("a"), Batch("b"), Batch("c")]
    trainer, _ = trained(monkeypatch, pool, *batches, record=record)  # step 1, which is none of them
    for step in (2, 4):
        trainer.global_steps = step
        trainer.batches = batches[:2] if step == 2 else batches[2:]
        trainer.step({}, {})
    trainer.close_records()
    written = {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in tmp_path.iterdir()}
    assert {name: [(g["step"], g["uid"]) for g in groups] for name, groups in written.items()} == {
        "2.jsonl": [(2, "a")],
        "4.jsonl": [(4, "c")],
    }
    (group,) = written["2.jsonl"]
    assert [completion["text"] for completion in group["completions"]] == [f"{way} in a" for way in WAYS]
    assert group["completions"][0]["advantage_without"] is not None
