"""The scripts that make a Ray cluster of several machines, with the real Ray: two nodes on one machine's loopback."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import isolated
import pytest

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 4
DRIVER = f"""#!{sys.executable}
import sys
import ray

address = next(a for a in sys.argv if a.startswith("+ray_kwargs.ray_init.address=")).partition("=")[2]
ray.init(address=address)
alive = [node for node in ray.nodes() if node["Alive"]]
print("driver:", len(alive), "nodes,", int(ray.cluster_resources()["CPU"]), "CPUs", *sys.argv[1:3], flush=True)
sys.exit(3)
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with a `verl-dra` that counts the nodes and ends with status 3."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "verl-dra").write_text(DRIVER)
    (folder / "verl-dra").chmod(0o755)
    return folder


def run(script: str, tmp_path: Path, programs: Path, **environment: str) -> tuple[int, str]:
    log = tmp_path / "log"
    path = f'PATH="{programs}:{Path(sys.executable).parent}:$PATH"'
    variables = {"RAY_AUTH_TOKEN": TOKEN, "RAY_AUTH_MODE": "token", **environment}
    done = isolated.run(["bash", "-c", f"{path}; {script}"], log, tmp_path, variables, timeout_s=400)
    return done.returncode, log.read_text(errors="replace")


def test_workers_of_the_image_join_its_head_and_end_on_order(tmp_path: Path, programs: Path) -> None:
    script = f"""
    entry={ROOT}/docker/entrypoint.sh
    $entry ray-worker 127.0.0.1 --num-cpus=2 & worker=$!
    sleep 2
    $entry ray-head --num-cpus=1 --node-ip-address=127.0.0.1 --include-dashboard=false & head=$!
    count='import ray, sys; ray.init("127.0.0.1:6379"); sys.exit(len(ray.nodes()) != 2)'
    until $entry python -c "$count"; do sleep 1; done
    $entry train a=1 b=2 +ray_kwargs.ray_init.address=127.0.0.1:6379; echo "train: $?"
    doctor='from verl_dra.doctor.cluster import cluster; print([*cluster(None, "127.0.0.1:6379")][0].problem)'
    RAY_AUTH_TOKEN=other timeout 90 python -c "$doctor"; echo "stranger: $?"
    kill $worker; wait $worker; echo "worker: $?"
    kill $head; wait $head; echo "head: $?"
    """
    _, log = run(script, tmp_path, programs)
    assert "driver: 2 nodes, 3 CPUs train a=1" in log, log
    assert "train: 3" in log, log
    assert "InvalidAuthToken" in log, log
    assert re.search("Ray cluster: can't be joined: .*; if it asks for a token, give it .*\nstranger: 0", log), log
    # Ray's own status after it has drained the node.
    assert "finished draining; shutting down.\nworker: 1" in log, log
    assert "finished draining; shutting down.\nhead: 1" in log, log


@pytest.fixture
def sky(tmp_path: Path) -> str:
    return f"""
    node() {{ SKYPILOT_NODE_RANK=$1 {ROOT}/launch/sky/run.sh a=1; echo "rank $1: $?"; }}
    export SKYPILOT_NODE_IPS=$'127.0.0.1\\n127.0.0.2' SKYPILOT_NUM_GPUS_PER_NODE=8
    """


def test_skypilot_nodes_join_and_the_trainers_status_ends_them(tmp_path: Path, programs: Path, sky: str) -> None:
    script = sky + "export SKYPILOT_NUM_NODES=2; node 1 & node 0; wait; ps -e -o args | grep -c '[r]aylet/raylet'"
    _, log = run(script, tmp_path, programs)
    assert "driver: 2 nodes" in log, log
    assert "train a=1" in log, log
    assert "rank 0: 3" in log, log
    assert "rank 1: 0" in log, log
    assert log.splitlines()[-1] == "0", log


def test_a_skypilot_node_that_stays_away_ends_the_task_at_its_deadline(
    tmp_path: Path, programs: Path, sky: str
) -> None:
    script = sky + "export SKYPILOT_NUM_NODES=3; JOIN_TIMEOUT_S=2 node 1; JOIN_TIMEOUT_S=90 node 0"
    _, log = run(script, tmp_path, programs)
    assert "not all nodes joined" in log, log
    assert "rank 0: 1" in log, log
    assert "no Ray at 127.0.0.1:6379" in log, log
    assert "rank 1: 1" in log, log
    assert "driver:" not in log
