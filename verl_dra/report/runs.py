"""The folders of runs that a report is made of."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_dra.history import History, read_history

_SEED = re.compile(r"/(seed[-_=]?)?\d+$")


class ReportError(ValueError):
    """No report can be made of what was given."""


@dataclass
class Run:
    """One run's folder."""

    folder: Path
    name: str
    """Its path below what the runs have in common."""
    history: History
    config: DictConfig
    """As Hydra wrote it beside the metrics; empty where it is not there."""

    @property
    def family(self) -> str:
        """The name without the number of a seed: runs of a family have one colour."""
        return _SEED.sub("", self.name)

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


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`.

    Raises:
        ReportError: one of them holds no metrics.
    """
    folders = [folder.resolve() for folder in folders]
    if len(set(folders)) < len(folders):
        raise ReportError("a run folder is given twice")
    common = Path(os.path.commonpath([folder.parent for folder in folders])) if len(folders) > 1 else folders[0].parent
    runs = []
    for folder in folders:
        history = read_history(folder)
        if not history.values:
            raise ReportError(
                f"{folder} has no metrics.jsonl with metrics in it; give the folder that `verl-dra train` named at its "
                "end (hydra.run.dir, with `file` among trainer.logger)"
            )
        config = folder / ".hydra" / "config.yaml"
        loaded = OmegaConf.load(config) if config.exists() else OmegaConf.create()
        assert isinstance(loaded, DictConfig)
        runs.append(Run(folder, str(folder.relative_to(common)), history, loaded))
    return runs


def steps_of(folder: Path) -> dict[int, Path]:
    """The files STEP.jsonl of a folder by their step, ascending."""
    files = [path for path in folder.glob("*.jsonl") if path.stem.isdigit()]
    return {int(path.stem): path for path in sorted(files, key=lambda path: int(path.stem))}
