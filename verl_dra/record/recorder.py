"""Makes and writes records beside a training, which never waits for them and never fails because of them."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_dra.record.config import RecordConfig

logger = logging.getLogger(__name__)

# Steps that wait for the writing thread at most.
_WAITING = 4
_CLOSE_S = 60.0

Record = Mapping[str, Any]


class Recorder:
    """Records of a run, a file STEP.jsonl with a line a group for each recorded step, written by a thread of its own.

    A file is written under another name and renamed when it is on the disk: a run that is killed leaves whole files.

    Args:
        config: what to record; its folder must be set.
    """

    def __init__(self, config: RecordConfig) -> None:
        if config.folder is None:
            raise ValueError("dra.record.folder must be set before a run records; `verl-dra train` sets it")
        self._config = config
        self._folder = Path(config.folder)
        self._waiting: queue.Queue[tuple[int, int, Callable[[], Sequence[Record]]] | None] = queue.Queue(_WAITING)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._warned = False
        self._thread = threading.Thread(target=self._write_all, daemon=True, name="dra-record")
        self._thread.start()

    def wants(self, step: int) -> bool:
        """Whether `step` is to be recorded."""
        return step % self._config.every_n_steps == 0

    def sample(self, uids: Iterable[str]) -> list[str]:
        """Those of a step's groups that are recorded, by a hash of their uids."""
        return sorted(set(uids), key=lambda uid: (zlib.crc32(uid.encode()), uid))[: self._config.groups]

    def put(self, step: int, groups: int, make: Callable[[], Sequence[Record]]) -> None:
        """Make and write the `groups` groups of a step when there is time; where too much waits, they are dropped.

        `make` is called in this recorder's thread.
        """
        try:
            self._waiting.put_nowait((step, groups, make))
        except queue.Full:
            self.drop(step, groups, f"{_WAITING} steps before it wait to be written")

    def drop(self, step: int, groups: int, why: object) -> None:
        """Count the groups of a step as unrecorded; the first time, say why."""
        self._count("unrecorded", groups)
        if not self._warned:
            logger.warning("step %d is not recorded: %s; further ones are counted alone", step, why)
        self._warned = True

    def counts(self) -> dict[str, int]:
        """Groups `recorded`, `unrecorded` (dropped, or not writable) and `thinned` (deleted) since the last call."""
        with self._lock:
            counts = {name: self._counts[name] for name in ("recorded", "unrecorded", "thinned")}
            self._counts.clear()
        return counts

    def close(self, within_s: float = _CLOSE_S) -> None:
        """Write what waits, within `within_s` seconds."""
        try:
            self._waiting.put(None, timeout=within_s)
        except queue.Full:
            return
        self._thread.join(within_s)

    def _write_all(self) -> None:
        while (item := self._waiting.get()) is not None:
            step, groups, make = item
            try:
                self._write(step, make())
            except Exception as error:  # of a tokenizer or a disk: whatever it is, the next step may do
                self.drop(step, groups, f"{error!r}, folder {self._folder}")

    def _write(self, step: int, groups: Sequence[Record]) -> None:
        data = "".join(json.dumps(group, allow_nan=False) + "\n" for group in groups).encode()
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = self._folder / ".unfinished"
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._folder / f"{step}.jsonl")
        self._count("recorded", len(groups))
        self._thin()

    def _thin(self) -> None:
        """Delete steps until the folder is as small as it has to be; the first and the last stay."""
        files = {int(path.stem): path for path in self._folder.glob("*.jsonl") if path.stem.isdecimal()}
        sizes = {step: path.stat().st_size for step, path in files.items()}
        while sum(sizes.values()) > self._config.max_bytes and len(sizes) > 2:
            steps = sorted(sizes)
            at = min(range(1, len(steps) - 1), key=lambda i: steps[i + 1] - steps[i - 1])
            self._count("thinned", files[steps[at]].read_bytes().count(b"\n"))
            files[steps[at]].unlink()
            del sizes[steps[at]]

    def _count(self, what: str, groups: int) -> None:
        with self._lock:
            self._counts[what] += groups
