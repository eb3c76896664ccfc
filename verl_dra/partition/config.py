"""How a partition is configured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PartitionConfig:
    """What tells which completions go the same way, in the place of cosines (`dra.partition`)."""

    by: str | None = None
    """None for cosines; `answers` (equal final answers), `pairs` (a classifier of pairs behind a server), `judge` (a
    language model behind a chat server), or `package.module:Class` of a class that takes this configuration and is a
    `Partition`."""
    base_url: str | None = None
    """For `pairs` and `judge`: the server, such as `http://judge.example:8000/v1`."""
    model: str | None = None
    """For `pairs` and `judge`: the server's name of the model."""
    api_key_env: str = "OPENAI_API_KEY"
    """For `pairs` and `judge`: the environment variable that holds the key; where it is not set, a placeholder is
    sent."""
    timeout_s: float = 60
    """For `pairs` and `judge`: seconds without a byte from the server after which a request counts as failed."""
    max_retries: int = 3
    """For `pairs` and `judge`: times that a request is sent again, with backoff, before the server counts as
    unavailable."""
    max_characters: int = 8000
    """For `pairs` and `judge`: characters of a completion that are sent; the middle of a longer one is left out, and
    counted."""
    pair: str | None = None
    """For `pairs` with a model of two labels, the second that of the same: how two texts are put to it, such as
    `{first}[SEP]{second}`. None for a model of one label, to whose tokenizer the server gives both."""
    max_calls: int | None = None
    """Requests a step; groups beyond them go by dra.on_failure, and are counted. None for no bound."""
