"""The metrics in a run's folder: whole, in parts, torn, and with whatever else can stand there."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from verl_dra.main import _set_aside
from verl_dra.record.history import read_history


def line(step: Any, **data: Any) -> bytes:
    return json.dumps({"step": step, "data": data}).encode() + b"\n"


def test_a_step_that_was_trained_again_counts_as_it_was_last_in_however_many_parts(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    for part in range(12):
        _set_aside(metrics)
        again = line(8, other=part) if part < 11 else b""
        metrics.write_bytes(line(7, reward=part) + again + line(part, **{f"only/{part}": 1.0}))
        history = read_history(tmp_path)
        assert history.values["reward"] == {7: part}
        assert history.last_step == part
        assert len(history.values) == part + 3
    assert history.values["other"] == {8: 10}
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.jsonl",
        *(f"metrics.{n}.jsonl" for n in range(1, 12)),
    }


def test_what_is_beside_the_parts_is_none(tmp_path: Path) -> None:
    for name in ("metrics.copy.jsonl", "metrics.\u00b2.jsonl", "metrics.-1.jsonl", "metrics..jsonl"):
        (tmp_path / name).write_bytes(line(1, reward=9.0))
    (tmp_path / "metrics.3.jsonl").write_bytes(line(1, reward=1.0))
    (tmp_path / "metrics.jsonl").write_bytes(line(2, reward=2.0))
    assert read_history(tmp_path).values == {"reward": {1: 1.0, 2: 2.0}}
    assert read_history(tmp_path).last == {"reward": 2.0}


def test_what_is_no_finite_number_is_no_value(tmp_path: Path) -> None:
    values = {"nan": math.nan, "inf": math.inf, "text": "1", "none": None, "list": [1], "int": 3, "large": 10**400}
    (tmp_path / "metrics.jsonl").write_bytes(line(1, **values) + line(0, int=2))
    history = read_history(tmp_path)
    assert history.values == {"int": {0: 2.0, 1: 3.0}}
    assert (history.last, history.last_step, history.unreadable) == ({"int": 3.0}, 0, 0)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["step", "data", "x"]), inner),
    max_leaves=5,
)
JUNK = st.one_of(
    st.binary(min_size=1, max_size=20),
    JSON.map(lambda value: json.dumps(value).encode()),
    JSON.map(lambda value: json.dumps({"step": value, "data": value}).encode()),
    st.sampled_from([b'{"step": 1e999, "data": {}}', b'{"step": 1, "data": {"a": 1', b"[" * 9000, b"\0" * 30]),
).map(lambda junk: junk.replace(b"\n", b"?").replace(b"\r", b"?"))


@settings(max_examples=50)
@given(st.lists(JUNK, max_size=6), st.lists(JUNK, max_size=3))
def test_whatever_stands_between_them_no_whole_line_is_lost(junk: list[bytes], earlier: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        for file, lines, first in (("metrics.1.jsonl", earlier, 100), ("metrics.jsonl", junk, 200)):
            whole = [line(first + i, reward=i / 8) for i in range(len(lines) + 1)]
            between = [torn + b"\n" for torn in lines] + [b""]
            Path(name, file).write_bytes(b"".join(b"".join(pair) for pair in zip(whole, between, strict=True)))
        history = read_history(Path(name))
    for first, lines in ((100, earlier), (200, junk)):
        for i in range(len(lines) + 1):
            assert history.values["reward"][first + i] == i / 8
    for of_step in history.values.values():
        assert list(of_step) == sorted(of_step)
        assert all(math.isfinite(value) for value in of_step.values())
