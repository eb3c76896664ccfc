"""What is mutated, and the fast tests that should see it, its own first: a trial ends at the first failure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Subject:
    """A part of the package under one name of the table."""

    sources: tuple[str, ...]
    """Files and folders below `verl_dra`."""
    tests: tuple[str, ...]
    """Test files: `rows` stands for tests/test_rows.py."""

    def files(self, repository: Path) -> list[str]:
        """The files, by their path from the repository's root."""
        paths = [repository / "verl_dra" / source for source in self.sources]
        found = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
        return [str(file.relative_to(repository)) for file in found]


SUBJECTS = {
    "algorithm": Subject(("algorithm",), ("algorithm", "baselines", "estimator")),
    "estimator": Subject(("estimator.py",), ("estimator",)),
    "rows": Subject(("rows.py",), ("rows", "estimator")),
    "metrics": Subject(("metrics.py",), ("recording",)),
    "scorer": Subject(("scorer",), ("scores", "scorer", "client")),
    "rewards": Subject(("rewards",), ("rewards",)),
    "record": Subject(("record", "recording.py"), ("record", "recording")),
    "config": Subject(("config",), ("config",)),
    "data": Subject(("data",), ("prepare_data", "open_rs")),
    "evaluate": Subject(("evaluate",), ("evaluate",)),
    "sweep": Subject(("sweep",), ("sweep",)),
    "report": Subject(("report",), ("report",)),
    "console": Subject(("console.py",), ("console",)),
}
