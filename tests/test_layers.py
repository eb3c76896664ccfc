"""Imports run one way: a part of the package knows those below it, and none above or beside it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Set
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "verl_dra"

# From the bottom to the top; parts of one layer know nothing of each other, but as KNOWS says.
LAYERS = (
    {"algorithm"},
    {"", "files", "missing", "rewards", "terminal"},
    {"cpu", "embedding", "record", "data"},
    {"scorer", "partition", "from_texts"},
    {"config"},
    {"training"},
    {"job", "doctor", "evaluate", "report", "calibrate", "simulate"},
    {"main", "plugin", "sweep"},
    {"cli"},
)
# Where one of a layer uses another: partitions have actors as scorers have, doctor counts CPUs as the job does,
# calibrate reads the records that report shows.
KNOWS = {("partition", "scorer"), ("doctor", "job"), ("calibrate", "report"), ("evaluate", "data")}
# What the algorithm, alone of all, imports of others.
OF_ALGORITHM = {"torch", "numpy"}

Graph = Mapping[str, Set[str]]


def imports(package: Path) -> dict[str, set[str]]:
    """The modules of a package that each of its modules imports, anywhere in it; a package stands for its __init__."""
    trees: dict[str, ast.Module] = {}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text())
    found: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports relatively"
                module = str(node.module)
                full = {f"{module}.{alias.name}" for alias in node.names}
                found[name] |= full & trees.keys() or {module}
    return found


def part(module: str) -> str:
    """`scorer` of `verl_dra.scorer.pool`; empty for the package's own __init__."""
    return [*module.split("."), ""][1]


def height(module: str) -> int:
    return next(at for at, layer in enumerate(LAYERS) if part(module) in layer)


def upward(graph: Graph) -> list[str]:
    """The imports within the package that point up, or to the side; its own __init__ may name any."""
    wrong = []
    for module, others in graph.items():
        if not part(module):
            continue
        for other in sorted(others & graph.keys()):
            here, there = part(module), part(other)
            level = height(module) == height(other) and (here, there) not in KNOWS and there != ""
            if here != there and (height(other) > height(module) or level):
                wrong.append(f"{module} imports {other}")
    return wrong


def both_ways(graph: Graph) -> list[str]:
    """Modules that import each other, by whatever way round."""
    reach = {module: set(others & graph.keys()) for module, others in graph.items()}
    for via in graph:
        for module in graph:
            if via in reach[module]:
                reach[module] |= reach[via]
    return sorted(module for module in graph if module in reach[module])


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return imports(PACKAGE)


def test_every_part_has_its_layer(graph: Graph) -> None:
    assert {part(module) for module in graph} == {name for layer in LAYERS for name in layer}


def test_the_tree_in_readme_is_the_tree() -> None:
    page = (PACKAGE / "README.md").read_text().partition("## How it is built")[2].partition("##")[0]
    named = set()
    for entry in re.findall(r"^    verl_dra/(\S+)", page, re.MULTILINE):
        names, suffix = re.fullmatch(r"\{?([\w,]+)\}?(/|\.py)", entry).groups()  # type: ignore[union-attr]
        named |= {name + suffix for name in names.split(",")}
    there = {path.name + "/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert named == there | {path.name for path in PACKAGE.glob("[!_]*.py")}


def test_imports_run_one_way(graph: Graph) -> None:
    assert upward(graph) == []


def test_no_modules_import_each_other(graph: Graph) -> None:
    assert both_ways(graph) == []


def test_the_algorithm_needs_torch_alone(graph: Graph) -> None:
    used = {name.partition(".")[0] for module in graph if part(module) == "algorithm" for name in graph[module]}
    standard = {"__future__", "collections", "dataclasses", "functools", "math", "typing"}
    assert used - standard - {"verl_dra"} <= OF_ALGORITHM


def test_transfer_queue_has_one_module(graph: Graph) -> None:
    users = {module for module, others in graph.items() if any(o.partition(".")[0] == "transfer_queue" for o in others)}
    assert users == {"verl_dra.training.transfer"}


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("verl_dra.algorithm.smi", "verl_dra.embedding.encoder"),
        ("verl_dra.config.compose", "verl_dra.main"),
        ("verl_dra.doctor.command", "verl_dra.main"),
        ("verl_dra.config.prepare", "verl_dra.training.reward_manager"),
        ("verl_dra.evaluate.command", "verl_dra.report.command"),
    ],
)
def test_an_import_that_is_turned_round_is_seen(graph: Graph, module: str, other: str) -> None:
    assert upward({**graph, module: graph[module] | {other}}) == [f"{module} imports {other}"]


def test_modules_that_import_each_other_are_seen(graph: Graph) -> None:
    turned = {**graph, "verl_dra.embedding.encoder": graph["verl_dra.embedding.encoder"] | {"verl_dra.embedding.build"}}
    assert {"verl_dra.embedding.encoder", "verl_dra.embedding.build"} <= set(both_ways(turned))
