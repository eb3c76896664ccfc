"""What a point's job adds to its command (launch/slurm/ray.sbatch), so that points are checked as they will run."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from verl_dra.job import overrides as job
from verl_dra.sweep.folder import SweepError


def added(given: Sequence[str], folder: Path, sbatch: Sequence[str]) -> list[str]:
    """The overrides that `ray.sbatch` adds unless the command has them.

    Args:
        given: the command's.
        folder: the point's.
        sbatch: options of sbatch; nodes and GPUs that they don't name are not added.

    Raises:
        SweepError: DRA_GPUS is no number.
    """
    nodes, gpus = _asked(sbatch)
    return job.added(given, folder, nodes, gpus or None)


def _asked(sbatch: Sequence[str]) -> tuple[int | None, int | None]:
    """Nodes, and GPUs of each; None where the options don't say."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-N", "--nodes")
    parser.add_argument("-G", "--gpus")
    parser.add_argument("--gpus-per-node")
    parser.add_argument("--gres")
    try:
        options, _ = parser.parse_known_args(sbatch)
    except argparse.ArgumentError:  # sbatch will say it
        return None, None
    nodes = int(options.nodes) if re.fullmatch(r"[0-9]{1,9}", options.nodes or "") else None
    if by_hand := os.environ.get("DRA_GPUS"):
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", by_hand):
            raise SweepError(f"DRA_GPUS={by_hand!r} is no number of GPUs; set another one, or none")
        return nodes, int(by_hand)
    for resource in (options.gres or "").split(","):
        if re.match(r"gpu(:|$)", resource):
            return nodes, _number(resource) or 1
    if options.gpus_per_node:
        return nodes, _number(options.gpus_per_node)
    all_gpus = _number(options.gpus or "")
    return nodes, all_gpus // nodes if all_gpus and nodes else None


def _number(resource: str) -> int | None:
    """Of `gpu:8`, `gpu:h100:8`, `h100:8` or `8`."""
    number = resource.rpartition(":")[2]
    return int(number) if re.fullmatch(r"[0-9]{1,9}", number) else None
