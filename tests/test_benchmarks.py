"""The benchmark programs and their page."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

FOLDER = Path(__file__).parent / "benchmarks"
TABLES = runpy.run_path(str(FOLDER / "__main__.py"))["TABLES"]


def test_the_page_has_a_section_for_each_table_in_their_order() -> None:
    sections = re.findall(r"^## (\w+): ", (FOLDER / "README.md").read_text(), flags=re.M)
    assert tuple(sections) == TABLES


def test_each_section_says_its_command_and_what_it_is_held_against() -> None:
    sections = re.split(r"^## ", (FOLDER / "README.md").read_text(), flags=re.M)
    for name in TABLES:
        section = next(section for section in sections if section.startswith(f"{name}: "))
        assert f"`.venv/bin/python tests/benchmarks {name}`" in section
        for label in ("Measures", "Command", "Machine", "Held against", "Result"):
            assert f"**{label}**" in section, f"{name}: {label}"


def test_each_table_is_a_program() -> None:
    for name in TABLES:
        assert re.search(r"^def main\(\) -> None:$", (FOLDER / f"{name}.py").read_text(), flags=re.M)
