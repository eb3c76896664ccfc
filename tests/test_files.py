"""The one reader of rows: the same rows of every format, and what can't be read told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from verl_dra.evaluate.generations import read
from verl_dra.files import Unreadable, UnreadableFileError, lines, rows
from verl_dra.report.groups import dumped

ROWS: list[dict[str, Any]] = [{"a": 'one\u2028line, "two"\r\n', "b": "ä"}, {"a": "", "b": "\x85"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
BOM = "\ufeff"
WRITTEN = {
    "lines.jsonl": LINES,
    "lines.json": LINES,
    "bom.jsonl": BOM + LINES,
    "bom.json": BOM + LINES,
    "windows.jsonl": LINES.replace("\n", "\r\n"),
    "apart.json": "\n\n" + LINES.replace("\n", "\n\n"),
    "array.json": json.dumps(ROWS),
    "array.jsonl": json.dumps(ROWS),
    "indented.json": json.dumps(ROWS, indent=1),
    "indented.jsonl": json.dumps(ROWS, indent=1),
    "bom_array.json": BOM + json.dumps(ROWS, indent=1),
    "quoted.csv": pd.DataFrame(ROWS).to_csv(index=False),
    "bom.csv": BOM + pd.DataFrame(ROWS).to_csv(index=False),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_same_rows_come_of_every_way_to_write_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WRITTEN[name].encode())
    assert [content for _, content in rows(tmp_path / name)] == ROWS


def test_parquet_gives_the_columns_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame(ROWS).astype({"b": "category"}).to_parquet(path)
    assert list(rows(path)) == list(enumerate(ROWS, 1))
    assert list(rows(path, ["b"])) == [(1, {"b": "ä"}), (2, {"b": "\x85"})]


def test_one_object_over_several_lines_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(ROWS[0], indent=1))
    assert list(rows(path)) == [(1, ROWS[0])]


def test_a_line_that_can_t_be_read_keeps_its_number_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{torn\n[2]\n{"a": "\xff"}\n{"a": 3}\n{"a": ')
    found = dict(lines(path))
    assert (found[1], found[6]) == ({"a": 1}, {"a": 3})
    bad = {number: content for number, content in found.items() if isinstance(content, Unreadable)}
    assert {number: content.reason for number, content in bad.items()} == {
        3: "not JSON",
        4: "wrong type",
        5: "not JSON",
        7: "not JSON",
    }
    assert [content.torn for content in bad.values()] == [0, 0, 0, 6]


def test_a_row_of_csv_with_too_many_cells_or_too_few_is_told(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("a,b\n1,2\n3\n4,5,6\n")
    (_, first), *others = rows(path)
    assert first == {"a": "1", "b": "2"}
    assert [(number, getattr(content, "reason", "")) for number, content in others] == [
        (2, "wrong type"),
        (3, "wrong type"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b"{torn", "it is not JSON"),
        ("a.json", b"[" * 100_000, "it is not JSON"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), "it is UTF-16; make it UTF-8"),
        ("a.parquet", b"PAR1 but not", "magic bytes"),
        ("a.csv", b"a\n\xff", "utf-8"),
        ("a.csv", b'a\n"torn', "unexpected end of data"),
        ("a.txt", b"", "only .parquet, .jsonl, .json, .csv files can be read"),
    ],
)
def test_a_file_that_can_t_be_read_says_why(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableFileError, match=says):
        list(rows(tmp_path / name))


def test_a_byte_order_mark_costs_a_dump_no_line(tmp_path: Path) -> None:
    path = tmp_path / "5.jsonl"
    row = {"input": "q", "output": "o", "gts": "4", "score": 1.0, "step": 5}
    path.write_text("\ufeff" + json.dumps(row) + "\n" + json.dumps({**row, "input": "r"}) + "\n")
    step = dumped(path, 10, None)
    assert (sorted(group.prompt for group in step.groups), step.unreadable) == (["q", "r"], 0)
    assert [sample.question for sample in read(path).samples] == ["q", "r"]
