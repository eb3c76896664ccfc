"""`launch/ray/submission.py`: what is wrong with a submission is said in words, and a job is followed to its end."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobStatus

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def submission() -> ModuleType:
    spec = importlib.util.spec_from_file_location("submission", ROOT / "launch/ray/submission.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Server:
    """A job server on loopback that answers as told."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                server.asked.append(f"{self.command} {self.path}")
                status, text = server.answers.get(self.path, server.answers.get("*", (404, "not found")))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_PUT = answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    made = Server()
    made.answers["/api/version"] = (200, json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"}))
    yield made
    made.http.shutdown()
    made.http.server_close()


def words(address: str, folder: Path, runtime_env: Path | None = None) -> list[str]:
    file = runtime_env or ROOT / "launch/ray/runtime_env.yaml"
    return [
        *(f"--address={address}", f"--working-dir={folder}", f"--runtime-env={file}", "--submission-id=mine"),
        *("--", "verl-dra", "train"),
    ]


def test_a_server_that_is_not_there_is_told(
    submission: ModuleType, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.http.shutdown()
    server.http.server_close()
    assert submission.main(words(server.address, tmp_path)) == 2
    said = capfd.readouterr().err
    assert f"submit.sh: no job server answers at {server.address} (Connection refused): it is the head's" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("token", "status", "says"),
    [
        (None, 401, "asks for a token, and got none; give the cluster's: --token-path FILE"),
        ("RAY_AUTH_TOKEN", 403, "has another token than RAY_AUTH_TOKEN; give the cluster's: --token-path FILE"),
        ("RAY_AUTH_TOKEN_PATH", 403, "has another token than /a/file; give the cluster's: --token-path FILE"),
    ],
)
def test_the_wrong_token_is_told(
    submission: ModuleType,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    token: str | None,
    status: int,
    says: str,
) -> None:
    server.answers = {"*": (status, "no")}
    if token:
        monkeypatch.setenv(token, "/a/file")
    assert submission.main(words(server.address, tmp_path)) == 2
    assert f"submit.sh: {server.address} {says}\n" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, "<html>"), "no job server answers"),
        ((502, "Bad Gateway"), "502 Server Error: Bad Gateway"),
        ((404, ""), "did not take the job: Version check returned 404"),
    ],
)
def test_a_server_that_is_none_of_rays_is_told(
    submission: ModuleType,
    server: Server,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    answer: tuple[int, str],
    says: str,
) -> None:
    server.answers = {"*": answer}
    assert submission.main(words(server.address, tmp_path)) == 2
    said = capfd.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_an_id_that_is_taken_is_told(
    submission: ModuleType, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = {"type": "SUBMISSION", "status": "RUNNING", "entrypoint": "x", "submission_id": "mine"}
    server.answers["/api/jobs/mine"] = (200, json.dumps(job))
    assert submission.main(words(server.address, tmp_path)) == 2
    assert f"{server.address} has a job mine already; give another --submission-id" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["excludes: [", "- data/", "\0"])
def test_a_runtime_environment_that_can_not_be_read_is_told(
    submission: ModuleType, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "env.yaml").write_text(text)
    assert submission.main(words(server.address, tmp_path, tmp_path / "env.yaml")) == 2
    assert "submit.sh: --runtime-env: " in capfd.readouterr().err


