"""Every shell script of the repository parses and passes shellcheck."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (".ci", "docker", "launch", "recipes", "tests", "verl_dra")


def scripts() -> list[str]:
    """By their suffix, or by their first line."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if is_script(path)]
    return [str(path.relative_to(ROOT)) for path in found]


def is_script(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline(200)
    return path.suffix in {".sh", ".sbatch"} or (first.startswith(b"#!") and first.split()[-1].endswith(b"sh"))


def test_scripts_are_found_by_suffix_and_by_first_line() -> None:
    assert {".ci/run", "docker/entrypoint.sh", "recipes/open_rs/train.sh"} <= set(scripts())


@pytest.mark.parametrize("name", scripts())
def test_bash_reads_it(name: str) -> None:
    done = subprocess.run(["bash", "-n", ROOT / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("not installed: shellcheck")
    done = subprocess.run(["shellcheck", *scripts()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
