"""`make test-gpu`: what only a GPU can show, as tables to paste into a report. Needs veRL's environment and no hub.

All parts run in the order of PARTS, or those named on the command line; `train` takes the options of trainings.py:

    python tests/gpu tests encode
    python tests/gpu train --size 1.4b --placements none colocated -- OVERRIDES
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parents[1]
COMMANDS = {
    "tests": [sys.executable, "-m", "pytest", "-m", "not slow", "-k", "cuda", str(TESTS)],
    "encode": [sys.executable, str(TESTS / "benchmarks"), "encode"],
    "train": [sys.executable, str(TESTS / "gpu" / "trainings.py")],
}


def main() -> None:
    arguments = sys.argv[1:]
    names = arguments[:1] if arguments[:1] == ["train"] else arguments
    if unknown := set(names) - set(COMMANDS):
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(COMMANDS)}")
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; `make test` and `make test-slow` need none")
    places = [TESTS.parent, TESTS, TESTS / "stack", TESTS / "benchmarks", *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": ":".join(map(str, places))}
    failed = []
    for name in names or COMMANDS:
        sys.stdout.write(f"== {name}\n")
        sys.stdout.flush()
        command = [*COMMANDS[name], *arguments[len(names) :]]
        if subprocess.run(command, cwd=TESTS.parent, env=environment, check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
