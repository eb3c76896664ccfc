"""The folders of runs that a report is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_dra.record.history import History, read_history

EFFECTIVE_PATHS = "report/effective_paths"
"""Of the validation groups that the report shows; measured by the report, so that runs without DRA have it as well."""


class ReportError(ValueError):
    """No report can be made of what was given."""


@dataclass
class Run:
    """One run's folder."""

    folder: Path
    name: str
    """As given; else its path below what the runs have in common, until `verl_dra.report.names` has named it."""
    given: bool
    """Whether the user named it."""
    history: History
    config: DictConfig
    """As Hydra wrote it beside the metrics; empty where it is not there."""
    overrides: list[str]
    """Those of its command line."""
    family: str = ""
    """Runs of a family have one colour."""
    notes: list[str] = field(default_factory=list)
    """What could not be read of it."""

    @property
    def with_dra(self) -> bool:
        """Whether DRA adjusted its rewards: what its settings say, and without those its metrics."""
        try:
            enabled = OmegaConf.select(self.config, "dra.enabled")
            strength = OmegaConf.select(self.config, "dra.strength")
        except OmegaConfBaseException:  # an interpolation of the machine that it ran on
            enabled = strength = None
        if enabled is None:
            return any(metric.startswith("dra/weight/") for metric in self.history.values)
        return bool(enabled) and strength != 0

    def dumps(self, key: str, usual: str) -> dict[int, Path]:
        """veRL's dumps by step: of the folder `usual` in the run's, or of that which the setting `key` names."""
        try:
            named = OmegaConf.select(self.config, key)
        except OmegaConfBaseException:  # an interpolation of the machine that it ran on
            named = None
        folders = [self.folder / usual, *([self.folder / Path(str(named)).name, Path(str(named))] if named else [])]
        for folder in folders:
            if found := steps_of(folder):
                return found
        return {}


def read_runs(arguments: Sequence[str]) -> list[Run]:
    """The runs of arguments RUN_DIR or NAME=RUN_DIR.

    Raises:
        ReportError: one of them holds no metrics.
    """
    split = [_split(argument) for argument in arguments]
    folders = [folder for _, folder in split]
    if len(set(folders)) < len(folders):
        raise ReportError("a run folder is given twice")
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    return [_read(folder, name, common) for name, folder in split]


def steps_of(folder: Path) -> dict[int, Path]:
    """The files STEP.jsonl of a folder by their step, ascending."""
    files = [path for path in folder.glob("*.jsonl") if path.stem.isdecimal() and path.is_file()]
    return {int(path.stem): path for path in sorted(files, key=lambda path: int(path.stem))}


def _split(argument: str) -> tuple[str, Path]:
    """Name ("" where none is given) and folder; the names of folders may hold equal signs, as Hydra's do."""
    name, equals, folder = argument.partition("=")
    named = bool(equals and name and folder) and not Path(argument).exists()
    # The shell leaves a tilde after the equal sign to us.
    return (name, Path(os.path.expanduser(folder)).resolve()) if named else ("", Path(argument).resolve())


def _read(folder: Path, name: str, common: Path) -> Run:
    history = read_history(folder)
    if not history.values:
        raise ReportError(
            f"{folder} has no metrics.jsonl with metrics in it; give the folder that `verl-dra train` named at its "
            "end (hydra.run.dir, with `file` among trainer.logger)"
        )
    notes: list[str] = []
    config = _yaml(folder / ".hydra" / "config.yaml", notes)
    overrides = _yaml(folder / ".hydra" / "overrides.yaml", notes)
    lines: Any = OmegaConf.to_container(overrides, resolve=False) if isinstance(overrides, ListConfig) else []
    return Run(
        folder,
        name or str(folder.relative_to(common)),
        bool(name),
        history,
        config if isinstance(config, DictConfig) else OmegaConf.create(),
        [str(line) for line in lines],
        notes=notes,
    )


def _yaml(path: Path, notes: list[str]) -> Any:
    """What a file holds; None where it is not there or, which is noted, can't be read."""
    try:
        return OmegaConf.load(path) if path.exists() else None
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError):
        notes.append(f"{path} can't be read and is left out.")
        return None
