"""Which completions of a prompt go the same way, told by something else than cosines of their vectors."""

from verl_dra.partition.build import build_partition
from verl_dra.partition.config import PartitionConfig
from verl_dra.partition.partition import Grouping, Partition, PartitionUnavailableError, PromptGroup, UnreadableError

__all__ = [
    "Grouping",
    "Partition",
    "PartitionConfig",
    "PartitionUnavailableError",
    "PromptGroup",
    "UnreadableError",
    "build_partition",
]
