"""`verl-dra prepare-data other`: sets by their columns, in the layouts in which the field publishes them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_dra.data import add_arguments, run

datasets = pytest.importorskip("datasets")

Row = dict[str, Any]
SOLUTION = r"First $\boxed{1}$, then so $\boxed{\frac12}$."
# Rows made up, columns as published.
PUBLISHED: dict[str, tuple[Row, tuple[str, ...]]] = {
    "agentica-org/DeepScaleR-Preview-Dataset": (
        {"problem": "p", "answer": r"\frac12", "solution": "so"},
        ("--answer-column", "answer", "--solution-column", "solution"),
    ),
    "POLARIS-Project/Polaris-Dataset-53K": (
        {"problem": "p", "answer": r"\frac12", "difficulty": "3/8"},
        ("--answer-column", "answer"),
    ),
    "AI-MO/NuminaMath-CoT": (
        {"source": "olympiads", "problem": "p", "solution": SOLUTION, "messages": [{"role": "user", "content": "p"}]},
        ("--solution-column", "solution"),
    ),
    "AI-MO/NuminaMath-1.5": (
        {"problem": "p", "solution": SOLUTION, "answer": r"\frac12", "problem_type": "Algebra"},
        ("--answer-column", "answer"),
    ),
    "SynthLabsAI/Big-Math-RL-Verified": (
        {"problem": "p", "answer": r"\frac12", "source": "orca_math", "domain": ["d"], "llama8b_solve_rate": 0.5},
        ("--answer-column", "answer"),
    ),
    "open-r1/OpenR1-Math-220k": (
        {"problem": "p", "solution": SOLUTION, "answer": r"\frac12", "generations": ["g"], "correctness_count": 1},
        ("--answer-column", "answer", "--solution-column", "solution"),
    ),
}


def prepare(tmp_path: Path, rows: Sequence[Row], *options: str) -> tuple[int, Path]:
    source = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), source)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["other", "--out", str(tmp_path / "out"), "--input", str(source), "--data-source", "math_dapo", *options]
    return run(parser.parse_args(words)), tmp_path / "out"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets_are_read_by_their_columns(tmp_path: Path, name: str) -> None:
    row, columns = PUBLISHED[name]
    status, out = prepare(tmp_path, [row], "--problem-column", "problem", *columns)
    assert status == 0
    (made,) = pq.read_table(out / "train.parquet").to_pylist()
    assert made["reward_model"] == {"style": "rule", "ground_truth": r"\frac12"}
    (message,) = made["prompt"]
    assert message["content"] == "p Let's think step by step and output the final answer within \\boxed{}."
    assert made["data_source"] == "math_dapo"
    assert made["extra_info"]["solution"] == (row["solution"] if "--solution-column" in columns else None)
    assert json.loads((out / "manifest.json").read_text())["arguments"]["problem_column"] == "problem"


def test_numbers_and_lists_of_one_are_answers_and_what_is_none_is_refused_with_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def jsonl(answers: Sequence[Any]) -> str:
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps({"q": f"p{i}", "a": a}) + "\n" for i, a in enumerate(answers)))
        return str(path)

    def call(answers: Sequence[Any], *options: str) -> int:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        columns = ("--problem-column", "q", "--answer-column", "a", "--data-source", "x")
        words = ["other", "--out", str(tmp_path / "out"), "--input", jsonl(answers), *columns, *options]
        return run(parser.parse_args(words))

    assert call([7, 2.5, 33.0, ["4"], "even"]) == 0
    made = pq.read_table(tmp_path / "out/train.parquet").to_pylist()
    assert [row["reward_model"]["ground_truth"] for row in made] == ["7", "2.5", "33", "4", "even"]
    assert call([None, float("nan"), [], ["1", "2"], True, {"a": 1}, "proof", "notfound", " "]) == 1
    said = capsys.readouterr().err
    reasons = [line.split(": ")[1] for line in said.splitlines() if line.startswith("  train.jsonl row")]
    assert reasons == [
        *["empty answer"] * 3,
        "several answers",
        *["wrong type"] * 2,
        *["no final answer"] * 2,
        "empty answer",
    ]


def test_a_set_comes_from_the_hub_by_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(*what: Any, **more: Any) -> Any:
        asked.append((*what, more["split"]))
        return datasets.Dataset.from_list([PUBLISHED["agentica-org/DeepScaleR-Preview-Dataset"][0]])

    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    columns = ("--problem-column", "problem", "--answer-column", "answer")
    words = ["other", "--repo", "agentica-org/DeepScaleR-Preview-Dataset", *columns, "--out", "DATA"]
    assert run(parser.parse_args(words)) == 0
    assert asked == [("agentica-org/DeepScaleR-Preview-Dataset", None, "train")]
    (made,) = pq.read_table("DATA/train.parquet").to_pylist()
    assert made["data_source"] == "agentica-org/DeepScaleR-Preview-Dataset"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["gsm8k", "--answer-column", "a"], "are for the set other; gsm8k has its own"),
        (["other", "--problem-column", "p", "--input", "f"], "other needs --problem-column, and --answer-column or"),
        (["other", "--problem-column", "p", "--answer-column", "a"], "other needs --input or --repo"),
        (["other", "--problem-column", "p", "--answer-column", "a", "--input", "f"], "--input needs --data-source"),
    ],
)
def test_half_a_description_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args([*words, "--out", "out"])) == 2
    assert says in capsys.readouterr().err


def test_columns_that_are_not_there_are_said_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = prepare(
        tmp_path, [{"question": "p", "answer": "1"}], "--problem-column", "q", "--answer-column", "answer"
    )
    assert status == 1
    assert "missing columns: other has q, answer; there are question, answer" in capsys.readouterr().err
