"""Requests to a server that speaks OpenAI's API: its key, its refusals and what they mean, in words."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai

_NO_KEY = "none"

# Texts that fail for another reason fail again in parts, so that a word too many here costs only requests.
_TOO_LARGE = re.compile(r"too (long|large|many)|length|tokens|characters|batch|exceed|maximum", re.IGNORECASE)
_TOO_LARGE_FOR_IT = re.compile(r"too (long|large|many)|context (size|length|window)", re.IGNORECASE)
_OUT_OF_MEMORY = re.compile(r"out of memory|\boom\b", re.IGNORECASE)


class TooLargeError(ValueError):
    """The server refuses a request for its size."""


@dataclass(frozen=True)
class Server:
    """What a section of the configuration says of its server."""

    name: str
    """How messages begin, such as `openai: minilm at http://embed.example:8000/v1`."""
    section: str
    """Whose settings messages name, such as `dra.embedding`."""
    base_url: str
    api_key_env: str
    timeout_s: float
    max_retries: int
    unavailable: type[RuntimeError]
    """Raised when there is no answer, or none for now, after all retries."""


class OpenAIClient:
    """Posts to a server, from any thread. The key is in no message."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._key = _key(server.api_key_env)
        self._client = openai.OpenAI(
            base_url=server.base_url,
            api_key=self._key or _NO_KEY,
            timeout=server.timeout_s,
            max_retries=server.max_retries,
        )

    def post(self, path: str, body: Mapping[str, Any], *, divisible: bool = False) -> bytes:
        """What the server answers, as it came.

        Args:
            path: below `base_url`, or a URL of its own.
            body: of the request.
            divisible: whether a smaller request would do where the server runs out of memory.

        Raises:
            RuntimeError: the server's `unavailable`.
            TooLargeError: the server would take less.
            ValueError: any other refusal.
        """
        try:
            # The raw answer: the client's own types take five times as long as its JSON.
            return self._client.post(path, body=body, cast_to=bytes)
        # Without their causes, in which a key may stand.
        except openai.APITimeoutError:
            server = self._server
            raise server.unavailable(
                f"{server.name} gave no answer within {server.section}.timeout_s={server.timeout_s:g}"
            ) from None
        except openai.APIConnectionError as error:
            why = self.without_key(repr(error.__cause__ or error))
            raise self._server.unavailable(f"{self._server.name} can't be reached: {why}") from None
        except openai.APIStatusError as error:
            raise self._refusal(error, path, divisible) from None

    def without_key(self, words: str) -> str:
        return words.replace(self._key, "***") if self._key else words

    def _refusal(self, error: openai.APIStatusError, path: str, divisible: bool) -> Exception:
        server, status = self._server, error.status_code
        message = error.body.get("message") if isinstance(error.body, dict) else None
        words = self.without_key(" ".join(str(message or error.response.text).split()))[:500]
        answer = f"{server.name} answered {status}: {words}"
        if status in (401, 403):
            holds = "holds the key that was sent" if self._key else "is not set"
            return ValueError(f"{answer}; the environment variable {server.api_key_env} {holds}")
        if status == 404:
            return ValueError(
                f"{answer}; check {server.section}.model, and {server.section}.base_url, which is the URL without "
                f"{urlsplit(path).path} and mostly ends in /v1"
            )
        if status == 413 or (status in (400, 422) and _TOO_LARGE.search(words)):
            return TooLargeError(answer)
        if status == 424 or status >= 500:  # 424: text-embeddings-inference, when its model fails
            if _TOO_LARGE_FOR_IT.search(words) or (divisible and _OUT_OF_MEMORY.search(words)):
                return TooLargeError(answer)
            return server.unavailable(answer)
        return server.unavailable(answer) if status in (408, 409, 429) else ValueError(answer)


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"the environment variable {variable} holds characters that no key has; set it to the key")
    return key
