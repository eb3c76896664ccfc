"""`verl-dra evaluate`: how often a model is right in one try and in several, and how different its tries are."""

from verl_dra.evaluate.command import add_arguments, run

__all__ = ["add_arguments", "run"]
