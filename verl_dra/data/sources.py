"""Rows of a set from local files or from the hub, a batch at a time: DAPO's file has 1.8 million of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from verl_dra.data.problem import BadRowError, DataError
from verl_dra.data.sets import DataSet
from verl_dra.files import BATCH_ROWS, SUFFIXES, Unreadable, UnreadableFileError, rows

_SPLIT_WORD = re.compile(r"(?<![a-z])(train|test)(?![a-z])")


@dataclass(frozen=True)
class Row:
    """A row as published."""

    file: str
    number: int
    """Counted from 1; of a .jsonl file, the line."""
    content: Any
    """The row, or the BadRowError of one that can't be read."""


class Source(Protocol):
    """Where rows come from."""

    splits: tuple[str, ...]

    def rows(self, split: str) -> Iterator[Row]:
        """All rows of a split, always in the same order."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the manifest says of the source."""
        ...


@dataclass(frozen=True)
class _File:
    path: Path
    name: str
    """The path below the folder that the user gave, so that nothing depends on where that lies."""


class LocalSource:
    """Files in a published layout.

    The split of a file is the word train or test in its name or else in a folder's name. Where neither has one, it is
    the set's only split, or the only one asked for.

    Args:
        inputs: files, or folders that are searched with what is below them.
        splits: those asked for; None for all that there are.
    """

    def __init__(self, data: DataSet, inputs: Sequence[Path], splits: Sequence[str] | None) -> None:
        self._data = data
        wanted = tuple(splits or data.splits)
        self._files: dict[str, list[_File]] = {}
        for file in _find_files(data, inputs):
            split = self._split_of(file, wanted)
            if split in wanted:
                self._files.setdefault(split, []).append(file)
        self.splits = tuple(split for split in data.splits if split in self._files)
        missing = [split for split in splits or () if split not in self._files]
        if missing or not self.splits:
            raise DataError(f"--input has no {' and no '.join(missing or wanted)} file of {data.name}")

    def rows(self, split: str) -> Iterator[Row]:
        for file in self._files[split]:
            try:
                yield from self._rows_of(file)
            except (UnreadableFileError, pa.ArrowException, OSError) as error:
                raise DataError(f"{file.name} can't be read: {error}") from error

    def describe(self) -> dict[str, Any]:
        files = [(split, file) for split in self.splits for file in self._files[split]]
        return {"files": [{"name": file.name, "split": split, "sha256": sha256(file.path)} for split, file in files]}

    def _split_of(self, file: _File, wanted: tuple[str, ...]) -> str:
        name = PurePosixPath(file.name.lower())
        for part in (name.stem, *reversed(name.parts[:-1])):
            if words := set(_SPLIT_WORD.findall(part)):
                if len(words) == 2:
                    break
                return str(words.pop())
        if len(self._data.splits) == 1 or len(wanted) == 1:
            return wanted[0]
        raise DataError(
            f"{file.name} may be train or test: neither its name nor its folder's says which; rename it or give --split"
        )

    def _rows_of(self, file: _File) -> Iterator[Row]:
        columns = None
        if file.path.suffix.lower() == ".parquet":
            columns = _check_columns(self._data, pq.read_schema(file.path).names, file.name)
        for number, content in rows(file.path, columns):
            if isinstance(content, Unreadable):
                yield Row(file.name, number, BadRowError(content.reason, content.detail))
            else:
                yield Row(file.name, number, content)


class HubSource:
    """A set on the hub, at a commit that is looked up once, so that every split and the manifest mean the same one."""

    def __init__(self, data: DataSet, repo: str, revision: str | None, splits: Sequence[str] | None) -> None:
        from huggingface_hub import HfApi, constants

        self._data, self._repo = data, repo
        self.splits = tuple(split for split in data.splits if split in (splits or data.splits))
        at = f" --revision {revision}" if revision else ""
        self._help = (
            f"fetch it where the hub can be reached, with `hf download {repo} --repo-type dataset{at} --local-dir DIR`,"
            " and give --input DIR"
        )
        if constants.is_offline_mode():
            raise DataError(f"{repo} is on the hub and HF_HUB_OFFLINE is set; unset it, or {self._help}")
        try:
            self._commit = HfApi().dataset_info(repo, revision=revision).sha
        except Exception as error:  # of several libraries, which share no base class
            raise self._unreachable(error) from error

    def rows(self, split: str) -> Iterator[Row]:
        import datasets  # type: ignore[import-untyped]

        for config in self._data.repos[self._repo]:
            name = f"{self._repo}/{config}/{split}" if config else f"{self._repo}/{split}"
            try:
                published = datasets.load_dataset(self._repo, config, split=split, revision=self._commit)
            except Exception as error:  # of several libraries, which share no base class
                raise self._unreachable(error) from error
            columns = _check_columns(self._data, published.column_names, name)
            tables = published.select_columns(columns).with_format("arrow").iter(BATCH_ROWS)
            for number, content in enumerate((row for table in tables for row in table.to_pylist()), 1):
                yield Row(name, number, content)

    def describe(self) -> dict[str, Any]:
        return {"repo": self._repo, "revision": self._commit, "configurations": list(self._data.repos[self._repo])}

    def _unreachable(self, error: Exception) -> DataError:
        return DataError(f"{self._repo} can't be loaded from the hub ({type(error).__name__}: {error}); {self._help}")


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _find_files(data: DataSet, inputs: Sequence[Path]) -> list[_File]:
    found: dict[Path, _File] = {}
    for given in inputs:
        if given.is_dir():
            files = _search(data, given)
        elif not given.exists():
            raise DataError(f"--input {given}: there is no such file or folder")
        elif given.suffix.lower() not in SUFFIXES:
            raise DataError(f"--input {given}: only {', '.join(SUFFIXES)} files can be read")
        else:
            files = [_File(given, given.name)]
        for file in files:
            found.setdefault(file.path.resolve(), file)
    return list(found.values())


def _search(data: DataSet, folder: Path) -> list[_File]:
    files = []
    for path in folder.rglob("*"):
        below = path.relative_to(folder)
        skipped = any(part.startswith(".") or part in data.left_out for part in below.parts)
        if path.is_file() and not skipped:
            files.append(_File(path, below.as_posix()))
    # The first kind that occurs: beside data, publishers keep metadata in JSON.
    for suffix in SUFFIXES:
        if chosen := [file for file in files if file.path.suffix.lower() == suffix]:
            return sorted(chosen, key=lambda file: file.name)
    raise DataError(f"--input {folder}: no {', '.join(SUFFIXES)} file is in it")


def _check_columns(data: DataSet, names: Sequence[str], file: str) -> list[str]:
    """Those of the file's columns that are needed."""
    try:
        data.layout(names)
    except BadRowError as error:
        raise DataError(f"{file}: {error}") from error
    return [name for name in names if name in data.columns()]
