"""A real two-node Slurm on this machine for the tests of launch/slurm: `with running(folder) as lab: ...`."""

from __future__ import annotations

import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NODES = ("n1", "n2")
TOOLS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter", "ip")
_CONF = """\
ClusterName=lab
SlurmctldHost=ctl(10.77.0.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={lab}/munge.socket
CryptoType=crypto/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={lab}/state
SlurmdSpoolDir={lab}/spool/%n
SlurmctldPidFile={lab}/slurmctld.pid
SlurmdPidFile={lab}/slurmd-%n.pid
SlurmctldLogFile={lab}/slurmctld.log
SlurmdLogFile={lab}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
GresTypes=gpu
ReturnToService=2
SchedulerParameters=batch_sched_delay=0
MailProg=/bin/true
MaxArraySize=1001
NodeName=n[1-2] NodeAddr=10.77.0.[1-2] CPUs=64 RealMemory=512000 Gres=gpu:8 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class LabError(RuntimeError):
    """The lab did not come up, or a command in it failed."""


@dataclass
class Lab:
    """Commands run on the controller's host; every node sees this machine's file system."""

    folder: Path
    init: int
    """Process 1 of the lab's namespaces."""
    _environment: dict[str, str] = field(default_factory=dict)

    def run(
        self, *command: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end on the controller's host."""
        done = subprocess.run(
            ["nsenter", f"--target={self.init}", "--all", "--wd=" + str(cwd or self.folder), *command],
            env={**os.environ, **self._environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        if check and done.returncode:
            raise LabError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def sbatch(self, *arguments: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """Submit a job; gives its id."""
        done = self.run("sbatch", "--parsable", *arguments, environment=environment, cwd=cwd)
        return done.stdout.strip().split(";")[0]

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of it."""
        shown = self.run("scontrol", "show", "job", "--oneliner", job).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    def wait(self, job: str, *states: str, seconds: float) -> dict[str, str]:
        """Wait until the job is in one of `states`, by default an ended one."""
        wanted = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
        found: dict[str, str] = {}

        def reached() -> bool:
            found.clear()
            found.update(self.job(job))
            return found["JobState"] in wanted

        wait_until(reached, seconds, lambda: f"job {job} is {found.get('JobState')}, not {wanted}")
        return found

    def processes(self, pattern: str) -> list[str]:
        """Command lines of the lab's processes, those of its nodes included, that `pattern` is found in."""
        lines = self.run("ps", "-ww", "-eo", "pid=,args=").stdout.splitlines()
        return [line for line in lines if re.search(pattern, line) and "ps -ww" not in line]


def wait_until(condition: Callable[[], bool], seconds: float, else_say: Callable[[], str]) -> None:
    """Ask again and again, four times a second, until `condition` holds.

    Raises:
        LabError: it does not within `seconds`.
    """
    never = select.poll()
    for _ in range(int(4 * seconds)):
        if condition():
            return
        never.poll(250)
    raise LabError(f"after {seconds} s: {else_say()}")


@contextmanager
def running(folder: Path) -> Iterator[Lab]:
    """A Slurm that has two idle nodes, until the end of the block; logs stay in `folder`.

    Raises:
        LabError: it did not come up.
    """
    _fill(folder)
    environment = {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}",
    }
    namespaces = ["unshare", "--net", "--uts", "--pid", "--mount", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    with (folder / "lab.log").open("wb") as log:
        outer = subprocess.Popen(
            [*namespaces, "bash", str(Path(__file__).with_name("two_nodes.sh")), str(folder)],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        start = psutil.Process(outer.pid)
        wait_until(lambda: bool(start.children()), 20, lambda: (folder / "lab.log").read_text())
        lab = Lab(folder, start.children()[0].pid, environment)
        idle = ["sinfo", "--noheader", "--Node", "--format=%T"]
        wait_until(
            lambda: lab.run(*idle, check=False).stdout.split() == ["idle"] * len(NODES),
            60,
            lambda: "".join(path.read_text() for path in sorted(folder.glob("*.log"))),
        )
        yield lab
    finally:
        # With process 1 of the namespace all of it ends: daemons, nodes, jobs.
        os.killpg(outer.pid, signal.SIGKILL)
        outer.wait()


def missing_tools() -> list[str]:
    """The programs that the lab needs and that are not there."""
    return [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") is None]


def _fill(folder: Path) -> None:
    for name in ("state", "spool/n1", "spool/n2", "dev", "munge"):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o700)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    for i in range(8):
        (folder / "dev" / f"fakegpu{i}").touch()
    (folder / "slurm.conf").write_text(_CONF.format(lab=folder))
    # A count without files leaves the nodes invalid; plain files serve as devices.
    (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={folder}/dev/fakegpu[0-7]\n")
    (folder / "hosts").write_text("127.0.0.1 localhost\n10.77.0.254 ctl\n10.77.0.1 n1\n10.77.0.2 n2\n")
