"""The overrides that a job knows and its command need not have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString


def added(given: Sequence[str], folder: Path, nodes: int | None, gpus: int | None) -> list[str]:
    """The overrides of Hydra that a job adds to its command: those whose key the command neither sets nor removes.

    Args:
        given: the command's words.
        folder: the run's. The points of a `--multirun` get folders of their own in it.
        nodes: of the job; None if unknown.
        gpus: of each node; None if unknown or none.
    """
    quoted = _value(str(folder))
    adds = {
        "trainer.nnodes": nodes,
        "trainer.n_gpus_per_node": gpus,
        "hydra.run.dir": quoted,
        "hydra.sweep.dir": quoted,
    }
    keys = {re.sub(r"^(\+{1,2}|~)", "", override).partition("=")[0] for override in given}
    return [f"{key}={value}" for key, value in adds.items() if value is not None and key not in keys]


def _value(text: str) -> str:
    """Quoted where Hydra's grammar would read more than a text."""
    return text if re.fullmatch(r"[\w/.+-]+", text, re.ASCII) else QuotedString(text, Quote.single).with_quotes()
