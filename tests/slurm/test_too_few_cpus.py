"""A job with too few CPUs for the training that it runs ends soon and says how many it needs, on a real Slurm."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lab import Lab

sys.path.append(str(Path(__file__).parents[2] / "recipes"))
from tiny_paths.demo import HERE as RECIPE
from tiny_paths.demo import environment
from tiny_paths.prepare import prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = str(Path(__file__).parents[2] / "launch" / "slurm" / "ray.sbatch")


def test_a_job_with_too_few_cpus_says_how_many_it_needs(slurm: Lab, tmp_path: Path) -> None:
    train = ["verl-dra", "train", "--config-dir", str(RECIPE), "--config-name", "tiny_paths", "+platform=cpu"]
    job = slurm.sbatch(
        *("--nodes=2", "--gres=gpu:2", "--cpus-per-task=8", SCRIPT, *train, f"data_dir={prepare()}"),
        *(f"recipe_dir={RECIPE}", "transfer_queue.backend.SimpleStorage.num_data_storage_units=8"),
        # The job's cluster, in the place of one that the CPU platform makes.
        *(f"ray_kwargs.ray_init.{key}=null" for key in ("address", "num_cpus", "num_gpus", "include_dashboard")),
        environment={**environment(), "DRA_TMP": "/tmp/ray", "DRA_START_TIMEOUT_S": "120"},
        cwd=tmp_path,
    )
    ended = slurm.wait(job, seconds=120)
    shown = (tmp_path / f"verl_dra-{job}.out").read_text(errors="replace")
    assert ended["JobState"] == "FAILED", shown
    assert ended["ExitCode"] != "0:0"
    assert "4 GPUs and 23 CPUs in all" in shown, shown
    # 6 with the GPUs and 4 storage units; controller, task runner and the one scorer that is counted on either node.
    assert "there are 2 GPUs and 8 CPUs on each of 2 nodes: 13 CPUs are needed on each node" in shown, shown
    assert "Slurm: --cpus-per-task=13" in shown
