"""`make bench`: every table, or those named on the command line."""

from __future__ import annotations

import sys

import encode
import scale
import smi
import step

TABLES = {"smi": smi.main, "encode": encode.main, "scale": scale.main, "step": step.main}


def main() -> None:
    names = sys.argv[1:] or list(TABLES)
    if unknown := set(names) - set(TABLES):
        sys.exit(f"no such table: {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    for name in names:
        TABLES[name]()


if __name__ == "__main__":
    main()
