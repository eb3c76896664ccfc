"""Which completions of a prompt go the same way, told by something else than cosines of their vectors."""

from verl_dra.partition.partition import Grouping, Partition, PartitionUnavailableError, PromptGroup, UnreadableError

__all__ = ["Grouping", "Partition", "PartitionUnavailableError", "PromptGroup", "UnreadableError"]
