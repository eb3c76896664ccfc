"""Stand-ins for the servers of partitions, on loopback; they know no language.

The judge stands for the most obedient of models: it does what any text that it is shown tells it to. So what it is not
talked into is kept by what it is shown, and not by its good will.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from serving import serving

KEY = "sesame-5f3a"
MODEL = "toy"
APPROACHES = ["count on", "make a ten", "take away"]

Answer = tuple[int, Any]


@contextmanager
def json_server(answer: Callable[[str, Any], Answer], key: str | None = KEY) -> Iterator[str]:
    """The base URL of a server that answers a POST of a path and JSON with a status and JSON, or bytes as they are."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if key is not None and self.headers["Authorization"] != f"Bearer {key}":
                status, said = 401, {"error": "Unauthorized"}
            elif request["model"] != MODEL:
                status, said = 404, {"error": {"message": f"The model `{request['model']}` does not exist."}}
            else:
                status, said = answer(self.path, request)
            content = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as address:
        yield f"{address}/v1"


class Classifier:
    """Like vLLM's `/score` and `/classify`: two texts are as alike as the share of words that they share.

    The first text counts twice, so that the order matters. A pair of more than `limit` words is refused.
    """

    def __init__(self, labels: int = 1, limit: int = 1000) -> None:
        self.labels, self.limit = labels, limit
        self.pairs: list[tuple[str, str]] = []

    def __call__(self, path: str, request: Any) -> Answer:
        if path == "/score" and self.labels == 1:
            pairs = list(zip(request["text_1"], request["text_2"], strict=True))
        elif path == "/classify":
            pairs = [tuple(text.split("[SEP]", 1)) for text in request["input"]]
        else:
            return 404, {"detail": "Not Found"}
        words = [len(f"{a} {b}".split()) for a, b in pairs]
        if max(words) > self.limit:
            return 400, {"error": {"message": f"maximum context length is {self.limit} tokens, got {max(words)}"}}
        self.pairs += pairs
        same = [alike(a, b) for a, b in pairs]
        values = [{"score": value} for value in same] if path == "/score" else [{"probs": self._probs(p)} for p in same]
        data = [{"index": i, **value} for i, value in enumerate(values)]
        return 200, {"data": data[::-1], "usage": {"prompt_tokens": sum(words), "total_tokens": sum(words)}}

    def _probs(self, same: float) -> list[float]:
        return [same] if self.labels == 1 else [1 - same, *[0.0] * (self.labels - 2), same]


def alike(a: str, b: str) -> float:
    first, second = set(a.split()), set(b.split())
    return len(first & second) / (2 * len(first) + len(second)) * 3 if first | second else 1.0


class ObedientJudge:
    """Like a chat server: names `APPROACHES`, and places a solution by the words in it; but `ANSWER x` is obeyed.

    It reads its whole question for orders, as a model does, those of a system message first of all.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self.limit = limit
        self.requests: list[Any] = []

    @property
    def shown(self) -> list[Mapping[str, Any]]:
        return [data_of(request) for request in self.requests]

    def __call__(self, path: str, request: Any) -> Answer:
        if path != "/v1/chat/completions":
            return 404, {"detail": "Not Found"}
        self.requests.append(request)
        said = request["messages"][0]["content"]
        if len(said) > self.limit:
            return 400, {"error": {"message": f"maximum context length is {self.limit}; reduce the length"}}
        shown = data_of(request)
        if "solution" not in shown:
            return reply(json.dumps({"approaches": APPROACHES}))
        order = re.search(r"<\|im_start\|>system\s*ANSWER (\w+)", said) or re.search(r"ANSWER (\w+)", said)
        return reply(json.dumps({"approach": order[1] if order else place(shown)}))


def data_of(request: Any) -> Mapping[str, Any]:
    """The JSON at the end of a question, or before a reminder."""
    said = request["messages"][0]["content"]
    return json.JSONDecoder().raw_decode(said[said.index("{\n") :])[0]


def place(shown: Mapping[str, Any]) -> str:
    fitting = (letter for letter, name in shown["approaches"].items() if name in shown["solution"])
    return next(fitting, "none")


def reply(content: str | None, finish_reason: str = "stop") -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}}
