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
from in_process_partitions import partitions_of
from in_process_ray import pool_of
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict
from verl import DataProto
from verl.trainer.ppo.v1.replay_buffer import DAPO_FILTERED_REWARD_COUNTS_KEY
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from verl_dra.config import DRAConfig
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.partition import Grouping, PartitionConfig, PromptGroup, UnreadableError
from verl_dra.record import RecordConfig
from verl_dra.scorer.asking import Asking
from verl_dra.scorer.messages import Session
from verl_dra.training import estimator
from verl_dra.training.estimator import estimating
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
        self.said: dict[str, list[tuple[str, int]]] = {}
        """Of rows whose completion is more than the text that counts: its pieces, and whether the policy wrote each."""


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
        truths: list[dict[str, str]] = []
        for key in keys:
            batch = next(batch for batch in self.batches if key in batch.keys)
            at = batch.keys.index(key)
            pieces = batch.said.get(key, [(batch.texts[key], 1)])
            row = {
                "responses": torch.tensor([ord(character) for text, _ in pieces for character in text]),
                "prompts": torch.tensor(list(map(ord, f"prompt of {key[0]}"))),
                "old_log_probs": batch.log_probs[at],
                "rm_scores": batch.rewards[at] * torch.eye(LENGTH)[LENGTH - 1],
                "response_mask": batch.mask[at],
            }
            if batch.said:
                row["response_mask"] = torch.tensor([own for text, own in pieces for _ in text])
            truths.append({"ground_truth": f"right for {key[0]}"})
            for name in row.keys() & set(select_fields):
                columns.setdefault(name, []).append(row[name])
        nested: dict[str, Any] = {
            name: torch.nested.nested_tensor(rows, layout=torch.jagged) for name, rows in columns.items()
        }
        if "reward_model" in select_fields:
            nested["reward_model"] = NonTensorStack(*truths)
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


def trained(
    patch: pytest.MonkeyPatch, pool: Any, *batches: Batch, partitions: Any = None, **dra: Any
) -> tuple[Any, dict[str, Any]]:
    """The trainer after a step, and its metrics."""
    patch.setattr("verl_dra.training.transfer.tq", Queue(*batches))
    config = DRAConfig(base_estimator="grpo", on_failure="unadjusted", **dra)
    trainer: Any = with_dra(TrainerInOutline)(OmegaConf.create({"dra": OmegaConf.structured(config)}))
    trainer._scorers, trainer._partitions, trainer.batches = pool, partitions, list(batches)
    metrics: dict[str, Any] = {}
    trainer.step(metrics, {})
    return trainer, metrics


def expected(
    batch: Batch,
    weight: str,
    smi: str,
    lost: str,
    strength: float = 1.0,
    correct_above: float = -np.inf,
    keep_scale: bool = False,
) -> np.ndarray:
    """[real rows] advantages by the papers' formulas; over a standard deviation, a group's scale would go unseen."""
    keys = [key for key in batch.keys if not key.startswith("pad")]
    group = np.array([key[0] for key in keys])
    rows = [batch.keys.index(key) for key in keys]
    rewards = batch.rewards.numpy()[rows].astype(np.float64)
    inside = rewards > correct_above
    of_group = np.where(inside, group, [f"alone {row}" for row in rows])
    if weight == "unlikeliness":
        mask = batch.mask[rows].numpy()
        means = (batch.log_probs[rows].numpy() * mask).sum(1) / mask.sum(1)
        weights = oracles.unlikeliness_weights(means, of_group) ** strength
    else:
        vectors = NgramEncoder().encode([batch.texts[key] for key in keys]).vectors.numpy()
        value = {"graph_cut": oracles.graph_cut_smi, "clusters": oracles.cluster_smi}[smi](vectors, of_group)
        weights = oracles.darling_weights(value, of_group) if weight == "darling" else oracles.weights(value)
        scored = np.array([uid not in lost for uid in group])
        weights = np.where(inside, weights**strength, 1)
        weights[inside] = oracles.fill_unscored(weights[inside], scored[inside])
    adjusted = oracles.adjust(rewards, weights, group)
    if keep_scale:
        adjusted = adjusted * oracles.kept_scale(weights, inside)
    return oracles.grpo(adjusted, group, norm_by_std=False)


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


