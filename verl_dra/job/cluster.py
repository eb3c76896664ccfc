"""Ray's cluster of a job, awaited: its head, then all nodes and GPUs."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time

from verl_dra.job.allocation import Allocation, JobError


def say(line: str) -> None:
    """Say it in the job's output."""
    sys.stderr.write(f"verl_dra.job: {line}\n")
    sys.stderr.flush()


def head_listens(job: Allocation) -> bool:
    """Whether Ray's head takes connections."""
    try:
        with socket.create_connection((job.head_ip, job.port), timeout=5):
            return True
    except OSError:
        return False


def unreachable(job: Allocation) -> str:
    """What to say where the head was not there in time."""
    return f"could not reach Ray's head at {job.address}"


def wait_until_joined(job: Allocation) -> None:
    """Wait until all nodes and GPUs of the job are in its cluster.

    Raises:
        JobError: they are not within the job's `start_timeout_s`; says what was found.
    """
    end = time.monotonic() + job.start_timeout_s
    why = unreachable(job)
    while (left := end - time.monotonic()) > 0:
        if not head_listens(job):
            time.sleep(1)
            continue
        asked = json.dumps([job.address, job.nodes, job.nodes * job.gpus, left])
        # In a process of its own: a head that fails and is tried again takes what has connected to it along (Ray 2.60).
        asking = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import _ask; _ask(*{asked})"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            said, failed = asking.communicate(timeout=left + 10)
        except subprocess.TimeoutExpired:
            asking.kill()
            said, failed = asking.communicate()
        if asking.returncode == 0:
            return
        why = (said.splitlines() or failed.splitlines() or [why])[-1]
        time.sleep(1)
    raise JobError(f"after {job.start_timeout_s:g} s: {why}")


def _ask(address: str, nodes: int, gpus: int, seconds: float) -> None:
    """End with 0 once they are there; print what is missing whenever that changes."""
    import ray

    end = time.monotonic() + seconds
    shown = ""
    while True:
        try:
            if not ray.is_initialized():
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
            found = len(alive), int(sum(node["Resources"].get("GPU", 0) for node in alive))
            if found[0] >= nodes and found[1] >= gpus:
                return
            why = f"{found[0]} of {nodes} nodes with {found[1]} of {gpus} GPUs joined"
        except (ConnectionError, RuntimeError) as error:  # RuntimeError: no raylet of this node, so far
            why = f"no connection to {address}: {' '.join(str(error).split())}"
        if why != shown:
            sys.stdout.write(f"{(shown := why)}\n")
            sys.stdout.flush()
        if time.monotonic() > end:
            sys.exit(1)
        time.sleep(1)
