"""`verl-dra calibrate`: whether an encoder's cosines tell ways of reasoning apart, and what follows for DRA."""

from verl_dra.calibrate.command import add_arguments, run

__all__ = ["add_arguments", "run"]
