#!/usr/bin/env python3
"""What submit.sh does by Python: submit a job, show its log, end as it does.

It needs Ray, `ray[default]`, and nothing else: where jobs are submitted from, veRL and this package may be missing.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import logging
import os
import re
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

try:
    import aiohttp
    import ray.exceptions
    import requests
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging
    from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
except ImportError as error:
    sys.exit(f"submit.sh: {error}; pip install 'ray[default]', of the cluster's version")

# Since Ray 2.52.
_AUTHENTICATION = tuple(filter(None, [getattr(ray.exceptions, "AuthenticationError", None)]))
# Ray's job server takes less than this of a body (2.60, dashboard/http_server_head.py).
LIMIT_BYTES = getattr(ray_constants, "DASHBOARD_CLIENT_MAX_SIZE", 100 * 2**20)
# Of an entry of a zip file that is stored as it is, beside its name, which is there twice; and of the file's end.
_ENTRY_BYTES, _END_BYTES = 30 + 46, 22
_PAUSE_S = 3.0
_MOST_UNANSWERED = 20
_WENT_ON = 130
_UNREACHABLE = (ConnectionError, requests.exceptions.RequestException)
_UNANSWERED_BY = (aiohttp.ClientError, asyncio.TimeoutError, OSError, RuntimeError, ValueError)


class SubmissionError(Exception):
    """Why there is no job, and what to do."""


def main(words: Sequence[str]) -> int:
    """Submit what `words` say, and unless told not to, follow it.

    Returns:
        The job's exit status; 0 once it is submitted where nobody waits for it, 1 where it can't be followed any more,
        2 where it was not submitted, 130 where this was interrupted.
    """
    given = _parser().parse_args(words)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        with in_words(given.address):
            client = JobSubmissionClient(given.address)
            submit(client, given)
    except SubmissionError as refused:
        _say(str(refused))
        return 2
    sys.stdout.write(f"submit.sh: submitted {given.submission_id}\n")
    if not given.follow:
        sys.stdout.write(
            f"its log:      ray job logs --address {given.address} --follow {given.submission_id}\n"
            f"how it is:    ray job status --address {given.address} {given.submission_id}\n"
            f"to stop it:   ray job stop --address {given.address} {given.submission_id}\n"
        )
        return 0
    # Else it would end without a word of what goes on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return follow(client, given.address, given.submission_id)
    except KeyboardInterrupt:
        _say(f"{given.submission_id} goes on; stop it by: ray job stop --address {given.address} {given.submission_id}")
        return _WENT_ON


def submit(client: JobSubmissionClient, given: argparse.Namespace) -> None:
    """Submit the command `given.command`, if its id is new and what it takes along is not too large.

    Raises:
        SubmissionError: otherwise.
    """
    if known(client, given.submission_id) is not None:
        raise SubmissionError(f"{given.address} has a job {given.submission_id} already; give another --submission-id")
    environment = runtime_env(given.runtime_env)
    refuse_too_large(given.working_dir, environment.get("excludes") or [], given.runtime_env)
    client.submit_job(
        entrypoint=shlex.join(given.command),
        submission_id=given.submission_id,
        runtime_env={**environment, "working_dir": str(given.working_dir)},
    )


def runtime_env(file: Path) -> dict[str, Any]:
    """What a runtime environment's `file` says.

    Raises:
        SubmissionError: it is no YAML, or no mapping.
    """
    try:
        read = yaml.safe_load(file.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SubmissionError(f"--runtime-env: can't read {file}: {error}") from error
    if not isinstance(read, dict):
        raise SubmissionError(f"--runtime-env: {file} has no keys and values, such as `excludes: [data/]`")
    return read


def taken_along(folder: Path, excludes: Sequence[str]) -> dict[str, int]:
    """The files of `folder` that Ray would upload, by `excludes` and the folder's .gitignore and .rayignore.

    Returns:
        Paths relative to `folder`, with their bytes.
    """
    folder = folder.absolute()
    found: dict[str, int] = {}

    def note(path: Path) -> None:
        if path.is_file():
            found[str(path.relative_to(folder))] = path.stat().st_size

    walk = packaging._dir_travel
    more: dict[str, Any] = {}
    if "include_gitignore" in inspect.signature(walk).parameters:  # Ray 2.50 always heeds it.
        more["include_gitignore"] = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    walk(folder, [packaging._get_excludes(folder, list(excludes))], note, logger=_SILENT, **more)
    return found


def refuse_too_large(folder: Path, excludes: Sequence[str], runtime_env_file: Path) -> None:
    """Look at what a job would take along, before anything is read or sent.

    Raises:
        SubmissionError: it is more than Ray takes. Names the largest files and folders, and what leaves them out.
    """
    files = taken_along(folder, excludes)
    size = _END_BYTES + sum(bytes_ + _ENTRY_BYTES + 2 * len(os.fsencode(name)) for name, bytes_ in files.items())
    if size < LIMIT_BYTES:
        return
    folders: Counter[str] = Counter()
    for name, bytes_ in files.items():
        if (top := name.partition("/")[0]) != name:
            folders[f"{top}/"] += bytes_
    largest = [*Counter(files).most_common(5), *folders.most_common(3)]
    lines = [f"  {bytes_ / 2**20:10.1f} MiB  {name}" for name, bytes_ in largest]
    raise SubmissionError(
        "\n".join(
            [
                f"{len(files)} files of {folder} have {size / 2**20:.1f} MiB, and Ray takes less than "
                f"{LIMIT_BYTES / 2**20:.0f} MiB of a job's working directory; the largest files, and folders:",
                *lines,
                f"leave out what is no code, by lines like those of .gitignore in {folder / '.rayignore'} or by "
                f"`excludes` in {runtime_env_file}: data and models belong on storage that every node sees. Or give "
                "--working-dir a folder of code alone",
            ]
        )
    )


def follow(client: JobSubmissionClient, address: str, submission_id: str) -> int:
    """Show the job's log until it ends, also where the connection breaks off.

    Returns:
        Its exit status: 0 where it succeeded, else the command's, or 1 where that is none. Ray's own commands end with
        0 for a job that was stopped, and with 1 whatever a failed one ended with.
    """
    unanswered = 0
    while True:
        with suppress(*_UNANSWERED_BY, *_AUTHENTICATION):  # What has become of the job decides.
            asyncio.run(_show(client, submission_id))
        try:
            job = known(client, submission_id)
        except (*_UNANSWERED_BY, *_AUTHENTICATION) as error:
            unanswered += 1
            if unanswered == _MOST_UNANSWERED:
                _say(f"{address} does not answer any more; {submission_id} may go on: {_reason(error)}")
                return 1
        else:
            unanswered = 0
            if job is None:
                _say(f"{address} knows no {submission_id} any more: its head was started anew, which ends all jobs")
                return 1
            if job.status.is_terminal():
                return _ended(job, submission_id)
            _say(f"the log broke off, and {submission_id} goes on; here it is again")
        time.sleep(_PAUSE_S)


def known(client: JobSubmissionClient, submission_id: str) -> JobDetails | None:
    """What the cluster knows of the job; None where it knows none of this id."""
    try:
        return client.get_job_info(submission_id)
    except RuntimeError as error:
        if "status code 404" in str(error):
            return None
        raise


@contextmanager
def in_words(address: str) -> Iterator[None]:
    """Turn what a job server's client raises into what is wrong, and what to do.

    Raises:
        SubmissionError: in the place of it.
    """
    try:
        yield
    except _AUTHENTICATION as error:
        if "Authentication required" in str(error):
            raise SubmissionError(
                f"{address} asks for a token, and got none; give the cluster's: --token-path FILE"
            ) from error
        file = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
        where = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else file
        raise SubmissionError(
            f"{address} has another token than {where}; give the cluster's: --token-path FILE"
        ) from error
    except _UNREACHABLE as error:
        why = _reason(error)
        proxies = [name for name in ("http_proxy", "https_proxy", "all_proxy") if _variable(name)]
        through = f"; requests go through {' and '.join(proxies)}, unless no_proxy has the host" if proxies else ""
        raise SubmissionError(
            f"no job server answers at {address} ({why}): it is the head's, by default on port 8265, and must be "
            f"reached from here{through}"
        ) from error
    except OSError as error:
        raise SubmissionError(f"can't read what the job takes along: {error}") from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise SubmissionError(f"{address} did not take the job: {_reason(error)}") from error


async def _show(client: JobSubmissionClient, submission_id: str) -> None:
    async for lines in client.tail_job_logs(submission_id):
        try:
            sys.stdout.write(lines)
            sys.stdout.flush()
        except OSError as error:
            sys.exit(f"submit.sh: can't show the log any more: {error.strerror}; {submission_id} goes on")


def _ended(job: JobDetails, submission_id: str) -> int:
    status = 0 if job.status == JobStatus.SUCCEEDED else job.driver_exit_code or 1
    # Where the command did not start, its log does not say why.
    if job.driver_exit_code is None and job.status == JobStatus.FAILED and job.message:
        sys.stdout.write(f"{job.message.rstrip()}\n")
    sys.stdout.write(f"submit.sh: {submission_id} {job.status}, exit status {status}\n")
    return status


def _reason(error: BaseException) -> str:
    """What is at the bottom of `error`: Ray and requests wrap it, and a server sends its traceback."""
    text = str(error.__context__ or error) if isinstance(error, ConnectionError) else str(error)
    if errno := re.search(r"\[Errno -?\d+\] ([^'\")]+)", text):
        return errno[1]
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return f"{lines[0]} {lines[-1]}" if "Traceback" in lines[0] else lines[0]


def _variable(name: str) -> str | None:
    return os.environ.get(name) or os.environ.get(name.upper())


def _say(what: str) -> None:
    sys.stderr.write(f"submit.sh: {what}\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="submission.py", description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--working-dir", required=True, type=Path)
    parser.add_argument("--runtime-env", required=True, type=Path)
    parser.add_argument("--submission-id", required=True)
    parser.add_argument("--follow", action="store_true", help="show its log until it ends")
    parser.add_argument("command", nargs="+", help="after --, the job's command as its words")
    return parser


_SILENT = logging.getLogger("submit.sh")
_SILENT.setLevel(logging.CRITICAL + 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
