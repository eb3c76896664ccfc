"""`make demo`: prepare the task, then train its model with DRA-GRPO on this machine's CPU.

python recipes/tiny_paths/demo.py [Hydra options] [Hydra overrides]
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tiny_paths.prepare import prepare

HERE = Path(__file__).resolve().parent


def command(folder: Path, arguments: Sequence[str]) -> list[str]:
    """The training command over the prepared `folder`; `arguments` are Hydra's options, then overrides."""
    # Hydra takes no overrides on both sides of an option.
    options = list(takewhile(lambda argument: argument.startswith("-"), arguments))
    return [
        *(sys.executable, "-m", "verl_dra.main", "--config-dir", str(HERE), "--config-name", "tiny_paths", *options),
        "+platform=cpu",
        f"data_dir={folder}",
        f"recipe_dir={HERE}",
        *arguments[len(options) :],
    ]


def environment() -> dict[str, str]:
    """What the training's environment needs beside this process's own."""
    return {"VERL_PLATFORM": "cpu", "RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"}


def main() -> int:
    """The training's exit status."""
    sys.stdout.write("preparing data and starting model (once; about a minute)\n")
    sys.stdout.flush()
    folder = prepare()
    return subprocess.run(command(folder, sys.argv[1:]), env={**os.environ, **environment()}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
