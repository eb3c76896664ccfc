"""What a check finds, and how findings are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from verl_dra.terminal.tables import table

State = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    state: State
    """`fail` stops a run, `warn` may cost it something, `skip` was not looked at."""
    found: str
    fix: str = ""
    """What to do; empty where there is nothing to do."""

    @property
    def problem(self) -> str:
        """The line in words."""
        return f"{self.name}: {self.found}" + (f"; {self.fix}" if self.fix else "")


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def skip(name: str, why: str) -> Check:
    return Check(name, "skip", why)


def warn(name: str, found: str, fix: str) -> Check:
    return Check(name, "warn", found, fix)


def fail(name: str, found: str, fix: str) -> Check:
    return Check(name, "fail", found, fix)


def guarded(name: str, check: Callable[..., Iterable[Check]], *arguments: Any) -> list[Check]:
    """The findings of a check; an exception of the check itself becomes the last of them."""
    found: list[Check] = []
    try:
        # One by one, so that what was found before an exception stays.
        for line in check(*arguments):
            found.append(line)
    except Exception as error:
        found.append(
            fail(name, f"this check broke: {one_line(repr(error))}", "a run may break likewise; see the error")
        )
    return found


def report(checks: Sequence[Check]) -> str:
    """A line for each check and a last one of counts."""
    rows = [[one_line(cell) for cell in (check.name, check.state, check.found, check.fix)] for check in checks]
    return table(["check", "state", "found", "fix"], rows, left=4) + "\n" + summary(checks) + "\n"


def summary(checks: Sequence[Check]) -> str:
    """How many are of each state."""
    counts = count(checks)
    return f"{counts['ok']} ok, {counts['warn']} warn, {counts['fail']} fail, {counts['skip']} not checked"


def count(checks: Sequence[Check]) -> dict[State, int]:
    """Checks of each state, states without any included."""
    counter = Counter(check.state for check in checks)
    states: tuple[State, ...] = ("ok", "warn", "fail", "skip")
    return {state: counter[state] for state in states}


def one_line(text: str) -> str:
    """`text` without line ends, at most 400 characters of it."""
    words = " ".join(text.split())
    return words if len(words) <= 400 else f"{words[:397]}..."


def gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
