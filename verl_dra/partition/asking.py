"""Asking a server about a group: what it costs, answers that can't be read, and texts that are too long for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from verl_dra.embedding.openai_client import OpenAIClient, Server
from verl_dra.partition.config import PartitionConfig
from verl_dra.partition.partition import PartitionUnavailableError, UnreadableError

SHORTEST = 32
"""Characters of a text to which it is cut at least, before a server counts as one that takes none."""
_LEFT_OUT = " [...] "
_NO_NUMBER = 2**53

Read = TypeVar("Read")


class Bill:
    """What the requests about one group have cost so far; any thread adds to it."""

    def __init__(self) -> None:
        self._costs = dict.fromkeys(("calls", "tokens", "retried"), 0)
        self._lock = threading.Lock()

    def add(self, **costs: int) -> None:
        with self._lock:
            for name, value in costs.items():
                self._costs[name] += value

    @property
    def costs(self) -> dict[str, int]:
        """By the names that `Grouping` has."""
        with self._lock:
            return dict(self._costs)


class PartitionServer:
    """The server of `dra.partition`."""

    def __init__(self, config: PartitionConfig) -> None:
        if config.base_url is None or not config.model:
            raise ValueError(f"dra.partition.by={config.by} needs dra.partition.base_url and dra.partition.model")
        self.name = f"{config.by}: {config.model} at {config.base_url}"
        self.root = config.base_url.rstrip("/").removesuffix("/v1")
        """Where vLLM has what OpenAI's API has not."""
        self._model = config.model
        self._client = OpenAIClient(
            Server(
                self.name,
                "dra.partition",
                config.base_url,
                config.api_key_env,
                config.timeout_s,
                config.max_retries,
                PartitionUnavailableError,
            )
        )

    def ask(
        self,
        bill: Bill,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[Any], Read],
        again: Mapping[str, Any] | None = None,
    ) -> Read:
        """What `read` makes of an answer's JSON. What it can't make anything of is asked for once more.

        Args:
            bill: that the requests are added to.
            path: below the base URL, or a URL.
            body: of the request, without the model.
            read: raises a ValueError that says what is wrong with an answer.
            again: the body the second time; None for the same.

        Raises:
            PartitionUnavailableError: no answer, or none for now, after all retries.
            TooLargeError: the server would take less.
            UnreadableError: the second answer was no better.
            ValueError: any other refusal.
        """
        wrong = ""
        for asked in (body, again or body):
            if wrong:
                bill.add(retried=1)
            bill.add(calls=1)
            content = self._client.post(path, {"model": self._model, **asked})
            try:
                answer = json.loads(content)
                bill.add(tokens=_tokens(answer))
                return read(answer)
            except (
                ValueError,
                TypeError,
                KeyError,
                IndexError,
                AttributeError,
                OverflowError,
                RecursionError,
            ) as error:
                start = self._client.without_key(content.decode(errors="replace"))[:300]
                wrong = f"{error if type(error) is ValueError else repr(error)}: {start}"
        raise UnreadableError(f"{self.name} gave {wrong}", **bill.costs)


def sendable(text: str) -> str:
    """The text without lone surrogates, which no request can hold."""
    return text.encode("utf-8", "replace").decode()


def cut(text: str, limit: int) -> str:
    """A text that can be sent; of a longer one `limit` characters of its beginning and end, and a mark between them."""
    text = sendable(text)
    if len(text) <= limit:
        return text
    return f"{text[: limit - limit // 2]}{_LEFT_OUT}{text[len(text) - limit // 2 :]}"


def _tokens(answer: Any) -> int:
    usage = answer.get("usage") or {}
    total = usage.get("total_tokens")
    return total if isinstance(total, int) and 0 < total < _NO_NUMBER else 0
