"""What is released: a wheel with all that a checkout's package reads at run time, and a source distribution of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

import verl_dra

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Released:
    sdist: Path
    wheel: Path
    """Built of the checkout."""
    wheel_of_sdist: Path


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    out = tmp_path_factory.mktemp("released")
    source = out / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "outputs", "build"))
    sdist = build("sdist", source, out)
    wheel = build("wheel", source, out / "of_checkout")
    with tarfile.open(sdist) as archive:
        archive.extractall(out)
    return Released(sdist, wheel, build("wheel", out / sdist.name.removesuffix(".tar.gz"), out / "of_sdist"))


@pytest.fixture(scope="module")
def installed(released: Released, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel, which sees the locked torch and all else, and no checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(released.wheel)], check=True, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Only a path: what is installed there as a checkout's is left aside.
    (packages / "locked.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return folder / "bin"


def build(what: str, source: Path, out: Path) -> Path:
    """A `wheel` or `sdist` of `source`, in `out`."""
    out.mkdir(exist_ok=True)
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{what}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def says(command: list[str], cwd: Path) -> str:
    """What a command prints that knows of no checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_wheel_has_the_whole_package(released: Released) -> None:
    package = [path for path in (ROOT / "verl_dra").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(package) > 50
    assert {str(path.relative_to(ROOT)) for path in package} <= names(released.wheel)


def test_it_has_the_script_that_sweep_submits_and_no_tests(released: Released) -> None:
    (script,) = [name for name in names(released.wheel) if name.endswith("launch/slurm/ray.sbatch")]
    assert ".data/data/share/verl_dra/" in script
    assert not any(name.startswith(("tests/", "recipes/", "outputs/")) for name in names(released.wheel))


def test_the_source_distribution_makes_the_same_wheel(released: Released) -> None:
    wheels = (released.wheel, released.wheel_of_sdist)
    first, second = ({info.filename: info.CRC for info in zipfile.ZipFile(wheel).infolist()} for wheel in wheels)
    assert first == second
    with tarfile.open(released.sdist) as archive:
        assert not [name for name in archive.getnames() if "/tests" in name]


def test_the_wheel_works_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.metadata, torch, verl_dra as of; print(of.__file__, of.__version__, "
        "importlib.metadata.version('verl_dra'), of.graph_cut_smi(torch.eye(2), torch.zeros(2).int()), sep='\\n')"
    )
    file, version, of_wheel, smi = says([str(installed / "python"), "-c", code], tmp_path).splitlines()
    assert Path(file).is_relative_to(installed.parent)
    assert version == of_wheel == verl_dra.__version__
    assert smi == "tensor([0., 0.])"
    assert "simulate" in says([str(installed / "verl-dra"), "--help"], tmp_path)


def test_the_command_shows_a_group_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    assert "DRA" in says([str(installed / "verl-dra"), "simulate"], tmp_path)


def test_the_versions_are_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert str(citation["version"]) == newest == verl_dra.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
