"""Which code a submission will run: jobs read the package when they start, which can be days later."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import verl_dra


def code() -> str:
    """Version of this package and, in a git checkout, its commit, with `-dirty` where tracked files differ from it."""
    package = Path(__file__).parents[1]
    # A checkout of something else can hold the environment that the package is installed in.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return verl_dra.__version__
    commit = _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return f"{verl_dra.__version__} {commit or ''}".strip()


def changed(then: str, now: str) -> str | None:
    """What to say where points that were submitted with the code `then` would run `now`; None where it is the same."""
    if then != now:
        return f"the code was verl_dra {then or 'of an unknown version'} and is {now} now"
    if now.endswith("-dirty"):
        return f"the code is verl_dra {now}, as it was: what has changed since can't be told"
    return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError:
        return None
    return None if done.returncode else done.stdout.strip()
