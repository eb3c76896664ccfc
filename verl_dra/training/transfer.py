"""Columns of a training batch, fetched from where veRL keeps them: the one module that names TransferQueue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transfer_queue as tq


def fetch_columns(batch: Any, rows: Sequence[int], names: Sequence[str]) -> Any:
    """The columns `names` of some rows of a batch, in the order of `rows`; other threads may ask meanwhile.

    Args:
        batch: veRL's batch of keys.
        rows: positions in it.
        names: such as `responses`, whose rows are nested as they differ in length.

    Returns:
        A TensorDict of the columns that there are.
    """
    return tq.kv_batch_get(
        keys=[batch.keys[row] for row in rows], partition_id=batch.partition_id, select_fields=list(names)
    )
