"""What the trainer records of a batch, and when: TransferQueue and tokenizer are stand-ins."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorStack
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_dra.algorithm import graph_cut_smi
from verl_dra.config import DRAConfig
from verl_dra.record import RecordConfig, Recorder
from verl_dra.scorer.asking import StepVectors
from verl_dra.scorer.scores import step_scores
from verl_dra.training import recording, transfer
from verl_dra.training.estimator import Step
from verl_dra.training.rows import Rows
from verl_dra.training.trainer import with_dra

GROUPS, SIZE = 6, 2
KEYS = [f"prompt{group}_{session}_0" for group in range(GROUPS) for session in range(SIZE)]
UIDS = [f"prompt{group}" for group in range(GROUPS)]
BATCH = SimpleNamespace(keys=KEYS, partition_id="train")


class Tokenizer:
    """A token is a character; remembers in which threads it decoded how much."""

    def __init__(self) -> None:
        self.decoded: dict[str, int] = {}

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        thread = threading.current_thread().name
        self.decoded[thread] = self.decoded.get(thread, 0) + 1
        return "".join(map(chr, ids.tolist()))


def tokens(text: str) -> torch.Tensor:
    return torch.tensor(list(map(ord, text)))


def queue(**columns: list[Any]) -> Callable[..., TensorDict]:
    """TransferQueue with the rows of `BATCH`."""

    def kv_batch_get(keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        nested = {
            name: torch.nested.nested_tensor([tokens(f"{name} of {key}") for key in keys], layout=torch.jagged)
            for name in ("prompts", "responses")
        }
        return TensorDict({**nested, **{n: NonTensorStack(*c) for n, c in columns.items()}}, batch_size=len(keys))

    return kv_batch_get


def step(advantage_without: torch.Tensor | None) -> Step:
    n = len(KEYS)
    made = Step(Rows.of(KEYS, [False] * n), torch.zeros(n), torch.ones(n), torch.ones(n).bool(), "grpo", "paper")
    made.raw = made.adjusted = made.advantage = torch.arange(float(n))
    made.advantage_without = advantage_without
    return made


SCORES = step_scores(
    np.eye(len(KEYS), dtype=np.float32), np.arange(len(KEYS)), Rows.of(KEYS, [False] * len(KEYS)).group, graph_cut_smi
)


@pytest.mark.parametrize(
    ("columns", "truth"), [({}, None), ({"reward_model": [{"ground_truth": 7}] * len(KEYS)}, "7")], ids=["none", "some"]
)
def test_groups_are_recorded_with_and_without_a_reward_model_column(
    columns: dict[str, Any], truth: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer.tq, "kv_batch_get", queue(**columns))
    groups = recording.fetched_groups(BATCH, 3, UIDS, step(None), SCORES, DRAConfig(base_estimator="grpo"))
    made = [group.record(Tokenizer(), 1000) for group in groups]
    assert [group["ground_truth"] for group in made] == [truth] * GROUPS
    assert made[1]["prompt"] == "prompts of prompt1_0_0"
    assert made[1]["completions"][1] == {
        **{"session": 1, "text": "responses of prompt1_1_0", "characters": 24, "reward": 3.0, "adjusted": 3.0},
        **{"smi": 0.0, "weight": 1.0, "advantage": 3.0, "advantage_without": None, "duplicate": False},
    }


def test_a_group_says_how_strongly_which_similarity_acted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.tq, "kv_batch_get", queue())
    made = step(None)
    made.strength = 0.5
    similarity: dict[str, Any] = {"smi": "shuffled", "cosine": "power", "cosine_power": 3.0, "among": "correct"}
    dra = DRAConfig(base_estimator="grpo", text="assistant", **similarity)
    (group,) = recording.fetched_groups(BATCH, 3, UIDS[:1], made, SCORES, dra)
    found = group.record(Tokenizer(), 1000)
    settings = [found[name] for name in ("text", "smi", "cosine", "among", "weight", "strength")]
    assert settings == ["assistant", "shuffled", "power 3", "correct", "inverse", 0.5]
    # What is shown is all of a completion.
    assert found["completions"][0]["text"] == "responses of prompt0_0_0"
    (group,) = recording.fetched_groups(BATCH, 3, UIDS[:1], step(None), SCORES, DRAConfig(base_estimator="grpo"))
    found = group.record(Tokenizer(), 1000)
    assert [found[name] for name in ("text", "cosine", "among", "strength")] == ["response", "raw", "all", 1.0]


def test_a_group_without_scores_is_recorded_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.tq, "kv_batch_get", queue())
    index = np.arange(len(KEYS))
    index[1] = -1
    scores = step_scores(np.eye(len(KEYS), dtype=np.float32), index, step(None).rows.group, graph_cut_smi)
    groups = recording.fetched_groups(BATCH, 3, UIDS[:2], step(None), scores, DRAConfig(base_estimator="grpo"))
    lost, whole = (group.record(Tokenizer(), 1000) for group in groups)
    assert (lost["scored"], lost["similarity"], lost["effective_paths"]) == (False, None, None)
    assert (whole["scored"], whole["similarity"]) == (True, [[1.0, 0.0], [0.0, 1.0]])
    assert whole["effective_paths"] == pytest.approx(2)


def test_padding_before_and_between_real_rows_shifts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.tq, "kv_batch_get", queue())
    # The final output of a session stands before another of it.
    keys = ["pad0_0_0", "a_0_1", "pad0_1_0", "b_7_0", "a_0_0", "a_1_0", "b_2_0"]
    rows = Rows.of(keys, [key.startswith("pad") for key in keys])
    made = Step(rows, torch.zeros(4), torch.ones(4), torch.ones(4).bool(), "grpo", "paper")
    made.raw = made.adjusted = made.advantage = torch.arange(4.0)
    scores = step_scores(np.eye(4, dtype=np.float32), np.arange(4), rows.group, graph_cut_smi)
    batch = SimpleNamespace(keys=keys, partition_id="train")
    groups = recording.fetched_groups(batch, 3, ["b", "a"], made, scores, DRAConfig(base_estimator="grpo"))
    shown = [
        (group["uid"], group["prompt"], [(c["session"], c["text"], c["reward"]) for c in group["completions"]])
        for group in (fetched.record(Tokenizer(), 1000) for fetched in groups)
    ]
    assert shown == [
        ("b", "prompts of b_7_0", [(7, "responses of b_7_0", 1.0), (2, "responses of b_2_0", 3.0)]),
        ("a", "prompts of a_0_1", [(0, "responses of a_0_1", 0.0), (1, "responses of a_1_0", 2.0)]),
    ]


class Writer:
    """TensorBoard's, as veRL wraps it."""

    def __init__(self) -> None:
        self.shown = ""
        self.writer = self

    def add_text(self, name: str, text: str, step: int) -> None:
        self.shown = text


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """A trainer of which only what records is there."""
    made: Any = object.__new__(with_dra(PPOTrainerSync))
    made._dra = DRAConfig(base_estimator="grpo", record=RecordConfig(every_n_steps=1, folder=str(tmp_path)))
    made._recorder = Recorder(made._dra.record)
    made.global_steps = 1
    made.tokenizer = Tokenizer()
    made.logger = SimpleNamespace(logger={"tensorboard": Writer()})
    return made


