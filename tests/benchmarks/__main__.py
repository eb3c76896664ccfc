"""`make bench`: every table, or those named on the command line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

TABLES = ("smi", "encode", "windows", "noise", "scale", "peers", "step", "report", "answers")
"""Each a module beside this one, and a section of the README."""


def main() -> None:
    names = sys.argv[1:] or list(TABLES)
    if unknown := set(names) - set(TABLES):
        sys.exit(f"no such table: {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    for name in names:
        importlib.import_module(name).main()


if __name__ == "__main__":
    main()
