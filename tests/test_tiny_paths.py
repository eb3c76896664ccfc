"""The demo task: its wordings, its reward as veRL loads it, its data, and the cache of the prepared folder."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "tiny_paths"
sys.path.append(str(RECIPE.parent))

pytest.importorskip("transformers")
pd = pytest.importorskip("pandas")

from tiny_paths.prepare import Settings, cache_root, find_fault, fingerprint, prepare  # noqa: E402
from tiny_paths.pretrain import PretrainSettings, prompt_tokens, train_tokenizer  # noqa: E402
from tiny_paths.reward import compute_score  # noqa: E402
from tiny_paths.samples import validation  # noqa: E402
from tiny_paths.task import (  # noqa: E402
    STRATEGIES,
    Question,
    answer_of,
    questions,
    render,
    sample_solution,
    split_questions,
    strategy_of,
)

TINY = Settings(
    pretrain=PretrainSettings(hidden_size=32, heads=1, layers=1, intermediate_size=32, steps=2, practice_steps=1)
)
COLUMN = "Write 8 below 7, the column adds to 15, carry 1: 45."


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("tiny") / "made", TINY)


# Task


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_path_answers_every_question_and_is_recognised(name: str) -> None:
    for question in questions():
        text = render(question, name)
        assert answer_of(text) == question.total
        assert strategy_of(text) == name


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_a_slip_changes_the_answer_and_not_the_path(name: str) -> None:
    question = Question(37, 8)
    assert answer_of(render(question, name, slip=-10)) == 35
    assert strategy_of(render(question, name, slip=-10)) == name


def test_worked_answers_read_as_written() -> None:
    assert [render(Question(37, 8), name) for name in STRATEGIES] == [
        COLUMN,
        "Pay 3 dimes and 7 pennies, add 8 pennies, the purse holds 45 cents.",
        "A frog sits at 37 on the number line, leaps 8 steps right and lands on 45.",
        "Round 8 up to 10 for 47, then take the extra 2 back: 45.",
    ]


def test_shares_sum_to_one_and_are_unequal() -> None:
    shares = [strategy.share for strategy in STRATEGIES.values()]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(set(shares), reverse=True)


def test_sampled_solutions_follow_shares_and_slip_rates() -> None:
    rng, question = random.Random(1), Question(37, 8)
    texts = [sample_solution(question, rng) for _ in range(4000)]
    for name, strategy in STRATEGIES.items():
        of_path = [text for text in texts if strategy_of(text) == name]
        wrong = sum(answer_of(text) != question.total for text in of_path) / len(of_path)
        assert len(of_path) / len(texts) == pytest.approx(strategy.share, abs=0.03)
        assert wrong == pytest.approx(strategy.slip_rate, abs=0.06)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "45.",
        "Write 8 below 7.",
        "the column adds to 15",  # half of a path's words
        "the column adds to 15, carry 1, a frog leaps and lands",  # two paths
    ],
)
def test_texts_off_every_path_have_no_strategy(text: str) -> None:
    assert strategy_of(text) is None


def test_splits_are_disjoint_complete_and_the_same_every_time() -> None:
    train, test = split_questions(64, seed=0)
    assert (train, test) == split_questions(64, seed=0)
    assert test != split_questions(64, seed=1)[1]
    assert not set(train) & set(test)
    assert set(train) | set(test) == set(questions())
    assert (len(train), len(test)) == (349, 64)


# Reward


@pytest.mark.parametrize(
    ("text", "score", "strategy"),
    [
        (COLUMN, 1.0, "column"),
        (COLUMN + "\n", 1.0, "column"),
        (COLUMN.replace("45", "46"), 0.0, "column"),
        ("the purse holds 45 cents.", 1.0, "none"),
        ("45.", 1.0, "none"),
        ("", 0.0, "none"),
        ("45", 0.0, "none"),  # cut off
        (COLUMN[: COLUMN.index(":")], 0.0, "column"),
        ("15, carry 1: 45", 0.0, "none"),
        ("45. cents", 0.0, "none"),
        ("145.", 0.0, "none"),
        ("45.0.", 0.0, "none"),
        ("45 and 46.", 0.0, "none"),
        ("٤٥.", 0.0, "none"),  # digits, but not ours
        ("9" * 5000 + ".", 0.0, "none"),
    ],
)
def test_reward_of_hand_worked_texts(text: str, score: float, strategy: str) -> None:
    assert compute_score("tiny_paths", text, "45") == {"score": score, "acc": score, "strategy": strategy}


def test_wrong_answers_can_cost_something() -> None:
    assert compute_score("tiny_paths", COLUMN.replace("45", "46"), "45", wrong=-0.5) == {
        "score": -0.5,
        "acc": 0.0,
        "strategy": "column",
    }
    assert compute_score("tiny_paths", COLUMN, "45", wrong=-0.5)["score"] == 1.0


def test_verl_loads_the_reward_by_path_and_keeps_every_key() -> None:
    pytest.importorskip("verl")
    import torch
    from omegaconf import OmegaConf
    from verl import DataProto
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.reward import get_custom_reward_fn

    config = OmegaConf.create(
        {"reward": {"custom_reward_function": {"path": str(RECIPE / "reward.py"), "name": "compute_score"}}}
    )
    data = DataProto.from_dict(
        tensors={
            "responses": torch.zeros(1, 3, dtype=torch.long),
            "attention_mask": torch.ones(1, 5, dtype=torch.long),
        },
        non_tensors={
            "data_source": ["tiny_paths"],
            "reward_model": [{"style": "rule", "ground_truth": "45"}],
            "extra_info": [{"index": 0}],
        },
    )

    async def run() -> dict:
        tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: COLUMN)
        return await NaiveRewardManager(config, tokenizer, get_custom_reward_fn(config)).run_single(data)

    result = asyncio.run(run())
    assert result["reward_score"] == 1.0
    assert result["reward_extra_info"] == {"score": 1.0, "acc": 1.0, "strategy": "column"}


# Tokenizer and data


def test_tokenizer_suits_verl_and_vllm(prepared: Path) -> None:
    from transformers import AutoTokenizer

    made = train_tokenizer(split_questions(64, seed=0)[0], TINY.pretrain)
    loaded = AutoTokenizer.from_pretrained(prepared / "model")
    assert len(loaded("\n")["input_ids"]) == 1
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(loaded) <= TINY.pretrain.vocab_size
    for question in questions():
        assert len(prompt_tokens(loaded, question)) <= 24
        for name in STRATEGIES:
            text = render(question, name)
            tokens = loaded(text)["input_ids"]
            assert len(tokens) <= 40
            assert loaded.decode(tokens) == text
            assert tokens == made(text)["input_ids"]


def test_model_loads_from_its_folder(prepared: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(prepared / "model")
    assert model.dtype == torch.float32
    assert model.config.hidden_size // model.config.num_attention_heads >= 32
    assert model.generation_config.eos_token_id == model.config.eos_token_id


@pytest.mark.parametrize(("split", "size"), [("train", 349), ("test", 64)])
def test_parquet_has_verls_layout(prepared: Path, split: str, size: int) -> None:
    rows = pd.read_parquet(prepared / f"{split}.parquet").to_dict("records")
    assert len(rows) == size
    for index, row in enumerate(rows):
        assert set(row) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}
        assert row["data_source"] == "tiny_paths"
        assert row["extra_info"] == {"index": index, "split": split}
        assert row["reward_model"]["style"] == "rule"
        (message,) = row["prompt"]
        a, b = message["content"].removeprefix("What is ").removesuffix("?").split(" + ")
        assert message["role"] == "user"
        assert row["reward_model"]["ground_truth"] == str(int(a) + int(b))


# Cache


def test_intact_folder_is_reused_and_made_alike_elsewhere(prepared: Path, tmp_path: Path) -> None:
    before = (prepared / "manifest.json").stat().st_mtime_ns
    assert prepare(prepared, TINY) == prepared
    assert (prepared / "manifest.json").stat().st_mtime_ns == before
    again = prepare(tmp_path / "again", TINY)
    assert (again / "manifest.json").read_text() == (prepared / "manifest.json").read_text()


def test_manifest_lists_every_file(prepared: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    present = {path.relative_to(prepared).as_posix() for path in prepared.rglob("*") if path.is_file()}
    assert set(manifest["sha256"]) == present - {"manifest.json"}
    needed = {"train.parquet", "test.parquet", "model/model.safetensors", "model/generation_config.json"}
    assert needed <= present


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "manifest"])
def test_damaged_folder_is_made_again(tmp_path: Path, damage: str) -> None:
    folder = prepare(tmp_path / "made", TINY)
    weights, manifest = folder / "model" / "model.safetensors", folder / "manifest.json"
    content = weights.read_bytes()
    if damage == "flipped":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        weights.unlink()
    else:
        manifest.write_text(manifest.read_text()[:40])
    assert find_fault(folder, fingerprint(TINY)) is not None
    assert prepare(folder, TINY) == folder
    assert find_fault(folder, fingerprint(TINY)) is None
    assert weights.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == [".made.lock", "made"]


def test_left_overs_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".made.new-abc").mkdir()
    (tmp_path / ".made.new-abc" / "train.parquet").write_text("half")
    prepare(tmp_path / "made", TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".made.lock", "made"]


def test_failed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("tiny_paths.prepare.pretrain", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        prepare(tmp_path / "made", TINY)
    assert [path.name for path in tmp_path.iterdir()] == [".made.lock"]


@pytest.mark.parametrize("name", ["thesis.txt", "manifest.json"])
def test_folder_of_someone_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name).write_text("mine")
    (tmp_path / "site" / "notes.md").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.md, not made here"):
        prepare(tmp_path / "site", TINY)
    assert (tmp_path / "site" / name).read_text() == "mine"


def test_concurrent_callers_share_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with ThreadPoolExecutor(3) as pool:  # flock tells threads apart as it does processes
        made = list(pool.map(prepare, [folder] * 3, [TINY] * 3))
    assert made == [folder] * 3
    assert find_fault(folder, fingerprint(TINY)) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".made.lock", "made"]


def test_fingerprint_follows_the_settings_and_names_the_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fingerprint(TINY) != fingerprint(replace(TINY, seed=1))
    monkeypatch.setenv("VERL_DRA_CACHE", str(tmp_path))
    assert cache_root() == tmp_path / "tiny_paths"
    assert prepare(settings=TINY) == tmp_path / "tiny_paths" / fingerprint(TINY)


@pytest.mark.parametrize("of_each", [4, 8])
def test_a_validation_has_pass_at_8_where_there_are_8_samples(of_each: int) -> None:
    samples = [
        {"input": question, "output": f"{question} {i}", "acc": float(i < 2), "strategy": "plain"}
        for question in ("2 + 3", "4 + 5")
        for i in range(of_each)
    ]
    measured = validation(samples, lambda texts: torch.eye(len(texts)))
    assert measured["accuracy"] == 2 / of_each
    assert measured["effective_paths"] == pytest.approx(of_each)
    assert measured.get("pass@8") == (1.0 if of_each == 8 else None)
