"""Records of groups: what is written, what is left out, and what a disk, a kill or a tracker can do to them."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from full_disk import full_after
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from verl_dra.record import RecordConfig, Recorder, recorded_group, shortened, trackers


def recorder(folder: Path, **settings: Any) -> Recorder:
    return Recorder(RecordConfig(every_n_steps=1, folder=str(folder), **settings))


def group(text: str = "a text", step: int = 1, uid: str = "u") -> dict[str, Any]:
    numbers = {
        name: [0.5, math.nan] for name in ("reward", "adjusted", "smi", "weight", "advantage", "advantage_without")
    }
    return recorded_group("a prompt", [text, text], numbers, np.eye(2), 4000, step=step, uid=uid)


def put(writing: Recorder, step: int, groups: list[dict[str, Any]]) -> None:
    writing.put(step, len(groups), lambda: groups)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


@settings(max_examples=50)
@given(st.text(st.characters(codec=None) | st.sampled_from('\x00\ud800\u2028\n\r"\\'), max_size=40))
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("records")
    writing = recorder(folder)
    put(writing, 7, [group(text), group("second")])
    writing.close()
    first, second = read(folder / "7.jsonl")
    assert [c["text"] for c in first["completions"]] == [text, text]
    assert second["completions"][0]["text"] == "second"
    assert writing.counts() == {"recorded": 2, "unrecorded": 0, "thinned": 0}


def test_a_group_says_what_is_not_a_number() -> None:
    made = group()
    assert made["completions"][0] == {
        "text": "a text",
        "characters": 6,
        **dict.fromkeys(("reward", "adjusted", "smi", "weight", "advantage", "advantage_without"), 0.5),
    }
    assert made["completions"][1]["reward"] is None
    assert made["similarity"] == [[1.0, 0.0], [0.0, 1.0]]


@given(st.integers(0, 400), st.sampled_from("x\n[\ud800"), st.integers(100, 200))
def test_the_middle_of_a_long_text_is_left_out_and_counted(length: int, letter: str, most: int) -> None:
    text = "".join(f"{i}{letter}" for i in range(length))[:length]
    short = shortened(text, most)
    if len(text) <= most:
        assert short == text
        return
    half = most // 2
    middle = f"\n[... {len(text) - 2 * half} characters left out ...]\n"
    assert (short[:half], short[half:-half], short[-half:]) == (text[:half], middle, text[-half:])


def test_the_same_groups_are_sampled_whatever_their_order(tmp_path: Path) -> None:
    writing = recorder(tmp_path, groups=3)
    uids = [f"uid-{i}" for i in range(20)]
    sampled = writing.sample(uids * 4)
    assert sampled == writing.sample(reversed(uids))
    assert len(set(sampled)) == 3


def test_steps_are_recorded_as_often_as_told(tmp_path: Path) -> None:
    writing = Recorder(RecordConfig(every_n_steps=5, folder=str(tmp_path)))
    assert [step for step in range(1, 21) if writing.wants(step)] == [5, 10, 15, 20]


def test_a_full_folder_keeps_first_and_last_and_steps_between(tmp_path: Path) -> None:
    writing = recorder(tmp_path, max_bytes=2**16)
    counts: Counter[str] = Counter()
    for step in range(1, 41):
        put(writing, step, [group("x" * 1500, step) for _ in range(2)])
        while counts["recorded"] < 2 * step:
            counts.update(writing.counts())
    writing.close()
    counts.update(writing.counts())
    steps = sorted(int(path.stem) for path in tmp_path.glob("*.jsonl"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2**16
    assert (steps[0], steps[-1]) == (1, 40)
    assert np.diff(steps).max() <= 8, "the span is covered"
    assert (counts["recorded"], counts["recorded"] - counts["thinned"]) == (80, 2 * len(steps))


def test_a_run_killed_in_mid_write_leaves_whole_files(tmp_path: Path) -> None:
    # The kernel kills who writes more than it may to a file, in the middle of it.
    code = (
        "import resource, signal, sys\n"
        "from verl_dra.record import RecordConfig, Recorder\n"
        "r = Recorder(RecordConfig(every_n_steps=1, folder=sys.argv[1]))\n"
        "r._write(1, [{'text': 'x' * 200_000}] * 3)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "r._write(2, [{'text': 'x' * 200_000}] * 3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGXFSZ
    assert [path.name for path in tmp_path.glob("*.jsonl")] == ["1.jsonl"]
    assert [len(line["text"]) for line in read(tmp_path / "1.jsonl")] == [200_000] * 3
    again = recorder(tmp_path)  # and goes on where it was
    put(again, 2, [group()])
    again.close()
    assert read(tmp_path / "2.jsonl") == [group()]


def test_a_disk_that_is_full_in_mid_write_leaves_the_steps_that_are_there(tmp_path: Path) -> None:
    writing = recorder(tmp_path)
    put(writing, 1, [group()])
    writing.close()
    before = (tmp_path / "1.jsonl").read_bytes()
    again = recorder(tmp_path)
    with full_after(100):
        put(again, 1, [group("another")] * 2)
        again.close()
    assert again.counts() == {"recorded": 0, "unrecorded": 2, "thinned": 0}
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == {"1.jsonl": before}


def test_a_disk_that_fails_is_counted_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    writing = recorder(tmp_path / "file")
    for step in (1, 2):
        put(writing, step, [group()] * 3)
    writing.close()
    assert writing.counts() == {"recorded": 0, "unrecorded": 6, "thinned": 0}
    assert len([line for line in caplog.messages if "is not recorded" in line]) == 1


def test_what_can_t_be_made_is_counted_and_the_next_step_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> list[dict[str, Any]]:
        raise OverflowError("no such token")

    writing = recorder(tmp_path)
    writing.put(1, 3, make)
    put(writing, 2, [group()])
    writing.close()
    assert writing.counts() == {"recorded": 1, "unrecorded": 3, "thinned": 0}
    assert "step 1 is not recorded: OverflowError('no such token')" in caplog.text


def test_two_steps_stay_however_large_and_what_is_no_step_stays_too(tmp_path: Path) -> None:
    for name in ("notes.jsonl", "7.txt", "1.5.jsonl"):
        (tmp_path / name).write_text("x" * 2**16)
    writing = recorder(tmp_path, max_bytes=2**16)
    for step in (3, 5, 20):
        put(writing, step, [group("x" * 40_000, step)] * step)
    writing.close()
    assert {path.name for path in tmp_path.iterdir()} == {"notes.jsonl", "7.txt", "1.5.jsonl", "3.jsonl", "20.jsonl"}
    assert writing.counts() == {"recorded": 28, "unrecorded": 0, "thinned": 5}


def test_a_folder_may_be_as_large_as_it_may_be(tmp_path: Path) -> None:
    lines = [json.dumps(group("x" * 3000, step)) + "\n" for step in (1, 2, 3)]
    for texts, thinned in ({1: 3000, 2: 3000, 3: 3000}, 0), ({3: 3001}, 1):
        writing = recorder(tmp_path, max_bytes=sum(map(len, lines)))
        for step, length in texts.items():
            put(writing, step, [group("x" * length, step)])
        writing.close()
        assert writing.counts() == {"recorded": len(texts), "unrecorded": 0, "thinned": thinned}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.jsonl", "3.jsonl"]


def test_counts_are_told_once(tmp_path: Path) -> None:
    writing = recorder(tmp_path)
    writing.drop(1, 2, "of a reason")
    assert writing.counts() == {"recorded": 0, "unrecorded": 2, "thinned": 0}
    assert writing.counts() == {"recorded": 0, "unrecorded": 0, "thinned": 0}
    writing.close()


def test_the_end_waits_for_no_writer_that_stands_still(tmp_path: Path) -> None:
    let_go = threading.Event()

    def make() -> list[dict[str, Any]]:
        let_go.wait()
        return [group()]

    full, working = recorder(tmp_path / "full"), recorder(tmp_path / "working")
    for step in range(6):
        full.put(step, 1, make)
    working.put(0, 1, make)
    full.close(0.01)
    working.close(0.01)
    assert working.counts()["recorded"] == 0
    let_go.set()
    for each in (full, working):
        each.close()
    assert full.counts()["recorded"] >= 4
    assert working.counts()["recorded"] == 1


def test_without_a_folder_nothing_is_recorded() -> None:
    with pytest.raises(ValueError, match=r"dra\.record\.folder must be set before a run records"):
        Recorder(RecordConfig(every_n_steps=1))


def test_a_number_that_json_has_not_is_never_written(tmp_path: Path) -> None:
    writing = recorder(tmp_path)
    put(writing, 1, [group(), {"smi": math.nan}])
    writing.close()
    assert writing.counts() == {"recorded": 0, "unrecorded": 2, "thinned": 0}
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_step_never_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, stuck = threading.Event(), threading.Event()

    def fsync(_: int) -> None:
        stuck.set()
        let_go.wait()

    monkeypatch.setattr(os, "fsync", fsync)
    writing = recorder(tmp_path)
    put(writing, 0, [group()])
    stuck.wait()
    for step in range(1, 10):
        put(writing, step, [group()])
    assert writing.counts() == {"recorded": 0, "unrecorded": 5, "thinned": 0}
    let_go.set()
    writing.close()
    assert writing.counts()["recorded"] == 5


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"every_n_steps": -1}, "dra.record.every_n_steps must be 0 .no records. or more, not -1"),
        ({"groups": 0}, "dra.record.groups must be at least 1, not 0"),
        ({"max_characters": 5}, "dra.record.max_characters must be at least 100, not 5"),
        ({"max_bytes": 1}, "dra.record.max_bytes must be at least 65536, not 1"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RecordConfig(**setting).check()


def test_the_smallest_settings_are_taken() -> None:
    RecordConfig(every_n_steps=0, groups=1, max_characters=100, max_bytes=2**16).check()
    RecordConfig(every_n_steps=1).check()


def test_tensorboard_shows_the_groups(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    trackers.show(
        {"tensorboard": SimpleNamespace(writer=writer)}, 3, lambda: [group("one | *two*\n<b>three</b> \ud800")]
    )
    writer.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    (event,) = events.Tensors("dra/groups/text_summary")
    header, _, first, _ = event.tensor_proto.string_val[0].decode().split("\n")
    assert event.step == 3
    assert "| completion | reward |" in header
    assert r"one \| \*two\* \<b\>three\</b\> ?" in first
    assert "| 0.5 | 0.5 |" in first


@pytest.mark.slow
def test_wandb_gets_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="test", dir=str(tmp_path))
    trackers.show({"wandb": wandb}, 3, lambda: [group("a completion")])
    wandb.log({"other": 1.0}, step=3)  # as veRL does after it
    run.finish()
    (table,) = tmp_path.rglob("*.table.json")
    shown = json.loads(table.read_text())
    assert tuple(shown["columns"]) == trackers.COLUMNS
    assert shown["data"][0][:6] == [3, "u", "a prompt", "a completion", 0.5, 0.5]
    assert len(shown["data"]) == 2


def test_a_tracker_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def add_text(*_: Any) -> None:
        raise OSError("disk full")

    trackers.show({"tensorboard": SimpleNamespace(writer=SimpleNamespace(add_text=add_text))}, 1, lambda: [group()])
    assert "tensorboard did not take dra/groups of step 1: disk full" in caplog.text


def test_each_tracker_gets_the_groups_and_they_are_made_once(caplog: pytest.LogCaptureFixture) -> None:
    made: list[int] = []
    given: dict[str, Any] = {}

    def make() -> list[dict[str, Any]]:
        made.append(1)
        return [group("one"), group("two")]

    writer = SimpleNamespace(add_text=lambda name, text, step: given.update(text=text, step=step))
    wandb = SimpleNamespace(
        Table=lambda columns, data: (columns, data), log=lambda what, step: given.update(what, wandb_step=step)
    )
    trackers.show({"tensorboard": SimpleNamespace(writer=writer), "wandb": wandb, "console": None}, 4, make)
    assert made == [1]
    columns, rows = given["dra/groups"]
    assert columns == [*("step", "uid", "prompt", "completion", "reward", "adjusted"), *trackers.COLUMNS[6:]]
    assert [row[:5] for row in rows] == [
        [4, "u", "a prompt", text, reward] for text in ("one", "two") for reward in (0.5, None)
    ]
    assert (given["step"], given["wandb_step"]) == (4, 4)
    assert given["text"].splitlines()[1] == "| " + " | ".join(["---"] * 10) + " |"
    trackers.show({"console": None}, 4, make)
    assert made == [1]
    assert not caplog.messages
