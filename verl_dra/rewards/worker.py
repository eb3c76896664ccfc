"""A process that compares mathematical answers, so that a comparison that never ends can be ended.

Run by its path, so that it is of the same code as who asks. Requests and replies are JSON, each after its length (4
bytes).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO

MEMORY = 4 * 2**30
"""Bytes that a check may take: a power tower fills whatever there is."""


def main() -> None:
    # In the folder of this file `import` would look first, unless Python was told not to.
    if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no reply
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    memory = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # What a parent does with its own alarms is inherited.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    try:
        _import_this_package()
        from verl_dra.rewards import judge  # noqa: F401
    except ImportError as error:
        _write(replies, {"error": str(error)})
        return
    _write(replies, {})
    while (request := _read(requests)) is not None:
        # Not handled, so that it ends the process wherever that is; also one whose parent has died.
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"])
        try:
            reply = _answer(request)
        except Exception:  # whatever math-verify and sympy make of a strange text
            reply = {"failed": True}
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(replies, reply)


def _import_this_package() -> None:
    """Import the verl_dra that this file is of, wherever it lies, and leave the path as it is."""
    root = str(Path(__file__).resolve().parents[2])
    sys.path.insert(0, root)
    import verl_dra  # noqa: F401

    sys.path.remove(root)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from verl_dra.rewards import judge, parity

    if request["ask"] == "same":
        return {"same": judge.same(request["first"], request["second"])}
    checks = {"right": judge.check, "paper": parity.paper, "lighteval": parity.lighteval}
    return checks[request["judge"]](request["gold"], request["text"])


def _read(stream: BinaryIO) -> Any:
    """The next message, or None where the stream ends."""
    head = stream.read(4)
    return json.loads(stream.read(struct.unpack("!I", head)[0])) if len(head) == 4 else None


def _write(stream: BinaryIO, message: Any) -> None:
    content = json.dumps(message).encode()
    stream.write(struct.pack("!I", len(content)) + content)
    stream.flush()


if __name__ == "__main__":
    main()
