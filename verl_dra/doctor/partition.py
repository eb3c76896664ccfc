"""The partition that tells ways apart: that it is there, and looks at groups."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import cast

import numpy as np
from omegaconf import DictConfig, OmegaConf

from verl_dra.doctor.check import Check, fail, ok, one_line, skip, warn
from verl_dra.doctor.run_config import select
from verl_dra.partition import (
    PartitionConfig,
    PartitionUnavailableError,
    PromptGroup,
    UnreadableError,
    build_partition,
)
from verl_dra.partition.answers import FoundAnswers
from verl_dra.partition.config import SERVERS

_NAME = "partition"
_GROUPS = (
    ("What is 12 + 13?", ("I add the tens, then the ones: 20 + 5 = 25.", "12 + 12 is 24, and one more is 25.")),
    ("What is 7 * 8?", ("7 * 8 = 56.", "I add 8 seven times: 8, 16, 24, 32, 40, 48, 56.", "I do not know.")),
)


def partition_looks(config: DictConfig) -> Iterator[Check]:
    """Make the partition, and ask it about two groups; nothing where cosines tell."""
    if not select(config, "dra.enabled") or select(config, "dra.partition.by") is None:
        return
    merged = OmegaConf.merge(OmegaConf.structured(PartitionConfig), config.dra.partition)
    settings = cast(PartitionConfig, OmegaConf.to_object(merged))
    try:
        started = time.perf_counter()
        partition = build_partition(settings)
        made_s = time.perf_counter() - started
        calls = tokens = 0
        for number, (prompt, texts) in enumerate(_GROUPS):
            found = partition(PromptGroup(str(number), prompt, texts, [0.0] * len(texts), FoundAnswers(texts)))
            calls, tokens = calls + found.calls, tokens + found.tokens
            if np.shape(found.similarity) != (len(texts), len(texts)):
                shape = list(np.shape(found.similarity))
                yield fail(_NAME, f"{settings.by} gives a similarity of shape {shape}", "it must be [n, n]")
                return
        looked_s = time.perf_counter() - started - made_s
    except PartitionUnavailableError as error:
        fix = "start the server, or correct dra.partition.base_url"
        yield fail(_NAME, one_line(str(error) or repr(error)), fix)
    except UnreadableError as error:
        yield warn(
            _NAME,
            f"what the server answers to a plain group can't be read: {one_line(str(error))}",
            "such groups have the mean weight of the others; use another dra.partition.model",
        )
    except Exception as error:
        # What this package raises names the setting and the fix; other exceptions need their type too.
        words = str(error) if isinstance(error, ValueError) and "dra." in str(error) else repr(error)
        yield fail(_NAME, one_line(words), "" if "dra." in words else f"look at dra.partition.by={settings.by}")
    else:
        costs = f", {calls} calls, {tokens} tokens" if calls else ""
        yield ok(_NAME, f"{settings.by}: ready in {made_s:.1f} s, two groups in {looked_s:.1f} s{costs}")


def server_looks(config: DictConfig) -> Iterator[Check]:
    """As `partition_looks`, of a partition that asks a server; another one may need what only a node has."""
    by = select(config, "dra.partition.by")
    if by in SERVERS:
        yield from partition_looks(config)
    elif by is not None:
        yield skip(_NAME, f"{by} shows when its actors start")
