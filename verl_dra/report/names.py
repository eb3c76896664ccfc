"""How runs are called, and which are of one family: the seeds of one setting, in one colour."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from verl_dra.report.runs import Run

# Parts of a path that say nothing of a run: numbers, seeds, Hydra's dates and times.
_NUMBER = re.compile(r"(seed[-_=]?)?\d[\d._:T-]*")
# Settings in which the seeds of one setting differ, or which name where a run writes to.
_INCIDENTAL = re.compile(r"(.*[._])?seed|trainer\.(\w+_dir|experiment_name|project_name)|dra\.record\.folder")


def name(runs: Sequence[Run]) -> None:
    """Give each run its family, and those that the user did not name their name.

    A family's name is that of its folder above numbers and dates (`grpo/0` and `grpo/1` are of the family `grpo`).
    Where the settings of such runs differ in more than the seed they are families of their own, called by the
    overrides in which they differ.
    """
    beside: dict[tuple[str, bool], list[Run]] = {}
    for run in runs:
        beside.setdefault((_base(run), run.given), []).append(run)
    for (base, _), of_base in beside.items():
        alike: dict[str, list[Run]] = {}
        for run in of_base:
            alike.setdefault(_settings(run), []).append(run)
        # The user says himself which runs belong together.
        if len(alike) == 1 or of_base[0].given:
            for run in of_base:
                run.family = base
                run.name = run.name if run.given else _below(base, run)
            continue
        labels = [_label(same[0], of_base) for same in alike.values()]
        for label, same in zip(labels, alike.values(), strict=True):
            unique = label and labels.count(label) == 1
            prefix = base if _in_name(same[0]) else ""
            family = " ".join(filter(None, (prefix, label))) if unique else same[0].name
            for run in same:
                run.family = family
                run.name = family if len(same) == 1 else _below(family, run)


def _base(run: Run) -> str:
    """The name without the numbers and dates at its end; where nothing is left, that of a folder above."""
    if in_name := _in_name(run):
        return in_name
    above = [part for part in run.folder.parent.parts[1:] if not _NUMBER.fullmatch(part)]
    return above[-1] if above and not run.given else run.name


def _in_name(run: Run) -> str:
    parts = list(Path(run.name).parts)
    while parts and _NUMBER.fullmatch(parts[-1]):
        parts.pop()
    return "/".join(parts)


def _below(family: str, run: Run) -> str:
    """The family and what the run's own name has beyond words: `grpo/0`."""
    numbers = Path(run.name).parts[len(Path(_in_name(run)).parts) :]
    return "/".join((family, *numbers))


def _settings(run: Run) -> str:
    """What a run was trained with, whatever its seed; its own for a run of which that is not known."""
    found = sorted(_flat(OmegaConf.to_container(run.config, resolve=False)))
    return repr(found) if found else str(run.folder)


def _flat(node: Any, key: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    elif not _INCIDENTAL.fullmatch(key):
        yield key, repr(node)


def _label(run: Run, beside: Sequence[Run]) -> str:
    """The overrides in which a run differs from those beside it; what one of them has as its default included."""
    given = [_by_key(other.overrides) for other in beside]
    own = _by_key(run.overrides)
    keys = dict.fromkeys(key for of_run in given for key in of_run)
    shown = []
    for key in keys:
        if _INCIDENTAL.fullmatch(key) or len({of_run.get(key) for of_run in given}) == 1:
            continue
        value = own[key] if key in own else _configured(run, key)
        if value is not None:
            shown.append(f"{key}={value}")
    return ", ".join(shown)


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    """Values of overrides such as `a.b=1` and `++a.b=1`."""
    pairs = (line.lstrip("+").partition("=") for line in overrides)
    return {key: value for key, equals, value in pairs if equals}


def _configured(run: Run, key: str) -> Any:
    node: Any = OmegaConf.to_container(run.config, resolve=False)
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node
