"""`python recipes/tiny_paths/study run` trains every arm with every seed; `... plot` makes JSON, curves and tables.

Both can be cut off and started again: what is done is not done twice.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tiny_paths.study import arms, report, train

HERE = Path(__file__).resolve().parent


def main() -> int:
    """The exit status: 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="study", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/tiny_paths/study"), help="the runs (%(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is not trained yet")
    run.add_argument("--arms", nargs="+", choices=list(arms.ARMS), default=list(arms.MAIN), metavar="ARM")
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--steps", type=int, default=150)
    plot = commands.add_parser("plot", help="results.json, curves.png and the tables")
    plot.add_argument("--results", type=Path, default=HERE, help="where to put them (%(default)s)")
    options = parser.parse_args()
    if options.command == "run":
        return train.train(options.out.resolve(), options.arms, options.seeds, options.steps)
    report.report(options.out, options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
