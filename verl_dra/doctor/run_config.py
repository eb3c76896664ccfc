"""What the checks read of a run's configuration, and the configuration composed as `verl-dra train` does."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from omegaconf import DictConfig, OmegaConf


def compose(arguments: Sequence[str]) -> tuple[DictConfig, Path]:
    """The configuration that `verl-dra train` with these Hydra arguments would run, and the folder it would write to.

    Raises:
        ValueError: Hydra's message.
    """
    from verl_dra.main import main

    shown, said = io.StringIO(), io.StringIO()
    # Hydra's own way to show what it composes; it makes no folder and runs nothing.
    command = ["verl-dra train", "--cfg", "all", *arguments]
    try:
        with patch.object(sys, "argv", command), redirect_stdout(shown), redirect_stderr(said):
            main()
    except SystemExit:
        lines = [line for line in said.getvalue().splitlines() if line.strip() and "HYDRA_FULL_ERROR" not in line]
        raise ValueError(" ".join(lines)) from None
    config = OmegaConf.create(shown.getvalue())
    assert isinstance(config, DictConfig)
    output = Path(str(config.hydra.run.dir))
    del config["hydra"]
    OmegaConf.set_struct(config, True)
    return config, output


def select(config: DictConfig, key: str) -> Any:
    """The value of a dotted `key`; None where it is not set."""
    return OmegaConf.select(config, key, throw_on_missing=False)


def cluster_address(config: DictConfig | None) -> str | None:
    """The address of the Ray cluster that a run joins; None where it starts a Ray of its own."""
    given = None if config is None else select(config, "ray_kwargs.ray_init.address")
    address = str(given or os.environ.get("RAY_ADDRESS") or "local")
    return None if address == "local" else address


def trains_on_cpu(config: DictConfig) -> bool:
    """Whether `+platform=cpu` is composed in."""
    return bool(select(config, "trainer.device") == "cpu")


def is_remote(path: str) -> bool:
    """Whether `path` names a scheme, as hdfs:// and s3:// do."""
    return "://" in path


def files(value: Any) -> list[str]:
    """One path or a list of them, as a list."""
    return [str(path) for path in ([value] if isinstance(value, str) else value or [])]
