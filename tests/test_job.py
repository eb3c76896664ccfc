"""What a job runs on its nodes (`verl_dra.job`), with a stand-in for `ray`. tests/slurm has a real Slurm and Ray."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from verl_dra.job.__main__ import main
from verl_dra.job.allocation import Allocation, JobError, allocation
from verl_dra.job.node import LOG_BYTES, LOG_FILES, keep_ray
from verl_dra.job.overrides import added

GIB = 2**30
VARIABLES = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURMD_NODENAME": "n1",
    "SLURM_CPUS_ON_NODE": "64",
    "DRA_HEAD": "n1",
    "DRA_GPUS": "8",
    "RAY_ADDRESS": "127.0.0.1:29980",
    "DRA_START_TIMEOUT_S": "60",
}
# Notes what it was given, makes logs, leaves a process behind; fails FAILS times, then stays until told to end.
RAY = """#!/bin/bash
echo "$* open=$(ulimit -n) mode=$(stat -c %a "$DRA_TMP/ray_7")" >>"$WORK/calls"
try=$(wc -l <"$WORK/calls")
mkdir -p "$DRA_TMP/ray_7/r/session_$try/logs/old"
logs=$DRA_TMP/ray_7/r/session_$try/logs
for i in $(seq 110); do echo "$i" >"$logs/old/$i.log"; done
touch -d @1 "$logs"/old/?.log "$logs"/old/10.log
{ head -c 300000 /dev/zero; echo "why $try"; } >"$logs/raylet.err"
ln -sfn "session_$try" "$DRA_TMP/ray_7/r/session_latest"
sleep 1000 >/dev/null 2>&1 &
echo $! >>"$WORK/left"
((try > FAILS)) || exit 5
trap 'echo told; exit 1' TERM
echo up
while true; do sleep 0.05; done
"""

# In the place of the module: the first process that asks dies with its head, the second finds one node, then both.
RAY_MODULE = """
import os
from pathlib import Path

asked = Path(os.environ["WORK"], "asked")
init, is_initialized = (lambda *_, **__: None), (lambda: False)


def nodes():
    with asked.open("a") as file:
        file.write("x")
    if (times := len(asked.read_text())) == 1:
        os._exit(134)
    return [{"Alive": True, "Resources": {"GPU": 8.0}}] * (times - 1)