def test_a_folder_that_is_too_large_is_told_before_anything_is_sent(
    submission: ModuleType, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sizes = {"encoder/weights.onnx": 90, "notes/a.csv": 12, "notes/b.csv": 6, "left/out.parquet": 500, "train.py": 0}
    for name, mebibytes in sizes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(mebibytes * 2**20)
    assert submission.main(words(server.address, tmp_path)) == 2
    said = capfd.readouterr().err
    assert f"4 files of {tmp_path} have 108.0 MiB, and Ray takes less than 100 MiB" in said
    assert re.findall(r"(\S+) MiB  (\S+)", said)[:2] == [("90.0", "encoder/weights.onnx"), ("12.0", "notes/a.csv")]
    assert "18.0 MiB  notes/\n" in said
    assert "parquet" not in said
    assert f"in {tmp_path}/.rayignore or by `excludes` in {ROOT}/launch/ray/runtime_env.yaml" in said
    assert [line for line in server.asked if not line.startswith("GET")] == []
    # What it says mends it: then the upload is tried, which this server does not take.
    (tmp_path / ".rayignore").write_text("encoder/\n")
    assert submission.main(words(server.address, tmp_path)) == 2
    assert "did not take the job: Request failed with status code 404" in capfd.readouterr().err
    assert [line.partition(" ")[0] for line in server.asked if not line.startswith("GET")] == ["PUT"]


def test_the_limit_is_held_against_what_ray_makes_of_a_folder(
    submission: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    for name in ("a.py", "straße/b.py", "out/x.log", "sub/.gitignore", "sub/c.bin", "sub/d.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("*.bin" if name.endswith("ignore") else name * 50)
    create_package(str(folder), tmp_path / "zip", include_gitignore=True, excludes=["*.log"])
    size = (tmp_path / "zip").stat().st_size
    monkeypatch.setattr(submission, "LIMIT_BYTES", size + 1)
    submission.refuse_too_large(folder, ["*.log"], tmp_path)
    monkeypatch.setattr(submission, "LIMIT_BYTES", size)
    with pytest.raises(submission.SubmissionError, match="4 files of"):
        submission.refuse_too_large(folder, ["*.log"], tmp_path)


class Client:
    """A job server's client whose log and states come in turn; a state that is an exception is raised."""

    def __init__(self, *states: Any, code: int | None = None, message: str = "") -> None:
        self.states = list(states)
        self.job = {"driver_exit_code": code, "message": message}

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        yield f"the log of {submission_id}\n"
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, submission_id: str) -> SimpleNamespace:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return SimpleNamespace(status=state, **self.job)


@pytest.mark.parametrize(
    ("client", "status", "shown"),
    [
        (Client(JobStatus.RUNNING, JobStatus.SUCCEEDED, code=0), 0, "mine SUCCEEDED, exit status 0\n"),
        (Client(ConnectionError("x"), JobStatus.FAILED, code=7, message="again"), 7, "mine FAILED, exit status 7\n"),
        (Client(JobStatus.STOPPED), 1, "mine STOPPED, exit status 1\n"),
        (Client(JobStatus.FAILED, message="no pip\n"), 1, "no pip\nsubmit.sh: mine FAILED, exit status 1\n"),
    ],
)
def test_a_job_is_followed_to_its_end(
    submission: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    client: Client,
    status: int,
    shown: str,
) -> None:
    monkeypatch.setattr(submission, "_PAUSE_S", 0)
    looks = len(client.states)
    assert submission.follow(client, "http://head", "mine") == status
    out, err = capsys.readouterr()
    assert out.startswith("the log of mine\n" * looks)
    assert out.endswith(shown)
    assert "again" not in out
    assert ("the log broke off, and mine goes on" in err) == (status == 0)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (RuntimeError("Request failed with status code 404: Job mine does not exist."), "knows no mine any more"),
        (ConnectionError("Failed to connect"), "does not answer any more; mine may go on: Failed to connect"),
        (
            RuntimeError('Request failed with status code 500: Traceback (most recent):\n  File "x"\nOops: full\n'),
            "mine may go on: Request failed with status code 500: Traceback (most recent): Oops: full\n",
        ),
    ],
)
def test_a_job_that_can_not_be_followed_any_more_is_told_once(
    submission: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: Exception,
    says: str,
) -> None:
    monkeypatch.setattr(submission, "_PAUSE_S", 0)
    assert submission.follow(Client(state), "http://head", "mine") == 1
    assert capsys.readouterr().err.count(says) == 1


def test_a_machine_without_ray_is_told(tmp_path: Path) -> None:
    script = str(ROOT / "launch/ray/submit.sh")
    words = [script, "--address", "http://127.0.0.1:9"]
    for name in ("readlink", "dirname", "sed"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    told = {"cwd": ROOT / "launch", "capture_output": True, "text": True, "check": False}
    bare = subprocess.run([str(shutil.which("bash")), *words], env={"PATH": str(tmp_path)}, **told)
    assert (bare.returncode, bare.stderr) == (
        2,
        "submit.sh: ray is not on PATH; pip install 'ray[default]', of the cluster's version\n",
    )
    # The folder `ray` of where it is started is none that can be imported.
    (tmp_path / "ray").write_text("#!/bin/sh\n")
    (tmp_path / "ray").chmod(0o755)
    (tmp_path / "python3").symlink_to(sys.base_prefix + "/bin/python3")
    other = subprocess.run([str(shutil.which("bash")), *words], env={"PATH": str(tmp_path)}, **told)
    assert (other.returncode, "no Python that has ray" in other.stderr) == (2, True), other.stderr


def test_it_ends_where_nobody_takes_the_log(submission: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(SystemExit, match="can't show the log any more: No space left on device; mine goes on"):
        submission.follow(Client(JobStatus.RUNNING), "http://head", "mine")


def test_without_ray_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, submission: ModuleType, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(SystemExit, match=r"pip install 'ray\[default\]', of the cluster's version"):
        submission.__spec__.loader.exec_module(importlib.util.module_from_spec(submission.__spec__))
