"""The file of the reward function, before reward workers import it minutes into a run."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from verl_dra.doctor.check import Check, fail, ok, skip, warn
from verl_dra.doctor.run_config import is_remote, select

_NAME = "reward function"
_KEY = "reward.custom_reward_function"
_PACKAGE = "pkg://"


def reward_function(config: DictConfig, elsewhere: bool) -> Iterator[Check]:
    """That `reward.custom_reward_function` names a function of a file or module that is there; imports nothing of it.

    Args:
        config: the run's.
        elsewhere: whether other nodes import it, so that its absence here proves little.
    """
    path, function = select(config, f"{_KEY}.path"), select(config, f"{_KEY}.name")
    if not path:
        yield ok(_NAME, "veRL's own, by data_source")
        return
    if path.startswith(_PACKAGE):
        try:
            there = importlib.util.find_spec(path.removeprefix(_PACKAGE)) is not None
        except ImportError:
            there = False
        if there:
            yield ok(_NAME, f"{function} of {path}")
        else:
            yield fail(_NAME, f"{_KEY}.path={path} is not installed", "install it on every node")
        return
    file = Path(path.removeprefix("file://"))
    if is_remote(str(file)):
        yield skip(_NAME, f"{path} is remote")
    elif not file.is_file():
        bad = warn if elsewhere else fail
        yield bad(_NAME, f"{_KEY}.path={path} is not there", "give the absolute path of a file that every node has")
    else:
        yield _defines(file, str(function))


def _defines(file: Path, function: str) -> Check:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        return fail(_NAME, f"{file} is no Python: {error}", "mend it")
    names = {name for statement in ast.walk(tree) for name in _bound(statement)}
    if function in names or "*" in names:
        return ok(_NAME, f"{function} of {file}")
    return fail(_NAME, f"{file} has no {function}", f"set {_KEY}.name to the function's name")


def _bound(statement: ast.AST) -> list[str]:
    """Names that a statement binds, as far as its text shows; `*` for what it does not show."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    if isinstance(statement, ast.Name) and isinstance(statement.ctx, ast.Store):
        return [statement.id]
    return []
