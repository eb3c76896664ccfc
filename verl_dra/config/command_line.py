"""What a command line sets of the group `dra`, checked before veRL is imported, which takes many seconds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_dra.config.prepare import ConfigError
from verl_dra.config.schema import DRAConfig
from verl_dra.config.spelling import did_you_mean

_OF_DRA = re.compile(r"\+{0,2}dra(\.[^=]*)?=")


def check_words(arguments: Sequence[str]) -> None:
    """Refuse keys of `dra` that there are not, and values that they can't have.

    What settings mean together, and with a config of one's own, is checked when all of it is composed; what is no
    override of Hydra's grammar is left to Hydra.

    Args:
        arguments: Hydra's, as `verl-dra train` takes them; sweeps too.

    Raises:
        ConfigError: says which word, and the nearest that there is.
    """
    parser = OverridesParser.create()
    for word in arguments:
        if not _OF_DRA.match(word):
            continue
        try:
            override = parser.parse_override(word)
            values = list(_values(parser, override))
        except HydraException:
            continue
        for value in values:
            try:
                _check(str(override.key_or_group), value)
            except ValueError as error:
                raise ConfigError(str(error)) from error


def _values(parser: OverridesParser, override: Override) -> Iterator[Any]:
    """The value, or those of a sweep."""
    if not override.is_sweep_override():
        yield override.value()
    elif override.is_choice_sweep():
        for value in override.sweep_iterator(transformer=Transformer.encode):
            yield parser.parse_override(f"{override.get_key_element()}={value}").value()


def _check(key: str, value: Any) -> None:
    if key == "dra":
        if not isinstance(value, str):
            raise ValueError(
                "dra is a group of settings and has no value; give one, such as dra.smi=log_det, and to train without "
                "DRA dra.enabled=False"
            )
        return
    path, config = key.split("."), OmegaConf.structured(DRAConfig)
    _refuse_unknown(config, path, value)
    if isinstance(value, str) and ("${" in value or value == "???"):
        return
    try:
        OmegaConf.update(config, ".".join(path[1:]), value, merge=True)
        dra: DRAConfig = OmegaConf.to_object(config)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ValueError(f"{key}: {str(error.msg).splitlines()[0]}") from error
    dra.check_words()


def _refuse_unknown(config: Any, path: Sequence[str], value: Any) -> None:
    """Refuse the first part of a path, or of a value that is a group, that is none of its group's keys."""
    node = config
    for at, name in enumerate(path[1:], start=1):
        group = ".".join(path[:at])
        if not isinstance(node, DictConfig):
            raise ValueError(f"{'.'.join(path)}: {group} is a value and has no keys of its own")
        if name not in node:
            raise ValueError(_unknown(group, name, [str(key) for key in node]))
        node = node[name]
    if isinstance(value, dict) and isinstance(node, DictConfig):
        for name, of_name in value.items():
            _refuse_unknown(config, [*path, str(name)], of_name)


def _unknown(group: str, name: str, known: Sequence[str]) -> str:
    near = did_you_mean(name, known) or f"; there are {', '.join(known)}"
    return f"{group} has no key {name}{near}"
