"""A run that Ray has too few CPUs for ends at its start, with the number it needs: on a real Ray, with veRL's own
configuration, whose default of storage units the CPU platform lowers."""

from __future__ import annotations

import json
from pathlib import Path

import isolated
import pytest
import toy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUN = [
    "+platform=cpu",
    "data.max_prompt_length=64",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=8",
    "trainer.n_gpus_per_node=2",
    "dra.scorer.num_cpus=2",
    "trainer.save_freq=-1",
]
NEEDS = (
    "2 GPUs and 18 CPUs in all (1 x 2 GPUs and 6 CPUs for trainer.n_gpus_per_node, 1 x 1 CPUs for TransferQueue's "
    "controller, 8 x 1 CPUs for transfer_queue.backend.SimpleStorage.num_data_storage_units, 1 x 1 CPUs for veRL's "
    "task runner, 1 x 2 CPUs for dra.scorer.num_cpus); there are 2 GPUs and 8 CPUs on "
)
JOINS = [f"ray_kwargs.ray_init.{key}=null" for key in ("address", "num_cpus", "num_gpus", "include_dashboard")]
# Nodes that Ray makes up when it is asked for more, and a head that has 8 CPUs.
AUTOSCALER = {
    "cluster_name": "made-up",
    "provider": {
        "type": "fake_multinode",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "max_workers": 1,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 1,
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 8, "GPU": 2}, "node_config": {}, "max_workers": 0},
        "more": {"resources": {"CPU": 64}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    },
    "auth": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    **{
        key: []
        for key in (
            *("cluster_synced_files", "setup_commands", "initialization_commands", "head_setup_commands"),
            *("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
            *("rsync_exclude", "rsync_filter"),
        )
    },
}
# As veRL does after the check, in the same process.
THEN_JOINS = """
import os, sys
import ray
from verl_dra.doctor import cluster, machine
from verl_dra.config.compose import composed

(check,) = cluster.room(composed(sys.argv[1:])[0])
ray.init(runtime_env={"env_vars": {"OF_THE_RUN": "yes"}})
print("OTHERS", *(check.state for joins in (True, False) for check in machine.other_rays(joins)))
print("JOINED AGAIN", check.state, ray.get(ray.remote(lambda: os.environ["OF_THE_RUN"]).remote()))
"""
HEAD = """
set -euo pipefail
head() {
  ray start --head --port=6379 --node-ip-address=127.0.0.1 --num-cpus=8 --num-gpus=2 --include-dashboard=false \
    --disable-usage-stats "$@"
}
"""


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("toy")
    toy.make(folder)
    files = [f"data.{name}_files={folder}/{name}.parquet" for name in ("train", "val")]
    return [*RUN, *files, f"actor_rollout_ref.model.path={folder}/model"]


def run(tmp_path: Path, command: list[str], timeout_s: float = 300, **environment: str) -> tuple[int, str]:
    log = tmp_path / "log.txt"
    done = isolated.run(command, log, tmp_path, {"VERL_PLATFORM": "cpu", **environment}, timeout_s)
    return done.returncode, log.read_text(errors="replace")


def test_a_ray_of_its_own(tmp_path: Path, overrides: list[str]) -> None:
    few = ["ray_kwargs.ray_init.num_cpus=8", "ray_kwargs.ray_init.num_gpus=2"]
    status, shown = run(tmp_path, ["verl-dra", "train", *overrides, *few], timeout_s=120)
    assert status == 1, shown
    assert f"GPUs and CPUs: it books {NEEDS}this machine: 18 CPUs are needed on the node, or the run" in shown
    assert "set ray_kwargs.ray_init.num_cpus=18" in shown


def test_a_cluster_that_is_joined_and_a_run_without_dra(tmp_path: Path, overrides: list[str]) -> None:
    script = f"""{HEAD}
head
export RAY_ADDRESS=127.0.0.1:6379
SECONDS=0
verl-dra train "$@" || echo "train: $? in $SECONDS s"
SECONDS=0
verl-dra train "$@" dra.enabled=False || echo "plain: $? in $SECONDS s"
verl-dra doctor "$@" --json >doctor.json || echo "doctor: $?"
python -c '{THEN_JOINS}' "$@"
"""
    status, shown = run(tmp_path, ["bash", "-c", script, "bash", *overrides, *JOINS])
    assert status == 0, shown
    words = shown.split()
    assert f"GPUs and CPUs: it books {NEEDS}127.0.0.1 " in shown
    assert "give Ray 18 CPUs on each node (Slurm: --cpus-per-task=18; else: ray start --num-cpus=18)" in shown
    assert "15 CPUs are needed on the node" in shown  # neither task runner nor scorer books any
    for name in ("train:", "plain:"):
        at = words.index(name)
        assert words[at + 1] == "1"
        assert int(words[at + 3]) < 120
    assert "doctor: 1" in shown
    assert "JOINED AGAIN fail yes" in shown
    assert "OTHERS ok warn" in shown
    (check,) = [
        c for c in json.loads((tmp_path / "doctor.json").read_text())["checks"] if c["check"] == "GPUs and CPUs"
    ]
    assert check["state"] == "fail"
    assert NEEDS in check["found"]


def test_a_cluster_that_grows_is_not_refused(tmp_path: Path, overrides: list[str]) -> None:
    (tmp_path / "autoscaler.json").write_text(json.dumps(AUTOSCALER))
    (tmp_path / "look.py").write_text("""
import sys
import time
import ray
from verl_dra.doctor import cluster
from verl_dra.config.compose import composed

config, _ = composed(sys.argv[1:])
ray.init("auto", log_to_driver=False)
from ray.experimental.internal_kv import _internal_kv_get
while b'"ray.head.default"' not in (_internal_kv_get("__autoscaling_status") or b""):
    time.sleep(0.2)
for check in cluster.room(config):
    print("LOOK", check.state, check.problem)
""")
    script = (
        f"{HEAD}\nexport RAY_FAKE_CLUSTER=1 AUTOSCALER_UPDATE_INTERVAL_S=1\nhead --autoscaling-config=autoscaler.json"
    )
    script += '\nRAY_ADDRESS=127.0.0.1:6379 python look.py "$@"'
    status, shown = run(tmp_path, ["bash", "-c", script, "bash", *overrides, *JOINS])
    assert status == 0, shown
    assert f"LOOK warn GPUs and CPUs: it books {NEEDS}127.0.0.1 " in shown
    assert "the cluster's autoscaler must bring more" in shown
