"""One problem of a set, and the ways in which a row can fail to be one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verl_dra.files import shorten


class DataError(Exception):
    """The set can't be prepared; the message says why and what to do."""


class BadRowError(ValueError):
    """A row that can't be used.

    Args:
        reason: one of few short texts, under which such rows are counted.
        detail: what is wrong with this row.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Problem:
    """What veRL's row is made of."""

    text: str
    """The bare problem, without instructions."""
    answer: str
    """The final answer, which the grader compares with."""
    data_source: str
    """veRL chooses its grader by this name."""
    level: str | None = None
    subject: str | None = None
    solution: str | None = None
    """The published worked solution."""
    source_index: str | None = None
    """The publisher's own name of the row."""


def read_text(row: dict[str, Any], column: str, empty: str | None = None) -> str:
    """The text in `column`, without white space around it.

    Args:
        empty: the reason under which a row is refused whose text is empty or null; None to let empty text pass.
    """
    value = row[column]
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise BadRowError("wrong type", f"{column} is {type(value).__name__}, not text: {shorten(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, parquet can't hold it
        raise BadRowError("not Unicode", f"{column}: {error}: {shorten(value)}") from error
    value = value.strip()
    if empty is not None and not value:
        raise BadRowError(empty, f"{column} is empty")
    return value
