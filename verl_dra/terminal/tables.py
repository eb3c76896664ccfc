"""Plain text tables with numbers that line up."""

from __future__ import annotations

import shutil
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines of the header, a rule and the rows; the first `left` columns are set left, the others right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def fitted(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`table`, or where the terminal is narrower the same turned round, a column a row, as many side by side as fit."""
    wide = table(header, rows)
    if _width(wide) <= terminal_width():
        return wide
    for beside in range(len(rows), 0, -1):
        parts = [
            table(
                [header[0], *(row[0] for row in some)], [list(cells) for cells in zip(header, *some, strict=True)][1:]
            )
            for some in (rows[at : at + beside] for at in range(0, len(rows), beside))
        ]
        turned = "\n".join(parts)
        if _width(turned) <= terminal_width():
            break
    return turned


def terminal_width() -> int:
    """Columns of the terminal, or `COLUMNS` of the environment; without either there is no limit."""
    return shutil.get_terminal_size((10**6, 24)).columns


def _width(text: str) -> int:
    return max(map(len, text.splitlines()))


def signed(value: float, digits: int = 3) -> str:
    """`value` with its sign; without one where it rounds to 0."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"
