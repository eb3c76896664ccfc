"""The files of training and validation rows, before veRL reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from verl_dra.doctor.check import Check, fail, ok, one_line, skip, warn
from verl_dra.doctor.run_config import files, is_remote, select
from verl_dra.files import Unreadable, UnreadableFileError, rows

_SUFFIXES = (".parquet", ".json", ".jsonl")
_ANSWERS = "reward_model"
_NO_ANSWER = "has null for ground_truth"
_REWARD_COLUMNS = ("data_source", _ANSWERS)
_READS_BOXES = "pkg://verl_dra.rewards"
# A fraction of a second of each file.
_LOOKED_AT = 20_000
_CHATS = "make each prompt a list of messages with role and content, as verl-dra prepare-data does"


@dataclass(frozen=True)
class _Faults:
    """Of the rows that were looked at, those in which a column holds what veRL can't use."""

    rows: int
    looked_at: int
    first: int
    """Its number, from 0."""
    fault: str
    """What is wrong with it."""

    def __str__(self) -> str:
        return (
            f"of row {self.first} {self.fault} ({self.rows:,} of {self.looked_at:,} rows that were looked at are bad)"
        )


@dataclass(frozen=True)
class _Header:
    """What a file says of itself without all its rows being read."""

    columns: list[str]
    rows: int | None
    """None where they would have to be counted."""
    prompt: str | None
    """The prompt column's type where it is none that can be a chat."""
    first: str | None = None
    """The first prompt, where there is one."""
    faults: dict[str, _Faults] = field(default_factory=dict)
    """By column."""


def data_files(config: DictConfig, elsewhere: bool) -> Iterator[Check]:
    """That every file of `data.train_files` and `data.val_files` can be read and has what veRL needs.

    Args:
        config: the run's.
        elsewhere: whether another node may read them, so that their absence here proves little.
    """
    for key in ("data.train_files", "data.val_files"):
        paths = files(select(config, key))
        if not paths:
            yield fail(key, "names no file", f"set {key} to a parquet file; verl-dra prepare-data makes one")
            continue
        good: list[int | None] = []
        for path in paths:
            rows_or_problem = _examine(key, path, config, elsewhere)
            if isinstance(rows_or_problem, Check):
                yield rows_or_problem
            else:
                good.append(rows_or_problem.rows)
                yield from _answers(key, path, rows_or_problem, config)
        if good:
            counted = [rows for rows in good if rows is not None]
            shown = f", {sum(counted):,} rows" if len(counted) == len(good) else ""
            yield ok(key, f"{len(good)} file{'s' * (len(good) > 1)}{shown}")


def _examine(key: str, path: str, config: DictConfig, elsewhere: bool) -> _Header | Check:
    if is_remote(path):
        return skip(key, f"{path} is remote")
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        if elsewhere:
            return warn(key, f"{path} is not on this node", "it must be on the nodes that train")
        return fail(key, f"{path} is not there", f"set {key} to files that are; verl-dra prepare-data makes some")
    if select(config, "data.custom_cls.path"):
        return _Header([], None, None)  # a data set of the user's own
    if file.suffix not in _SUFFIXES:
        return fail(key, f"{path} ends in none of {', '.join(_SUFFIXES)}", "convert it to parquet")
    prompt = str(select(config, "data.prompt_key") or "prompt")
    try:
        header = _parquet(file, prompt) if file.suffix == ".parquet" else _json(file, prompt)
    except UnreadableFileError as error:
        return fail(key, f"{path} can't be read: {one_line(str(error))}", "make the file again")
    except Exception as error:
        return fail(key, f"{path} can't be read: {one_line(repr(error))}", "make the file again")
    missing = [column for column in (prompt, *_REWARD_COLUMNS) if column not in header.columns]
    has = f"it has {', '.join(header.columns) or 'no columns'}"
    if prompt in missing:
        fix = "set data.prompt_key to the column with the chat, or make the file with verl-dra prepare-data"
        return fail(key, f"{path} has no column {prompt!r}; {has}", fix)
    if header.rows == 0:
        return fail(key, f"{path} has no rows", "make the file again")
    if header.prompt is not None:
        return fail(key, f"{path}: the column {prompt!r} holds {header.prompt}, no chats", _CHATS)
    if prompt in header.faults:
        return fail(key, f"{path}: {prompt!r} {header.faults[prompt]}", _CHATS)
    # A reward manager of the user's own may need neither.
    own = ":" in str(select(config, "dra.base_reward_manager") or "")
    if missing:
        return (warn if own else fail)(
            key, f"{path} has no column {missing[0]!r}; {has}", f"add {missing[0]!r}, which veRL's reward managers read"
        )
    if faults := header.faults.get(_ANSWERS):
        # A reward function of the user's own may do without an answer; veRL's managers hand it on as it is.
        function = select(config, "reward.custom_reward_function.path")
        own |= faults.fault == _NO_ANSWER and function not in (None, _READS_BOXES)
        fix = f"make each {_ANSWERS} an object with ground_truth, which veRL's reward managers read"
        return (warn if own else fail)(key, f"{path}: {_ANSWERS!r} {faults}", fix)
    return header


