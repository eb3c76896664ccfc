"""The checkpoint that a run would go on from, and whether it is one of the same settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig

from verl_dra.config import checkpoints
from verl_dra.doctor.check import Check, fail, ok, skip, warn
from verl_dra.doctor.run_config import is_remote, select

_NAME = "resuming"
_SHOWN = 8


def resuming(config: DictConfig, elsewhere: bool) -> Iterator[Check]:
    """From which checkpoint the run starts; refuses one of other settings, unless it is named itself.

    Args:
        config: after `prepare`, with the section `trainer` resolved.
        elsewhere: whether the checkpoints may be on other nodes.
    """
    mode, folder = select(config, "trainer.resume_mode"), str(config.trainer.default_local_dir)
    if mode == "resume_path":
        yield from _named(config, elsewhere)
    elif mode not in ("auto", "disable"):
        yield fail(_NAME, f"trainer.resume_mode={mode} is none that veRL has", "set it to auto, disable or resume_path")
    elif mode == "disable" and config.trainer.save_freq <= 0:
        yield ok(_NAME, "trainer.resume_mode=disable: starts at step 0")
    elif is_remote(folder):
        yield warn(_NAME, f"checkpoints in {folder} are not compared with this run's settings", "see that they fit")
    else:
        yield from _found(config, Path(folder), anew=mode == "disable")


def _named(config: DictConfig, elsewhere: bool) -> Iterator[Check]:
    key = "trainer.resume_from_path"
    path = str(select(config, key))
    checkpoint = Path(path)
    if "global_step_" not in path:
        yield fail(_NAME, f"{key}={path} is no checkpoint of veRL's", "name a folder global_step_STEP")
    elif is_remote(path):
        yield warn(_NAME, f"{path} is not compared with this run's settings", "see that it fits")
    elif checkpoint.is_dir():
        yield from _compared(config, checkpoint, named=True)
    elif elsewhere:
        yield skip(_NAME, f"{path} may be on other nodes")
    else:
        yield fail(_NAME, f"{key}={path} is not there", "name a folder global_step_STEP that is")


def _found(config: DictConfig, folder: Path, anew: bool) -> Iterator[Check]:
    try:
        checkpoint = checkpoints.latest(folder)
    except (OSError, ValueError) as error:
        yield fail(
            _NAME, f"{folder} does not say which checkpoint is its latest: {error}", "mend it or start elsewhere"
        )
        return
    if checkpoint is None:
        yield ok(_NAME, f"no checkpoint in {folder}: starts at step 0")
        return
    refused = False
    for check in _compared(config, checkpoint, named=False):
        yield check
        refused = refused or check.state == "fail"
    if refused:
        return
    if anew:
        yield warn(_NAME, f"trainer.resume_mode=disable: starts at step 0 and writes over {checkpoint}", "")
    elif not checkpoint.is_dir():
        yield warn(_NAME, f"{checkpoint} is gone: starts at step 0", "")


def _compared(config: DictConfig, checkpoint: Path, named: bool) -> Iterator[Check]:
    folder = checkpoint.parent
    try:
        differing = checkpoints.differing(folder, config)
    except FileNotFoundError:
        found = f"{checkpoint} can't be compared with this run's settings: {folder} has no {checkpoints.FILE}"
        yield warn(_NAME, found, "see that it fits")
        return
    except (OSError, ValueError, yaml.YAMLError) as error:
        found = f"{checkpoint} can't be compared with this run's settings: {folder / checkpoints.FILE}: {error}"
        yield warn(_NAME, found, "see that it fits")
        return
    if not differing:
        yield ok(_NAME, f"{checkpoint} has this run's settings")
        return
    found = f"{checkpoint} is of other settings: {_told(differing)}"
    if named:
        yield warn(_NAME, found, "")
    else:
        fix = (
            "set them back to go on from it; leave hydra.run.dir and trainer.default_local_dir out to start anew; or "
            f"take it as it is by trainer.resume_mode=resume_path {_override('trainer.resume_from_path', checkpoint)}"
        )
        yield fail(_NAME, found, fix)


def _told(differing: Mapping[str, tuple[str, str]]) -> str:
    lines = [f"{key} was {old} and is {new}" for key, (old, new) in differing.items()]
    more = f", and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ", ".join(lines[:_SHOWN]) + more


def _override(key: str, path: Path) -> str:
    """KEY=PATH for a shell, quoted where Hydra's grammar or the shell asks for it."""
    if re.fullmatch(r"[\w/.+-]+", str(path), re.ASCII):
        return f"{key}={path}"
    return shlex.quote(f"{key}={QuotedString(str(path), Quote.single).with_quotes()}")
