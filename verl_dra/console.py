"""What a run shows: its progress and its metrics; all that upstream prints goes to a file."""

from __future__ import annotations

import os
import re
import select
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_PREFIX = "verl-dra: "
_TAIL_LINES = 40
_SILENCE_S = 1.0
_RAY_PREFIX = re.compile(r"^(\x1b\[\d+m)?\([^)]*pid=[^)]*\)(\x1b\[0m)? ?")
_STEP = re.compile(r"^step:(\d+) - (.*)$")
_SHOWN_METRICS = re.compile(r"^(critic/score/mean|val-core/.*/mean@\d+|dra/.*|timing_s/(dra_wait|step))$")


def say(text: str) -> None:
    """Tell the user."""
    sys.stdout.write(f"{_PREFIX}{text}\n")
    sys.stdout.flush()


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send this process's output, and what Ray forwards to it, to `log`; show progress, metrics and `say` alone.

    When the body fails, the end of the log is shown.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.open("ab", buffering=0)  # before anything is redirected, so that a failure is seen
    read_end, write_end = os.pipe()
    shown = os.dup(1)
    saved = [os.dup(1), os.dup(2)]
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    done = threading.Event()
    reader = threading.Thread(target=_copy, args=(read_end, file, shown, tail, done), daemon=True)
    _redirect(write_end, write_end)
    os.close(write_end)
    reader.start()
    failed = True
    try:
        yield
        failed = False
    except SystemExit:
        failed = False
        raise
    finally:
        _redirect(*saved)
        done.set()
        reader.join()
        for descriptor in (*saved, shown, read_end):
            os.close(descriptor)
        if failed:
            sys.stderr.write("".join(f"  {line}\n" for line in tail))
            sys.stderr.write(f"{_PREFIX}the run failed; above are the last lines of its log {log}\n")


def shown_line(line: str) -> str | None:
    """What the user sees of a line of output: the line, a shorter one, or None."""
    line = _RAY_PREFIX.sub("", line).rsplit("\r", 1)[-1]
    if line.startswith(_PREFIX) or line.startswith("Training Progress:"):
        return line
    step = _STEP.match(line)
    if step is None:
        return None
    pairs = (pair.rsplit(":", 1) for pair in step[2].split(" - "))
    shown = [(name, _short(value)) for name, value in pairs if _SHOWN_METRICS.match(name)]
    # Most of the extension's metrics count what should not happen.
    values = [f"{name} {value}" for name, value in shown if not (name.startswith("dra/") and value == "0")]
    return f"step {step[1]}: " + ", ".join(values)


def _redirect(out: int, err: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)


def _copy(read_end: int, log: BinaryIO, shown: int, tail: deque[str], done: threading.Event) -> None:
    """Copy lines until the pipe ends, or `done` and a second of silence.

    Ray's daemons may hold the pipe open, and Ray forwards its workers' last lines late.
    """
    rest = b""
    with log:
        while True:
            if not select.select([read_end], [], [], _SILENCE_S)[0]:
                if done.is_set():
                    return
                continue
            data = os.read(read_end, 2**16)
            if not data:
                return
            with suppress(OSError):  # a full disk, or nobody reading, must not stop what writes to the pipe
                log.write(data)
            *lines, rest = (rest + data).split(b"\n")
            for raw in lines:
                line = raw.decode("utf-8", "replace")
                tail.append(line)
                text = shown_line(line)
                if text is not None:
                    with suppress(OSError):
                        os.write(shown, f"{text}\n".encode())


def _short(value: str) -> str:
    number = re.sub(r"^np\.\w+\((.*)\)$", r"\1", value)  # veRL prints numpy's numbers by their repr
    try:
        return f"{float(number):.4g}"
    except ValueError:
        return value
