"""Make the study's data, tokenizer and starting model once, and reuse them.

    python recipes/tiny_locks/prepare.py

The last line it prints is the folder: train.parquet, test.parquet and model/.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tiny_locks.pretrain import PretrainSettings, new_tokenizer, pretrain
from tiny_locks.task import Question, key_of, sample_solution, split_questions

DATA_SOURCE = "tiny_locks"


@dataclass(frozen=True)
class Settings:
    test_size: int = 64
    seed: int = 0
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)


def prepare(settings: Settings | None = None) -> Path:
    """The folder `$VERL_DRA_CACHE/tiny_locks/<fingerprint>` (`~/.cache/verl_dra` for an unset variable), made now
    unless it is there."""
    settings = settings or Settings()
    root = Path(os.environ.get("VERL_DRA_CACHE") or Path.home() / ".cache" / "verl_dra").absolute() / "tiny_locks"
    folder = root / fingerprint(settings)
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=root) as made:
        fresh = Path(made) / "folder"
        _make(fresh, settings)
        try:
            fresh.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    return folder


def fingerprint(settings: Settings) -> str:
    """16 hex digits that change with the settings and with what the task shows in pre-training."""
    rng = random.Random(0)
    train, test = split_questions(settings.test_size, settings.seed)
    shown = [sample_solution(question, rng) for question in train[:500]]
    tokens = sorted(new_tokenizer().get_vocab().items())
    said = [asdict(settings), shown, [question.text for question in test], tokens]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def rows(questions: Sequence[Question], split: str) -> list[dict[str, object]]:
    """veRL's layout of a dataset."""
    return [
        {
            "data_source": DATA_SOURCE,
            "prompt": [{"role": "user", "content": question.text}],
            "ability": "arithmetic",
            "reward_model": {"style": "rule", "ground_truth": str(question.total)},
            "extra_info": {"index": index, "split": split, "question": question.text, "key": key_of(question)},
        }
        for index, question in enumerate(questions)
    ]


def _make(folder: Path, settings: Settings) -> None:
    import pandas as pd

    folder.mkdir()
    train, test = split_questions(settings.test_size, settings.seed)
    for split, questions in (("train", train), ("test", test)):
        pd.DataFrame(rows(questions, split)).to_parquet(folder / f"{split}.parquet")
    tokenizer = new_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    pretrain(tokenizer, train, settings.pretrain).save_pretrained(folder / "model")


if __name__ == "__main__":
    sys.stdout.write(f"{prepare()}\n")
