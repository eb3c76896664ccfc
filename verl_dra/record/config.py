"""What is recorded, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RecordConfig:
    """Records of sampled groups (`dra.record`)."""

    every_n_steps: int = 0
    """Steps from one record of groups to the next; 0 for none."""
    groups: int = 20
    """Groups of a step that are recorded, sampled by their uids."""
    max_characters: int = 4000
    """Characters of a prompt or completion; the middle of a longer one is left out, as answers stand at the end."""
    max_bytes: int = 2**28
    """Bytes of all records; beyond them those steps are deleted that lie closest to their neighbours."""
    folder: str | None = None
    """Where records go; None for `groups` in the run's folder."""

    def check(self) -> None:
        """Raise a ValueError that says which setting can't work."""
        if self.every_n_steps < 0:
            raise ValueError(f"dra.record.every_n_steps must be 0 (no records) or more, not {self.every_n_steps}")
        for name, least in (("groups", 1), ("max_characters", 100), ("max_bytes", 2**16)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"dra.record.{name} must be at least {least}, not {value}")
