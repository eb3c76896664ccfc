"""Tables that line up, and fit where they are shown."""

from __future__ import annotations

import pytest

from verl_dra.terminal.tables import fitted

HEADER = ["set", "pass@1", "pass@8", "maj@8"]
ROWS = [
    ["aime24", "30.0 [20.0, 40.0]", "50.0 [40.0, 60.0]", "36.7 [25.0, 48.0]"],
    ["math", "80.1 [79.0, 81.0]", "90.0 [89.0, 91.0]", "85.0 [84.0, 86.0]"],
]


@pytest.mark.parametrize(
    ("width", "firsts"),
    [
        ("80", ["set", "------", "aime24", "math"]),
        ("45", ["set", "------", "pass@1", "pass@8", "maj@8"]),  # turned round: both sets side by side
        (
            "30",
            ["set", "------", "pass@1", "pass@8", "maj@8", "", "set", "------", "pass@1", "pass@8", "maj@8"],
        ),  # one below the other
        ("5", ["set", "------", "pass@1", "pass@8", "maj@8", "", "set", "------", "pass@1", "pass@8", "maj@8"]),
    ],
)
def test_a_table_is_turned_round_where_it_is_too_wide(
    width: str, firsts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    lines = fitted(HEADER, ROWS).splitlines()
    assert [line.partition(" ")[0] for line in lines] == firsts
    assert int(width) < 10 or max(map(len, lines)) <= int(width)
    assert all(cell in "\n".join(lines) for row in ROWS for cell in row)
