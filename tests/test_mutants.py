"""What `make mutants` is told is still there."""

from __future__ import annotations

import runpy
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
SUBJECTS = runpy.run_path(str(ROOT / "tests" / "mutants" / "subjects.py"))["SUBJECTS"]


def test_each_subject_has_code_and_tests() -> None:
    for name, subject in SUBJECTS.items():
        assert subject.files(ROOT), name
        for path, _, test in (path.partition("::") for path in subject.paths()):
            assert f"def {test}" in (ROOT / path).read_text(), f"{name}: {path}::{test}"


def test_what_is_equivalent_is_a_line_of_a_subject_with_its_reason() -> None:
    files = {file for subject in SUBJECTS.values() for file in subject.files(ROOT)}
    for entry in yaml.safe_load((ROOT / "tests" / "mutants" / "equivalent.yaml").read_text()):
        assert set(entry) <= {"file", "line", "mutation", "reason"}
        assert entry["file"] in files
        text = " ".join(line.strip() for line in (ROOT / entry["file"]).read_text().splitlines())
        assert entry["line"] in text, f"{entry['file']} has no line {entry['line']!r} any more"
        assert entry["reason"]
