"""What an installed wheel has: all that a checkout's package reads at run time."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "outputs", "build"))
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_it_has_the_whole_package(names: set[str]) -> None:
    package = [path for path in (ROOT / "verl_dra").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(package) > 50
    assert {str(path.relative_to(ROOT)) for path in package} <= names


def test_it_has_the_script_that_sweep_submits_and_no_tests(names: set[str]) -> None:
    (script,) = [name for name in names if name.endswith("launch/slurm/ray.sbatch")]
    assert ".data/data/share/verl_dra/" in script
    assert not any(name.startswith(("tests/", "recipes/", "outputs/")) for name in names)
