"""launch/slurm/ray.sbatch on a real two-node Slurm with made-up GPUs, by a small Ray program instead of a training."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from lab import Lab, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = str(Path(__file__).parents[2] / "launch" / "slurm" / "ray.sbatch")
PROGRAM = """
import os, signal, socket, sys
from pathlib import Path
import ray
from hydra.core.override_parser.overrides_parser import OverridesParser

ray.init()
print("arguments", sys.argv[1:], flush=True)
overrides = OverridesParser.create().parse_overrides([a for a in sys.argv[1:] if "=" in a])
given = {override.key_or_group: override.value() for override in overrides}
out, gpus = Path(given["hydra.run.dir"]), given["trainer.n_gpus_per_node"]
# As verl-dra train has it, and writes it down.
checkpoints = given.get("trainer.default_local_dir", f"{out}/checkpoints").replace("${trainer.experiment_name}", "mine")
checkpoints = Path(checkpoints)
with open(os.environ["DRA_CHECKPOINTS_FILE"], "a") as file:
    print(checkpoints, file=file)

@ray.remote(num_gpus=gpus, scheduling_strategy="SPREAD")
def where():
    return socket.gethostname() + os.environ.get("DRA_IN", "")

hosts = ray.get([where.remote(), where.remote()])
print("hosts", sorted(hosts), "token", oct(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode & 0o777), flush=True)
if "checkpoint" in sys.argv:
    checkpoints.mkdir(exist_ok=True, parents=True)
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(os.environ.get("SLURM_RESTART_COUNT", "0"))
print("ready", flush=True)
if "stay" in sys.argv and not (out / "go_on").exists():
    signal.pause()
sys.exit(3 if "fail" in sys.argv else 0)
"""

# Two points of a grid: each writes what it got into the folder that Hydra gave it.
GRID = """
import json, os, time
from pathlib import Path
import hydra, ray
from hydra.core.hydra_config import HydraConfig

@hydra.main(config_path=None, config_name=None, version_base=None)
def main(config):
    ray.init()
    got = {"point": config.point, "in": os.environ["DRA_IN"], "also": os.environ["DRA_ALSO"]}
    got["nodes"] = [[node["NodeManagerAddress"], node["Resources"]] for node in ray.nodes() if node["Alive"]]
    got["step"] = [int(os.environ["SLURM_" + name + "_ON_NODE"]) for name in ("CPUS", "GPUS")]
    (Path(HydraConfig.get().runtime.output_dir) / "got.json").write_text(json.dumps(got))
    ray.shutdown()
    print("point", config.point, flush=True)
    while not Path("go_on").exists():
        time.sleep(0.1)

main()
"""
# Ray's command, which fails FAILS times on each node.
FLAKY_RAY = """
echo try >>"{work}/tries.$SLURMD_NODENAME"
(($(wc -l <"{work}/tries.$SLURMD_NODENAME") > FAILS)) && exec {ray} "$@"
mkdir -p "$DRA_TMP/ray_$SLURM_JOB_ID/r/session_1/logs"
echo "no room" >"$DRA_TMP/ray_$SLURM_JOB_ID/r/session_1/logs/gcs_server.err"
exit 1"""

# A container as enroot and pyxis make it, with a /tmp of its own; of the host's it has what FOLDERS name.
CONTAINER = """#!/bin/bash
mount --make-rprivate /
mkdir -p /run/host
mount --rbind /tmp /run/host
mount -t tmpfs tmpfs /tmp
for folder in $FOLDERS; do
  mkdir -p "$folder"
  mount --bind "/run/host/${folder#/tmp/}" "$folder"
