"""The real stack on a CPU: veRL's trainer, vLLM, FSDP2, TransferQueue, Ray and the sentence encoder train, and the
advantages are those of the formula."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import isolated
import numpy as np
import oracles
import pytest
import torch
import toy
from transformers import AutoTokenizer

from verl_dra.rewards import alike, check
from verl_dra.training.meanings import METRICS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXAMPLES = ROOT / "recipes" / "examples"
N = 4


@dataclass
class Run:
    """What a training left behind."""

    steps: list[dict[str, Any]]
    log: str

    def metric(self, name: str) -> list[float]:
        return [step["metrics"][name] for step in self.steps]


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy.make(folder)
    return folder


@pytest.fixture(scope="module")
def encoder() -> Any:
    from sentence_transformers import SentenceTransformer

    from verl_dra.embedding.model_path import BUNDLED_MODEL, model_path

    return SentenceTransformer(model_path(BUNDLED_MODEL), device="cpu")


def train(
    toy_folder: Path,
    tmp_path: Path,
    overrides: Sequence[str],
    of_the_free: float = 0,
    example: str | None = None,
    **environment: str,
) -> Run:
    """A training, which must book what verl_dra.job.cpus says that a run needs, and of the CPUs that are free then as
    many as `of_the_free`; of a config of recipes/examples, or the default one."""
    dump = tmp_path / "dump"
    dump.mkdir()
    config = EXAMPLES / (example or "")
    flags = ["--config-dir", str(config.parent), "--config-name", config.name] if example else []
    log = tmp_path / "log.txt"
    done = isolated.run(
        [
            "python",
            str(HERE / "train_and_dump.py"),
            *flags,
            "+platform=cpu",
            f"hydra.run.dir={tmp_path}/hydra",
            f"data.train_files={toy_folder}/train.parquet",
            f"data.val_files={toy_folder}/val.parquet",
            "data.train_batch_size=4",
            "data.max_prompt_length=64",
            "data.max_response_length=24",
            f"actor_rollout_ref.model.path={toy_folder}/model",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4",
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
            f"actor_rollout_ref.rollout.n={N}",
            "dra.embedding.dtype=float32",
            f"reward.custom_reward_function.path={HERE}/toy.py",
            "trainer.logger=[console]",
            "trainer.val_before_train=False",
            "trainer.save_freq=-1",
            "trainer.test_freq=-1",
            "trainer.total_epochs=1",
            "trainer.resume_mode=disable",
            f"trainer.default_local_dir={tmp_path}/checkpoints",
            *overrides,
        ],
        log=log,
        cwd=tmp_path,
        environment={"VERL_PLATFORM": "cpu", "DUMP": str(dump), "PYTHONPATH": f"{HERE}:{HERE.parent}", **environment},
        timeout_s=800,
    )
    text = log.read_text(errors="replace")
    assert done.returncode == 0, text[-3000:]
    files = sorted(dump.iterdir(), key=lambda path: int(path.stem))
    steps = [torch.load(path) for path in files]
    for step in steps:
        assert step["booked"] == {**step["counted"], "CPU": step["counted"]["CPU"] + of_the_free}
        assert set(step["metrics"]) <= set(METRICS)
    return Run(steps, text)


def recomputed_by_likelihood(step: dict[str, Any]) -> np.ndarray:
    """float64 advantage of each row from its raw reward and the log-probabilities of its tokens."""
    rewards = np.array([sum(scores) for scores in step["rm_scores"]], dtype=np.float64)
    group = np.array([key.rsplit("_", 2)[0] for key in step["keys"]])
    log_probs = np.array(
        [
            np.mean(np.array(row)[np.array(mask) > 0])
            for row, mask in zip(step["old_log_probs"], step["response_mask"], strict=True)
        ]
    )
    return oracles.grpo(oracles.adjust(rewards, oracles.unlikeliness_weights(log_probs, group), group), group)


def recomputed_by_answers(step: dict[str, Any], toy_folder: Path) -> np.ndarray:
    """float64 advantage of each row: among the correct, those of the same text or of equal final answers go one way."""
    tokenizer = AutoTokenizer.from_pretrained(toy_folder / "model")
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in step["responses"]]
    rewards = np.array([sum(scores) for scores in step["rm_scores"]], dtype=np.float64)
    group = np.array([key.rsplit("_", 2)[0] for key in step["keys"]])
    answers = [check(None, text).answer for text in texts]
    smi = np.zeros(len(texts))
    for i, text in enumerate(texts):
        for j in np.flatnonzero((group == group[i]) & (rewards > 0)):
            known = answers[i] is not None and answers[j] is not None
            same = text == texts[j] or (known and len(set(alike([answers[i], answers[j]]))) == 1)
            smi[i] += j != i and rewards[i] > 0 and bool(text.strip()) and same
    return oracles.grpo(oracles.adjust(rewards, oracles.weights(smi), group), group)


def turns_of(step: dict[str, Any], tokenizer: Any, own: bool) -> list[list[str]]:
    """Of each row the texts of its turns, that the policy wrote (`own`) or that tools replied."""
    rows = zip(step["responses"], step["response_mask"], strict=True)
    return [
        [
            tokenizer.decode([token for token, _ in run], skip_special_tokens=True)
            for of_policy, run in groupby(zip(ids, mask, strict=True), lambda pair: pair[1] > 0)
            if of_policy is own
        ]
        for ids, mask in rows
    ]


def recomputed(
    step: dict[str, Any], toy_folder: Path, encoder: Any, dra: bool = True, texts: Sequence[str] = ()
) -> np.ndarray:
    """float64 advantage of each row from its text (or that of `texts`) and raw reward, by the paper's formula and plain
    loops."""
    tokenizer = AutoTokenizer.from_pretrained(toy_folder / "model")
    texts = texts or [tokenizer.decode(ids, skip_special_tokens=True) for ids in step["responses"]]
    rewards = np.array([sum(scores) for scores in step["rm_scores"]], dtype=np.float64)
    group = np.array([key.rsplit("_", 2)[0] for key in step["keys"]])
    if dra:
        # What random bytes spell has now and then no token in it, as U+FFFD alone: unique, not [CLS] [SEP].
        has_tokens = [bool(encoder.tokenizer.tokenize(text)) for text in texts]
        vectors = np.stack(
            [encoder.encode(t) if some else np.zeros(384) for t, some in zip(texts, has_tokens, strict=True)]
        )
        smi = oracles.graph_cut_smi(vectors, group)
        rewards = oracles.adjust(rewards, oracles.weights(smi), group)
    return oracles.grpo(rewards, group)


def assert_advantages(run: Run, toy_folder: Path, encoder: Any, dra: bool = True) -> None:
    for step in run.steps:
        assert_advantages_of(step, recomputed(step, toy_folder, encoder, dra))


def assert_advantages_of(step: dict[str, Any], expected: np.ndarray) -> None:
    assert np.std(expected) > 0.1
    for row, (advantages, mask) in enumerate(zip(step["advantages"], step["response_mask"], strict=True)):
        if not step["padding"][row]:
            np.testing.assert_allclose(advantages, expected[row] * np.array(mask), atol=1e-4)


def scorers(step: dict[str, Any]) -> list[str]:
    return [name for name in step["actors"] if name.startswith("dra_scorer")]


@dataclass
class Recorded(Run):
    """One that kept groups."""

    groups: Path


@pytest.fixture(scope="module")
def sync(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("sync")
    settings = ["trainer.total_training_steps=6", "trainer.logger=[console,tensorboard]", "dra.strength=[[4,1],[5,0]]"]
    validate = ["trainer.val_before_train=True", "trainer.test_freq=2"]
    record = ["dra.record.every_n_steps=2", f"dra.record.folder={folder}/groups", "dra.record.groups=3"]
    run = train(toy_folder, folder, [*settings, *validate, *record])
    return Recorded(run.steps, run.log, folder / "groups")


def test_sync_advantages_are_the_formula_s(sync: Recorded, toy_folder: Path, encoder: Any) -> None:
    on = Run(sync.steps[:4], sync.log)
    assert len(on.steps) == 4
    assert on.metric("dra/skipped_rows") == [4, 0, 4, 0]  # what validation generated before steps 1 and 3
    assert all(len(step["keys"]) == 4 * N for step in sync.steps)
    assert_advantages(on, toy_folder, encoder)
    assert all(len(scorers(step)) == 1 for step in sync.steps)
    assert sync.metric("dra/fallbacks") == [0] * 6
    assert all(1 < paths <= N for paths in on.metric("dra/effective_paths"))
    assert "timing_s/dra_wait" in sync.log


def test_from_the_step_of_strength_0_on_nothing_is_embedded_and_the_run_is_verls(
    sync: Recorded, toy_folder: Path, encoder: Any
) -> None:
    assert sync.metric("dra/strength") == [1, 1, 1, 1, 0, 0]
    off = Run(sync.steps[4:], sync.log)
    assert_advantages(off, toy_folder, encoder, dra=False)
    # All that was generated, and before step 5 what validation did: of the scorers' own counts.
    assert off.metric("dra/skipped_rows") == [4 + 4 * N, 4 * N]
    assert off.metric("dra/missing_rows") == off.metric("dra/unadjusted_groups") == [0, 0]
    embedding = [busy > 0 for busy in sync.metric("dra/scorers/busy_frac")]
    assert embedding == [True, True, True, True, False, False]
    assert not any("dra/smi/mean" in step["metrics"] for step in off.steps)
    assert "dra.strength, step 5: DRA is off" in sync.log
    for line in (sync.groups / "6.jsonl").read_text().splitlines():
        group = json.loads(line)
        assert (group["strength"], group["similarity"], group["scored"]) == (0, None, False)
        for completion in group["completions"]:
            assert completion["adjusted"] == completion["reward"]
            assert completion["advantage"] == completion["advantage_without"]


def test_recorded_groups_are_what_was_trained_on(sync: Recorded, toy_folder: Path) -> None:
    assert sorted(path.name for path in sync.groups.iterdir()) == ["2.jsonl", "4.jsonl", "6.jsonl"]
    tokenizer = AutoTokenizer.from_pretrained(toy_folder / "model")
    for step in (2, 4):
        dumped = sync.steps[step - 1]
        row = {tuple(key.rsplit("_", 2)[:2]): at for at, key in enumerate(dumped["keys"])}
        groups = [json.loads(line) for line in (sync.groups / f"{step}.jsonl").read_text().splitlines()]
        assert len(groups) == 3
        for group in groups:
            rows = [row[group["uid"], str(completion["session"])] for completion in group["completions"]]
            column = {name: [c[name] for c in group["completions"]] for name in group["completions"][0]}
            assert column["text"] == [tokenizer.decode(dumped["responses"][i], skip_special_tokens=True) for i in rows]
            rewards = np.array([sum(dumped["rm_scores"][i]) for i in rows], dtype=np.float64)
            smi = np.array(group["similarity"]).sum(axis=1) - 1
            weights = oracles.weights(smi)
            ids = np.zeros(len(rows), dtype=int)
            for name, expected, tolerance in (
                ("reward", rewards, 1e-6),
                ("smi", smi, 1e-3),
                ("weight", weights, 1e-3),
                ("adjusted", rewards * weights, 1e-3),
                ("advantage", [dumped["advantages"][i][0] for i in rows], 1e-4),
                ("advantage_without", oracles.grpo(rewards, ids), 1e-4),
            ):
                np.testing.assert_allclose(column[name], expected, atol=tolerance, err_msg=name)
            assert "say" in group["prompt"]
    # Written by a thread: the groups of step 2 are counted at the latest when those of step 4 are on their way.
    assert sum(sync.metric("dra/recorded_groups")) >= 3
    assert sum(sync.metric("dra/unrecorded_groups")) == 0


def test_log_probabilities_do_not_wait_for_texts_to_be_decoded(toy_folder: Path, tmp_path: Path, encoder: Any) -> None:
    """A colocated reward model keeps the completions from the scorers until all are generated, and the trainer's
    tokenizer takes 0.1 s for a text."""
    toy.make_reward_model(toy_folder)
    model = "reward.reward_model"
    run = train(
        toy_folder,
        tmp_path,
        [
            "trainer.total_training_steps=2",
            "reward.custom_reward_function.path=null",
            f"reward_model_path={toy_folder}/reward_model",
            f"{model}.rollout.dtype=float32",
            f"{model}.rollout.prompt_length=160",
            f"{model}.rollout.response_length=64",
            # What the CPU platform says of the policy's rollout.
            f"{model}.rollout.free_cache_engine=False",
            f"+{model}.rollout.enable_sleep_mode=False",
            f"+{model}.rollout.engine_kwargs.vllm.distributed_executor_backend=uni",
        ],
        example="reward_model",
        DECODE_S="0.1",
    )
    assert "completions are embedded after the generation" in run.log
    assert len(run.steps) == 2
    assert_advantages(run, toy_folder, encoder)
    assert run.metric("dra/missing_rows") == [4 * N] * 2
    for step in run.steps:
        assert len(step["decoded_at"]) == 4 * N
        assert step["log_prob_at"] < step["decoded_at"][-1]


def test_unlikeliness_goes_by_the_policys_own_log_probs_in_a_trainer_of_ones_own(
    toy_folder: Path, tmp_path: Path
) -> None:
    """What trains is the example of verl_dra/training/README.md."""
    page = (ROOT / "verl_dra" / "training" / "README.md").read_text()
    (example,) = re.findall(r"```python\n(# own_runner.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "own_runner.py").write_text(example)
    settings = ["trainer.total_training_steps=2", "dra.weight=unlikeliness"]
    run = train(toy_folder, tmp_path, settings, SCRIPT=str(tmp_path / "own_runner.py"))
    assert len(run.steps) == 2
    assert run.log.count(f"own/rows:{4 * N}") == 2
    for step in run.steps:
        assert_advantages_of(step, recomputed_by_likelihood(step))
    assert all(0.75 < least < 1 for least in run.metric("dra/weight/min"))


def test_two_nodes_have_two_scorers_and_the_same_formula(toy_folder: Path, tmp_path: Path, encoder: Any) -> None:
    booked = ["transfer_queue.backend.SimpleStorage.num_data_storage_units=3", "dra.scorer.num_cpus=2"]
    two = ["trainer.total_training_steps=3", "trainer.nnodes=2"]
    run = train(toy_folder, tmp_path, [*two, *booked], of_the_free=2, NODES="2")
    assert run.steps[0]["booked"] == {"GPU": 2, "CPU": 2 * 3 + 3 + 1 + 1 + 2 * 2}
    assert len(run.steps) == 3
    assert_advantages(run, toy_folder, encoder)
    assert all(len(scorers(step)) == 2 for step in run.steps)


def test_colocate_async_trains_with_equal_answers_among_the_correct(toy_folder: Path, tmp_path: Path) -> None:
    run = train(
        toy_folder,
        tmp_path,
        [
            *("trainer.total_training_steps=2", "trainer.v1.trainer_mode=colocate_async"),
            *("trainer.val_before_train=True", "dra.among=correct", "dra.partition.by=answers"),
        ],
    )
    assert len(run.steps) == 2
    assert run.metric("dra/skipped_rows") == [4, 0]
    for step in run.steps:
        assert_advantages_of(step, recomputed_by_answers(step, toy_folder))
        right = [sum(scores) > 0 for scores in step["rm_scores"]]
        right_of = Counter(key.rsplit("_", 2)[0] for key, is_right in zip(step["keys"], right, strict=True) if is_right)
        # One right answer, or none, is compared with nothing.
        assert ("dra/partition/ways" in step["metrics"]) == (max(right_of.values()) > 1)
        assert step["metrics"].get("dra/partition/ways", 1) >= 1
        assert 0 < sum(right) < len(right)
        assert step["metrics"]["dra/adjusted_frac"] == pytest.approx(sum(right) / len(right))


def test_turns_with_a_tool_are_compared_by_what_the_policy_wrote(
    toy_folder: Path, tmp_path: Path, encoder: Any
) -> None:
    """veRL's own tool agent, by the recipe's configuration; the tool never replies the same."""
    recipe = ROOT / "recipes" / "examples" / "multi_turn"
    multi_turn = "actor_rollout_ref.rollout.multi_turn"
    run = train(
        toy_folder,
        tmp_path,
        [
            *("data_dir=none", f"recipe_dir={recipe}", "trainer.total_training_steps=1"),
            *(f"{multi_turn}.function_tool_path={HERE}/look_up.py", f"{multi_turn}.format=all_is_a_call"),
            *(f"{multi_turn}.max_assistant_turns=2", "data.max_response_length=64"),
        ],
        example="multi_turn/multi_turn",
    )
    assert "diversity is that of what the policy wrote, without what tools replied" in run.log
    assert "completions are embedded after the generation" in run.log
    (step,) = run.steps
    assert step["metrics"]["dra/skipped_rows"] == step["metrics"]["dra/missing_rows"] == 4 * N
    tokenizer = AutoTokenizer.from_pretrained(toy_folder / "model")
    replies = [reply for of_row in turns_of(step, tokenizer, own=False) for reply in of_row if "page" in reply]
    assert len(replies) == len(set(replies)) > 3 * N
    own = ["\n".join(filter(None, turns)) for turns in turns_of(step, tokenizer, own=True)]
    assert_advantages_of(step, recomputed(step, toy_folder, encoder, texts=own))
    # With the replies they would be others.
    assert np.abs(recomputed(step, toy_folder, encoder, texts=own) - recomputed(step, toy_folder, encoder)).max() > 0.01


def test_separate_async_trains(toy_folder: Path, tmp_path: Path, encoder: Any) -> None:
    """The trainer on one (made-up) GPU, a vLLM replica on another, two updates between weight transfers."""
    run = train(
        toy_folder,
        tmp_path,
        [
            "trainer.total_training_steps=2",
            "trainer.v1.trainer_mode=separate_async",
            "trainer.v1.separate_async.parameter_sync_step=2",
            "data.train_batch_size=8",
            "actor_rollout_ref.rollout.nnodes=1",
            "actor_rollout_ref.rollout.n_gpus_per_node=1",
            "ray_kwargs.ray_init.num_gpus=2",
        ],
        of_the_free=1,  # the scorer has two for two GPUs
    )
    assert len(run.steps) == 4
    assert_advantages(run, toy_folder, encoder)


def test_a_scorer_that_dies_in_mid_step_changes_no_advantage(toy_folder: Path, tmp_path: Path, encoder: Any) -> None:
    run = train(
        toy_folder,
        tmp_path,
        ["trainer.total_training_steps=4"],
        example="lora",
        KILL="1:pending:kill,2:sampled:signal,3:pending:signal",
    )
    assert len(run.steps) == 4
    assert_advantages(run, toy_folder, encoder)
    fallbacks = run.metric("dra/fallbacks")
    assert all(fallbacks[:3])
    assert fallbacks[3] == 0
    assert run.metric("dra/missing_rows")[1] == 4 * N


def test_disabled_is_verl_s_own_run(toy_folder: Path, tmp_path: Path, encoder: Any) -> None:
    run = train(toy_folder, tmp_path, ["trainer.total_training_steps=2", "dra.enabled=False"])
    assert len(run.steps) == 2
    assert_advantages(run, toy_folder, encoder, dra=False)
    assert not any(scorers(step) for step in run.steps)
    assert not any(step["metrics"] for step in run.steps)
