"""`python recipes/tiny_locks/study run` makes the runs that are not there yet; `... plot` JSON, pictures and tables.

Both can be cut off at any moment and started again: a run goes on from its last state, what is done is not done twice.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tiny_locks.loop import Settings
from tiny_locks.study import arms, report, stack, train, wording
from tiny_locks.task import LOCKS

HERE = Path(__file__).resolve().parent


def main() -> int:
    """The exit status: 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="study", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/tiny_locks/study"), help="the runs (%(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make what is not there yet, in the study's order")
    run.add_argument("--locks", nargs="+", choices=LOCKS, help="only these")
    run.add_argument("--arms", nargs="+", metavar="ARM", help="only these, such as grpo, dra, dra_off")
    run.add_argument("--seeds", nargs="+", type=int, help="only these; with locks and arms given, any")
    run.add_argument("--steps", type=int, default=Settings.steps, help="of a run (%(default)s)")
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    run.add_argument("--processes", type=int, default=2, metavar="N", help="runs side by side (%(default)s)")
    real = commands.add_parser(
        "stack", help="three arms of lock A through the real stack, one after the other, on a CPU"
    )
    real.add_argument("--arms", nargs="+", choices=stack.OVERRIDES, default=[*stack.OVERRIDES])
    real.add_argument("--seeds", nargs="+", type=int, default=stack.SEEDS)
    real.add_argument("--steps", type=int, default=Settings.steps, help="of a training (%(default)s)")
    plot = commands.add_parser("plot", help="results.json, pictures and the tables")
    plot.add_argument("--results", type=Path, default=HERE, help="where to put them (%(default)s)")
    commands.add_parser("wording", help="how encoders see the ways, into results.json")
    options = parser.parse_args()
    if options.command == "wording":
        path = HERE / report.RESULTS
        kept = json.loads(path.read_text()) if path.exists() else {"runs": []}
        report.write(path, {**kept, "wording": wording.wording()})
        return 0
    if options.command == "plot":
        report.report(options.out, options.results)
        return 0
    if options.command == "stack":
        return stack.train(stack.folder(options.out.resolve()), options.arms, options.seeds, options.steps)
    if options.locks and options.arms and options.seeds:
        runs = [arms.Run(*one) for one in product(options.locks, options.arms, options.seeds)]
    else:
        runs = [
            one
            for one in arms.wanted()
            if one.lock in (options.locks or LOCKS)
            and one.arm in (options.arms or (one.arm,))
            and one.seed in (options.seeds or (one.seed,))
        ]
    if unknown := sorted({one.arm.removesuffix("_off") for one in runs} - arms.LABELS.keys()):
        parser.error(f"there is no arm {unknown[0]}; there are {', '.join(arms.LABELS)}")
    if not runs:
        parser.error("the study plans no such runs; give locks, arms and seeds for others")
    settings = Settings(steps=options.steps)
    return train.train(options.out.resolve(), runs, settings, options.device, options.processes)


if __name__ == "__main__":
    sys.exit(main())
