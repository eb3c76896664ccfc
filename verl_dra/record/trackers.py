"""Recorded groups as the table `dra/groups` of those of veRL's trackers that have tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

logger = logging.getLogger(__name__)

NAME = "dra/groups"
GROUPS = 4
CHARACTERS = 500
"""Trackers take their values in the step, so that they get only a few groups of a record, with short texts."""
_NUMBERS = ("reward", "adjusted", "smi", "weight", "advantage", "advantage_without")
COLUMNS = ("step", "uid", "prompt", "completion", *_NUMBERS)


def show(trackers: Mapping[str, Any], step: int, make: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
    """Give groups of a step to TensorBoard as a text, to wandb as a table.

    Args:
        trackers: veRL's backends by name (`Tracking.logger`).
        step: the step, which veRL has not logged yet.
        make: makes their records; called where a tracker takes them.
    """
    rows: list[list[Any]] = []
    for name, give in (("tensorboard", _tensorboard), ("wandb", _wandb)):
        if name in trackers:
            try:
                rows = rows or _rows(step, make())
                give(trackers[name], step, rows)
            except Exception as error:  # whatever a tracker raises: it must not end the run
                logger.warning("%s did not take %s of step %d: %s", name, NAME, step, error)


def _rows(step: int, groups: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [
        [step, group["uid"], group["prompt"], completion["text"], *(completion[name] for name in _NUMBERS)]
        for group in groups
        for completion in group["completions"]
    ]


def _tensorboard(tensorboard: Any, step: int, rows: Sequence[Sequence[Any]]) -> None:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([_cell(value) for value in row] for row in rows)]
    tensorboard.writer.add_text(NAME, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)


def _wandb(wandb: Any, step: int, rows: Sequence[Sequence[Any]]) -> None:
    wandb.log({NAME: wandb.Table(columns=list(COLUMNS), data=[list(row) for row in rows])}, step=step)


def _cell(value: Any) -> str:
    """A cell of a Markdown table: one line, in which nothing is markup."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value).encode(errors="replace").decode()
    for mark in "\\`*_{}[]()#+-!|<>~$":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
