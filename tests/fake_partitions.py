"""Partitions of the tests' own, also in actors."""

from __future__ import annotations

import os
import time
from pathlib import Path

from verl_dra.partition import Grouping, PartitionConfig, PartitionUnavailableError, PromptGroup

END = "end the process"


class ByFirstWord:
    """Completions that begin with the same word go the same way."""

    def __init__(self, config: PartitionConfig) -> None:
        self.config = config

    def __call__(self, group: PromptGroup) -> Grouping:
        words = [text.split()[0] for text in group.texts]
        return Grouping.of_labels([words.index(word) for word in words], calls=1, tokens=sum(map(len, group.texts)))


class Gated(ByFirstWord):
    """Says in a file beside `model` that it looks, and goes on when the file `model` is there; the text END ends the
    process."""

    def __call__(self, group: PromptGroup) -> Grouping:
        gate = Path(str(self.config.model))
        with gate.with_suffix(".looks").open("a") as file:
            file.write(f"{os.getpid()} {group.uid}\n")
        while not gate.exists():
            time.sleep(0.01)
        if END in group.texts:
            os._exit(1)
        return super().__call__(group)


class Failing:
    def __init__(self, config: PartitionConfig) -> None:
        raise PartitionUnavailableError("the server of the test is away")
