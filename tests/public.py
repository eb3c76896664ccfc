"""What users rely on, as tests/public.txt lists it: names, keys, metrics, commands. `make reference` writes it."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from reference import keys_of, scorer_metrics

import verl_dra
from verl_dra.cli import COMMANDS, make_parser
from verl_dra.config import DRAConfig
from verl_dra.training.meanings import METRICS

FILE = Path(__file__).with_name("public.txt")
NAMES = (
    *(f"verl_dra:{name}" for name in verl_dra.__all__ if name != "__version__"),
    "verl_dra.rewards:compute_score",
    "verl_dra.config.compose:composed",
    "verl_dra.config.compose:check",
    "verl_dra.training.estimator:register",
    "verl_dra.training.reward_manager:DRARewardManager",
    "verl_dra.training.trainer:with_dra",
)
"""Those that the pages name: the package's own, the reward, and what a trainer of one's own calls."""


def main() -> None:
    """Write the file."""
    FILE.write_text(listing())


def listing() -> str:
    """The file's text."""
    parts = {
        "Names": (_signature(name) for name in NAMES),
        "Keys and their defaults": (f"{key.name}={key.default}" for key in keys_of(DRAConfig(), "dra")),
        "Metrics": iter(METRICS),
        "What scorers show to Prometheus": (name for name, _ in scorer_metrics()),
        "Commands": _commands(),
    }
    head = (
        "What users rely on. A line that changes is a decision: CHANGELOG.md says it, `make reference` writes this.\n"
    )
    return head + "".join(
        f"\n{title}\n\n" + "".join(f"    {line}\n" for line in lines) for title, lines in parts.items()
    )


def _signature(name: str) -> str:
    module, _, of = name.partition(":")
    signature = str(inspect.signature(getattr(import_module(module), of)))
    return f"{module}.{of}" + re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)


def _commands() -> Iterator[str]:
    yield "verl-dra train [--config-dir, --config-name, --multirun and all else of Hydra's] OVERRIDES"
    (commands,) = [action for action in make_parser(list(COMMANDS))._actions if isinstance(action.choices, dict)]
    for name in COMMANDS:
        for action in commands.choices[name]._actions:
            if not isinstance(action, argparse._HelpAction):
                yield f"verl-dra {name} {_option(action)}"


def _option(action: argparse.Action) -> str:
    """An option as its help has it, with what it may be and what it is by default."""
    words = [*action.option_strings]
    if action.nargs != 0:
        choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
        words += _several(choices or action.metavar or action.dest.upper())
        words += ["..."] if action.nargs in ("*", "+") else []
        words += [f"(default: {' '.join(_several(action.default))})"] if action.default else []
    return " ".join(words)


def _several(value: Any) -> list[str]:
    return list(map(str, value)) if isinstance(value, (list, tuple)) else [str(value)]


if __name__ == "__main__":
    main()
