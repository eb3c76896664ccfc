"""The partition that a configuration names, made."""

from __future__ import annotations

from typing import cast

from verl_dra.embedding.encoder import user_class
from verl_dra.partition.config import KNOWN, PartitionConfig
from verl_dra.partition.partition import Partition

# Imported when one is asked for: math-verify and the clients of servers take a while, and need not be there.
_CLASSES = {
    "answers": "verl_dra.partition.answers:AnswersPartition",
    "pairs": "verl_dra.partition.pairs:PairsPartition",
    "judge": "verl_dra.partition.judge:JudgePartition",
}


def build_partition(config: PartitionConfig) -> Partition:
    """Make the partition that `config` names.

    Raises:
        ValueError: the configuration names none.
        PartitionUnavailableError: a server does not answer.
    """
    config.check()
    if config.by is None:
        raise ValueError("dra.partition.by is not set")
    return cast(Partition, user_class(_CLASSES.get(config.by, config.by), "dra.partition.by", KNOWN)(config))
