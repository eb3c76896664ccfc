"""The number of a run's scorers, for reward workers, which start before it is known: in Ray's own store of keys, which
no scorer's end takes along."""

from __future__ import annotations

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

_NAMESPACE = b"verl_dra"


def announce(name: str, scorers: int) -> None:
    """Let everyone of this run look up how many scorers have the prefix `name` (`dra.scorer.name`)."""
    _internal_kv_put(_key(name), str(scorers), namespace=_NAMESPACE)


def withdraw(name: str) -> None:
    """End that."""
    _internal_kv_del(_key(name), namespace=_NAMESPACE)


def look_up(name: str) -> int:
    """How many scorers have the prefix `name`; waits for Ray's answer.

    Raises:
        LookupError: none were announced.
    """
    found = _internal_kv_get(_key(name), namespace=_NAMESPACE)
    if found is None:
        raise LookupError(f"no diversity scorers of the name {name} are known")
    return int(found)


def _key(name: str) -> str:
    return f"{ray.get_runtime_context().namespace}/{name}"