def _answers(key: str, path: str, header: _Header, config: DictConfig) -> Iterator[Check]:
    """Whether a prompt asks for an answer that the paper's reward finds; all others would be wrong to it."""
    function = "reward.custom_reward_function"
    if (
        select(config, f"{function}.path") != _READS_BOXES
        or select(config, f"{function}.reward_kwargs.judge") != "paper"
    ):
        return
    if header.first is not None and "boxed" not in header.first:
        yield warn(
            key,
            f"{path}: the first prompt does not ask for a \\boxed answer, and {_READS_BOXES} with judge=paper reads "
            "LaTeX alone",
            "make the file with verl-dra prepare-data --system-prompt paper, or use a reward that fits the prompts",
        )


def _parquet(file: Path, prompt: str) -> _Header:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    with pyarrow.parquet.ParquetFile(file) as footer:
        schema, count = footer.schema_arrow, footer.metadata.num_rows
    bad = None
    looked_at: list[dict[str, Any]] = []
    if prompt in schema.names:
        kind = schema.field(prompt).type
        if not (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)):
            bad = str(kind)
        else:
            looked_at = _first(file, [name for name in (prompt, _ANSWERS) if name in schema.names])
    first = str(looked_at[0][prompt]) if looked_at else None
    return _Header(list(schema.names), count, bad, first, _faults(looked_at, prompt))


def _json(file: Path, prompt: str) -> _Header:
    looked_at = _first(file)
    if not looked_at:
        return _Header([prompt, *_REWARD_COLUMNS], 0, None)
    chat = looked_at[0].get(prompt)
    bad = None if chat is None or isinstance(chat, list) else type(chat).__name__
    faults = {} if bad else _faults(looked_at, prompt)
    return _Header(list(looked_at[0]), None, bad, None if chat is None else str(chat), faults)


def _first(file: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows that are looked at."""
    found = []
    for number, row in islice(rows(file, columns), _LOOKED_AT):
        if isinstance(row, Unreadable):
            raise UnreadableFileError(f"row {number} is {row}")
        found.append(row)
    return found


def _faults(rows: Sequence[dict[str, Any]], prompt: str) -> dict[str, _Faults]:
    found = {}
    checks: dict[str, Callable[[Any], str | None]] = {prompt: _fault_of_chat, _ANSWERS: _fault_of_answer}
    for column, fault_of in checks.items():
        # A column that is not there at all is told as such.
        if not any(column in row for row in rows):
            continue
        faults = [(at, fault) for at, row in enumerate(rows) if (fault := fault_of(row.get(column)))]
        if faults:
            found[column] = _Faults(len(faults), len(rows), *faults[0])
    return found


def _fault_of_chat(chat: Any) -> str | None:
    if not isinstance(chat, list):
        return f"is {_kind(chat)}, no chat"
    if not chat:
        return "is an empty chat"
    for message in chat:
        if not isinstance(message, dict):
            return f"has a message that is {_kind(message)}, no object"
        if message.get("role") is None or (message.get("content") is None and not message.get("tool_calls")):
            return f"has a message of {', '.join(message) or 'nothing'} without role and content"
    return None


def _fault_of_answer(answer: Any) -> str | None:
    if not isinstance(answer, dict):
        return f"is {_kind(answer)}, no object"
    if "ground_truth" not in answer:
        return "has no ground_truth"
    return _NO_ANSWER if answer["ground_truth"] is None else None


def _kind(value: Any) -> str:
    """What JSON calls it."""
    names = {str: "text", list: "a list", dict: "an object", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
