"""An import that fails is told by its own words; what to install is said of modules that are not there alone."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from verl_dra.cli import main
from verl_dra.missing import in_words


def failing(module: str) -> ImportError:
    """What importing `module` raises where it is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError) as raised:
            importlib.import_module(module)
    return raised.value


@pytest.mark.parametrize(
    ("module", "install"),
    [
        ("vllm", "; pip install vllm"),
        ("verl", "; pip install 'verl_dra[train]'"),
        ("math_verify", "; pip install 'verl_dra[math]'"),
        ("torchvision", ""),  # of another package: what brings it is not known here
    ],
)
def test_a_module_that_is_not_there_is_told_with_what_brings_it(module: str, install: str) -> None:
    error = failing(module)
    assert in_words(error) == f"{error}{install}"


@pytest.mark.parametrize(
    ("arguments", "calls"),
    [
        (["evaluate", "--generations", "x.jsonl"], "verl_dra.evaluate.command._evaluate"),
        (["prepare-data", "gsm8k", "--out", "{}"], "verl_dra.data.command._prepare"),
    ],
)
def test_a_proxy_without_its_library_is_no_reason_to_install_this_package(
    arguments: list[str],
    calls: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)

    def fetches(*_: Any) -> int:
        httpx.Client(proxy="socks5://127.0.0.1:9")
        raise AssertionError

    monkeypatch.setattr(calls, fetches)
    assert main([argument.format(tmp_path / "out") for argument in arguments]) == 1
    said = capsys.readouterr().err
    assert "Using SOCKS proxy, but the 'socksio' package is not installed" in said
    assert "vllm" not in said
    assert "verl_dra[" not in said