def in_pieces(text: str, key: str, which: str) -> list[tuple[str, int]]:
    """A completion of which `text` is the part that counts; the rest is another one for each row."""
    other = f"{key}: {17 * len(key)} rows of {key[::-1]}"
    if which == "assistant":
        first, _, rest = text.partition("\n")
        return [(first, 1), (other, 0), (rest, 1), (other, 0)]
    return [(f"{other}</think>{text}" if which == "after_thinking" else f"<think>{text}</think>{other}", 1)]


@pytest.mark.parametrize("which", ["assistant", "after_thinking", "thinking"])
def test_advantages_are_those_of_the_part_that_counts(pool: Any, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    batch = Batch("a", "b", "c")
    if which == "assistant":
        batch.texts = {key: f"call {text}\nso {text}" for key, text in batch.texts.items()}
    batch.said = {key: in_pieces(text, key, which) for key, text in batch.texts.items()}
    _, metrics = trained(monkeypatch, pool, batch, text=which)
    real = [row for row, key in enumerate(batch.keys) if not key.startswith("pad")]
    wanted = expected(batch, "inverse", "graph_cut", "")
    np.testing.assert_allclose(batch.advantages[real, 0], wanted, rtol=1e-3, atol=1e-4)
    # Two of the four ways of each group are equal, but for what does not count.
    assert metrics["dra/duplicates_frac"] == 0.5
    assert metrics["dra/missing_rows"] == len(real)
    assert metrics["dra/empty_rows"] == 0


@pytest.mark.parametrize(
    ("which", "says", "empty"),
    [("thinking", "count as unique, and DRA does nothing", 4), ("after_thinking", "are embedded whole", 0)],
)
def test_a_run_whose_completions_end_no_thinking_is_told_once(
    pool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], which: str, says: str, empty: int
) -> None:
    trainer, metrics = trained(monkeypatch, pool, Batch("a"), text=which)
    trainer.step({}, {})
    said = capsys.readouterr()
    (line,) = [line for line in (said.out + said.err).splitlines() if "</think>" in line]
    assert f"none of 4 completions of this step has a </think>: with dra.text={which} such completions {says}" in line
    assert metrics["dra/empty_rows"] == empty
    assert (metrics["dra/weight/min"] == 1) == (which == "thinking")