"""


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder whose path is short, as sockets want it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        work = Path(short)
        for name in ("tmp", "out", "bin"):
            (work / name).mkdir()
        (work / "bin" / "ray").write_text(RAY)
        (work / "bin" / "ray").chmod(0o755)
        yield work


def environment(work: Path, **more: str) -> dict[str, str]:
    own = {"DRA_TMP": str(work / "tmp"), "WORK": str(work), "PATH": f"{work}/bin:{os.environ['PATH']}"}
    return {**os.environ, **VARIABLES, **own, **more}


def start(work: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "verl_dra.job", *(arguments or ("node", str(work / "out")))],
        env=environment(work, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line(of: IO[str] | None) -> str:
    assert of is not None
    return of.readline().strip()


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_ray_that_did_not_start_is_tried_again_and_told_to_end_ends_well(work: Path) -> None:
    node = start(work, FAILS="2")
    assert line(node.stdout) == "up"
    *left, current = map(int, (work / "left").read_text().split())
    assert (len(left), [pid for pid in left if is_there(pid)], is_there(current)) == (2, [], True)
    node.send_signal(signal.SIGUSR2)
    out, said = node.communicate(timeout=60)
    assert (node.returncode, out) == (0, "told\n")
    assert not is_there(current)
    assert "n1: Ray ended with 5 in try 1 of 3" in said
    assert "in try 2 of 3" in said
    assert not list((work / "tmp").iterdir())


def test_after_three_tries_the_logs_are_in_the_runs_folder(work: Path) -> None:
    node = start(work, FAILS="9")
    _, said = node.communicate(timeout=60)
    kept = work / "out" / "ray_logs" / "n1"
    assert node.returncode == 5
    assert f"n1: Ray ended with 5 in try 3 of 3; its logs: {kept}" in said
    files = [path for path in kept.rglob("*") if path.is_file()]
    log = (kept / "raylet.err").read_text()
    assert log.endswith("why 3\n")  # of the last try
    assert (len(files), len(log)) == (LOG_FILES, LOG_BYTES)  # the newest, and their ends
    assert (kept / "old" / "110.log").exists()
    assert not (kept / "old" / "1.log").exists()
    assert not list((work / "tmp").iterdir())


def test_a_ray_that_is_lost_once_all_nodes_have_joined_is_not_started_again(work: Path) -> None:
    (work / "out" / "ray_joined.7").touch()
    node = start(work, FAILS="9")
    _, said = node.communicate(timeout=60)
    assert (node.returncode, said.count("Ray ended")) == (5, 1)


def test_ray_gets_the_jobs_cpus_gpus_and_memory_in_a_folder_of_the_users_alone(work: Path) -> None:
    (work / "out" / "ray_joined.7").touch()
    start(work, FAILS="9", SLURM_MEM_PER_NODE="1000").communicate(timeout=60)
    call = (work / "calls").read_text().split()
    expected = {"--num-cpus=64", "--num-gpus=8", "--head", "mode=700", f"--temp-dir={work}/tmp/ray_7/r"}
    assert expected <= set(call)
    store = int(0.3 * 1000 * 2**20)
    assert {f"--object-store-memory={store}", f"--memory={1000 * 2**20 - store}"} <= set(call)


def test_open_files_are_allowed_as_far_as_the_hard_limit_goes(work: Path) -> None:
    (work / "out" / "ray_joined.7").touch()
    limited = ["prlimit", "--nofile=256:1000", sys.executable, "-m", "verl_dra.job", "node", str(work / "out")]
    done = subprocess.run(limited, env=environment(work, FAILS="9"), capture_output=True, text=True, check=False)
    assert "n1 allows 1000 open files, where Ray wants 65536" in done.stderr
    assert " open=1000 " in (work / "calls").read_text()


@pytest.mark.parametrize(
    ("variables", "gib"),
    [
        ({}, None),
        ({"SLURM_MEM_PER_NODE": "0"}, None),
        ({"SLURM_MEM_PER_NODE": "102400"}, 100),
        ({"SLURM_MEM_PER_CPU": "2048"}, 128),
        ({"SLURM_MEM_PER_GPU": "10240"}, 80),
    ],
)
def test_the_jobs_memory_is_what_slurm_says_by_node_cpu_or_gpu(variables: Mapping[str, str], gib: int | None) -> None:
    job = allocation(Path("/run"), {**VARIABLES, "DRA_TMP": "/tmp", **variables})
    assert job.memory == (None if gib is None else gib * GIB)
    assert (job.head_ip, job.port, job.cpus, job.joined) == ("127.0.0.1", 29980, 64, Path("/run/ray_joined.7"))


def words(*values: str) -> st.SearchStrategy[str]:
    """What others may have set a variable to: of an environment, so without a NUL."""
    numbers = st.integers(-1, 10**19).map(str)
    return st.sampled_from(values) | numbers | st.text(st.characters(exclude_characters="\0"), max_size=6)


ALL = {**VARIABLES, "DRA_TMP": "/tmp"}
OPTIONAL = ["SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU"]
SET = words(
    "", " 8", "8 ", "010", "+8", "1_0", "\u0668", "8.5", "1e3", "nan", "inf", "4G", "auto", "ray://h:1", "h:70000"
)


@given(st.dictionaries(st.sampled_from([*ALL, *OPTIONAL]), st.none() | SET | words(".", "..", "/", "a/b"), max_size=3))
def test_whatever_stands_in_the_environment_is_what_it_says_or_refused(changed: dict[str, str | None]) -> None:
    variables = {name: value for name, value in {**ALL, **changed}.items() if value is not None}
    try:
        job = allocation(Path("/run"), variables)
    except JobError as refused:
        named = re.match("[A-Z_]+", str(refused))
    else:
        named = None
        assert {
            "SLURM_JOB_ID": job.job,
            "SLURM_JOB_NUM_NODES": f"{job.nodes}",
            "SLURMD_NODENAME": job.node,
            "SLURM_CPUS_ON_NODE": f"{job.cpus}",
            "DRA_HEAD": job.head,
            "DRA_GPUS": f"{job.gpus}",
            "RAY_ADDRESS": job.address,
        }.items() <= variables.items()
        assert job.temporary == Path(variables["DRA_TMP"])
        assert job.start_timeout_s == float(variables["DRA_START_TIMEOUT_S"])
        assert (job.nodes > 0, job.cpus > 0, 0 < job.start_timeout_s <= 10**7, job.memory != 0) == (True,) * 4
        assert (job.folder / "ray_logs" / job.node).resolve().parent == job.folder / "ray_logs"
    assert named is None or named[0] in changed


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DRA_GPUS", "eight", "DRA_GPUS='eight' is not a whole number from 0 on; set another one"),
        ("DRA_START_TIMEOUT_S", "inf", "DRA_START_TIMEOUT_S='inf' is not seconds, above 0 and up to 10,000,000"),
        ("DRA_TMP", "scratch", "DRA_TMP='scratch' is not a folder's whole path"),
        ("SLURM_MEM_PER_CPU", "4G", "'4G' is not a whole number from 0 on; DRA_SETUP and DRA_CONTAINER must leave it"),
        ("RAY_ADDRESS", "auto", "RAY_ADDRESS='auto' is not an address and a port up to 65527; DRA_SETUP and"),
        ("SLURMD_NODENAME", "", "SLURMD_NODENAME is not set here, as Slurm and ray.sbatch do; DRA_SETUP and"),
    ],
)
def test_a_variable_that_can_not_be_is_named_before_anything_starts(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for set_name, set_value in {**ALL, name: value}.items():
        monkeypatch.setenv(set_name, set_value)
    for what in (["node", "/run"], ["run", "/run", "true"]):
        assert main(what) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line


@pytest.fixture
def job(work: Path) -> Allocation:
    return allocation(work / "out", {**VARIABLES, "DRA_TMP": str(work / "tmp")})


def refused(job: Allocation) -> str:
    """What it says; it blocks signals, which the process of the tests goes on with."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        with pytest.raises(JobError) as error:
            keep_ray(job)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return str(error.value)


