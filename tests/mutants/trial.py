"""One run of tests in a fork of this process, in which all that is slow to import is there already."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import shutil
import signal
import sys
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_OUTSIDE = (".git", ".venv", "build", "dist", "outputs", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis")


class Outcome(NamedTuple):
    code: int | None
    """pytest's exit code; None for what was ended at its limit."""
    seconds: float
    by: str
    """The test that failed first."""


class Trials:
    """A copy of the repository, and runs of its tests."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.root = folder / "tree"
        self.said = folder / "output.txt"
        """What the tests of the last run printed."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(repository, self.root, ignore=shutil.ignore_patterns(*_OUTSIDE))
        self._times = itertools.count(int(time.time()))
        # On a busy machine two threads wait for each other.
        os.environ |= {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        sys.path[:0] = [str(self.root), str(self.root / "tests")]
        importlib.import_module("conftest")  # the environment in which all others may be imported
        self._imported = folder / "imported.txt"

    def clean(self, tests: list[str]) -> Outcome:
        """Run test files as they are, and import here what they import from outside, so that later runs need not."""
        outcome = self.run(tests, 1800)
        for name in self._imported.read_text().split():
            with suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
        for name in [name for name, module in sys.modules.items() if self._of_ours(module)]:
            del sys.modules[name]
        return outcome

    def run(self, tests: list[str], limit_s: float) -> Outcome:
        """Run test files until one test fails."""
        start = time.monotonic()
        child = os.fork()
        if not child:
            self._test(tests)
        done = 0
        try:
            while not done and time.monotonic() < start + limit_s:
                time.sleep(0.02)
                done, status = os.waitpid(child, os.WNOHANG)
        finally:
            # What the tests left behind ends with them.
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            if not done:
                os.waitpid(child, 0)
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", self.said.read_text(errors="replace"), flags=re.M)
        code = os.waitstatus_to_exitcode(status) if done else None
        return Outcome(code, time.monotonic() - start, failed[0] if failed else "")

    def run_with(self, file: str, text: str, tests: list[str], limit_s: float) -> Outcome:
        """Run test files while `file` has another text."""
        path = self.root / file
        original = path.read_text()
        self._write(path, text)
        try:
            return self.run(tests, limit_s)
        finally:
            self._write(path, original)

    def _write(self, path: Path, text: str) -> None:
        # Compiled files are told apart by size and whole seconds.
        path.write_text(text)
        at = next(self._times)
        os.utime(path, (at, at))

    def _test(self, tests: list[str]) -> None:
        code = 3
        try:
            os.setsid()
            os.chdir(self.root)
            output = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            import hypothesis
            import pytest

            # The same examples each time, and no time for a smaller one.
            phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
            hypothesis.settings.register_profile(
                "mutants", deadline=None, derandomize=True, database=None, phases=phases
            )
            options = ["-x", "-m", "not slow", "-p", "no:xdist", "-p", "no:cacheprovider", "--tb=line"]
            code = pytest.main([*options, "--hypothesis-profile=mutants", *tests])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            outside = [name for name, module in sys.modules.items() if not self._of_ours(module)]
            self._imported.write_text("\n".join(outside))
            os._exit(code)

    def _of_ours(self, module: object) -> bool:
        return str(getattr(module, "__file__", None)).startswith(str(self.root))