def test_a_step_decodes_only_what_trackers_get(trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer.tq, "kv_batch_get", queue())
    trainer._record(BATCH, UIDS, step(None), SCORES)
    trainer.close_records()
    assert len((tmp_path / "1.jsonl").read_text().splitlines()) == GROUPS
    assert trainer.tokenizer.decoded == {"dra-record": GROUPS * (1 + SIZE), "MainThread": 4 * (1 + SIZE)}
    assert trainer.logger.logger["tensorboard"].shown.count("\n") == 1 + 4 * SIZE

    trainer.logger.logger.clear()
    trainer.tokenizer = Tokenizer()
    trainer._record(BATCH, UIDS, step(None), SCORES)
    trainer.close_records()
    assert "MainThread" not in trainer.tokenizer.decoded


def test_trackers_get_short_texts_and_files_long_ones(
    trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer.tq, "kv_batch_get", queue())
    monkeypatch.setattr(Tokenizer, "decode", lambda *_, **__: "x" * 1000)
    trainer._record(BATCH, UIDS, step(None), SCORES)
    trainer.close_records()
    (first, *_) = (tmp_path / "1.jsonl").read_text().splitlines()
    assert json.loads(first)["completions"][0]["text"] == "x" * 1000
    assert "500 characters left out" in trainer.logger.logger["tensorboard"].shown


def test_an_encoder_that_does_not_know_the_tokens_is_said_once(trainer: Any, capfd: pytest.CaptureFixture[str]) -> None:
    known, unknown = (StepVectors(np.zeros((0, 0)), np.zeros(0), tokens=100, unknown_tokens=n) for n in (20, 62))
    trainer._knows_unknown = False
    trainer._warn_of_unknown(unknown)
    trainer._warn_of_unknown(unknown)
    said = capfd.readouterr().out
    assert said.count("the encoder does not know 62% of the tokens") == 1
    assert "set dra.embedding.model" in said
    trainer._knows_unknown = False
    trainer._warn_of_unknown(known)
    assert "does not know" not in capfd.readouterr().out


def test_what_can_t_be_fetched_ends_nothing(
    trainer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def kv_batch_get(**_: Any) -> None:
        raise KeyError("responses")

    monkeypatch.setattr(transfer.tq, "kv_batch_get", kv_batch_get)
    trainer._record(BATCH, UIDS, step(None), SCORES)
    assert trainer._recorder.counts() == {"recorded": 0, "unrecorded": GROUPS, "thinned": 0}
    assert "step 1 is not recorded: KeyError('responses')" in caplog.text
