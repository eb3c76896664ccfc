"""One Slurm for all tests of this folder."""

from __future__ import annotations

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
    """Whatever a test does: no job and no process of Ray outlives it."""
    yield
    try:
        lab.wait_until(
            lambda: not slurm.run("squeue", "--noheader").stdout and not slurm.processes("raylet|gcs_server|ray::"),
            60,
            lambda: f"{slurm.run('squeue').stdout}{slurm.processes('ray')}",
        )
    finally:
        slurm.run("scancel", "--user=root")
