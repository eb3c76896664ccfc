"""What a run shows: its progress and its metrics; all that upstream prints goes to a file."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from verl_dra.terminal.progress import PREFIX, Progress
from verl_dra.terminal.progress import shown_line as shown_line

_TAIL_LINES, _TAIL_CHARACTERS = 40, 2000
_SILENCE_S = 1.0
_LAST_S = 30.0
"""How long what others still write after the end is copied at most."""
_LINE_BYTES = 2**20
"""Of a longer line nothing is shown."""
_PIPE_BYTES = 4096
"""A pipe that takes anything takes this much at once (PIPE_BUF), so that writing it does not block."""


def say(text: str) -> None:
    """Tell the user."""
    _write(f"{PREFIX}{text}\n", error=False)


@contextmanager
def quiet(log: Path, group_size: int | None = None) -> Iterator[None]:
    """Send this process's output, and what Ray forwards to it, to `log`; show progress, metrics and `say` alone.

    When the body fails, the end of the log is shown. What could not be logged or shown is told at the end.

    Args:
        log: the file.
        group_size: completions of a prompt, for the head of the table of steps.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    _open_standard_streams()
    file = log.open("ab", buffering=0)  # before anything is redirected, so that a failure is seen
    read_end, write_end = os.pipe()
    shown = os.dup(1)
    saved = [os.dup(1), os.dup(2)]
    copying = Copying(read_end, file, shown, Progress(group_size))
    _redirect(write_end, write_end)
    copying.start()
    failed = True
    try:
        yield
        failed = False
    except SystemExit:
        failed = False
        raise
    finally:
        _redirect(*saved)
        os.close(write_end)  # not before: a body that closes its output would end the copying
        copying.finish()
        file.close()
        for descriptor in (*saved, shown, read_end):
            os.close(descriptor)
        if failed:
            lines = "".join(f"  {line}\n" for line in copying.tail)
            _write(f"{lines}{PREFIX}the run failed; above are the last lines of its log {log}\n", error=True)
        for line in copying.lost():
            _write(f"{PREFIX}{line}\n", error=True)


class Copying(threading.Thread):
    """Copies what is written to a pipe to a log, and shows of its lines what `Progress` says.

    Who writes to the pipe waits for ever if this ends, or waits itself: so nothing that passes through ends it, nor a
    log that takes no more, nor a terminal that does not read. Its memory is bounded, whatever the lines.

    Args:
        read_end: the pipe's.
        log: opened without a buffer; gets every byte.
        shown: the descriptor that gets the shown lines.
        progress: what is shown of a line.
    """

    def __init__(self, read_end: int, log: BinaryIO, shown: int, progress: Progress | None = None) -> None:
        super().__init__(daemon=True, name="dra-console")
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        """The last lines, long ones cut."""
        self._read_end, self._log, self._shown = read_end, log, shown
        self._progress = progress or Progress()
        self._line = bytearray()
        self._beyond = 0
        self._stuck = False
        self._lost: dict[str, tuple[int, str]] = {}
        self._finish = threading.Event()
        self._finish_by = float("inf")

    def run(self) -> None:
        """Copy until the pipe ends, or `finish` was called and a second is silent.

        Ray's daemons may hold the pipe open, and Ray forwards its workers' last lines late.
        """
        waiting = select.poll()  # select.select takes no descriptor above 1023
        waiting.register(self._read_end, select.POLLIN)
        while time.monotonic() < self._finish_by:
            if not waiting.poll(1000 * _SILENCE_S):
                if self._finish.is_set():
                    return
                continue
            data = os.read(self._read_end, 2**16)
            if not data:
                return
            self._keep(data)
            *lines, rest = data.split(b"\n")
            for line in lines:
                self._take(line)
                self._end_line()
            self._take(rest)

    def finish(self) -> None:
        """End, when what was written is copied."""
        self._finish_by = time.monotonic() + _LAST_S
        self._finish.set()
        self.join()

    def lost(self) -> list[str]:
        """What was not logged or not shown, in words."""
        return [f"{count} {what}: {why}" for what, (count, why) in self._lost.items()]

    def _keep(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._log.write(rest) :]
        except (OSError, ValueError) as error:
            self._lose("bytes are missing in the log", len(rest), error)

    def _take(self, piece: bytes) -> None:
        """Go on with a line; what a carriage return writes over is dropped, as on a terminal."""
        body = piece.rstrip(b"\r")
        at = body.rfind(b"\r")
        if at >= 0 or (body and self._line.endswith(b"\r")):
            self._line.clear()
            self._beyond = 0
            piece = piece[at + 1 :]
        room = _LINE_BYTES - len(self._line)
        self._line += piece[:room]
        self._beyond += len(piece[room:])

    def _end_line(self) -> None:
        line, beyond = self._line.rstrip(b"\r").decode("utf-8", "replace"), self._beyond
        self._line.clear()
        self._beyond = 0
        cut = len(line) > _TAIL_CHARACTERS
        self.tail.append(f"{line[:_TAIL_CHARACTERS]}..." if cut else line)
        if beyond:
            return
        try:
            text = self._progress.shown(line)
        except Exception as error:  # whatever it is: the next line may be another
            self._lose("lines could not be shown, and are in the log", 1, error)
            return
        if text is not None:
            self._show(text)

    def _show(self, text: str) -> None:
        rest = f"{text}\n".encode(errors="replace")
        taking = select.poll()
        taking.register(self._shown, select.POLLOUT)
        try:
            while rest:
                if not taking.poll(0 if self._stuck else 1000 * _SILENCE_S):
                    raise TimeoutError("nobody reads the output")
                rest = rest[os.write(self._shown, rest[:_PIPE_BYTES]) :]
            self._stuck = False
        except OSError as error:
            self._stuck = True
            self._lose("lines were not shown, and are in the log", 1, error)

    def _lose(self, what: str, count: int, error: Exception) -> None:
        before, why = self._lost.get(what, (0, repr(error)))
        self._lost[what] = before + count, why
        if not before and not self._stuck:
            self._show(f"{PREFIX}from here on {what}: {why}")


def _redirect(out: int, err: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # nobody reads it, it is closed, or was from the start
            stream.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)


def _open_standard_streams() -> None:
    """Where input, output or errors were closed from the start, other files would take their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _write(text: str, error: bool) -> None:
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # closed from the start
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        # Nobody reads, or the disk is full: that must not end a run, nor what is in the buffer Python's own exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
