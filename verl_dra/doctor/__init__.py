"""`verl-dra doctor`: what would stop a run, with the fix, before it is started."""

from verl_dra.doctor.command import add_arguments, run

__all__ = ["add_arguments", "run"]
