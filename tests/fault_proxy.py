"""An HTTP proxy on loopback that passes POST requests on to a server, and on order fails in a server's many ways."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """The proxy's own answer, in the server's place."""

    status: int
    body: str = '{"error": {"message": "on order"}}'
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reset:
    """The server's answer, broken off in the middle by a reset of the connection."""


@dataclass(frozen=True)
class Stall:
    """No answer while the proxy is up."""


@dataclass(frozen=True)
class Change:
    """The server's answer with its JSON changed."""

    change: Callable[[Any], Any]


Fault = Answer | Reset | Stall | Change


@dataclass
class Exchange:
    """A request as the proxy got it, and the status it answered; None where it gave no whole answer."""

    headers: Message
    body: bytes
    status: int | None = None

    @property
    def texts(self) -> list[str]:
        return json.loads(self.body)["input"]


class FaultProxy:
    """Runs from `with` to its end at `url`, which stands for the upstream URL.

    Each of `faults` befalls one request, in their order; then `rule` says what befalls which request.
    """

    def __init__(self, upstream: str) -> None:
        self.faults: deque[Fault] = deque()
        self.rule: Callable[[Exchange], Fault | None] = lambda _: None
        self.seen: list[Exchange] = []
        self._upstream = urlsplit(upstream)
        self._down = threading.Event()
        self._connections: list[socket.socket] = []
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{self._upstream.path}"

    @property
    def answered(self) -> list[list[str]]:
        """The texts of each request that was answered well."""
        return [exchange.texts for exchange in self.seen if exchange.status == 200]

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._down.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in self._connections:
            with suppress(OSError):  # it has ended
                connection.shutdown(socket.SHUT_RDWR)

    def connected(self, connection: socket.socket) -> None:
        self._connections.append(connection)

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        exchange = Exchange(handler.headers, body)
        self.seen.append(exchange)
        try:
            fault = self.faults.popleft()
        except IndexError:
            fault = self.rule(exchange)
        if isinstance(fault, Stall):
            self._down.wait()
            handler.close_connection = True
            return
        if isinstance(fault, Answer):
            status, content, headers = fault.status, fault.body.encode(), fault.headers
        else:
            status, content, headers = self._pass_on(handler, body)
        if isinstance(fault, Change):
            content = json.dumps(fault.change(json.loads(content))).encode()
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if isinstance(fault, Reset):
            handler.wfile.write(content[: len(content) // 2])
            _reset(handler)
            return
        exchange.status = status
        handler.wfile.write(content)

    def _pass_on(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes, Mapping[str, str]]:
        upstream = http.client.HTTPConnection(self._upstream.netloc, timeout=60)
        try:
            kept = {
                name: handler.headers[name] for name in ("Authorization", "Content-Type") if name in handler.headers
            }
            upstream.request("POST", handler.path, body, kept)
            response = upstream.getresponse()
            return response.status, response.read(), {"Content-Type": response.headers["Content-Type"]}
        finally:
            upstream.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            proxy.connected(self.connection)

        def do_POST(self) -> None:
            proxy.serve(self)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _reset(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    # To linger for 0 s is to reset.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.rfile.close()
    handler.connection.close()
