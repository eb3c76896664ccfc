"""The command `verl-dra`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from verl_dra.terminal.train_help import TEXT, is_asked_for

# Each is a package with `add_arguments` and `run`, imported when it is asked for.
COMMANDS = {
    "doctor": ("doctor", "what would stop a run, with the fix: versions, files, disks and the Ray cluster"),
    "simulate": ("simulate", "show diversity collapse, and DRA against it, on toy groups"),
    "prepare-data": ("data", "turn a published maths set into veRL's parquet files"),
    "sweep": ("sweep", "train the points of a grid on Slurm, each with a Ray cluster of its own"),
    "report": ("report", "curves and groups of runs, as one HTML file or as text"),
    "calibrate": ("calibrate", "whether an encoder's cosines tell ways of reasoning apart, on labelled pairs"),
    "evaluate": ("evaluate", "pass@k, maj@k and diversity of a model or of samples that are there"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["train"]:
        if is_asked_for(arguments[1:]):
            sys.stdout.write(TEXT)
            return 0
        # Hydra reads the overrides from sys.argv; so does every process that it starts for a sweep.
        sys.argv = ["verl-dra train", *arguments[1:]]
        from verl_dra.main import main as train

        train()
        return 0
    options = make_parser(arguments[:1]).parse_args(arguments)
    status: int = options.run(options)
    return status


def make_parser(asked: Sequence[str]) -> argparse.ArgumentParser:
    """What reads the options; of a command that is not `asked` for, the name alone."""
    parser = argparse.ArgumentParser(prog="verl-dra", description="Diversity-aware reward adjustment for veRL.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="train with DRA, by veRL; takes Hydra overrides", add_help=False)
    for name, (package, text) in COMMANDS.items():
        subparser = commands.add_parser(name, help=text, description=text)
        if name in asked:
            command = import_module(f"verl_dra.{package}")
            command.add_arguments(subparser)
            subparser.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
