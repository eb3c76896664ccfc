"""Command line options from the fields of settings dataclasses and back, so that each default is written once."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

Settings = TypeVar("Settings")


class OptionError(ValueError):
    """An option's value, or a combination of options, that makes no sense."""


def add_option(parser: argparse._ActionsContainer, option: str, settings: type[Any], text: str, **kwargs: Any) -> None:
    """Add `option` for the field of `settings` of that name. If not given, it is absent from the parsed namespace."""
    default = getattr(settings, _field(option))
    note = "" if default is None else f" (default: {default})"
    parser.add_argument(option, default=argparse.SUPPRESS, help=text + note, **kwargs)


def read_settings(settings: type[Settings], args: argparse.Namespace) -> Settings:
    """`settings` with the options that were given."""
    return settings(**{name: getattr(args, name) for name in _names(settings) if hasattr(args, name)})


def refuse_options_of(other: type[Any], mine: Iterable[type[Any]], args: argparse.Namespace, reason: str) -> None:
    """Raise OptionError if an option was given that belongs to `other` and to none of `mine`."""
    for name in sorted(_names(other) - {name for settings in mine for name in _names(settings)}):
        if hasattr(args, name):
            raise OptionError(f"--{name.replace('_', '-')} {reason}")


def _field(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _names(settings: type[Any]) -> set[str]:
    return {field.name for field in fields(settings)}
