"""The output folder: files appear whole or not at all, and what is there is not replaced without being told to."""

from __future__ import annotations

import filecmp
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from verl_dra.data.problem import DataError
from verl_dra.data.sources import sha256

MANIFEST = "manifest.json"
BAD_ROWS = "bad_rows.json"


def write_folder(
    folder: Path,
    tables: Mapping[str, pa.Table],
    bad_rows: list[dict[str, Any]],
    manifest: dict[str, Any],
    overwrite: bool,
) -> bool:
    """Write `<split>.parquet` files, bad_rows.json if there are any, and the manifest with the digests of them.

    Returns:
        Whether anything had to be written: False if the very same files are there.

    Raises:
        DataError: the folder holds other files of these names, or of an earlier run, and `overwrite` is False.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--out {folder} is a file; give a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-data-", dir=folder) as temporary:
        made = Path(temporary)
        for split, table in tables.items():
            pq.write_table(table, made / f"{split}.parquet")
        if bad_rows:
            _write_json(made / BAD_ROWS, bad_rows)
        names = sorted(path.name for path in made.iterdir())
        manifest = {**manifest, "files": {name: sha256(made / name) for name in names}}
        _write_json(made / MANIFEST, manifest)
        # The manifest comes last: one that is there vouches for the files that it names.
        return _replace(folder, made, [*names, MANIFEST], overwrite)


def _replace(folder: Path, made: Path, names: list[str], overwrite: bool) -> bool:
    stale = [name for name in _names_in_manifest(folder) if name not in names and (folder / name).is_file()]
    changed = [name for name in names if not _same(folder / name, made / name)]
    lost = [*stale, *(name for name in changed if (folder / name).exists())]
    if lost and not overwrite:
        raise DataError(
            f"{folder} holds another {', '.join(sorted(lost))}; give another --out, or --overwrite to replace"
        )
    if not changed and not stale:
        return False
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in stale:
        (folder / name).unlink()
    for name in names:
        (made / name).replace(folder / name)
    return True


def _names_in_manifest(folder: Path) -> list[str]:
    """Files that an earlier run made in this folder."""
    try:
        names = json.loads((folder / MANIFEST).read_text())["files"]
        return [name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # no manifest, or not one of ours
        return []


def _same(there: Path, made: Path) -> bool:
    return there.is_file() and filecmp.cmp(there, made, shallow=False)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
