"""Groups of completions on disk: what was said, and what DRA made of it."""

from verl_dra.record.config import RecordConfig
from verl_dra.record.group import recorded_group, shortened
from verl_dra.record.recorder import Recorder

__all__ = ["RecordConfig", "Recorder", "recorded_group", "shortened"]
