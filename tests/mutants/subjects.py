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
    """Test files, or tests of one: `rows` stands for tests/test_rows.py, `rows::test_it` for a test of it."""

    def paths(self) -> list[str]:
        """Of the tests, from the repository's root."""
        return [f"tests/test_{file}.py{sign}{test}" for file, sign, test in (one.partition("::") for one in self.tests)]

    def files(self, repository: Path) -> list[str]:
        """The files, by their path from the repository's root."""
        paths = [repository / "verl_dra" / source for source in self.sources]
        found = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
        return [str(file.relative_to(repository)) for file in found]


_PASS_AT_K = "test_pass_at_k_is_the_share_of_subsets_with_a_right_one"
_DEFAULTS = "reference::test_the_tables_are_those_of_the_code"

SUBJECTS = {
    "algorithm": Subject(
        ("algorithm",),
        (*("algorithm", "similarity", "baselines", "estimator", "survival"), f"evaluate::{_PASS_AT_K}"),
    ),
    "weighing": Subject(("training/weighing.py",), ("weighing", "trainer")),
    "estimator": Subject(("training/estimator.py",), ("estimator",)),
    "rows": Subject(("training/rows.py",), ("rows", "estimator")),
    "metrics": Subject(("training/metrics.py",), ("metrics", "recording")),
    "scorer": Subject(
        ("scorer",),
        (
            *("deadlines", "placement", "client", "scorer_device", "telemetry", "scores", "scorer_pool", "asking"),
            *("scorer", "config", _DEFAULTS),
        ),
    ),
    "rewards": Subject(("rewards",), ("rewards", "answers")),
    "record": Subject(("record", "training/recording.py"), ("record", "recording", _DEFAULTS)),
    "config": Subject(("config",), ("config", "similarity", "resuming", _DEFAULTS)),
    "data": Subject(("data",), ("prepare_data", "prepare_columns", "open_rs")),
    "evaluate": Subject(("evaluate",), ("evaluate", "generate", "compare")),
    "calibrate": Subject(("calibrate",), ("calibrate",)),
    "sweep": Subject(("sweep",), ("sweep",)),
    "report": Subject(("report",), ("report", "history")),
    "console": Subject(("terminal/console.py",), ("console",)),
}
