"""`verl-dra prepare-data`: published maths sets as veRL's parquet files, checked row by row."""

from verl_dra.data.command import add_arguments, run

__all__ = ["add_arguments", "run"]
