"""Cosmic Ray's mutations of a file, and one more: a statement left out."""

from __future__ import annotations

import ast
import difflib
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from parso.python.tree import Function, PythonNode
from parso.python.tree import Operator as Token

# What any test sees (bits of numbers), and `is` for `==`, which is the same for the constants that code compares with.
_LEFT_OUT = re.compile(
    r"ComparisonOperator_(?!Is)\w+_Is(Not)?$|RemoveDecorator$"
    r"|BinaryOperator_\w+_(RShift|LShift|BitXor|Mod|Pow|FloorDiv)$|BinaryOperator_(?!Bit)\w+_Bit|BinaryOperator_Bit\w+_(?!Bit)"
)


@dataclass(frozen=True)
class Mutation:
    """A file with one fault."""

    file: str
    line: int
    old: str
    """The lines that differ, stripped and joined by spaces."""
    new: str
    text: str
    """The whole file."""

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.file}\n{self.text}".encode()).hexdigest()[:16]


class DropStatement(Operator):  # type: ignore[misc]
    """Puts `pass` for a call, an assignment or a raise inside a function."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        if isinstance(node, PythonNode) and node.type == "simple_stmt" and _function(node):
            statement = node.children[0]
            if statement.type in ("atom_expr", "power", "expr_stmt", "raise_stmt"):
                yield statement.start_pos, statement.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        before = node.children[0].get_first_leaf().prefix
        node.children[0] = Token("pass", node.start_pos, prefix=before)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("def f(): g()\n", "def f(): pass\n"),)


plugins.OPERATOR_PROVIDERS["statements"] = {"DropStatement": DropStatement}


def mutations(root: Path, files: list[str], seed: str) -> Iterator[Mutation]:
    """All mutations of files in an order that the seed gives: each place once before any twice.

    A place keeps its rank while other lines change. Left out is what doesn't compile, and what is in annotations alone.
    """
    sources = {file: (root / file).read_text() for file in files}
    ranked = []
    for file, source in sources.items():
        places: dict[tuple[int, int], list[tuple[str, str, int]]] = defaultdict(list)
        for name, occurrence, start in _found(source):
            rank = _rank(seed, file, source.splitlines()[start[0] - 1], start[1], name, len(places[start]))
            places[start].append((rank, name, occurrence))
        ranked += [(turn, *item, file) for place in places.values() for turn, item in enumerate(sorted(place))]
    seen: set[str] = set()
    for _, _, name, occurrence, file in sorted(ranked):
        text = mutate_code(sources[file], plugins.get_operator(name)(), occurrence)
        if text and text not in seen and _meaning(text) not in (None, _meaning(sources[file])):
            seen.add(text)
            yield _mutation(file, sources[file], text)


def _found(source: str) -> Iterator[tuple[str, int, tuple[int, int]]]:
    nodes = list(ast_nodes(get_ast(source)))
    for name in plugins.operator_names():
        operator = plugins.get_operator(name)
        if not operator.arguments() and not _LEFT_OUT.search(name):
            starts = (start for node in nodes for start, _ in operator().mutation_positions(node))
            yield from ((name, occurrence, start) for occurrence, start in enumerate(starts))


def _function(node: Any) -> bool:
    while node is not None and not isinstance(node, Function):
        node = node.parent
    return node is not None


def _rank(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _meaning(source: str) -> str | None:
    """The syntax tree without annotations, which nothing evaluates; None for what doesn't compile."""
    try:
        compile(source, "mutation", "exec")
    except SyntaxError:
        return None
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                setattr(node, name, ast.Constant(None))
    return ast.dump(tree)


def _mutation(file: str, source: str, text: str) -> Mutation:
    before, after = source.splitlines(), text.splitlines()
    spans = [
        span[1:] for span in difflib.SequenceMatcher(None, before, after, False).get_opcodes() if span[0] != "equal"
    ]
    old = " ".join(line.strip() for start, end, _, _ in spans for line in before[start:end])
    new = " ".join(" ".join(line.split()) for _, _, start, end in spans for line in after[start:end])
    return Mutation(file, spans[0][0] + 1, old, new, text)
