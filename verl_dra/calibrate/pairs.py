"""Pairs of texts that are known to reason the same way or not, from a file of labelled pairs and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verl_dra.files import Unreadable, UnreadableFileError, rows, shorten

SHOWN_BAD_ROWS = 10


class CalibrationError(ValueError):
    """What was given can't be calibrated on; the message says why and what to do."""


@dataclass(frozen=True)
class Pairs:
    """P pairs of texts."""

    texts: list[str]
    """The different texts."""
    first: NDArray[np.int64]
    """[P] places in `texts`."""
    second: NDArray[np.int64]
    """[P]."""


@dataclass(frozen=True)
class Labelled:
    """P pairs of texts with what is known of them."""

    pairs: Pairs
    same: NDArray[np.bool_]
    """[P] whether both reason the same way."""
    row: NDArray[np.int64]
    """[P] which row each comes from; those of one group share theirs."""
    kind: list[str]
    """[P] what the row calls it; empty where it says nothing."""
    group_size: int | None
    """The median size of the rows that are groups."""
    rows: int
    left_out: int
    """Rows that could not be used, where those may be left out."""


def read_labelled(path: Path, skip_bad: bool) -> Labelled:
    """The pairs of a file of rows {"a": text, "b": text, "same": bool} or {"texts": [...], "ways": [...]}.

    A group gives each pair of its texts, which are of the same way if their `ways` are equal. Either may have a `kind`.
    Lone surrogates count as question marks, as in training.

    Args:
        skip_bad: whether rows that can't be used are left out.

    Raises:
        CalibrationError: a row can't be used, and `skip_bad` is not set; or no pair is of the same way, or none is not.
        OSError: the file isn't there, or may not be read.
    """
    good: list[_Row] = []
    bad: list[str] = []
    try:
        for number, content in rows(path):
            try:
                good.append(_row(number, content))
            except CalibrationError as error:
                bad.append(f"line {number}: {error}")
    except UnreadableFileError as error:
        raise CalibrationError(f"{path} can't be read: {error}") from error
    if bad and not skip_bad:
        raise CalibrationError(_complaint(path, len(good) + len(bad), bad))
    place: dict[str, int] = {}
    columns: list[tuple[int, int, bool, int, str]] = []
    for row in good:
        at = [place.setdefault(text, len(place)) for text in row.texts]
        for i, j in combinations(range(len(at)), 2):
            columns.append((at[i], at[j], row.ways[i] == row.ways[j], row.number, row.kind))
    same = [column[2] for column in columns]
    if not any(same) or all(same):
        raise CalibrationError(
            f"{path} has {sum(same)} pairs of the same way and {len(same) - sum(same)} of different ways; it needs both"
        )
    first, second, _, number_of, kind = zip(*columns, strict=True)
    sizes = [len(row.texts) for row in good if row.is_group]
    return Labelled(
        Pairs(list(place), np.array(first), np.array(second)),
        np.array(same),
        np.array(number_of),
        list(kind),
        median_low(sizes) if sizes else None,
        len(good) + len(bad),
        len(bad),
    )


@dataclass(frozen=True)
class _Row:
    """Texts and their ways; of a pair, 0 and whether it is another."""

    number: int
    texts: list[str]
    ways: list[Any]
    kind: str
    is_group: bool


def _row(number: int, content: Mapping[str, Any] | Unreadable) -> _Row:
    if isinstance(content, Unreadable):
        raise CalibrationError(str(content))
    is_group = "texts" in content
    if is_group:
        texts, ways = content["texts"], content.get("ways")
        if not isinstance(texts, list) or not isinstance(ways, list) or len(texts) != len(ways) or len(texts) < 2:
            raise CalibrationError("texts and ways must be lists of one length, of 2 at least")
        if odd := [way for way in ways if not isinstance(way, (str, int))]:
            raise CalibrationError(f"a way must be a text or a whole number, not {shorten(odd[0])}")
    else:
        if missing := [name for name in ("a", "b", "same") if name not in content]:
            raise CalibrationError(f"there is no {missing[0]!r}; a pair has a, b and same, a group texts and ways")
        if not isinstance(content["same"], bool):
            raise CalibrationError(f"same must be true or false, not {shorten(content['same'])}")
        texts, ways = [content["a"], content["b"]], [0, int(not content["same"])]
    if odd := [text for text in texts if not isinstance(text, str) or not text.strip()]:
        raise CalibrationError(f"a text must be text, and not empty, not {shorten(odd[0])}")
    if not isinstance(kind := content.get("kind") or "", str):
        raise CalibrationError(f"kind must be a text, not {shorten(kind)}")
    texts = [text.encode(errors="replace").decode() for text in texts]
    if len(set(texts)) < len(set(zip(texts, ways, strict=True))):
        raise CalibrationError("equal texts are labelled as different ways")
    return _Row(number, texts, ways, kind, is_group)


def _complaint(path: Path, read: int, bad: Sequence[str]) -> str:
    lines = [f"{path}: {len(bad)} of {read} rows can't be used; --skip-bad leaves them out"]
    lines += [f"  {one}" for one in bad[:SHOWN_BAD_ROWS]]
    if len(bad) > SHOWN_BAD_ROWS:
        lines.append(f"  and {len(bad) - SHOWN_BAD_ROWS} more")
    return "\n".join(lines)