done
DRA_IN=-inside exec "$@"
"""
# Ray's command, slow to end.
SLOW_RAY = """#!/bin/bash
{ray} "$@" &
trap 'touch {work}/ending; sleep 5; kill %1' TERM
wait
wait
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def submit(
    slurm: Lab, work: Path, *arguments: str, options: Sequence[str] = ("--nodes=2", "--gres=gpu:8"), **environment: str
) -> str:
    return slurm.sbatch(
        *(*options, "--cpus-per-task=4", SCRIPT, sys.executable, str(work / "program.py"), *arguments),
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


def states(out: Path) -> list[str]:
    lines = (out / "state.log").read_text().splitlines()
    return [re.sub(r" (job|nodes)=\S+", "", line.split(" ", 1)[1]) for line in lines]


def test_two_jobs_share_the_nodes_and_each_has_both_of_its_own(slurm: Lab, work: Path) -> None:
    options = ("--nodes=2", "--gres=gpu:4")
    jobs = [submit(slurm, work, "trainer.nnodes=2", "dra.smi=log_det", options=options) for _ in range(2)]
    queue = ["squeue", "--noheader", "--format=%T"]
    wait_until(lambda: slurm.run(*queue).stdout.split() == ["RUNNING"] * 2, 10, lambda: "not both at once on the nodes")
    for job in jobs:
        ended = slurm.wait(job, seconds=240)
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), shown(work, job)[-3000:]
        out = work / "outputs" / "slurm" / job
        # What the user gave stands first and is not given again.
        expected = [
            *("trainer.nnodes=2", "dra.smi=log_det", "trainer.n_gpus_per_node=4"),
            *(f"hydra.run.dir={out}", f"hydra.sweep.dir={out}"),
        ]
        assert f"arguments {expected}" in shown(work, job)
        assert "hosts ['n1', 'n2'] token 0o600" in shown(work, job)
        assert states(work / "outputs" / "slurm" / job) == ["running restart=0", "completed exit=0 restart=0"]
        assert not list(out.glob("ray_token*"))


def test_ray_and_the_driver_meet_from_two_containers_with_the_mounts_that_readme_names(slurm: Lab, work: Path) -> None:
    container = work / "container"
    container.write_text(CONTAINER)
    container.chmod(0o755)
    # The checkout and what this interpreter imports can be there as well.
    used = {str(Path(__file__).parents[2]), sys.prefix, sys.base_prefix, *filter(os.path.isdir, sys.path)}
    folders = ["/tmp/ray", str(work), *sorted(folder for folder in used if Path(folder).is_relative_to("/tmp"))]
    job = submit(slurm, work, DRA_CONTAINER=f"unshare --mount {container}", FOLDERS=" ".join(folders))
    ended = slurm.wait(job, seconds=180)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), shown(work, job)[-3000:]
    assert "hosts ['n1-inside', 'n2-inside']" in shown(work, job)


def test_options_of_sbatch_are_not_taken_for_those_of_the_steps(slurm: Lab, work: Path) -> None:
    (work / "setup.sh").write_text(f"PATH={Path(sys.executable).parent}:$PATH\n")
    kept = "PYTHONPATH,RAY_USAGE_STATS_ENABLED,RAY_worker_register_timeout_seconds,RAY_memory_monitor_refresh_ms"
    export = f"--export=DRA_SETUP={work}/setup.sh,DRA_TMP=/tmp/ray,{kept}"
    job = submit(slurm, work, options=("--nodes=2", "--gpus=16", export))
    ended = slurm.wait(job, seconds=180)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), shown(work, job)[-3000:]
    assert "trainer.n_gpus_per_node=8" in shown(work, job)


def stub(work: Path, name: str, script: str) -> str:
    """A program that comes before the real one on the PATH that is given back."""
    (work / "bin").mkdir(exist_ok=True)
    (work / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
    (work / "bin" / name).chmod(0o755)
    return f"{work}/bin:{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}"


def test_a_site_may_know_neither_gpus_nor_addresses_of_names(slurm: Lab, work: Path) -> None:
    job = submit(slurm, work, options=("--nodes=2",), DRA_GPUS="4", PATH=stub(work, "getent", "exit 2"))
    ended = slurm.wait(job, seconds=180)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), shown(work, job)[-3000:]
    assert "trainer.n_gpus_per_node=4" in shown(work, job)


def test_a_node_without_an_address_is_told(slurm: Lab, work: Path) -> None:
    stub(work, "getent", "exit 2")
    job = submit(slurm, work, PATH=stub(work, "hostname", "exit 1"))
    ended = slurm.wait(job, seconds=30)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
    assert "n1 has no IPv4 address, neither by getent nor by hostname -I" in shown(work, job)