def test_a_folder_that_ray_can_not_use_is_told_first(job: Allocation) -> None:
    assert f"can't write to DRA_TMP={job.temporary}/none (" in refused(replace(job, temporary=job.temporary / "none"))
    long = Path("/tmp", "x" * 30)
    assert f"DRA_TMP={long} is too long for paths of sockets: at most 33 bytes" in refused(replace(job, temporary=long))


def test_a_folder_with_too_little_space_is_told_and_removed(job: Allocation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_dra.job.node.FREE_BYTES", 2**50)
    assert " GiB free, where Ray's files need 1048576 at least: make room" in refused(job)
    assert not list(job.temporary.iterdir())


def test_a_folder_of_someone_else_is_not_used(job: Allocation, monkeypatch: pytest.MonkeyPatch) -> None:
    (job.temporary / "ray_7").mkdir(mode=0o777)
    (job.temporary / "ray_7").chmod(0o777)
    user = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: user + 1)
    assert f"{job.temporary}/ray_7 belongs to someone else (user {user})" in refused(job)
    # It is theirs, and stays as it was.
    assert stat.S_IMODE((job.temporary / "ray_7").stat().st_mode) == 0o777
    monkeypatch.undo()
    (job.temporary / "ray_7").rmdir()
    (job.temporary / "ray_7").symlink_to(job.folder)
    assert "belongs to someone else" in refused(job)


@pytest.mark.slow
def test_a_head_that_does_not_come_is_told_with_its_address(work: Path) -> None:
    worker = start(work, SLURMD_NODENAME="n2", DRA_START_TIMEOUT_S="1")
    _, said = worker.communicate(timeout=60)
    assert (worker.returncode, "n2: after 1 s: could not reach Ray's head at 127.0.0.1:29980" in said) == (1, True)
    driver = start(work, "run", str(work / "out"), "true", DRA_START_TIMEOUT_S="1")
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert "n1: after 1 s: could not reach Ray's head at 127.0.0.1:29980" in said


@pytest.mark.slow
def test_the_command_runs_once_all_have_joined_though_the_head_was_tried_again(work: Path) -> None:
    (work / "ray.py").write_text(RAY_MODULE)
    command = ["run", str(work / "out"), "bash", "-c", 'echo "$@"; exit 3', "bash", "trainer.nnodes=1"]
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        driver = start(work, *command, RAY_ADDRESS=address, PYTHONPATH=str(work))
        shown, said = driver.communicate(timeout=60)
    out = work / "out"
    added_ones = f"trainer.n_gpus_per_node=8 hydra.run.dir={out} hydra.sweep.dir={out}"
    assert (driver.returncode, shown) == (3, f"trainer.nnodes=1 {added_ones}\n")
    assert (work / "asked").read_text() == "xxx"
    assert (out / "ray_joined.7").exists()
    assert "all 2 nodes have joined; running bash -c" in said


@pytest.mark.slow
def test_nodes_start_without_the_libraries_that_take_seconds_to_import() -> None:
    heavy = "sorted({'torch', 'ray', 'verl', 'hydra'} & set(sys.modules))"
    code = f"import sys, verl_dra.job.__main__; print({heavy}); print(verl_dra.graph_cut_smi.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nverl_dra.algorithm.smi\n"


def test_what_the_command_sets_or_removes_is_not_added() -> None:
    folder = Path("/runs/1")
    assert added([], folder, 2, 8) == [
        *("trainer.nnodes=2", "trainer.n_gpus_per_node=8", "hydra.run.dir=/runs/1", "hydra.sweep.dir=/runs/1")
    ]
    given = ["train", "--multirun", "++trainer.nnodes=1", "~trainer.n_gpus_per_node", "+hydra.run.dir=x"]
    assert added(given, folder, 2, 8) == ["hydra.sweep.dir=/runs/1"]
    assert added(given, folder, None, None) == ["hydra.sweep.dir=/runs/1"]


@pytest.mark.parametrize("name", ["a", "lr=1e-3, (it's) [a] #1", "a\\", "${x}", "ü b", "it's\\'"])
def test_hydra_reads_the_folder_as_it_is(name: str) -> None:
    lines = added([], Path("/runs", name), None, None)
    values = [override.value() for override in OverridesParser.create().parse_overrides(lines)]
    assert values == [f"/runs/{name}"] * 2
