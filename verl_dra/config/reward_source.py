"""What the source of a reward function says, read and not run: reward workers import it minutes into a run."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

_PACKAGE = "pkg://"
# What a reward function imports of these registers no reward manager of its author's.
_OTHERS = {
    *sys.stdlib_module_names,
    "datasets",
    "math_verify",
    "numpy",
    "pandas",
    "sympy",
    "torch",
    "transformers",
    "verl",
}


def source_of(path: str) -> Path | None:
    """The file of `reward.custom_reward_function.path`; None where it is not on this machine or is no source.

    Raises:
        ImportError: `pkg://` names a module that is not installed.
    """
    if not path.startswith(_PACKAGE):
        file = Path(path.removeprefix("file://"))
        return file if file.is_file() else None
    module = path.removeprefix(_PACKAGE).replace("/", ".")
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ImportError(f"no module {module}")
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def binds(tree: ast.Module, name: str) -> bool:
    """Whether a module has a `name`, as far as its text shows; True where it can come by ways that it does not show."""
    bound = {bound for statement in _outside_functions(tree) for bound in _bound(statement)}
    bound |= {name for statement in ast.walk(tree) if isinstance(statement, ast.Global) for name in statement.names}
    return bool(bound & {name, "*", "__getattr__"})


def may_register(path: str, name: str) -> bool:
    """Whether the file of a reward function may register a reward manager `name` with veRL.

    It may where it has the name in it, or imports what may; and where it can't be read here.
    """
    try:
        file = source_of(path)
        tree = ast.parse(file.read_bytes()) if file else None
    except (ImportError, OSError, SyntaxError, ValueError):
        return True
    if tree is None:
        return True
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return name in texts or not _imported(tree) <= _OTHERS


def _imported(tree: ast.Module) -> set[str]:
    """The first parts of the modules that a module imports; empty for its own package."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("" if node.level else str(node.module).partition(".")[0])
    return found


def _outside_functions(tree: ast.Module) -> Iterator[ast.AST]:
    left: list[ast.AST] = list(tree.body)
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            left += ast.iter_child_nodes(node)


def _bound(statement: ast.AST) -> list[str]:
    """Names that a statement binds; `*` for what its text does not show."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.partition(".")[0] for alias in statement.names]
    if isinstance(statement, ast.Name) and isinstance(statement.ctx, ast.Store):
        return [statement.id]
    return []
