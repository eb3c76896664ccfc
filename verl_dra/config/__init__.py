"""Configuration: the group `dra`, the primary config over veRL's, and what is checked before a run."""

from verl_dra.config.prepare import ConfigError, check_complete, prepare
from verl_dra.config.schema import DRAConfig

__all__ = ["ConfigError", "DRAConfig", "check_complete", "prepare"]
