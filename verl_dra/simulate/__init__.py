"""`verl-dra simulate`: diversity collapse under GRPO, and what DRA does about it, without a model."""

from verl_dra.simulate.command import add_arguments, run

__all__ = ["add_arguments", "run"]
