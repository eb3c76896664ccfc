"""What Slurm and launch/slurm/ray.sbatch tell the processes of a job by environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_MIB = 2**20
_LONGEST_S = 10**7
# The head's, and the eight after it.
_LAST_PORT = 2**16 - 9
_SET_BY_HAND = ("DRA_GPUS", "DRA_TMP", "DRA_START_TIMEOUT_S")
_KEEP_IT = "DRA_SETUP and DRA_CONTAINER must leave it as it is"


class JobError(RuntimeError):
    """The job can't go on."""


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
    """The job that this process is part of, whose run is in `folder`.

    Raises:
        JobError: names a variable that is not set, or can't be what it is for.
    """
    cpus, gpus = _number(variables, "SLURM_CPUS_ON_NODE", 1), _number(variables, "DRA_GPUS", 0)
    head_ip, port = _address(variables)
    return Allocation(
        job=str(_number(variables, "SLURM_JOB_ID", 1)),
        nodes=_number(variables, "SLURM_JOB_NUM_NODES", 1),
        node=_name(variables, "SLURMD_NODENAME"),
        head=_name(variables, "DRA_HEAD"),
        cpus=cpus,
        gpus=gpus,
        memory=_memory(variables, cpus, gpus),
        head_ip=head_ip,
        port=port,
        temporary=_folder(variables, "DRA_TMP"),
        folder=folder,
        start_timeout_s=_seconds(variables, "DRA_START_TIMEOUT_S"),
    )


def _memory(variables: Mapping[str, str], cpus: int, gpus: int) -> int | None:
    """Slurm sets one of the three, by how the job or the site's default asked; 0 stands for all that the node has."""
    for name, times in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", cpus), ("SLURM_MEM_PER_GPU", gpus)):
        if variables.get(name) and (mib := _number(variables, name, 0) * times):
            return mib * _MIB
    return None


def _address(variables: Mapping[str, str]) -> tuple[str, int]:
    value = _value(variables, "RAY_ADDRESS")
    parts = re.fullmatch(r"([^\s:]+):([0-9]{1,5})", value)
    if not parts or not 1 <= int(parts[2]) <= _LAST_PORT:
        raise _wrong("RAY_ADDRESS", value, f"an address and a port up to {_LAST_PORT}")
    return parts[1], int(parts[2])


def _number(variables: Mapping[str, str], name: str, least: int) -> int:
    value = _value(variables, name)
    # As bash reads it too, to which a zero in front means another base.
    if not re.fullmatch(r"0|[1-9][0-9]{0,17}", value) or int(value) < least:
        raise _wrong(name, value, f"a whole number from {least} on")
    return int(value)


def _seconds(variables: Mapping[str, str], name: str) -> float:
    value = _value(variables, name)
    if not re.fullmatch(r"[0-9]{1,18}(\.[0-9]*)?", value) or not 0 < float(value) <= _LONGEST_S:
        raise _wrong(name, value, f"seconds, above 0 and up to {_LONGEST_S:,}")
    return float(value)


def _name(variables: Mapping[str, str], name: str) -> str:
    value = _value(variables, name)
    # Of a folder as well, which is written anew.
    if not re.fullmatch(r"[^\s/]+", value) or value in (".", ".."):
        raise _wrong(name, value, "a node's name")
    return value


def _folder(variables: Mapping[str, str], name: str) -> Path:
    value = _value(variables, name)
    if not Path(value).is_absolute():
        raise _wrong(name, value, "a folder's whole path")
    return Path(value)


def _value(variables: Mapping[str, str], name: str) -> str:
    if not (value := variables.get(name)):
        raise JobError(f"{name} is not set here, as Slurm and ray.sbatch do; {_KEEP_IT}")
    return value


def _wrong(name: str, value: str, wanted: str) -> JobError:
    return JobError(f"{name}={value!r} is not {wanted}; {'set another one' if name in _SET_BY_HAND else _KEEP_IT}")
