"""Pairs of completions that a run recorded: nobody has said of them which reason the same way."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from verl_dra.calibrate.pairs import CalibrationError, Pairs
from verl_dra.report.groups import recorded
from verl_dra.report.runs import ReportError, read_runs

_SHORTENED = re.compile(r"\n\[\.\.\. \d+ characters left out \.\.\.\]\n")


@dataclass(frozen=True)
class Recorded:
    """P pairs, each of two completions of one group."""

    pairs: Pairs
    cosine: NDArray[np.float64]
    """[P] as the run recorded it."""
    equal_reward: NDArray[np.bool_]
    """[P] whether both had the same raw reward."""
    steps: int
    groups: int
    unscored: int
    """Groups without scores, which are left out."""
    unreadable: int
    """Lines that can't be read, which are left out."""
    shortened: int
    """Different texts of which the record left the middle out."""


def read_recorded(folder: Path) -> Recorded:
    """All groups that `dra.record` wrote of a run.

    Raises:
        CalibrationError: the folder is no run's, or has no recorded groups.
    """
    try:
        (run,) = read_runs([str(folder)])
    except ReportError as error:
        raise CalibrationError(str(error)) from error
    steps = [recorded(path, sys.maxsize) for path in run.dumps("dra.record.folder", "groups").values()]
    groups = [group for step in steps for group in step.groups]
    place: dict[str, int] = {}
    columns: list[tuple[int, int, float, bool]] = []
    scored = [group for group in groups if group.similarity is not None]
    for group in scored:
        assert group.similarity is not None
        texts = [completion.text.encode(errors="replace").decode() for completion in group.completions]
        at = [place.setdefault(text, len(place)) for text in texts]
        for i, j in combinations(range(len(at)), 2):
            equal = group.completions[i].reward == group.completions[j].reward
            columns.append((at[i], at[j], float(group.similarity[i, j]), equal))
    if not columns:
        raise CalibrationError(
            f"{folder} has no recorded groups of two or more completions with their cosines; "
            "dra.record.every_n_steps=10 makes a run write some"
        )
    first, second, cosine, equal_reward = zip(*columns, strict=True)
    return Recorded(
        Pairs(list(place), np.array(first), np.array(second)),
        np.array(cosine),
        np.array(equal_reward),
        steps=len(steps),
        groups=len(scored),
        unscored=len(groups) - len(scored),
        unreadable=sum(step.unreadable for step in steps),
        shortened=sum(_SHORTENED.search(text) is not None for text in place),
    )
