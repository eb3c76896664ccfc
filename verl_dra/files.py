"""Rows of parquet, JSON, JSON lines and CSV files: every command reads them here, of bytes, and so alike."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
BATCH_ROWS = 1000
_SHOWN_CHARACTERS = 80
_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")


class UnreadableFileError(ValueError):
    """A file that can't be read; the message says why, and not which."""


@dataclass(frozen=True)
class Unreadable:
    """What stands in the place of a row that can't be read."""

    reason: str
    """`not JSON` or `wrong type`."""
    detail: str
    torn: int = 0
    """Bytes of a last line that is neither JSON nor ended, as where its writer was cut off."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


NumberedRow = tuple[int, "dict[str, Any] | Unreadable"]
"""A row and its number: the line of JSON lines, else its place; from 1."""


def rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[NumberedRow]:
    """The rows of a file in their order, one after another where its format allows that.

    JSON may be an array, an object or lines, whether it is called .json or .jsonl.

    Args:
        columns: of parquet, to read no others.

    Raises:
        UnreadableFileError: it can't be read, or its name ends in none of SUFFIXES.
        OSError: it isn't there, or may not be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return enumerate(_parquet(path, columns), 1)
    if suffix == ".csv":
        return enumerate(_csv(path), 1)
    if suffix in SUFFIXES:
        return _json_document(path) if _is_document(path) else lines(path)
    raise UnreadableFileError(f"only {', '.join(SUFFIXES)} files can be read")


def lines(path: Path) -> Iterator[NumberedRow]:
    """The rows of JSON lines, whatever the file is called; empty lines are none."""
    # Python's own lines would end at other characters, which texts hold.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                if line.startswith(_OTHER_BOMS):
                    raise UnreadableFileError("it is UTF-16; make it UTF-8")
                line = line.removeprefix(_BOM)
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                torn = 0 if line.endswith(b"\n") else len(line)
                yield number, Unreadable("not JSON", f"{error}: {shorten(line)}", torn)
            else:
                yield number, _object(content)


def _is_document(path: Path) -> bool:
    """Whether a file is one JSON array or object, and no lines of objects."""
    lined = path.suffix.lower() == ".jsonl"
    with path.open("rb") as file:
        beginnings = (line for line in file if line.strip())
        first, more = next(beginnings, b"").removeprefix(_BOM), next(beginnings, None) is not None
    if first.lstrip().startswith(b"[") is not lined:
        return not lined
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return not more


def _json_document(path: Path) -> Iterator[NumberedRow]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"it is not JSON: {error}") from error
    contents = content if isinstance(content, list) else [content]
    yield from ((number, _object(row)) for number, row in enumerate(contents, 1))


def _object(content: Any) -> dict[str, Any] | Unreadable:
    if isinstance(content, dict):
        return content
    return Unreadable("wrong type", f"the row is no JSON object: {shorten(content)}")


def _parquet(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    # Imported here: `verl-dra` starts without it.
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        with pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, columns=columns):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise UnreadableFileError(str(error)) from error


def _csv(path: Path) -> Iterator[dict[str, Any] | Unreadable]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        for row in csv.DictReader(io.StringIO(text, newline=""), strict=True):
            if None in row or None in row.values():
                yield Unreadable("wrong type", "the row has more or fewer cells than the first")
            else:
                yield row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFileError(str(error)) from error


def shorten(value: object) -> str:
    """`value` as Python writes it, in few characters."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
