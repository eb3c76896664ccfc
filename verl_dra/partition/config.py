"""How a partition is configured."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass

from verl_dra.embedding.encoder import check_url, user_class

SERVERS = ("pairs", "judge")
"""Those that ask a server."""
KNOWN = "answers, pairs and judge"
_OF_SERVERS = ("base_url", "model", "api_key_env", "timeout_s", "max_retries", "max_characters")
_LONGEST_S = 10**7
PLACES = re.compile(r"\{first\}|\{second\}")
"""Where the texts of a pair go."""


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
    num_actors: int = 1
    """Actors that groups go to in turn, on CPUs of the run's nodes."""
    num_cpus: float = 1
    """CPUs that Ray reserves for each; 0 reserves none."""
    concurrency: int | None = None
    """Groups that each actor looks at at the same time, with an object of the partition's class for each; None for 16
    where a server does the work (`pairs`, `judge`), else 1."""
    deadline_s: float = 600
    """Seconds without a group looked at that a step waits; then `dra.on_failure` decides. While groups come, it
    waits."""

    @property
    def at_once(self) -> int:
        """`concurrency`, as it comes out."""
        return self.concurrency or (16 if self.by in SERVERS else 1)

    def check(self) -> None:
        """Raise a ValueError that says which setting can't work, or would have no effect; asks no server."""
        if self.by is None:
            others = [name for name in self.__dataclass_fields__ if name != "by"]
            self._refuse_unused(others, "without dra.partition.by")
            return
        for name, least in (("max_calls", 1), ("num_actors", 1), ("concurrency", 1), ("num_cpus", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"dra.partition.{name} must be at least {least}, not {value}")
        if not 0 < self.deadline_s <= _LONGEST_S:
            raise ValueError(
                f"dra.partition.deadline_s must be above 0 and at most {_LONGEST_S:,} s, not {self.deadline_s}"
            )
        if not self.api_key_env.isidentifier():
            # Its value is not shown: it may be a key.
            raise ValueError("dra.partition.api_key_env must be the name of an environment variable that holds the key")
        if not self.timeout_s > 0:
            raise ValueError(f"dra.partition.timeout_s must be above 0, not {self.timeout_s}")
        for name, least in (("max_retries", 0), ("max_characters", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"dra.partition.{name} must be at least {least}, not {getattr(self, name)}")
        if self.by == "answers":
            unused = (*_OF_SERVERS, "pair", "max_calls")
            self._refuse_unused(unused, "with dra.partition.by=answers, which asks no server")
            if importlib.util.find_spec("math_verify") is None:
                raise ValueError(
                    "dra.partition.by=answers needs math-verify, which is not installed; pip install 'verl_dra[math]' "
                    "on every node"
                )
        elif self.by in SERVERS:
            check_url(self.base_url, "dra.partition", f"by={self.by}", "http://judge.example:8000/v1")
            if not self.model:
                raise ValueError(
                    f"dra.partition.by={self.by} needs dra.partition.model, the server's name of the model"
                )
            if self.by != "pairs":
                self._refuse_unused(("pair",), f"with dra.partition.by={self.by}")
            elif self.pair is not None and sorted(PLACES.findall(self.pair)) != ["{first}", "{second}"]:
                raise ValueError(f"dra.partition.pair must hold {{first}} and {{second}} once each, not {self.pair!r}")
        else:
            user_class(self.by, "dra.partition.by", KNOWN)

    def _refuse_unused(self, names: Sequence[str], where: str) -> None:
        for name in names:
            if getattr(self, name) != getattr(PartitionConfig, name):
                raise ValueError(f"dra.partition.{name}={getattr(self, name)} has no effect {where}; remove it")
