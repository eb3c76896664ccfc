"""Make the demo's data, tokenizer and starting model once, and reuse them as long as every file is as it was made.

    python recipes/tiny_paths/prepare.py [--out DIR]

The last line it prints is the folder: train.parquet, test.parquet, model/ and manifest.json.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tiny_paths.pretrain import PretrainSettings, pretrain, train_tokenizer
from tiny_paths.task import Question, split_questions

log = logging.getLogger("tiny_paths")

MANIFEST = "manifest.json"
MADE = {"train.parquet", "test.parquet", "model", MANIFEST}
DATA_SOURCE = "tiny_paths"
SOURCES = ("task.py", "pretrain.py", "prepare.py")


@dataclass(frozen=True)
class Settings:
    test_size: int = 64
    seed: int = 0
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)


def prepare(out: Path | None = None, settings: Settings | None = None) -> Path:
    """The folder of the prepared files, made now unless an intact one is there.

    Args:
        out: the folder; default: `$VERL_DRA_CACHE/tiny_paths/<fingerprint>`, with `~/.cache/verl_dra` for an unset
            variable.
        settings: default: `Settings()`.

    Raises:
        ValueError: if `out` holds files that this recipe did not make.
    """
    settings = settings or Settings()
    mark = fingerprint(settings)
    folder = cache_root() / mark if out is None else Path(out).resolve()
    if find_fault(folder, mark) is None:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(f".{folder.name}.lock")):
        fault = find_fault(folder, mark)
        if fault is None:  # another process made it meanwhile
            return folder
        if others := _others(folder):
            raise ValueError(f"{folder} holds {others[0]}, not made here; give --out an empty or a new folder")
        log.info("making %s (%s)", folder, fault)
        _replace(folder, settings, mark)
    return folder


def cache_root() -> Path:
    """Where prepared folders are kept by default."""
    return Path(os.environ.get("VERL_DRA_CACHE") or Path.home() / ".cache" / "verl_dra").absolute() / "tiny_paths"


def fingerprint(settings: Settings) -> str:
    """16 hex digits that change with the settings and with the sources that make the files."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


def find_fault(folder: Path, mark: str) -> str | None:
    """Why the folder can't be used as the one of this fingerprint; None if every file is as it was made."""
    if not folder.is_dir():
        return "not there yet"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        made_as, files = manifest["fingerprint"], dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unusable {MANIFEST}: {error!r}"
    if made_as != mark:
        return f"made by another version of the recipe: {made_as}, now {mark}"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _sha256(path) != expected:
            return f"{name} is not the file that was made"
    return None


def rows(questions: Sequence[Question], split: str) -> list[dict[str, object]]:
    """veRL's layout of a dataset."""
    return [
        {
            "data_source": DATA_SOURCE,
            "prompt": [{"role": "user", "content": question.text}],
            "ability": "arithmetic",
            "reward_model": {"style": "rule", "ground_truth": str(question.total)},
            "extra_info": {"index": index, "split": split},
        }
        for index, question in enumerate(questions)
    ]


def _replace(folder: Path, settings: Settings, mark: str) -> None:
    """Make the files in a new sibling and give it the folder's name. Only for the holder of the folder's lock."""
    prefix = f".{folder.name}.new-"
    _remove_siblings(folder, prefix)  # of a run that was killed
    fresh = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        _make(fresh, settings, mark)
        fresh.chmod(0o755)
        if folder.exists():
            folder.rename(folder.with_name(f"{prefix}old"))
        fresh.rename(folder)
    finally:
        _remove_siblings(folder, prefix)


def _make(folder: Path, settings: Settings, mark: str) -> None:
    train, test = split_questions(settings.test_size, settings.seed)
    for split, questions in (("train", train), ("test", test)):
        pd.DataFrame(rows(questions, split)).to_parquet(folder / f"{split}.parquet")
    tokenizer = train_tokenizer(train, settings.pretrain)
    model = pretrain(tokenizer, train, settings.pretrain)
    tokenizer.save_pretrained(folder / "model")
    model.save_pretrained(folder / "model")
    made = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "fingerprint": mark,
        "settings": asdict(settings),
        "sha256": {path.relative_to(folder).as_posix(): _sha256(path) for path in made},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _others(folder: Path) -> list[str]:
    """What stands in the folder's place or lies in it and was not made here, so that nothing of a user's is lost."""
    if folder.is_dir():
        return sorted({path.name for path in folder.iterdir()} - MADE)
    return [folder.name] if folder.exists() else []


def _remove_siblings(folder: Path, prefix: str) -> None:
    for path in folder.parent.iterdir():
        if path.name.startswith(prefix):
            shutil.rmtree(path)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the kernel frees the lock of a process that dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder to make or to reuse")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.stdout.write(f"{prepare(parser.parse_args().out)}\n")


if __name__ == "__main__":
    main()
