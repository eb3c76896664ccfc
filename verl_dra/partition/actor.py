"""The partition as a Ray actor."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from verl_dra.partition.build import build_partition
from verl_dra.partition.config import PartitionConfig
from verl_dra.partition.partition import Grouping, Partition, PartitionUnavailableError, PromptGroup, UnreadableError

# What a matrix may be off by, of its own numbers' rounding.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Look:
    """What came of a look at a group: a grouping, or why there is none."""

    grouping: Grouping | None = None
    """Of an unreadable one its costs, and no similarity."""
    unreadable: str = ""
    unavailable: str = ""
    failed: str = ""
    seconds: float = 0.0


class PartitionActor:
    """Looks at groups, as many at a time as Ray gives it threads, with a partition for each.

    The first process makes its partition when it is asked whether it is `ready`, so that who asks sees what is wrong.
    Later ones make theirs when they look: a server that is away then is no reason to end.
    """

    def __init__(self, config: PartitionConfig) -> None:
        self._config = config
        self._idle: list[Partition] = []

    def ready(self) -> int:
        """The process id, once a partition is made."""
        self._idle.append(self._take())
        return os.getpid()

    def describe(self) -> str:
        """The partition in words."""
        partition = self._take()
        self._idle.append(partition)
        return self._config.by or "" if type(partition).__str__ is object.__str__ else str(partition)

    def most_calls(self, completions: int) -> int:
        """Requests that a group of so many different completions takes at most, as far as the partition says."""
        partition = self._take()
        self._idle.append(partition)
        most = getattr(partition, "most_calls", None)
        return 1 if most is None else int(most(completions))

    # Who asks does so again by itself: Ray would send a group that ends the process for ever, whoever waits for it.
    @ray.method(max_task_retries=0)
    def look(self, group: PromptGroup) -> Look:
        """Look at a group; raises nothing."""
        began = time.monotonic()
        return replace(self._looked(group), seconds=time.monotonic() - began)

    def _looked(self, group: PromptGroup) -> Look:
        try:
            partition = self._take()
            look = _looked(partition, group)
        except PartitionUnavailableError as error:
            return Look(unavailable=str(error) or repr(error))
        except Exception as error:  # of a class of the user's own, whatever it is
            return Look(failed=f"{type(error).__name__}: {error}")
        self._idle.append(partition)
        return look

    def _take(self) -> Partition:
        with suppress(IndexError):  # another thread may have taken it meanwhile
            return self._idle.pop()
        return build_partition(self._config)


def _looked(partition: Partition, group: PromptGroup) -> Look:
    try:
        grouping = partition(group)
    except UnreadableError as error:
        return Look(Grouping(np.zeros((0, 0), np.float32), **error.costs), unreadable=str(error) or repr(error))
    return Look(replace(grouping, similarity=_checked(grouping.similarity, len(group.texts))))


def _checked(similarity: Any, texts: int) -> np.ndarray:
    """A matrix as `Grouping` has it, or a ValueError that says what is wrong with it."""
    found = np.asarray(similarity, dtype=np.float64)
    if found.shape != (texts, texts):
        raise ValueError(f"a similarity of shape {list(found.shape)} for {texts} completions; it must be [n, n]")
    if not (np.isfinite(found).all() and found.min() >= -_ROUNDING and found.max() <= 1 + _ROUNDING):
        raise ValueError("a similarity has entries that are not from 0 to 1")
    if np.abs(found - found.T).max() > _ROUNDING or np.abs(found.diagonal() - 1).max() > _ROUNDING:
        raise ValueError("a similarity is not symmetric, or has no ones on its diagonal")
    found = ((found + found.T) / 2).clip(0, 1)
    np.fill_diagonal(found, 1)
    return found.astype(np.float32)


def remote_partition() -> Any:
    """The Ray actor class."""
    return ray.remote(PartitionActor)
