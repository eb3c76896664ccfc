"""One Slurm for all tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import lab
import pytest


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Lab]:
    if missing := lab.missing_tools():
        pytest.skip(f"a real Slurm needs {', '.join(missing)} (Debian: slurm-wlm, munge, iproute2, util-linux)")
    with lab.running(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_is_left(slurm: lab.Lab) -> Iterator[None]:
    """Whatever a test does: no job, no process of one, Ray's or Python's, and none of Ray's files outlive it."""

    def left() -> list[str]:
        jobs = slurm.run("squeue", "--noheader").stdout.splitlines()
        processes = slurm.processes(f"raylet|gcs_server|ray::|verl_dra.job|{sys.prefix}/")
        folders = slurm.run("find", "/tmp/ray", "-maxdepth", "1", "-name", "ray_[0-9]*").stdout.splitlines()
        return [*jobs, *processes, *folders]

    yield
    try:
        lab.wait_until(lambda: not left(), 60, lambda: "\n".join(left()))
    finally:
        slurm.run("scancel", "--user=root")
