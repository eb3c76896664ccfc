"""`verl-dra prepare-data`: every published layout through the command line and back through veRL's own dataset."""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from full_disk import full_after
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from verl_dra.data import add_arguments, run
from verl_dra.data.answers import after_hashes, last_boxed
from verl_dra.data.output import write_folder
from verl_dra.data.problem import BadRowError, DataError
from verl_dra.data.prompts import ANSWER_LINE, PAPER

datasets = pytest.importorskip("datasets")
pytest.importorskip("verl")

Row = dict[str, Any]
Prepare = Callable[..., tuple[int, str, str]]

OPEN_RS = [
    {
        "problem": f"What is {n} + {n}?",
        "solution": f"It is $\\boxed{{{2 * n}}}$.",
        "answer": str(2 * n),
        "level": "Easy",
    }
    for n in range(12)
]
GSM8K = [
    {"question": "How many clips?", "answer": "48/2 = <<48/2=24>>24\n#### 1,024"},
    {"question": "How much colder?", "answer": "It falls.\n#### -3.5"},
]
MATH = [
    {"problem": "Halve $x$.", "level": "Level 5", "type": "Algebra", "solution": r"So $\boxed{\frac{x}{2}}$."},
    {"problem": "Which set?", "level": "Level 1", "type": "Geometry", "solution": r"Not $\boxed{1}$: $\fbox{\{2\}}$"},
]


@pytest.fixture
def prepare(capsys: pytest.CaptureFixture[str]) -> Prepare:
    """Runs the command line; gives (status, stdout, stderr)."""

    def call(*options: str | Path) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        status = run(parser.parse_args([str(option) for option in options]))
        return (status, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that nothing is unknown to it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens)
    fast.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    return fast


@pytest.fixture
def read_by_verl(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Row]]:
    """What veRL's own dataset makes of files."""
    from verl.utils.dataset.rl_dataset import RLHFDataset

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")

    def read(*files: Path) -> list[Row]:
        config = OmegaConf.create(
            {"cache_dir": str(tmp_path / "verl"), "max_prompt_length": 4096, "filter_overlong_prompts_workers": None}
        )
        rows = RLHFDataset([str(file) for file in files], tokenizer=tokenizer, config=config)
        return [rows[i] for i in range(len(rows))]

    return read


def dapo(problem: str, answer: str, index: str = "9a9b") -> Row:
    prompt = {"content": f"{ANSWER_LINE.before}{problem}{ANSWER_LINE.after}", "role": "user"}
    return {
        "data_source": "math_dapo",
        "prompt": [prompt],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": index},
    }


