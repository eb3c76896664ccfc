"""What all tests share: no hub, no leftover authentication, and in CI no skipped test."""

from __future__ import annotations

import copy
import importlib.metadata
import os
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from hypothesis import settings

# On a busy machine any example may take longer than hypothesis lets it by default. CI has the same examples each time:
# what others would find is found by who works on the code.
settings.register_profile("no deadline", deadline=None, derandomize="VERL_DRA_NO_SKIPS" in os.environ)
settings.load_profile("no deadline")

os.environ["HF_HUB_OFFLINE"] = "1"
# A token file that an earlier local Ray left would switch authentication on (Ray 2.52 and later).
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray 2.60 gives up a worker that a busy machine needs more than 60 s to start.
os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")
# Ray ends workers where the machine's memory runs short, whoever took it.
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")

# What is shown is as wide as it comes: pytest's workers have it at 80.
os.environ.pop("COLUMNS", None)

ALLOWED_SKIPS = ("no GPU",)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other at each of a model's many small operations."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def configured() -> Callable[..., Any]:
    """The configuration of a run with these overrides, which are merged without Hydra: composed once a module."""
    from omegaconf import OmegaConf

    from verl_dra.config.compose import composed

    config, _ = composed(["data.train_files=x", "data.val_files=x"])
    OmegaConf.set_struct(config, False)

    def call(*overrides: str) -> Any:
        changed = copy.deepcopy(config)
        changed.merge_with_dotlist(list(overrides))
        return changed

    return call


@pytest.fixture
def vllm_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with GPUs, where vLLM's distribution is called `vllm`; veRL asks for it where LoRA is on."""
    from verl_dra.cpu.platform import answer_for_vllm_distribution

    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", importlib.metadata.version)  # put back at the end
    answer_for_vllm_distribution()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    outcome = yield
    _refuse_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, None]:
    outcome = yield
    _refuse_skip(outcome.get_result())


def _refuse_skip(report: Any) -> None:
    """With VERL_DRA_NO_SKIPS set, a test or module that skips for another reason than a missing GPU fails."""
    if report.skipped and os.environ.get("VERL_DRA_NO_SKIPS") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"{report.nodeid} may not be skipped here: {reason}"
