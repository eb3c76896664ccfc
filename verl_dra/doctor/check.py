"""What a check finds, and how findings are shown."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from verl_dra.terminal.tables import table, terminal_width

_NAME_MOST = 22
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
    lines = table(["check", "state", "found", "fix"], rows, left=4)
    if max(map(len, lines.splitlines())) > terminal_width():
        lines = _narrow(rows, terminal_width())
    return f"{lines}\n{summary(checks)}\n"


def _narrow(rows: Sequence[Sequence[str]], width: int) -> str:
    """The table within a width: what to do stands below what was found."""
    # Room is left for what was found, however long the name of a check is.
    of_name = min(max(len(row[0]) for row in rows), _NAME_MOST)
    indent = of_name + len("  state  ")
    lines = [f"{'check':<{of_name}}  state  found, and what to do", f"{'-' * of_name}  -----  {'-' * (width - indent)}"]
    for name, state, found, fix in rows:
        names = textwrap.wrap(name, of_name)
        text = textwrap.wrap(found, width - indent)
        text += textwrap.wrap(f"-> {fix}", width - indent, subsequent_indent="   ") if fix else []
        for number, (of, part) in enumerate(zip_longest(names, text, fillvalue="")):
            lines.append(f"{of:<{of_name}}  {'' if number else state:<5}  {part}".rstrip())
    return "\n".join(lines) + "\n"


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
