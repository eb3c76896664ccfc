"""What `make test-gpu` trains, here a toy on the CPU."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import isolated
import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_is_a_row_whose_advantages_are_the_formulas(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    smallest = ["--size", "toy", "--placements", "cpu", "--steps", "1", "--prompts", "4", "--response", "32"]
    places = [TESTS.parent, TESTS, TESTS / "stack", TESTS / "benchmarks"]
    done = isolated.run(
        [sys.executable, str(TESTS / "gpu" / "trainings.py"), *smallest, "--out", str(tmp_path / "out")],
        log=log,
        cwd=tmp_path,
        environment={"PYTHONPATH": os.pathsep.join(map(str, places))},
        timeout_s=800,
    )
    output = log.read_text(errors="replace")
    assert done.returncode == 0, output[-3000:]
    (row,) = re.findall(r"^\|\s+cpu \|(.*)\|$", output, re.MULTILINE)
    seconds, _, waited, _, fetched, error = (cell.strip() for cell in row.split("|"))
    assert float(seconds) > float(waited) >= 0
    assert fetched == "0"
    assert float(error) < 0.05
