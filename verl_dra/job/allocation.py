"""What Slurm and launch/slurm/ray.sbatch tell the processes of a job by environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_MIB = 2**20


@dataclass(frozen=True)
class Allocation:
    """One job, seen from one of its nodes."""

    job: str
    nodes: int
    node: str
    """This one's name, as Slurm calls it."""
    head: str
    """The name of the node that Ray's head runs on."""
    cpus: int
    """Of this node, the job's."""
    gpus: int
    """Of each node."""
    memory: int | None
    """Bytes of this node, the job's; None where Slurm does not say."""
    head_ip: str
    port: int
    """The head's; the job's other ports follow it."""
    temporary: Path
    """Where each node keeps Ray's files."""
    folder: Path
    """The run's."""
    start_timeout_s: float

    @property
    def address(self) -> str:
        """Of Ray's head."""
        return f"{self.head_ip}:{self.port}"

    @property
    def joined(self) -> Path:
        """A file that is there once all nodes have joined."""
        return self.folder / f"ray_joined.{self.job}"


def allocation(folder: Path, variables: Mapping[str, str] = os.environ) -> Allocation:
    """The job that this process is part of, whose run is in `folder`."""
    head_ip, _, port = variables["RAY_ADDRESS"].rpartition(":")
    cpus, gpus = int(variables["SLURM_CPUS_ON_NODE"]), int(variables["DRA_GPUS"])
    return Allocation(
        job=variables["SLURM_JOB_ID"],
        nodes=int(variables["SLURM_JOB_NUM_NODES"]),
        node=variables["SLURMD_NODENAME"],
        head=variables["DRA_HEAD"],
        cpus=cpus,
        gpus=gpus,
        memory=_memory(variables, cpus, gpus),
        head_ip=head_ip,
        port=int(port),
        temporary=Path(variables["DRA_TMP"]),
        folder=folder,
        start_timeout_s=float(variables["DRA_START_TIMEOUT_S"]),
    )


def _memory(variables: Mapping[str, str], cpus: int, gpus: int) -> int | None:
    """Slurm sets one of the three, by how the job or the site's default asked; 0 stands for all that the node has."""
    for name, times in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", cpus), ("SLURM_MEM_PER_GPU", gpus)):
        if mib := int(variables.get(name) or 0) * times:
            return mib * _MIB
    return None
