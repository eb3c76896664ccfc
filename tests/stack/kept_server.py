"""vLLM's server beside a training in the same namespaces: it is started again where its process is lost."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from pathlib import Path

from partition_servers import KEY, MODEL
from vllm_server import VllmServer

PORT = 8123
URL = f"http://127.0.0.1:{PORT}/v1"
_PROCESS = Path("server.pid")


def keep_serving(folder: str) -> None:
    """Return when a classifier of pairs is served; it ends with the namespaces."""
    # vLLM's sockets are there, whose paths have little room.
    work = Path(tempfile.mkdtemp())
    server = VllmServer(folder, MODEL, KEY, work, "--runner", "pooling", port=PORT)

    def start() -> None:
        server.start()
        _PROCESS.write_text(str(server.process.pid))

    def keep() -> None:
        while True:
            server.process.wait()
            start()

    start()
    threading.Thread(target=keep, daemon=True).start()


def kill(folder: Path) -> None:
    """End it as a lost machine would; `folder` is where the training was started."""
    os.killpg(int((folder / _PROCESS).read_text()), signal.SIGKILL)
