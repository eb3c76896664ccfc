"""vLLM's own server on the CPU, with a model of a folder; it can be killed and come back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from verl_dra.cpu import platform as cpu_platform

START_S = 300
# vLLM's command asks for the version of the distribution `vllm`, which the CPU wheel calls otherwise.
CODE = (
    "from verl_dra.cpu.platform import answer_for_vllm_distribution as answer; answer(); "
    "from vllm.entrypoints.cli.main import main; main()"
)


class VllmServer:
    """Runs from `with` to its end at `url`, in a process group of its own; its output goes to `work`/vllm.log."""

    def __init__(self, folder: str, model: str, key: str, work: Path, *options: str, port: int = 0) -> None:
        self.folder = folder
        self._port = port or _free_port()
        self._log = work / "vllm.log"
        self._work = work
        self._command = [sys.executable, "-c", CODE, "serve", folder, "--host", "127.0.0.1", "--port", str(self._port)]
        self._command += ["--api-key", key, "--served-model-name", model, "--dtype", "float32", "--enforce-eager"]
        self._command += options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Return when it is healthy."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._work,
                env={
                    **os.environ,
                    **cpu_platform.environment(),
                    "HF_HUB_OFFLINE": "1",
                    "VLLM_NO_USAGE_STATS": "1",
                    "TMPDIR": str(self._work),
                },
                start_new_session=True,
            )
        self._wait_until_healthy(self._process)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The one that runs now, or ran last."""
        assert self._process is not None
        return self._process

    def kill(self) -> None:
        """End it as a lost machine would."""
        self._signal(signal.SIGKILL)

    def __enter__(self) -> VllmServer:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGTERM, wait_s=20)
        self.kill()

    def _signal(self, number: int, wait_s: float | None = None) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)

    def _wait_until_healthy(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError) as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    state = "runs" if process.poll() is None else f"ended with {process.returncode}"
                    tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])
                    raise AssertionError(
                        f"vLLM is not ready ({error}) and {state}; its output ends:\n{tail}"
                    ) from error
            time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
