"""Checks of mathematical answers in worker processes, each with a limit on its time that nothing outlasts."""

from __future__ import annotations

import json
import os
import re
import select
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

_WORKERS = min(os.cpu_count() or 1, 4)
_START_S = 120
_FRACTION = re.compile(r"-?\d+(?:/\d+)?")
"""An answer that equals no other of this form."""
_GRACE_S = 1.0
"""How much longer than its own alarm a worker is waited for."""


class CheckerError(RuntimeError):
    """Answers can't be checked on this machine."""


_pool: _Pool


@dataclass(frozen=True)
class Verdict:
    """What came of a check."""

    right: bool
    """False too where the check did not end."""
    gold_parsed: bool
    """False where the gold answer could not be read; True where that was not found out."""
    answer: str | None
    """The final answer in a canonical form, by which equal ones can be counted; None where none was found."""
    failed: bool = False
    """Whether the check took too long, or more memory than it may, and was ended."""


Judge = Literal["right", "paper", "lighteval"]


def check(gold: str | None, text: str, timeout_s: float = 5.0, judge: Judge = "right") -> Verdict:
    r"""Compare the final answer of `text` with `gold` by math-verify.

    Can be called from any thread. At most four checks run at a time, each in a process of its own, which is ended where
    the check takes longer than `timeout_s`: math-verify's own limits work in main threads alone, and not inside a long
    computation.

    `judge` is how: `right` finds the answer after the thinking, the last box first, reads the notations that people
    use, and compares by value; `paper` and `lighteval` are as the reward and the evaluations of the paper's code, with
    math-verify's faults. One thing is not as in the paper's code, which gives math-verify's `verify` the two the other
    way round than it asks for. That is seen where one of them is an equation or inequality: here `2 + 1 = 3` is right
    for 3, and 1 is not for `x^2 + y^2 = 1`.

    Args:
        gold: the right answer, as a text with LaTeX in it (`$\frac12$`, `\boxed{...}`) or as LaTeX alone; None to
            find the answer of `text` alone.
        text: a completion.
        timeout_s: seconds.
        judge: `right`, `paper` or `lighteval`.

    Raises:
        CheckerError: no worker can be started, as without math-verify.
        ValueError: there is no such judge.
    """
    if judge not in get_args(Judge):
        raise ValueError(f"judge must be one of {', '.join(get_args(Judge))}, not {judge!r}")
    reply = _pool.ask({"ask": "check", "gold": gold, "text": text, "timeout_s": timeout_s, "judge": judge})
    return Verdict(**({"right": False, "gold_parsed": True, "answer": None} | reply))


def alike(answers: Sequence[str], timeout_s: float = 5.0) -> list[str]:
    """One form of each answer, the same for those that are equal by value.

    Args:
        answers: as verdicts have them.
        timeout_s: seconds of each comparison; an answer for which one takes longer equals no other.

    Returns:
        For each answer that one of those equal to it which is the commonest, whatever their order.
    """
    counts = Counter(answers)
    forms: dict[str, str] = {}
    for answer in sorted(counts, key=lambda answer: (-counts[answer], answer)):
        forms[answer] = answer
        for other in [form for of, form in forms.items() if of == form and of != answer]:
            same = _same(other, answer, timeout_s)
            if same:
                forms[answer] = other
            if same is not False:
                break
    return [forms[answer] for answer in answers]


def _same(first: str, second: str, timeout_s: float) -> bool | None:
    """Whether two different texts are equal answers; None where that could not be found out."""
    if _FRACTION.fullmatch(first) and _FRACTION.fullmatch(second):
        return False
    return _pool.ask({"ask": "same", "first": first, "second": second, "timeout_s": timeout_s}).get("same")


class _EndedError(Exception):
    """The worker is no more."""


class _Worker:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            hello = self._receive(_START_S)
        except _EndedError:
            raise CheckerError(f"a worker for checks of answers ended with {self._process.returncode}") from None
        if "error" in hello:
            self.end()
            raise CheckerError(f"math-verify can't be imported ({hello['error']}); pip install 'verl_dra[math]'")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        content = json.dumps(request).encode()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack("!I", len(content)) + content)
            self._process.stdin.flush()
        except OSError:
            self.end()
            raise _EndedError from None
        return self._receive(request["timeout_s"] + _GRACE_S)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):  # what was not sent can't be
                stream.close()

    def _receive(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        length = struct.unpack("!I", self._read(4, deadline))[0]
        message: dict[str, Any] = json.loads(self._read(length, deadline))
        return message

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()  # select.select takes no descriptor above 1023
        poll.register(descriptor, select.POLLIN)
        content = b""
        while len(content) < size:
            ready = poll.poll(1000 * max(deadline - time.monotonic(), 0))
            part = os.read(descriptor, size - len(content)) if ready else b""
            if not part:
                self.end()
                raise _EndedError
            content += part
        return content


class _Pool:
    """Workers that wait for the next check, started as they are needed."""

    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(_WORKERS)
        self._idle: list[_Worker] = []

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._slots:
            for waited in (self._take(), None):
                worker = waited or _Worker()
                start = time.monotonic()
                try:
                    reply = worker.ask(request)
                except _EndedError:
                    if time.monotonic() - start >= request["timeout_s"]:
                        break
                    continue  # it may have died while it waited
                self._idle.append(worker)
                return reply
        return {"failed": True}

    def _take(self) -> _Worker | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None


def _new_pool() -> None:
    global _pool
    _pool = _Pool()


_new_pool()
# The workers of a forked process are its parent's.
os.register_at_fork(after_in_child=_new_pool)