def parquet(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_open_rs_is_read_by_verl_with_the_papers_prompt(
    prepare: Prepare, read_by_verl: Callable[..., list[Row]], tmp_path: Path
) -> None:
    source = parquet(tmp_path / "open-rs/data/train-00000-of-00001.parquet", OPEN_RS)
    status, out, err = prepare("open_rs", "--out", tmp_path / "out", "--input", tmp_path / "open-rs")
    assert (status, err) == (0, "")
    assert out.splitlines()[2].split() == ["train", "12", "0", "0", "12"]
    rows = read_by_verl(tmp_path / "out/train.parquet")
    assert len(rows) == 12
    row = rows[3]
    assert [message["role"] for message in row["raw_prompt"]] == ["system", "user"]
    assert row["raw_prompt"][0]["content"].startswith("A conversation between User and Assistant.")
    assert (
        "within \\boxed{{}} . The reasoning process and answer are enclosed within <think> </think> and <answer>"
        in (row["raw_prompt"][0]["content"])
    )
    assert row["raw_prompt"][1]["content"] == "What is 3 + 3?"
    assert row["data_source"] == "knoveleng/open-rs"
    assert row["reward_model"] == {"style": "rule", "ground_truth": "6"}
    assert row["index"] == 3
    assert row["extra_info"]["split"] == "train"
    assert row["extra_info"]["level"] == "Easy"
    assert row["extra_info"]["solution"] == "It is $\\boxed{6}$."
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert manifest["source"]["files"] == [
        {"name": "data/train-00000-of-00001.parquet", "split": "train", "sha256": digest}
    ]
    assert manifest["counts"]["train"] == {"read": 12, "duplicates": 0, "bad": {}}
    assert manifest["files"] == {
        "train.parquet": hashlib.sha256((tmp_path / "out/train.parquet").read_bytes()).hexdigest()
    }


def test_verl_grades_the_right_answer_of_each_set_as_right(
    prepare: Prepare, read_by_verl: Callable[..., list[Row]], tmp_path: Path
) -> None:
    """data_source and ground_truth are those that veRL's own graders want (open_rs has none there)."""
    from verl.utils.reward_score import default_compute_score

    parquet(tmp_path / "gsm8k/main/train-00000-of-00001.parquet", GSM8K)
    parquet(tmp_path / "gsm8k/socratic/train-00000-of-00001.parquet", GSM8K)
    parquet(tmp_path / "math/algebra/train-00000-of-00001.parquet", MATH[:1])
    parquet(tmp_path / "math/geometry/train-00000-of-00001.parquet", MATH[1:])
    parquet(tmp_path / "dapo/data/dapo-math-17k.parquet", [dapo("What is 6 * 7?", "42")])
    said = {
        "gsm8k": ("The answer is\n#### 1,024", "so\n#### -3.5"),
        "math": (r"it is $\boxed{\frac{x}{2}}$", r"it is $\boxed{\{2\}}$"),
        "dapo_math": ("I see.\nAnswer: 42",),
    }
    for name, folder in (("gsm8k", "gsm8k"), ("math", "math"), ("dapo_math", "dapo")):
        status, out, _ = prepare(name, "--out", tmp_path / "out" / name, "--input", tmp_path / folder)
        rows = str(len(said[name]))
        assert (status, out.splitlines()[2].split()) == (0, ["train", rows, "0", "0", rows])
    files = [tmp_path / "out" / name / "train.parquet" for name in said]
    rows = read_by_verl(*files)  # and all sets have one schema
    assert len(rows) == 5
    for row, text in zip(rows, [text for texts in said.values() for text in texts], strict=True):
        for answer, good in ((text, True), ("#### 7 \\boxed{7}\nAnswer: 7", False)):
            score = default_compute_score(row["data_source"], answer, row["reward_model"]["ground_truth"])
            assert ((score["score"] if isinstance(score, dict) else score) == 1.0) is good, (row, answer)
    assert rows[0]["raw_prompt"] == [
        {
            "role": "user",
            "content": 'How many clips? Let\'s think step by step and output the final answer after "####".',
        }
    ]
    assert rows[2]["raw_prompt"][0]["content"].endswith("output the final answer within \\boxed{}.")
    assert (rows[3]["extra_info"]["level"], rows[3]["extra_info"]["subject"]) == ("Level 1", "Geometry")


def test_dapo_keeps_one_row_of_a_prompt_and_counts_the_others(
    prepare: Prepare, read_by_verl: Callable[..., list[Row]], tmp_path: Path
) -> None:
    rows = [dapo(f"Problem {n % 7}?", str(n % 7), index=str(n)) for n in range(2500)]
    source = parquet(tmp_path / "dapo-math-17k.parquet", rows)
    status, out, _ = prepare("dapo_math", "--out", tmp_path / "out", "--input", source)
    assert status == 0
    assert out.splitlines()[2].split() == ["train", "2,500", "2,493", "0", "7"]
    read = read_by_verl(tmp_path / "out/train.parquet")
    assert [row["raw_prompt"] for row in read] == [
        [{"role": "user", "content": row["prompt"][0]["content"]}] for row in rows[:7]
    ]
    assert [(row["index"], row["extra_info"]["source_index"]) for row in read] == [(n, str(n)) for n in range(7)]


def test_dapo_flat_layout_gives_the_rows_of_verls_layout(prepare: Prepare, tmp_path: Path) -> None:
    rows = [dapo("What is 6 * 7?", "42"), dapo("What is 1 + 1?", "2")]
    flat = [
        {**row, "prompt": problem, "solution": row["reward_model"]["ground_truth"], "source_prompt": row["prompt"]}
        for row, problem in zip(rows, ("What is 6 * 7?", rows[1]["prompt"][0]["content"]), strict=True)
    ]
    parquet(tmp_path / "processed/all/train-00000-of-00001.parquet", flat)
    parquet(tmp_path / "processed/en/train-00000-of-00001.parquet", flat)
    parquet(tmp_path / "verl.parquet", rows)
    for prompt in ("customary", "paper", "none"):
        tables = []
        for name in ("processed", "verl.parquet"):
            out = tmp_path / f"out-{prompt}-{name}"
            options = ("--out", out, "--input", tmp_path / name, "--system-prompt", prompt)
            status, text, _ = prepare("dapo_math", *options)
            assert (status, text.splitlines()[2].split()) == (0, ["train", "2", "0", "0", "2"])
            tables.append(pq.read_table(out / "train.parquet").drop(["extra_info"]).to_pylist())
        assert tables[0] == tables[1]
        messages = tables[0][0]["prompt"]
        assert messages[-1]["content"] == (
            rows[0]["prompt"][0]["content"] if prompt == "customary" else "What is 6 * 7?"
        )
        assert [message["content"] for message in messages[:-1]] == ([PAPER.system] if prompt == "paper" else [])


BAD = {
    "open_rs": (
        OPEN_RS[:2],
        [
            ({**OPEN_RS[2], "problem": " \n"}, "empty problem"),
            ({**OPEN_RS[2], "answer": None}, "empty answer"),
            ({**OPEN_RS[2], "answer": 4}, "wrong type"),
            ({key: OPEN_RS[2][key] for key in ("problem", "answer")}, "missing columns"),
            ({**OPEN_RS[1], "answer": "3"}, "another answer to the same problem"),
            ({**OPEN_RS[2], "problem": "\ud800"}, "not Unicode"),
            ("{broken", "not JSON"),
            ('["a list"]', "wrong type"),
        ],
    ),
    "gsm8k": (
        GSM8K,
        [
            ({"question": "a", "answer": "24"}, "no ####"),
            ({"question": "a", "answer": "#### "}, "empty answer"),
            ({"question": "a", "answer": "#### many"}, "no number after ####"),
            ({"question": "a", "answer": "#### 12,34"}, "no number after ####"),
            ({"question": "a", "answer": "#### 1,2345"}, "no number after ####"),
            ({"question": "", "answer": "#### 1"}, "empty problem"),
        ],
    ),
    "math": (
        MATH,
        [
            ({**MATH[0], "problem": "a", "solution": "It is 5."}, r"no \boxed"),
            ({**MATH[0], "problem": "a", "solution": r"$\boxed{1}$ or $\boxed{\frac{1}{2}$"}, "unbalanced braces"),
            ({**MATH[0], "problem": "a", "solution": r"$\boxed{ }$"}, "empty answer"),
            ({**MATH[0], "problem": "a", "solution": r"The answer is \boxed here."}, "box without braces"),
            ({**MATH[0], "problem": "a", "solution": r"So \boxed 5 is the answer"}, "box without braces"),
            ({**MATH[0], "problem": "a", "solution": r"So \boxed ."}, "empty answer"),
        ],
    ),
    "dapo_math": (
        [dapo("p", "1")],
        [
            (dapo("p", "2"), "another answer to the same problem"),
            (dapo(" ", "2"), "empty problem"),
            ({**dapo("q", "2"), "prompt": "q"}, "wrong type"),
            ({**dapo("q", "2"), "reward_model": "2"}, "wrong type"),
            ({**dapo("q", "2"), "prompt": [{"role": "assistant", "content": "q"}]}, "unknown prompt"),
            ({**dapo("q", "2"), "prompt": [{"role": "user", "content": f"{ANSWER_LINE.before}q"}]}, "unknown prompt"),
        ],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_refused_then_skipped_and_listed(prepare: Prepare, tmp_path: Path, name: str) -> None:
    good, bad = BAD[name]
    source = jsonl(tmp_path / "train.jsonl", [*good, *(row for row, _ in bad)])
    status, out, err = prepare(name, "--out", tmp_path / "out", "--input", source)
    assert (status, out) == (1, "")
    assert f"{len(bad)} of {len(good) + len(bad)} rows are bad" in err
    for number, (_, reason) in enumerate(bad, len(good) + 1):
        assert f"train.jsonl row {number}: {reason}: " in err
    assert not (tmp_path / "out").exists()

    status, out, _ = prepare(name, "--out", tmp_path / "out", "--input", source, "--skip-bad")
    assert status == 0
    rows = str(len(good) + len(bad)), "0", str(len(bad)), str(len(good))
    assert out.splitlines()[2].split() == ["train", *rows]
    listed = json.loads((tmp_path / "out/bad_rows.json").read_text())
    assert [(row["file"], row["row"], row["reason"]) for row in listed] == [
        ("train.jsonl", number, reason) for number, (_, reason) in enumerate(bad, len(good) + 1)
    ]
    counts = json.loads((tmp_path / "out/manifest.json").read_text())["counts"]["train"]["bad"]
    assert sum(counts.values()) == len(bad)
    assert all(reason in out for reason in counts)
    assert pq.read_table(tmp_path / "out/train.parquet").num_rows == len(good)


def test_a_set_of_several_batches_is_written_once_and_in_its_order(prepare: Prepare, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "train.jsonl", [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(2100)])
    assert prepare("gsm8k", "--out", tmp_path / "out", "--input", source)[0] == 0
    rows = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert [row["reward_model"]["ground_truth"] for row in rows] == [str(n) for n in range(2100)]
    assert [row["extra_info"]["index"] for row in rows] == list(range(2100))


def test_only_the_first_ten_bad_rows_are_shown(prepare: Prepare, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "train.jsonl", [*GSM8K, *[{"question": f"{n}?", "answer": "?"} for n in range(25)]])
    _, _, err = prepare("gsm8k", "--out", tmp_path / "out", "--input", source)
    assert "25 of 27 rows are bad (25 no ####)" in err
    assert err.count("train.jsonl row ") == 10
    assert "and 15 more" in err
    assert prepare("gsm8k", "--out", tmp_path / "out", "--input", source, "--skip-bad")[0] == 0
    assert len(json.loads((tmp_path / "out/bad_rows.json").read_text())) == 25


def test_skipping_every_row_is_an_error(prepare: Prepare, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "train.jsonl", [{"question": "a", "answer": "24"}])
    status, _, err = prepare("gsm8k", "--out", tmp_path / "out", "--input", source, "--skip-bad")
    assert status == 1
    assert "no row of train is left" in err
    assert not (tmp_path / "out").exists()


def test_a_parquet_file_without_the_columns_is_refused_with_those_it_has(prepare: Prepare, tmp_path: Path) -> None:
    source = parquet(tmp_path / "train.parquet", GSM8K)
    status, _, err = prepare("open_rs", "--out", tmp_path / "out", "--input", source, "--skip-bad")
    assert status == 1
    assert (
        "train.parquet: missing columns: open_rs has problem, solution, answer, level; there are question, ans" in err
    )


@pytest.mark.parametrize("suffix", [".parquet", ".json"])
def test_an_unreadable_file_is_named(prepare: Prepare, tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"train{suffix}"
    source.write_text("PAR1 or JSON, but neither\n")
    status, _, err = prepare("gsm8k", "--out", tmp_path / "out", "--input", source)
    assert status == 1
    assert f"train{suffix}" in err


def test_json_may_be_a_list_lines_or_one_problem_a_file(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "list").mkdir()
    (tmp_path / "list/train.json").write_text(json.dumps(MATH, indent=1))
    jsonl(tmp_path / "lines/train.json", MATH)
    for number, row in enumerate(MATH):
        for split in ("train", "test"):
            path = tmp_path / f"release/MATH/{split}/{row['type'].lower()}/{number}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(row, indent=number))
    tables = []
    for folder in ("list", "lines", "release"):
        out = tmp_path / "out" / folder
        status, text, err = prepare("math", "--out", out, "--input", tmp_path / folder)
        assert (status, err) == (0, "")
        tables.append(pq.read_table(out / "train.parquet").to_pylist())
    assert tables[0] == tables[1] == tables[2]
    assert "2 problems are in train and in test" in text
    assert pq.read_table(out / "test.parquet").num_rows == 2


def test_splits_are_told_by_name_and_chosen_by_option(prepare: Prepare, tmp_path: Path) -> None:
    jsonl(tmp_path / "in/train.jsonl", GSM8K)
    jsonl(tmp_path / "in/test.jsonl", GSM8K[:1])
    (tmp_path / "in/dataset_infos.json").write_text("{}")
    assert prepare("gsm8k", "--out", tmp_path / "both", "--input", tmp_path / "in")[0] == 0
    assert set(contents(tmp_path / "both")) == {"train.parquet", "test.parquet", "manifest.json"}
    assert prepare("gsm8k", "--out", tmp_path / "one", "--input", tmp_path / "in", "--split", "test")[0] == 0
    assert set(contents(tmp_path / "one")) == {"test.parquet", "manifest.json"}
    unnamed = jsonl(tmp_path / "data.jsonl", GSM8K)
    status, _, err = prepare("gsm8k", "--out", tmp_path / "unnamed", "--input", unnamed)
    assert status == 1
    assert "data.jsonl may be train or test" in err
    assert prepare("gsm8k", "--out", tmp_path / "unnamed", "--input", unnamed, "--split", "test")[0] == 0
    both = jsonl(tmp_path / "train/train_test.jsonl", GSM8K)
    status, _, err = prepare("gsm8k", "--out", tmp_path / "both-words", "--input", both)
    assert status == 1
    assert "train_test.jsonl may be train or test" in err


def test_held_out_rows_are_the_same_whatever_the_order(prepare: Prepare, tmp_path: Path) -> None:
    def held_out(rows: Sequence[Row], *options: str) -> set[str]:
        source = parquet(tmp_path / "open-rs.parquet", rows)
        assert prepare("open_rs", "--out", tmp_path / "out", "--input", source, "--overwrite", *options)[0] == 0
        val, train = (pq.read_table(tmp_path / f"out/{name}.parquet").to_pylist() for name in ("val", "train"))
        problems = [row["prompt"][1]["content"] for row in val]
        assert sorted(problems + [row["prompt"][1]["content"] for row in train]) == sorted(r["problem"] for r in rows)
        for part in (val, train):
            assert [row["extra_info"]["index"] for row in part] == sorted(row["extra_info"]["index"] for row in part)
            assert all(r["prompt"][1]["content"] == rows[r["extra_info"]["index"]]["problem"] for r in part)
        return set(problems)

    first = held_out(OPEN_RS, "--val", "4", "--seed", "1")
    assert len(first) == 4
    assert held_out(OPEN_RS[::-1], "--val", "4", "--seed", "1") == first
    assert held_out(OPEN_RS, "--val", "4") != first


def test_the_same_input_gives_the_same_bytes_and_other_output_is_kept(prepare: Prepare, tmp_path: Path) -> None:
    source, out = parquet(tmp_path / "a/train.parquet", OPEN_RS), tmp_path / "out"
    other = parquet(tmp_path / "b/train.parquet", OPEN_RS)
    prepare("open_rs", "--out", out, "--input", source, "--val", "2")
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    assert set(before) == {"train.parquet", "val.parquet", "manifest.json", "notes.txt"}

    status, text, _ = prepare("open_rs", "--out", out, "--input", other, "--val", "2", "--seed", "0")
    assert status == 0
    assert "(unchanged)" in text
    assert contents(out) == before

    status, text, err = prepare("open_rs", "--out", out, "--input", source)
    assert (status, text) == (1, "")
    assert "holds another manifest.json, train.parquet, val.parquet" in err
    assert "--overwrite" in err
    assert contents(out) == before

    assert prepare("open_rs", "--out", out, "--input", source, "--overwrite")[0] == 0
    after = contents(out)
    assert set(after) == {"train.parquet", "manifest.json", "notes.txt"}
    assert after["train.parquet"] != before["train.parquet"]


def test_a_failed_write_leaves_what_was_there(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = parquet(tmp_path / "train.parquet", OPEN_RS), tmp_path / "out"
    assert prepare("open_rs", "--out", out, "--input", source)[0] == 0
    before = contents(out)

    def fail(table: pa.Table, path: Path) -> None:
        path.write_bytes(b"half a fi")
        raise OSError("disk is full")

    monkeypatch.setattr(pq, "write_table", fail)
    status, _, err = prepare("open_rs", "--out", out, "--input", source, "--val", "2", "--overwrite")
    assert status == 1
    assert "disk is full" in err
    assert contents(out) == before


def test_a_disk_that_is_full_in_mid_write_leaves_what_was_there(prepare: Prepare, tmp_path: Path) -> None:
    source, out = jsonl(tmp_path / "train.jsonl", GSM8K), tmp_path / "out"
    assert prepare("gsm8k", "--out", out, "--input", source)[0] == 0
    before = contents(out)
    size = len(before["train.parquet"])
    # In the middle of the table, and of the manifest, which is shorter.
    for room in (size // 2, len(before["manifest.json"]) // 2):
        with full_after(room):
            status, _, err = prepare("gsm8k", "--out", out, "--input", source, "--system-prompt", "none", "--overwrite")
        assert status == 1
        assert "File too large" in err
        assert contents(out) == before


@pytest.mark.parametrize("moved", range(3))
def test_a_run_that_ends_while_it_replaces_files_leaves_no_manifest_that_vouches_for_others(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    for name in ("train", "test"):
        jsonl(tmp_path / "in" / f"{name}.jsonl", GSM8K)
    out, replace, done = tmp_path / "out", Path.replace, []
    assert prepare("gsm8k", "--out", out, "--input", tmp_path / "in")[0] == 0

    def ends(self: Path, target: Path) -> Path:
        if len(done) == moved:
            raise OSError("out of quota")
        done.append(target)
        return replace(self, target)

    again = ("gsm8k", "--out", out, "--input", tmp_path / "in", "--system-prompt", "none", "--overwrite")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", ends)
        assert prepare(*again)[0] == 1
    assert set(contents(out)) == {"train.parquet", "test.parquet"}
    assert prepare(*again)[0] == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["files"] == {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in ("test.parquet", "train.parquet")
    }


@pytest.mark.parametrize("named", ["../mine.txt", "{mine}", "..", ".", "", "sub/mine.txt", 7, None, ["mine.txt"]])
def test_a_manifest_gives_no_file_outside_its_folder_away(prepare: Prepare, tmp_path: Path, named: Any) -> None:
    source, out = jsonl(tmp_path / "train.jsonl", GSM8K), tmp_path / "out"
    mine = [tmp_path / "mine.txt", out / "sub" / "mine.txt"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    named = str(mine[0]) if named == "{mine}" else named
    files = [named] if isinstance(named, (list, int, type(None))) else {named: "0" * 64}
    (out / "manifest.json").write_text(json.dumps({"files": files}))
    status, _, err = prepare("gsm8k", "--out", out, "--input", source, "--overwrite")
    assert (status, err) == (0, "")
    assert [path.read_text() for path in mine] == ["mine"] * 2


MANIFESTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["train.parquet"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["files", "x", "../x"]), inner),
    max_leaves=6,
)


@settings(max_examples=50)
@given(
    content=MANIFESTS.map(lambda value: json.dumps(value).encode())
    | MANIFESTS.map(lambda value: json.dumps({"files": value}).encode())
    | st.binary(max_size=20)
    | st.just(100_000).map(lambda deep: b"[" * deep)
)
def test_whatever_stands_in_a_manifest_files_that_differ_are_kept(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "out")
        folder.mkdir()
        Path(name, "x").write_text("mine")
        (folder / "manifest.json").write_bytes(content)
        table = pa.table({"a": [1]})
        with pytest.raises(DataError, match=r"holds another manifest\.json"):
            write_folder(folder, {"train": table}, [], {}, overwrite=False)
        assert (folder / "manifest.json").read_bytes() == content
        assert write_folder(folder, {"train": table}, [], {}, overwrite=True)
        assert not write_folder(folder, {"train": table}, [], {}, overwrite=False)
        assert Path(name, "x").read_text() == "mine"


def test_without_the_hub_the_error_says_what_to_do(prepare: Prepare, tmp_path: Path) -> None:
    status, _, err = prepare("gsm8k", "--out", tmp_path / "out", "--revision", "e53f048")
    assert status == 1
    assert "HF_HUB_OFFLINE is set; unset it" in err
    assert "hf download openai/gsm8k --repo-type dataset --revision e53f048" in err
    assert "--input DIR" in err


def test_the_hub_is_read_at_one_commit(prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def dataset_info(self: Any, repo: str, revision: str | None) -> Any:
        asked.append((repo, revision))
        return SimpleNamespace(sha="c0ffee")

    def load_dataset(repo: str, config: str | None, split: str, revision: str) -> Any:
        asked.append((repo, config, split, revision))
        rows = [{**row, "problem": f"{config}: {row['problem']}", "more": 1} for row in MATH]
        return datasets.Dataset.from_list([*rows, {**rows[0], "problem": "b", "solution": "?"}])

    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = ("--repo", "EleutherAI/hendrycks_math", "--revision", "v1", "--split", "test")
    status, _, err = prepare("math", "--out", tmp_path / "out", *hub)
    assert status == 1
    assert r"EleutherAI/hendrycks_math/algebra/test row 3: no \boxed" in err
    assert asked[0] == ("EleutherAI/hendrycks_math", "v1")
    assert [call[1:] for call in asked[1:3]] == [
        ("algebra", "test", "c0ffee"),
        ("counting_and_probability", "test", "c0ffee"),
    ]
    assert prepare("math", "--out", tmp_path / "out", *hub, "--skip-bad")[0] == 0
    assert pq.read_table(tmp_path / "out/test.parquet").num_rows == 14
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["source"]["revision"] == "c0ffee"
    assert manifest["arguments"]["revision"] == "v1"

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(TimeoutError("no answer")))
    status, _, err = prepare("gsm8k", "--out", tmp_path / "gsm8k")
    assert status == 1
    assert "openai/gsm8k can't be loaded from the hub (TimeoutError: no answer); fetch it where" in err


def test_the_front_pages_set_comes_from_the_hub(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(GSM8K))
    monkeypatch.chdir(tmp_path)
    status, _, err = prepare("gsm8k", "--out", "DATA")
    assert (status, err) == (0, "")
    assert {path.name for path in Path("DATA").iterdir()} == {"train.parquet", "test.parquet", "manifest.json"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["open_rs", "--split", "test"], "--split test: open_rs has train only"),
        (["open_rs", "--seed", "1"], "--seed chooses the rows of --val"),
        (["open_rs", "--val", "0"], "--val must be at least 1"),
        (["gsm8k", "--val", "1", "--split", "test"], "add train to --split"),
        (["gsm8k", "--repo", "openai/gsm9k"], "gsm8k is openai/gsm8k"),
        (["gsm8k", "--repo", "openai/gsm8k", "--input", "in"], "give one of them"),
        (["gsm8k", "--revision", "main", "--input", "in"], "known by their SHA-256"),
        (["gsm8k", "--input", "out"], "is an --input"),
    ],
)
def test_impossible_options_end_with_status_2(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = prepare(*options, "--out", "out")
    assert (status, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--input", "nowhere"], "no such file or folder"),
        (["--input", "empty"], "no .parquet, .jsonl, .json, .csv file is in it"),
        (["--input", "notes.txt"], "only .parquet, .jsonl, .json, .csv files"),
        (["--input", "train.jsonl", "--split", "test"], "no test file of gsm8k"),
        (["--input", "train.jsonl", "--val", "2"], "would leave nothing of the 2 rows"),
        (["--input", "test.jsonl", "--val", "1"], "there is no train file"),
    ],
)
def test_unusable_input_ends_with_status_1(
    prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    jsonl(tmp_path / "train.jsonl", GSM8K)
    jsonl(tmp_path / "test.jsonl", GSM8K)
    status, out, err = prepare("gsm8k", "--out", "out", *options)
    assert (status, out) == (1, "")
    assert said in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"$\boxed{5}$, not \boxed{6}", "6"),
        (r"\boxed{\frac{1}{\sqrt{2}}} cm", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),
        (r"$\boxed 5$ of 8", "5"),
        (r"\[\boxed\frac12\]", r"\frac12"),
        (r"$\fbox{7}$", "7"),
        (r"It is \boxed 12.", "12"),
        (r"$\boxed x + 1$, so", "x + 1"),
        (r"$\boxed\text{even}$", r"\text{even}"),
        (r"\boxed  {  x }", "x"),
    ],
)
def test_the_last_box_is_the_answer(solution: str, answer: str) -> None:
    assert last_boxed(solution) == answer


def test_a_box_needs_its_own_closing_brace() -> None:
    with pytest.raises(BadRowError, match="unbalanced braces"):
        last_boxed(r"\boxed{\{2\}")


def test_the_number_after_hashes_has_no_commas() -> None:
    assert [after_hashes(f"so #### {text}") for text in ("1,234,567", " -2.50 ", ".5", "5.")] == [
        "1234567",
        "-2.50",
        ".5",
        "5",
    ]
