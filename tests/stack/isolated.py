"""Commands in Linux namespaces of their own: a run's ports are its own, and its end ends every process of it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_ray import NOT_UP, TRIES


def run(
    command: Sequence[str], log: Path, cwd: Path, environment: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[bytes]:
    """Run to the end with output to `log`, again where a Ray did not come up; the exit status is the command's."""
    root = [] if os.geteuid() == 0 else ["--map-root-user"]
    namespaces = ["unshare", *root, "--net", "--pid", "--mount", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    own_tmp = shlex.quote(str(Path(__file__).with_name("own_tmp.sh")))
    mounts = f". {own_tmp} && mkdir -p /tmp/ray && mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs /tmp/ray"
    prepare = f'ip link set lo up && {mounts} && exec "$@"'
    for _ in range(TRIES):
        with log.open("wb") as output:
            done = subprocess.run(
                [*namespaces, "bash", "-c", prepare, "bash", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={
                    **os.environ,
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "HYDRA_FULL_ERROR": "1",
                    **environment,
                },
                timeout=timeout_s,
                check=False,
            )
        if done.returncode == 0 or NOT_UP not in log.read_text(errors="replace"):
            break
    return done
