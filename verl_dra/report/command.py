"""The command `verl-dra report`: its options, and what it says."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from verl_dra.report.groups import Embed
    from verl_dra.report.runs import Run

_NEEDED = ("plotly", "scipy", "omegaconf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `verl-dra report`."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN_DIR",
        help="folders of runs; shown in one colour where the names differ by a last /NUMBER alone, as seeds do",
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the HTML file (%(default)s)")
    parser.add_argument("--text", action="store_true", help="show it in the terminal, and make no file")
    parser.add_argument(
        "--encoder",
        metavar="MODEL",
        help="what validation groups are measured with: a folder, a hub name, ngram, or none (default: the first run's "
        "dra.embedding)",
    )
    parser.add_argument("--groups", type=int, default=20, help="of a step at most (%(default)s)")
    parser.add_argument(
        "--max-mb",
        type=float,
        default=10.0,
        help="size of the file at most; steps are left out to keep it (%(default)g)",
    )


def run(options: argparse.Namespace) -> int:
    """Make the report; returns the exit status."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        sys.stderr.write(f"verl-dra report needs {' and '.join(missing)}: pip install 'verl_dra[train,report]'\n")
        return 1
    from verl_dra.report.runs import ReportError, read_runs

    try:
        if options.groups < 1:
            raise ReportError(f"--groups must be at least 1, not {options.groups}")
        _report(options, read_runs(options.runs))
    except ReportError as error:
        sys.stderr.write(f"verl-dra report: {error}\n")
        return 1
    return 0


def _report(options: argparse.Namespace, runs: Sequence[Run]) -> None:
    from verl_dra.report import page, text
    from verl_dra.report.contents import contents, has_dumps, unreadable
    from verl_dra.report.runs import ReportError

    notes = []
    embed = None
    if has_dumps(runs) and options.encoder != "none":
        embed, encoder = _encoder(options.encoder, runs)
        notes.append(
            f"Validation groups are measured by the report with {encoder}, the same {options.groups} prompts at most "
            "of each step. Their weights and advantages are what GRPO and DRA-GRPO would give: nothing is trained on "
            "them."
        )
    shown = contents(runs, options.groups, embed)
    if lines := unreadable(shown):
        notes.append(f"{lines} lines of records could not be read and are left out.")
    if lines := sum(run.history.unreadable for run in runs):
        notes.append(f"{lines} lines of metrics could not be read and are left out.")
    if options.text:
        sys.stdout.write("\n".join([text.render(runs, shown), *notes]) + "\n")
        return
    made, left_out = page.render(runs, shown, int(options.max_mb * 1e6), notes)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(made, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{options.out} can't be written: {error}") from error
    size = options.out.stat().st_size / 1e6
    groups = sum(len(step.groups) for part in shown for step in part.steps.values())
    without = f", those of {left_out} steps left out for --max-mb={options.max_mb:g}" if left_out else ""
    sys.stdout.write(f"{options.out}: {len(runs)} runs, {groups} groups{without}, {size:.1f} MB\n")
    if size > options.max_mb:
        sys.stderr.write(
            f"verl-dra report: two steps of each run are more than --max-mb={options.max_mb:g}; give fewer --groups\n"
        )


def _encoder(model: str | None, runs: Sequence[Run]) -> tuple[Embed, str]:
    """What embeds, and its name."""
    import torch
    from omegaconf import DictConfig, OmegaConf

    from verl_dra.embedding import EmbeddingConfig, build_encoder
    from verl_dra.report.groups import embedding
    from verl_dra.report.runs import ReportError

    config = EmbeddingConfig()
    if model == "ngram":
        config = EmbeddingConfig(encoder="ngram")
    elif model is not None:
        config = EmbeddingConfig(model=model)
    elif isinstance(own := OmegaConf.select(runs[0].config, "dra.embedding"), DictConfig):
        config = EmbeddingConfig(**{str(key): value for key, value in own.items()})
    if config.encoder == "sentence_transformers":
        config = replace(config, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        config.check()
        built = build_encoder(config)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        raise ReportError(
            f"the encoder {config.model} can't be loaded ({error}); give another --encoder, or none"
        ) from error
    return embedding(built), config.encoder if config.encoder == "ngram" else config.model