def test_the_jobs_exit_code_is_the_programs_and_a_setup_may_be_sloppy(slurm: Lab, work: Path) -> None:
    (work / "setup.sh").write_text("false\n: $NO_SUCH_VARIABLE\nfalse | true\n")
    job = submit(slurm, work, "fail", DRA_SETUP=str(work / "setup.sh"))
    ended = slurm.wait(job, seconds=180)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "3:0")
    assert states(work / "outputs" / "slurm" / job)[-1] == "failed exit=3 restart=0"


def test_a_ray_that_does_not_start_ends_the_job(slurm: Lab, work: Path) -> None:
    (work / "ray").write_text(f'#!/bin/sh\nexec {Path(sys.executable).with_name("ray")} "$@" --no-such-flag\n')
    (work / "ray").chmod(0o755)
    (work / "setup.sh").write_text(f"PATH={work}:$PATH\n")
    job = submit(slurm, work, DRA_SETUP=str(work / "setup.sh"))
    ended = slurm.wait(job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
    assert "No such option" in shown(work, job)
    assert "Ray ended on a node before the training did" in shown(work, job)


def test_a_grid_has_a_folder_for_each_point_and_all_that_the_job_has_on_its_nodes(slurm: Lab, work: Path) -> None:
    (work / "grid.py").write_text(GRID)
    out = work / "grid"
    options = ("--nodes=2", "--ntasks-per-node=7", "--cpus-per-task=8", "--gpus-per-task=1", "--mem=8000M")
    shared = {"DRA_TMP": "/tmp/ray", "DRA_START_TIMEOUT_S": "120", "DRA_OUTPUT": str(out)}
    job = slurm.sbatch(
        *(*options, SCRIPT, sys.executable, str(work / "grid.py"), "--multirun", "+point=1,2"),
        *("+trainer.nnodes=2", "+trainer.n_gpus_per_node=7"),
        environment={
            **shared,
            "DRA_CONTAINER": "env 'DRA_IN=a b'",
            "DRA_SRUN": '--export=ALL,DRA_ALSO="c d"',
            "DRA_HEAD_IP": "10.77.0.",
            "FAILS": "2",
            "PATH": stub(work, "ray", FLAKY_RAY.format(ray=Path(sys.executable).with_name("ray"), work=work)),
        },
        cwd=work,
    )
    wait_for(work, job, "point 1")
    second = slurm.sbatch("--gres=gpu:1", SCRIPT, "true", environment=shared, cwd=work)
    assert slurm.wait(second, seconds=60)["ExitCode"] == "1:0"
    assert f"job {job} (RUNNING) has the folder {out}" in shown(work, second)
    (work / "go_on").touch()
    ended = slurm.wait(job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), shown(work, job)[-3000:]
    for number, point in enumerate((1, 2)):
        got = json.loads((out / str(number) / "got.json").read_text())
        assert (got["point"], got["in"], got["also"], got["step"]) == (point, "a b", "c d", [56, 7])
        assert sorted(address for address, _ in got["nodes"]) == ["10.77.0.1", "10.77.0.2"]
        for _, has in got["nodes"]:
            assert (has["CPU"], has["GPU"]) == (56, 7)
            assert has["memory"] + has["object_store_memory"] == 8000 * 2**20
    for node in ("n1", "n2"):
        assert f"{node}: Ray ended with 1 in try 2 of 3" in shown(work, job)
    assert states(out) == ["running restart=0", "completed exit=0 restart=0"]
    assert [path.name for path in out.iterdir() if path.name.startswith((".job", "ray_", "checkpoint_"))] == [
        "ray_logs"
    ]
    assert "srun: error" not in shown(work, job)


def test_of_two_jobs_that_start_at_once_in_a_folder_one_runs_and_keeps_the_logs_of_a_ray_that_never_starts(
    slurm: Lab, work: Path
) -> None:
    out = work / "one"
    out.mkdir()
    (out / ".job.0").symlink_to("999999")  # of a job that was killed, and that Slurm has forgotten
    path = stub(work, "ray", FLAKY_RAY.format(ray="false", work=work))
    options = ("--nodes=1", "--gres=gpu:1")
    jobs = [submit(slurm, work, options=options, DRA_OUTPUT=str(out), FAILS="9", PATH=path) for _ in range(2)]
    assert [slurm.wait(job, seconds=120)["ExitCode"] for job in jobs] == ["1:0", "1:0"]
    (refused,) = [job for job in jobs if f"has the folder {out}" in shown(work, job)]
    (ran,) = [job for job in jobs if job != refused]
    assert "Ray ended with 1 in try 3 of 3" in shown(work, ran)
    assert f"job {ran} (RUNNING) has the folder" in shown(work, refused)
    (log,) = out.glob("ray_logs/*/gcs_server.err")
    assert log.read_text() == "no room\n"
    assert states(out) == ["running restart=0", "failed exit=1 restart=0"]
    assert [path.name for path in out.glob(".job.*")] == [".job.0"]


def test_a_setup_that_is_not_there_ends_the_job(slurm: Lab, work: Path) -> None:
    job = submit(slurm, work, DRA_SETUP="/nowhere/setup.sh")
    ended = slurm.wait(job, seconds=60)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
    assert "n1 can't read DRA_SETUP=/nowhere/setup.sh" in shown(work, job)


def test_a_lost_worker_ends_the_job(slurm: Lab, work: Path) -> None:
    job = submit(slurm, work, "stay")
    wait_for(work, job, "ready")
    (raylet,) = [line.split()[0] for line in slurm.processes("raylet/raylet .*--node_ip_address=10.77.0.2")]
    slurm.run("kill", "-KILL", raylet)
    ended = slurm.wait(job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
    assert "Ray ended on a node before the training did" in shown(work, job)


def test_its_cluster_is_looked_into_by_the_line_that_it_prints(slurm: Lab, work: Path) -> None:
    """Also where nothing trains on it: the overrides that the job adds are no arguments of the command."""
    job = slurm.sbatch(
        *("--nodes=2", "--gres=gpu:8", "--cpus-per-task=4", SCRIPT, "bash", "-c", "echo ready; exec sleep infinity"),
        environment={"DRA_TMP": "/tmp/ray", "DRA_START_TIMEOUT_S": "120", "DRA_OUTPUT": str(work / "an idle one")},
        cwd=work,
    )
    wait_for(work, job, "(?m)^ready$")
    (line,) = re.findall("to look into it: (.*)", shown(work, job))
    # What it shows may be some seconds old.
    wait_until(
        lambda: "0.0/16.0 GPU" in slurm.run("bash", "-c", line, cwd=work).stdout,
        60,
        lambda: slurm.run("bash", "-c", line, cwd=work).stdout,
    )
    slurm.run("scancel", job)
    slurm.wait(job, "CANCELLED", seconds=60)


def test_scancel_ends_everything(slurm: Lab, work: Path) -> None:
    job = submit(slurm, work, "stay")
    wait_for(work, job, "ready")
    slurm.run("scancel", job)
    assert slurm.wait(job, seconds=60)["JobState"] == "CANCELLED"
    assert not list((work / "outputs" / "slurm" / job).glob("ray_token*"))


def test_near_its_time_limit_a_run_that_made_a_checkpoint_is_requeued_in_the_same_folder(
    slurm: Lab, work: Path
) -> None:
    # Characters that mean something to Hydra, and a folder that only Hydra knows.
    out, checkpoints = work / "lr=1e-3, (it's) [a] #1", f"{work}/checkpoints #1/${{trainer.experiment_name}}"
    job = submit(slurm, work, "stay", "checkpoint", f"++trainer.default_local_dir='{checkpoints}'", DRA_OUTPUT=str(out))
    wait_for(work, job, "ready")
    # As Slurm does by #SBATCH --signal two minutes before the end.
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    resumed(slurm, work, job, out)
    assert states(out) == [
        "running restart=0",
        "requeued exit=0 restart=0",
        "running restart=1",
        "completed exit=0 restart=1",
    ]


def resumed(slurm: Lab, work: Path, job: str, out: Path) -> None:
    """Wait until the requeued job has run once more, to its end."""
    slurm.wait(job, "PENDING", seconds=120)
    (out / "go_on").touch()
    # Slurm lets a requeued job wait for two minutes.
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(work, job, "ready", times=2)
    ended = slurm.wait(job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1")


def test_a_job_that_is_requeued_from_outside_starts_again_in_the_same_folder(slurm: Lab, work: Path) -> None:
    job = submit(slurm, work, "stay")
    wait_for(work, job, "ready")
    out = work / "outputs" / "slurm" / job
    slurm.run("scontrol", "requeue", job)
    resumed(slurm, work, job, out)
    assert states(out) == [
        "running restart=0",
        "cancelled exit=1 restart=0",
        "running restart=1",
        "completed exit=0 restart=1",
    ]


def test_the_requeue_of_an_arrays_point_leaves_the_others_alone(slurm: Lab, work: Path) -> None:
    sweep = work / "sweep"
    for point in ("0", "1"):
        (sweep / point).mkdir(parents=True)
        (sweep / point / "overrides.txt").write_text("dra.smi=log_det\n")
    array = slurm.sbatch(
        *("--array=0-1", "--gres=gpu:2", f"--output={sweep}/%a.out", SCRIPT, "--sweep", str(sweep)),
        *(sys.executable, str(work / "program.py"), "stay", "checkpoint", "trainer.n_gpus_per_node=1"),
        environment={"DRA_TMP": "/tmp/ray", "DRA_START_TIMEOUT_S": "120"},
        cwd=work,
    )
    outputs = [sweep / f"{point}.out" for point in (0, 1)]
    wait_until(
        lambda: all(output.exists() and "ready" in output.read_text(errors="replace") for output in outputs),
        180,
        lambda: "".join(output.read_text(errors="replace")[-2000:] for output in outputs if output.exists()),
    )
    # The last task has the array's own id.
    assert slurm.job(f"{array}_1")["JobId"] == array
    slurm.run("scancel", "--batch", "--signal=USR1", f"{array}_1")
    slurm.wait(f"{array}_1", "PENDING", seconds=120)
    other = slurm.job(f"{array}_0")
    assert (other["JobState"], other["Restarts"]) == ("RUNNING", "0")
    assert states(sweep / "0") == ["running restart=0"]
    slurm.run("scancel", array)


def test_the_time_limits_signal_leaves_a_run_alone_that_has_ended(slurm: Lab, work: Path) -> None:
    path = stub(work, "ray", SLOW_RAY.format(ray=Path(sys.executable).with_name("ray"), work=work))
    job = submit(slurm, work, "checkpoint", PATH=path)
    wait_until((work / "ending").exists, 180, lambda: shown(work, job)[-3000:])
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    ended = slurm.wait(job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0")
    assert states(work / "outputs" / "slurm" / job)[-1] == "completed exit=0 restart=0"


def test_without_a_new_checkpoint_it_is_not_requeued(slurm: Lab, work: Path) -> None:
    checkpoints = work / "of an earlier run"
    checkpoints.mkdir()
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("20")
    job = submit(slurm, work, "stay", f"trainer.default_local_dir='{checkpoints}'")
    wait_for(work, job, "ready")
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    ended = slurm.wait(job, seconds=120)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "124:0")
    assert "trainer.save_freq" in shown(work, job)
    assert states(work / "outputs" / "slurm" / job)[-1] == "time exit=124 restart=0"


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        ([], ["--gres=gpu:8"], "no command; for example"),
        (["verl-dra", "train"], [], "no GPU on n1: ask for them"),
        (
            ["true"],
            ["--gres=gpu:8", "--export=ALL,DRA_HEAD_IP=10.9.9.9"],
            "n1 has no IPv4 address DRA_HEAD_IP=10.9.9.9",
        ),
        (["true"], ["--gres=gpu:8", "--export=ALL,DRA_SRUN='a b"], "DRA_SRUN='a b has a quote without its other"),
    ],
)
def test_what_can_not_run_says_so_at_once(
    slurm: Lab, work: Path, arguments: list[str], options: list[str], said: str
) -> None:
    job = slurm.sbatch(*options, SCRIPT, *arguments, cwd=work)
    ended = slurm.wait(job, seconds=30)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
    assert said in shown(work, job)
