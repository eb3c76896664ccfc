"""`verl-dra sweep`: a grid of trainings on Slurm, each point a job with a Ray cluster of its own."""

from verl_dra.sweep.command import add_arguments, run

__all__ = ["add_arguments", "run"]
