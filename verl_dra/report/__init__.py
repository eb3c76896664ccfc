"""`verl-dra report`: what runs did, and what their groups looked like, as one HTML file or as text."""

from verl_dra.report.command import add_arguments, run

__all__ = ["add_arguments", "run"]
