"""Ray on one node of a job, from its start until it is told to end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from verl_dra.job.allocation import Allocation, JobError
from verl_dra.job.cluster import head_listens, say, unreachable

TRIES = 3
FREE_BYTES = 2**30
"""That Ray's folder must have at the start."""
LOG_FILES, LOG_BYTES = 100, 2**18
"""Of Ray's logs, how many files are kept on a failure, and how much of the end of each."""
# Of a path of a socket, and the longest that Ray 2.60 makes below its folder; it numbers a second one of a session.
_SOCKET_BYTES = 107
_SOCKET = "session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store.2"
# Ray's own defaults (ray_constants.py), of the job's memory where Ray would take the machine's.
_STORE_SHARE, _STORE_BYTES = 0.3, 200_000_000_000
# srun's TERM is an order to its tasks too; USR2 is what ray.sbatch sends, which srun passes on and heeds not itself.
_TOLD = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR2}


def keep_ray(job: Allocation) -> int:
    """Start Ray on this node and stay until it ends or this process is told to end it (SIGTERM, SIGINT, SIGUSR2).

    Until all nodes have joined, a Ray that ends is started again, three tries in all: it gives itself 30 seconds to
    start (fixed in 2.60), and a slow file system can take longer. The logs of one that ended by itself go to the run's
    folder.

    Returns:
        0 if it was told to end, or else Ray's exit code, never 0.

    Raises:
        JobError: Ray can't run here, or its head was not there in time.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_TOLD, signal.SIGCHLD})
    end = time.monotonic() + job.start_timeout_s
    folder = _private_folder(job)
    try:
        for number in range(1, TRIES + 1):
            while job.node != job.head and not head_listens(job):
                if time.monotonic() > end:
                    raise JobError(f"after {job.start_timeout_s:g} s: {unreachable(job)}")
                if signal.sigtimedwait(_TOLD, 1):
                    return 0
            code = _one_try(_command(job, folder))
            if code is None:
                return 0
            kept = _keep_logs(folder, job.folder / "ray_logs" / job.node)
            say(f"{job.node}: Ray ended with {code} in try {number} of {TRIES}{f'; its logs: {kept}' if kept else ''}")
            if job.joined.exists() or time.monotonic() > end:
                break
        return code or 1
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def _private_folder(job: Allocation) -> Path:
    """Ray makes its folder, and what is in it, open to all: it goes into one that is this user's alone."""
    private = job.temporary / f"ray_{job.job}"
    inside = private / "r"
    if (length := len(os.fsencode(inside / _SOCKET))) > _SOCKET_BYTES:
        longest = len(os.fsencode(job.temporary)) - length + _SOCKET_BYTES
        raise JobError(f"DRA_TMP={job.temporary} is too long for paths of sockets: at most {longest} bytes")
    try:
        private.mkdir(mode=0o700, exist_ok=True)
        found = private.lstat()
        if private.is_symlink() or found.st_uid != os.getuid():
            raise JobError(
                f"{private} belongs to someone else (user {found.st_uid}): remove it, or set another DRA_TMP"
            )
        private.chmod(0o700)  # the mode that it was made with is less the umask's
        inside.mkdir(exist_ok=True)
    except OSError as error:
        raise JobError(
            f"can't write to DRA_TMP={job.temporary} ({error}): set one that is there and writable"
        ) from error
    if (free := shutil.disk_usage(private).free) < FREE_BYTES:
        shutil.rmtree(private, ignore_errors=True)
        raise JobError(
            f"DRA_TMP={job.temporary} has {free / 2**30:.2f} GiB free, where Ray's files need {FREE_BYTES // 2**30} "
            "at least: make room, or set another DRA_TMP"
        )
    return inside


def _command(job: Allocation, folder: Path) -> list[str]:
    ports = {
        "node-manager-port": job.port + 1,
        "object-manager-port": job.port + 2,
        "runtime-env-agent-port": job.port + 3,
        "dashboard-agent-listen-port": job.port + 4,
        "dashboard-agent-grpc-port": job.port + 5,
        "metrics-export-port": job.port + 6,
        # Any free ones; the default block is the same for every job.
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    if job.node == job.head:
        ports |= {"port": job.port, "dashboard-port": job.port + 7, "ray-client-server-port": job.port + 8}
        place = ["--head", f"--node-ip-address={job.head_ip}", f"--temp-dir={folder}"]
    else:
        place = [f"--address={job.address}"]
    command = ["ray", "start", "--block", "--disable-usage-stats", f"--num-cpus={job.cpus}", f"--num-gpus={job.gpus}"]
    return [*command, *_memory(job), *(f"--{name}={port}" for name, port in ports.items()), *place]


def _memory(job: Allocation) -> list[str]:
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if job.memory is None or job.memory >= machine:
        return []  # Ray's own: it looks at what is free
    store = min(int(_STORE_SHARE * job.memory), _STORE_BYTES)
    return [f"--object-store-memory={store}", f"--memory={job.memory - store}"]


def _one_try(command: list[str]) -> int | None:
    """Run it to its end; its exit code, or None where it was told to end. No process of it is left."""

    def in_child() -> None:
        # srun signals all processes of a task.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_TOLD, signal.SIGCHLD})

    told = False
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=in_child)
    except OSError as error:
        raise JobError(
            f"can't run {command[0]}: {error.strerror}; it must be on the PATH that DRA_SETUP makes"
        ) from error
    while not os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if signal.sigwait({*_TOLD, signal.SIGCHLD}) in _TOLD:
            told = True
            child.terminate()
    # Before it is waited for, as its number, which is its session's, is free after that.
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        try:
            if pid != child.pid and os.getsid(pid) == child.pid:
                os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    code = child.wait()
    return None if told else code if code >= 0 else 128 - code


def _keep_logs(ray: Path, target: Path) -> Path | None:
    """Copy the ends of the newest session's newest logs; gives where they are now, if any are."""
    sessions = [path for path in ray.glob("session_*") if not path.is_symlink()]
    if not sessions:
        return None
    logs = max(sessions, key=_age) / "logs"
    files = sorted((path for path in logs.rglob("*") if path.is_file()), key=_age)[-LOG_FILES:]
    shutil.rmtree(target, ignore_errors=True)
    kept = None
    for path in files:
        copy = target / path.relative_to(logs)
        with suppress(OSError):  # a full disk, for one, must not take the place of what ended Ray
            copy.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - LOG_BYTES))
                copy.write_bytes(file.read(LOG_BYTES))
            kept = target
    return kept


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
