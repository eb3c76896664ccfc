"""How reward workers tell validation's completions, which nobody asks the scorers for: by a column of their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_COLUMN = "dra_validation"


@dataclass(frozen=True)
class Marking:
    """A dataloader's collate function, whose batches have the column besides."""

    collate: Callable[[Sequence[Any]], dict[str, Any]]

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate(rows)
        batch[_COLUMN] = np.array([True] * len(rows), dtype=object)
        return batch


def is_validation(columns: Mapping[str, Any]) -> bool:
    """Whether a row is of validation, by its non-tensor columns."""
    return _COLUMN in columns
