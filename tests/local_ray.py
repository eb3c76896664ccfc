"""A Ray of one process's own, for tests and benchmarks that need scorers but no training."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError

HERE = Path(__file__).parent
# Ray 2.60 gives a node 30 s to come up (_private/node.py), which a busy machine may not keep.
NOT_UP = "The current node timed out during startup"
TRIES = 3


@contextmanager
def local_ray(num_cpus: int, **options: Any) -> Iterator[None]:
    """Started and ended with its processes; its workers can import the modules of tests and benchmarks.

    Args:
        num_cpus: a number to Ray, not cores.
        options: further ones of `ray.init`.
    """
    path = [str(HERE), str(HERE / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    come_up(
        ray.init,
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        namespace=uuid.uuid4().hex,
        # Many sites export OMP_NUM_THREADS=1.
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}},
        **{"object_store_memory": 100 * 2**20, **options},
    )
    try:
        yield
    finally:
        ray.shutdown()


def come_up(start: Callable[..., Any], **options: Any) -> Any:
    """What `start` gives, which makes a node of Ray: called again where that does not come up."""
    for _ in range(TRIES - 1):
        try:
            return start(**options)
        except Exception as error:
            if NOT_UP not in str(error):
                raise
    return start(**options)


def process_of(scorer: Any) -> int:
    """The process of a scorer that may be about to end, or be starting again, where Ray does not ask anew by itself."""
    while True:
        with suppress(ActorUnavailableError):
            pid: int = ray.get(scorer.ready.remote())
            return pid
