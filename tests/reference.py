"""The tables of verl_dra/README.md that are made of the code: keys, metrics, what scorers show. `make reference`."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from verl_dra.config import DRAConfig
from verl_dra.scorer.telemetry import COUNTERS, GAUGES, HISTOGRAMS, PREFIX
from verl_dra.training.meanings import METRICS

PAGE = Path(__file__).parents[1] / "verl_dra" / "README.md"


@dataclass(frozen=True)
class Key:
    """A key of the configuration."""

    name: str
    """With its groups, as on the command line."""
    default: str
    """As Hydra writes it."""
    meaning: str
    """The docstring of the field; empty where it has none."""


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(renewed(PAGE.read_text()))


def renewed(page: str) -> str:
    """`page` with its tables made anew; each stands between two comments that name it."""
    keys = [(code(key.name), code(key.default), key.meaning) for key in keys_of(DRAConfig(), "dra")]
    metrics = [(code(name), meaning) for name, meaning in METRICS.items()]
    scorers = [(code(name), meaning) for name, meaning in scorer_metrics()]
    page = _between(page, "keys", table(["key", "default", "meaning"], keys))
    page = _between(page, "metrics", table(["metric", "meaning"], metrics))
    return _between(page, "scorers", table(["Prometheus name", "meaning"], scorers))


def keys_of(group: Any, name: str) -> Iterator[Key]:
    """The keys of a group and of those in it."""
    meanings = _docstrings(type(group))
    for field in fields(group):
        value, key = getattr(group, field.name), f"{name}.{field.name}"
        if is_dataclass(value):
            yield from keys_of(value, key)
        else:
            default = value if isinstance(value, str) else json.dumps(value)
            yield Key(key, default, re.sub(r"\bNone\b", "`null`", meanings.get(field.name, "")))


def scorer_metrics() -> Iterator[tuple[str, str]]:
    """Names as Prometheus has them, and their meanings."""
    for name, meaning in COUNTERS.items():
        yield f"ray_{PREFIX}{name}_total", meaning
    for name, meaning in GAUGES.items():
        yield f"ray_{PREFIX}{name}", meaning
    for name, (meaning, _) in HISTOGRAMS.items():
        yield f"ray_{PREFIX}{name}", f"{meaning} (histogram)"


def code(text: str) -> str:
    return f"`{text}`"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n" for cells in lines)


def _docstrings(cls: type) -> dict[str, str]:
    """What stands below each field of a dataclass, on one line."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for field, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(after.value.value).split())
    return found


def _between(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name}: made by `make reference` -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = page.partition(begin)
    _, ends, after = rest.partition(end)
    assert found, f"{begin!r} is not in the page"
    assert ends, f"{end!r} is not in the page"
    return f"{before}{begin}\n{text}\n{end}{after}"


if __name__ == "__main__":
    main()