def test_a_run_in_which_some_completions_end_their_thinking_is_told_nothing(
    pool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = Batch("a")
    batch.said = {"a_1_0": in_pieces("so", "a", "thinking")}
    _, metrics = trained(monkeypatch, pool, batch, text="thinking")
    said = capsys.readouterr()
    assert "</think>" not in said.out + said.err
    assert metrics["dra/empty_rows"] == 3


@pytest.mark.parametrize("lost", ["", "b"])
@pytest.mark.parametrize(
    ("dra", "knobs"),
    [
        ({"strength": 0.5}, {"strength": 0.5}),
        ({"among": "correct"}, {"correct_above": 0.0}),
        ({"among": "correct", "correct_above": 0.5, "keep_scale": True}, {"correct_above": 0.5, "keep_scale": True}),
        (
            {"among": "correct", "strength": [[0, 2], [2, 0]], "keep_scale": True, "weight": "darling"},
            {"correct_above": 0.0, "strength": 1.0, "keep_scale": True, "weight": "darling"},
        ),
        (
            {"among": "correct", "strength": 2, "weight": "unlikeliness"},
            {"correct_above": 0.0, "strength": 2.0, "weight": "unlikeliness"},
        ),
        ({"among": "correct", "correct_above": 9.0, "keep_scale": True}, {"correct_above": 9.0, "keep_scale": True}),
    ],
)
def test_strength_gate_and_scale_are_the_definitions(
    pool: Any, monkeypatch: pytest.MonkeyPatch, dra: dict[str, Any], knobs: dict[str, Any], lost: str
) -> None:
    batch = Batch("a", "b", "c")
    if lost:
        batch.texts["b_2_0"] = POISON
    _, metrics = trained(monkeypatch, pool, batch, **dra)
    real = [row for row, key in enumerate(batch.keys) if not key.startswith("pad")]
    wanted = expected(batch, **{"weight": "inverse", "smi": "graph_cut", "lost": lost, **knobs})
    np.testing.assert_allclose(batch.advantages[real, 0], wanted, rtol=1e-3, atol=1e-4)
    inside = batch.rewards[real] > knobs.get("correct_above", -np.inf)
    assert metrics["dra/adjusted_frac"] == pytest.approx(inside.float().mean().item())
    assert metrics["dra/strength"] == knobs.get("strength", 1.0)


def test_at_strength_0_the_run_is_verls_own_and_nobody_is_asked(
    pool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On, off for two steps, and on again, in one trainer."""
    strength = [[1, 1], [2, 0], [3, 0], [4, 1]]
    batches = [Batch(uid) for uid in "abcd"]
    steps: list[Any] = []
    asked: list[Any] = []
    monkeypatch.setattr("verl_dra.training.trainer.estimating", lambda step: steps.append(step) or estimating(step))
    monkeypatch.setattr("verl_dra.training.trainer.Asking", lambda *of: asked.append(of) or Asking(*of))
    trainer, metrics = trained(monkeypatch, pool, batches[0], strength=strength, negative_rewards="shift")
    monkeypatch.setattr("verl_dra.training.transfer.tq", Queue(*batches))
    of_step = [metrics]
    for step in (2, 3, 4):
        trainer.global_steps, trainer.batches = step, [batches[step - 1]]
        of_step.append({})
        trainer.step(of_step[-1], {})
    assert [found["dra/strength"] for found in of_step] == [1, 0, 0, 1]
    assert [found["dra/adjusted_frac"] for found in of_step] == [1, 0, 0, 1]
    # What no scorer has is fetched and embedded where DRA is on.
    assert [found["dra/missing_rows"] for found in of_step] == [len(WAYS), 0, 0, len(WAYS)]
    assert [found["dra/unadjusted_groups"] for found in of_step] == [0] * 4
    assert ["dra/smi/mean" in found for found in of_step] == [True, False, False, True]
    assert [found["dra/weight/min"] == 1 for found in of_step] == [False, True, True, False]
    assert [sessions[0].uid for _, sessions, _ in asked] == ["a", "d"]
    # A shift would change them, too, which an estimator that subtracts the mean does not show.
    assert [torch.equal(step.adjusted, step.raw) for step in steps] == [False, True, True, False]
    for batch in batches[1:3]:
        real = [row for row, key in enumerate(batch.keys) if not key.startswith("pad")]
        raw = batch.rewards[real]
        assert torch.equal(batch.advantages[real, 0], raw - raw.mean())
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "dra.strength" in line]
    assert len(lines) == 2
    assert "step 2: DRA is off" in lines[0]
    assert "step 4: DRA is on again" in lines[1]


def test_vectors_of_a_step_without_dra_are_given_up(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an asynchronous trainer, whose completions may have been on their way when DRA went off."""
    forgotten: list[Session] = []
    for handle in pool.handles:
        monkeypatch.setattr(handle, "forget", SimpleNamespace(remote=forgotten.extend))
    _, metrics = trained(monkeypatch, pool, Batch("a"), strength=0)
    assert "dra/smi/mean" not in metrics
    assert sorted(forgotten) == [Session("a", i) for i in range(len(WAYS))]


@pytest.mark.parametrize("smi", ["shuffled", "random"])
def test_a_control_draws_by_step_and_uid_whatever_the_order(
    pool: Any, monkeypatch: pytest.MonkeyPatch, smi: str
) -> None:
    def weights(step: int, order: int, *uids: str) -> dict[str, float]:
        batch = Batch(*uids)
        mixed = np.random.default_rng(order).permutation(len(batch.keys)).tolist()
        batch.keys = [batch.keys[at] for at in mixed]
        batch.rewards, batch.mask = torch.ones(len(mixed)), batch.mask[mixed]
        batch.tags = [{"is_padding": key.startswith("pad")} for key in batch.keys]
        steps: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr("verl_dra.training.trainer.estimating", lambda step: steps.append(step) or estimating(step))
            trainer, _ = trained(patch, pool, batch, smi=smi)
            if step != 1:
                trainer.global_steps = step
                trainer.step({}, {})
        names = [f"{name.uid}_{name.session_id}" for name in steps[-1].rows.names]
        return dict(zip(names, steps[-1].weights.tolist(), strict=True))

    one = weights(1, 0, "a", "b")
    assert weights(1, 1, "a", "b", "c").items() >= {name: pytest.approx(w, abs=1e-6) for name, w in one.items()}.items()
    real = expected_weights("a", "b")
    if smi == "shuffled":
        for uid in "ab":
            assert sorted(one[f"{uid}_{i}"] for i in range(4)) == pytest.approx(
                sorted(real[f"{uid}_{i}"] for i in range(4))
            )
    assert any(weights(step, 0, "a", "b") != pytest.approx(one, abs=1e-6) for step in (2, 3, 4))
    assert all(0 < weight <= 1 for weight in one.values())


def expected_weights(*uids: str) -> dict[str, float]:
    batch = Batch(*uids)
    keys = [key for key in batch.keys if not key.startswith("pad")]
    vectors = NgramEncoder().encode([batch.texts[key] for key in keys]).vectors.numpy()
    weights = oracles.weights(oracles.graph_cut_smi(vectors, np.array([key[0] for key in keys])))
    return {key.rsplit("_", 1)[0]: weight for key, weight in zip(keys, weights.tolist(), strict=True)}


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


LABELS = {"add both sides": 0, "draw a graph": 1, "guess": 0}


def by_label(group: PromptGroup) -> Grouping:
    """Another grouping than that of the vectors; a group `b` with a text that can't be read is unreadable."""
    if POISON in group.texts:
        raise UnreadableError("no JSON", calls=4)
    return Grouping.of_labels([LABELS[text.rsplit(" in ", 1)[0]] for text in group.texts], calls=1, tokens=5)


def weights_of_labels(batch: Batch, lost: str, weight: str, inside: np.ndarray) -> np.ndarray:
    """[real rows] weights by the definition, of the sizes of the labels' sets."""
    keys = [key for key in batch.keys if not key.startswith("pad")]
    found = np.ones(len(keys))
    for at, key in enumerate(keys):
        uid, label = key[0], LABELS[WAYS[int(key[2])]]
        siblings = [i for i, other in enumerate(keys) if other[0] == uid and inside[i]]
        others = sum(LABELS[WAYS[int(keys[i][2])]] == label for i in siblings if i != at)
        if inside[at]:
            share = 1 - others / max(len(siblings) - 1, 1)
            found[at] = max(share, 0.1) if weight == "darling" else 1 / (1 + others)
    scored = np.array([key[0] not in lost for key in keys])
    found[inside] = oracles.fill_unscored(found[inside], scored[inside])
    return found


@pytest.mark.parametrize("on_failure", ["raise", "unadjusted"])
@pytest.mark.parametrize("lost", ["", "b"])
@pytest.mark.parametrize(("weight", "among"), [("inverse", "all"), ("darling", "all"), ("inverse", "correct")])
def test_with_a_partition_the_weights_are_of_its_labels(
    pool: Any, monkeypatch: pytest.MonkeyPatch, weight: str, among: str, lost: str, on_failure: str
) -> None:
    batch = Batch("a", "b", "c")
    batch.rewards[batch.keys.index("b_2_0")] = batch.rewards[batch.keys.index("b_0_0")] = 1
    if lost:
        batch.texts["b_2_0"] = POISON
    asked: list[Any] = []
    monkeypatch.setattr("verl_dra.training.trainer.Asking", lambda *of: asked.append(of))
    with partitions_of(lambda config: by_label, on_failure) as (partitions, actors):
        by = PartitionConfig(by="fake_partitions:ByFirstWord")
        _, metrics = trained(monkeypatch, pool, batch, partitions=partitions, partition=by, weight=weight, among=among)
    real = [row for row, key in enumerate(batch.keys) if not key.startswith("pad")]
    rewards = batch.rewards[real].numpy().astype(np.float64)
    inside = rewards > 0 if among == "correct" else np.ones(len(real), dtype=bool)
    group = np.array([batch.keys[row][0] for row in real])
    weights = weights_of_labels(batch, lost, weight, inside)
    wanted = oracles.grpo(oracles.adjust(rewards, weights, group), group, norm_by_std=False)
    np.testing.assert_allclose(batch.advantages[real, 0], wanted, rtol=1e-4, atol=1e-5)
    assert not asked
    assert metrics["dra/unadjusted_groups"] == metrics["dra/partition/unreadable_groups"] == len(lost)
    assert metrics["dra/missing_rows"] == 0
    looked = [g for g in actors.looked if g.uid == "a"]
    if looked:
        (a,) = looked
        assert (a.prompt, a.ground_truth, list(a.texts)) == ("prompt of a", "right for a", sorted_texts("a"))
        first = [batch.rewards[batch.keys.index(f"a_{i}_0")].item() for i in (0, 2, 3)]
        assert list(a.rewards) == first
    if among == "all":
        assert metrics["dra/partition/calls"] == 3 + 3 * len(lost)
        assert metrics["dra/partition/ways"] == 2
        assert {"dra/partition/seconds", "dra/partition/wait_s", "dra/smi/mean"} <= metrics.keys()


def sorted_texts(uid: str) -> list[str]:
    return [f"{way} in {uid}" for way in dict.fromkeys(WAYS)]


def test_a_partition_is_not_asked_where_dra_is_off_and_goes_by_the_whole_step(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two updates of a step share its budget."""
    by = PartitionConfig(by="fake_partitions:ByFirstWord", max_calls=3)
    batches = [Batch("a", "b"), Batch("c", "d")]
    with partitions_of(lambda config: by_label, "unadjusted", max_calls=3) as (partitions, actors):
        trainer, metrics = trained(monkeypatch, pool, *batches, partitions=partitions, partition=by)
        assert [g.uid for g in actors.looked] == ["a", "b", "c"]
        assert metrics["dra/partition/unasked_groups"] == metrics["dra/unadjusted_groups"] == 1
        assert (metrics["dra/partition/calls"], metrics["dra/partition/tokens"]) == (3, 15)
        trainer.step({}, {})
        assert len(actors.looked) == 6
        _, metrics = trained(monkeypatch, pool, *batches, partitions=partitions, partition=by, strength=0)
    assert len(actors.looked) == 6
    assert not [name for name in metrics if "partition" in name]


def test_a_step_that_ends_early_wants_no_groupings(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    by = PartitionConfig(by="fake_partitions:ByFirstWord")
    with partitions_of(lambda config: by_label) as (partitions, actors):
        trainer, _ = trained(monkeypatch, pool, Batch("a"), partitions=partitions, partition=by)
        actors.faults.append("says nothing")
        looking: list[Any] = []

        def fails(batch: Any, metrics: Any) -> Any:
            looking.append(trainer._looking)
            raise OSError("the disk is full")

        monkeypatch.setattr(trainer, "_compute_old_log_prob", fails)
        with pytest.raises(OSError, match="the disk is full"):
            trainer.step({}, {})
        assert trainer._looking is None
        with pytest.raises(BaseException, match="not wanted any more"):
            looking[0].result()


def test_that_a_server_answers_nonsense_is_said_once(
    pool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = Batch("a", "b")
    batch.texts["b_2_0"] = POISON
    with partitions_of(lambda config: by_label) as (partitions, _):
        by = PartitionConfig(by="judge", model="tiny")
        trainer, _ = trained(monkeypatch, pool, batch, partitions=partitions, partition=by)
        trainer.step({}, {})
    said = capsys.readouterr()
    assert (said.out + said.err).count("dra.partition.model=tiny answers can't be read for 50% of the groups") == 1


def test_a_record_says_which_way_each_completion_goes_and_by_what(
    pool: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    batch = Batch("a", "b")
    batch.texts["b_2_0"] = POISON
    record = RecordConfig(every_n_steps=1, groups=2, folder=str(tmp_path))
    with partitions_of(lambda config: by_label) as (partitions, _):
        by = PartitionConfig(by="fake_partitions:ByFirstWord")
        trainer, _ = trained(monkeypatch, pool, batch, partitions=partitions, partition=by, record=record)
        trainer.close_records()
    lines = [json.loads(line) for line in (tmp_path / "1.jsonl").read_text().splitlines()]
    found = {group["uid"]: group for group in lines}
    assert [c["way"] for c in found["a"]["completions"]] == [0, 0, 1, 0]
    assert [c["smi"] for c in found["a"]["completions"]] == [2, 2, 0, 2]
    assert [(found[uid]["scored"], found[uid]["partition"]) for uid in "ab"] == [
        (True, "fake_partitions:ByFirstWord"),
        (False, "fake_partitions:ByFirstWord"),
    ]
    assert "way" not in found["b"]["completions"][0]
