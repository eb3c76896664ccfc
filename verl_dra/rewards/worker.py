"""A process that compares mathematical answers, so that a comparison that never ends can be ended.

Run by its path: importing verl_dra would import torch. Requests and replies are JSON, each after its length (4 bytes).
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import struct
import sys
from typing import Any, BinaryIO

MEMORY = 4 * 2**30
"""Bytes that a check may take: a power tower fills whatever there is."""
_MARKS = re.compile(r"\\boxed|(?<!\\)(?:\$|\\[(\[])")
r"""Where LaTeX begins in a text; not `\$`, nor `\\[`, which ends a line of a matrix."""


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
        import math_verify  # noqa: F401
    except ImportError as error:
        _write(replies, {"error": str(error)})
        return
    _write(replies, {})
    while (request := _read(requests)) is not None:
        # Not handled, so that it ends the process wherever that is; also one whose parent has died.
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"])
        try:
            reply = _check(request["gold"], request["text"], request["lenient"])
        except Exception:  # whatever math-verify and sympy make of a strange text
            reply = {"right": False, "gold_parsed": True, "answer": None, "failed": True}
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(replies, reply)


def _check(gold: str | None, text: str, lenient: bool) -> dict[str, Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    from sympy import Basic, nsimplify

    # math-verify's own timeouts are alarms that its code catches, between Python's instructions alone.
    untimed: dict[str, Any] = {"parsing_timeout": None, "extraction_mode": "first_match"}
    boxed_first = LatexExtractionConfig(boxed_match_priority=0)
    taken = [boxed_first, ExprExtractionConfig()] if lenient else [_answer_config()]
    answer = parse(text, extraction_config=taken, **untimed)
    right, gold_parsed = False, True
    if gold is not None:
        # Of a gold answer without marks of LaTeX math-verify would read nothing, or a fraction in it alone.
        boxed = rf"\boxed{{{gold.strip()}}}"
        golds: list[Any] = []
        for written in (gold, boxed) if _MARKS.search(gold) else (boxed,):
            golds = golds or parse(
                written, extraction_config=[boxed_first if lenient else LatexExtractionConfig()], **untimed
            )
        gold_parsed = bool(golds)
        right = gold_parsed and bool(verify(golds, answer, timeout_seconds=None))
    canonical = None
    if answer:
        first = answer[0]
        if isinstance(first, Basic) and first.is_number:
            first = nsimplify(first, rational=True)
        canonical = str(first)
    return {"right": right, "gold_parsed": gold_parsed, "answer": canonical}


def _answer_config() -> Any:
    """What the paper's code asks of an answer: LaTeX, a box first, nothing mended, nothing without an anchor."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

    return LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            nits=False, malformed_operators=False, basic_latex=True, equations=True, boxed="all", units=True
        ),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )


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
