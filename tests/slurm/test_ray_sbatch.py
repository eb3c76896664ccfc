"""launch/slurm/ray.sbatch on a real two-node Slurm with made-up GPUs, by a small Ray program instead of a training."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from lab import Lab, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = str(Path(__file__).parents[2] / "launch" / "slurm" / "ray.sbatch")
PROGRAM = """
import os, signal, socket, sys
from pathlib import Path
import ray

ray.init()
print("arguments", sys.argv[1:], flush=True)
out = Path(next(a for a in sys.argv if a.startswith("hydra.run.dir=")).split("=", 1)[1])
gpus = int(next(a for a in sys.argv if a.startswith("trainer.n_gpus_per_node=")).split("=", 1)[1])

@ray.remote(num_gpus=gpus, scheduling_strategy="SPREAD")
def where():
    return socket.gethostname() + os.environ.get("DRA_IN", "")

hosts = ray.get([where.remote(), where.remote()])
print("hosts", sorted(hosts), "token", oct(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o777), flush=True)
if "checkpoint" in sys.argv:
    (out / "checkpoints").mkdir(exist_ok=True)
    (out / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(os.environ.get("SLURM_RESTART_COUNT", "0"))
print("ready", flush=True)
if "stay" in sys.argv and not (out / "go_on").exists():
    signal.pause()
sys.exit(3 if "fail" in sys.argv else 0)
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def submit(slurm: Lab, work: Path, *arguments: str, gpus: int = 8, **environment: str) -> str:
    return slurm.sbatch(
        *("--nodes=2", f"--gres=gpu:{gpus}", "--cpus-per-task=4", SCRIPT),
        *(sys.executable, str(work / "program.py"), *arguments),
        environment={"DRA_TMP": "/tmp/ray", "DRA_START_TIMEOUT_S": "120", **environment},
        cwd=work,
    )


def shown(work: Path, job: str) -> str:
    try:
        return (work / f"verl_dra-{job}.out").read_text(errors="replace")
    except FileNotFoundError:
        return ""


def wait_for(work: Path, job: str, pattern: str, times: int = 1) -> None:
    wait_until(
        lambda: len(re.findall(pattern, shown(work, job))) >= times,
        180,
        lambda: f"not {times} times {pattern!r} in:\n{shown(work, job)[-3000:]}",
    )


def states(work: Path, job: str) -> list[str]:
    lines = (work / "outputs" / "slurm" / job / "state.log").read_text().splitlines()
    return [re.sub(r" (job|nodes)=\S+", "", line.split(" ", 1)[1]) for line in lines]


def test_two_jobs_share_the_nodes_and_each_has_both_of_its_own(slurm: Lab, work: Path) -> None:
    # `env` stands in for a container: each node's Ray and the driver are started by it.
    jobs = [
        submit(slurm, work, "trainer.nnodes=2", "dra.smi=log_det", gpus=4, DRA_CONTAINER="env DRA_IN=-inside")
        for _ in range(2)
    ]
    for job in jobs:
        ended = slurm.wait(job, seconds=240)
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), shown(work, job)[-3000:]
        out = work / "outputs" / "slurm" / job
        # What the user gave stands first and is not given again.
        expected = [
            *("trainer.nnodes=2", "dra.smi=log_det", "trainer.n_gpus_per_node=4", f"hydra.run.dir={out}"),
            *(f"trainer.default_local_dir={out}/checkpoints", "trainer.resume_mode=auto"),
        ]
        assert f"arguments {expected}" in shown(work, job)
        assert "hosts ['n1-inside', 'n2-inside'] token 0o600" in shown(work, job)
        assert states(work, job) == ["running restart=0", "completed exit=0 restart=0"]
        assert not list(out.glob("ray_token*"))


def test_the_jobs_exit_code_is_the_programs(slurm: Lab, work: Path) -> None:
    job = submit(slurm, work, "fail")
    ended = slurm.wait(job, seconds=180)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "3:0")
    assert states(work, job)[-1] == "failed exit=3 restart=0"


def test_a_ray_that_does_not_start_ends_the_job(slurm: Lab, work: Path) -> None:
    (work / "ray").write_text(f'#!/bin/sh\nexec {Path(sys.executable).with_name("ray")} "$@" --no-such-flag\n')
    (work / "ray").chmod(0o755)
    (work / "setup.sh").write_text(f"PATH={work}:$PATH\n")
    job = submit(slurm, work, DRA_SETUP=str(work / "setup.sh"))
    ended = slurm.wait(job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
    assert "No such option" in shown(work, job)
    assert "Ray ended on a node before the training did" in shown(work, job)


def test_a_lost_worker_ends_the_job(slurm: Lab, work: Path) -> None:
    job = submit(slurm, work, "stay")
    wait_for(work, job, "ready")
    (raylet,) = [line.split()[0] for line in slurm.processes("raylet/raylet .*--node_ip_address=10.77.0.2")]
    slurm.run("kill", "-KILL", raylet)
    ended = slurm.wait(job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
    assert "Ray ended on a node before the training did" in shown(work, job)


def test_scancel_ends_everything(slurm: Lab, work: Path) -> None:
    job = submit(slurm, work, "stay")
    wait_for(work, job, "ready")
    slurm.run("scancel", job)
    assert slurm.wait(job, seconds=60)["JobState"] == "CANCELLED"
    assert not list((work / "outputs" / "slurm" / job).glob("ray_token*"))


def test_near_its_time_limit_a_run_that_made_a_checkpoint_is_requeued_in_the_same_folder(
    slurm: Lab, work: Path
) -> None:
    job = submit(slurm, work, "stay", "checkpoint")
    wait_for(work, job, "ready")
    (work / "outputs" / "slurm" / job / "go_on").touch()
    # As Slurm does by #SBATCH --signal two minutes before the end.
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    slurm.wait(job, "PENDING", seconds=120)
    # Slurm lets a requeued job wait for two minutes.
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(work, job, "ready", times=2)
    ended = slurm.wait(job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1")
    assert states(work, job) == [
        "running restart=0",
        "requeued exit=0 restart=0",
        "running restart=1",
        "completed exit=0 restart=1",
    ]


def test_without_a_new_checkpoint_it_is_not_requeued(slurm: Lab, work: Path) -> None:
    job = submit(slurm, work, "stay")
    wait_for(work, job, "ready")
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    ended = slurm.wait(job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "124:0")
    assert "trainer.save_freq" in shown(work, job)
    assert states(work, job)[-1] == "time exit=124 restart=0"


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ([], ["--gres=gpu:8"], "no command; for example"),
        (["verl-dra", "train"], [], "no GPU on n1: ask for them"),
    ],
)
def test_what_can_not_run_says_so_at_once(
    slurm: Lab, work: Path, arguments: list[str], options: list[str], said: str
) -> None:
    job = slurm.sbatch(*options, SCRIPT, *arguments, cwd=work)
    ended = slurm.wait(job, seconds=30)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
    assert said in shown(work, job)
