"""What launch/slurm/ray.sbatch runs on the nodes: `python -m verl_dra.job node FOLDER`, or `... run FOLDER COMMAND`."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from verl_dra.job.allocation import Allocation, JobError, allocation
from verl_dra.job.cluster import say, wait_until_joined
from verl_dra.job.node import keep_ray

OPEN_FILES = 65536
"""That Ray wants to have open at the same time, at most."""


def main(arguments: Sequence[str]) -> int:
    """Keep Ray on this node until it is told to end, or become a command on the job's cluster."""
    what, folder, *command = arguments
    try:
        job = allocation(Path(folder))
        _allow_open_files(job.node)
        return keep_ray(job) if what == "node" else _run(job, command)
    except JobError as error:
        say(f"{os.environ.get('SLURMD_NODENAME') or platform.node()}: {error}")
        return 1


def _allow_open_files(node: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES if hard == unlimited else min(hard, OPEN_FILES), hard))
    if hard != unlimited and hard < OPEN_FILES:
        say(f"{node} allows {hard} open files, where Ray wants {OPEN_FILES}: have its hard limit raised (ulimit -Hn)")


def _run(job: Allocation, command: list[str]) -> int:
    # Here, as the nodes' processes do without Hydra.
    from verl_dra.job.overrides import added

    wait_until_joined(job)
    job.joined.touch()
    command = [*command, *added(command, job.folder, job.nodes, job.gpus or None)]
    say(f"all {job.nodes} nodes have joined; running {shlex.join(command)}")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise JobError(f"can't run {command[0]}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
