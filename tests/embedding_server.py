"""A small server with OpenAI's `/v1/embeddings` on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from serving import serving
from torch import Tensor


@contextmanager
def small_server(
    encode: Callable[[Sequence[str]], Tensor],
    count: Callable[[str], int],
    max_tokens: int,
    model: str,
    key: str | None = None,
) -> Iterator[str]:
    """The URL of a server that counts tokens by `count` and refuses texts of more than `max_tokens` in vLLM's words."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = self.answer(request)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def answer(self, request: Any) -> tuple[int, Any]:
            if self.path != "/v1/embeddings":
                return 404, {"detail": "Not Found"}
            if key is not None and self.headers["Authorization"] != f"Bearer {key}":
                return 401, {"error": "Unauthorized"}
            if request["model"] != model:
                return 404, {"error": {"message": f"The model `{request['model']}` does not exist.", "code": 404}}
            texts = request["input"]
            tokens = [count(text) for text in texts]
            if max(tokens) > max_tokens:
                message = f"This model's maximum context length is {max_tokens} tokens; got {max(tokens)}."
                return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}
            data = [
                {"object": "embedding", "index": i, "embedding": vector}
                for i, vector in enumerate(encode(texts).tolist())
            ]
            usage = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
            return 200, {"object": "list", "model": model, "data": data, "usage": usage}

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as address:
        yield f"{address}/v1"
