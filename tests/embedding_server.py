"""Servers with OpenAI's `/v1/embeddings` on loopback: a small one for fast tests, and vLLM with the bundled model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from torch import Tensor

VLLM_START_S = 300


@contextmanager
def small_server(
    encode: Callable[[Sequence[str]], Tensor],
    count: Callable[[str], int],
    max_tokens: int,
    model: str,
    key: str | None = None,
) -> Iterator[str]:
    """The URL of a server that counts tokens by `count` and refuses texts of more than `max_tokens` in vLLM's words."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = self.answer(request)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def answer(self, request: Any) -> tuple[int, Any]:
            if self.path != "/v1/embeddings":
                return 404, {"detail": "Not Found"}
            if key is not None and self.headers["Authorization"] != f"Bearer {key}":
                return 401, {"error": "Unauthorized"}
            if request["model"] != model:
                return 404, {"error": {"message": f"The model `{request['model']}` does not exist.", "code": 404}}
            texts = request["input"]
            tokens = [count(text) for text in texts]
            if max(tokens) > max_tokens:
                message = f"This model's maximum context length is {max_tokens} tokens; got {max(tokens)}."
                return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}
            data = [
                {"object": "embedding", "index": i, "embedding": vector}
                for i, vector in enumerate(encode(texts).tolist())
            ]
            usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
            return 200, {"object": "list", "model": model, "data": data, "usage": usage}

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def vllm_server(folder: str, model: str, key: str, work: Path) -> Iterator[str]:
    """The URL of vLLM's own server with the model of `folder` on the CPU; its output goes to `work`/vllm.log.

    It runs in a process group of its own, which ends as a whole.
    """
    from verl_dra.cpu import platform as cpu_platform

    # vLLM's command asks for the version of the distribution `vllm`, which the CPU wheel calls otherwise.
    code = (
        "from verl_dra.cpu.platform import answer_for_vllm_distribution as answer; answer(); "
        "from vllm.entrypoints.cli.main import main; main()"
    )
    port = _free_port()
    options = ["--runner", "pooling", "--host", "127.0.0.1", "--port", str(port), "--api-key", key]
    options += ["--served-model-name", model, "--dtype", "float32", "--enforce-eager"]
    log = work / "vllm.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", folder, *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=work,
            env={
                **os.environ,
                **cpu_platform.environment(),
                "HF_HUB_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "TMPDIR": str(work),
            },
            start_new_session=True,
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + VLLM_START_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                state = "runs" if process.poll() is None else f"ended with {process.returncode}"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
                raise AssertionError(f"vLLM is not ready ({error}) and {state}; its output ends:\n{tail}") from error
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
