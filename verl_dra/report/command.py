"""The command `verl-dra report`: its options, and what it says."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from verl_dra.report.contents import Shown
    from verl_dra.report.groups import Embed
    from verl_dra.report.runs import Run

_NEEDED = ("plotly", "scipy", "omegaconf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `verl-dra report`."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]RUN_DIR",
        help="folders of runs, those of one setting with several seeds in one colour (the first setting without DRA is "
        "blue, the first with it orange); without a NAME they are called by their folders, or where those are only "
        "dates and numbers, by the overrides in which they differ",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        help="the HTML file (%(default)s); its address in the browser opens at the group that is shown",
    )
    parser.add_argument(
        "--text", action="store_true", help="say what happened and show the curves in the terminal, and make no file"
    )
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
        help="size of the file at most; texts are cut short, then steps left out, to keep it (%(default)g)",
    )


def run(options: argparse.Namespace) -> int:
    """Make the report; returns the exit status."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        sys.stderr.write(f"verl-dra report needs {' and '.join(missing)}: pip install 'verl_dra[train,report]'\n")
        return 1
    from verl_dra.report import names
    from verl_dra.report.runs import ReportError, read_runs

    try:
        if options.groups < 1:
            raise ReportError(f"--groups must be at least 1, not {options.groups}")
        runs = read_runs(options.runs)
        names.name(runs)
        _report(options, runs)
    except (ReportError, OSError) as error:
        sys.stderr.write(f"verl-dra report: {error}\n")
        return 1
    return 0


def _report(options: argparse.Namespace, runs: Sequence[Run]) -> None:
    from verl_dra.embedding import EncoderUnavailableError
    from verl_dra.report import page, text
    from verl_dra.report.contents import contents, has_dumps, unreadable
    from verl_dra.report.runs import EFFECTIVE_PATHS, ReportError

    notes = [note for run in runs for note in run.notes]
    embed = None
    if has_dumps(runs) and options.encoder != "none":
        embed, encoder = _encoder(options.encoder, runs)
        notes.append(
            f"Validation groups are measured by the report with {encoder}, the same {options.groups} prompts at most "
            "of each step. Their weights and advantages are what GRPO and DRA-GRPO would give: nothing is trained on "
            "them."
        )
    try:
        shown = contents(runs, options.groups, embed)
    except EncoderUnavailableError as error:
        raise ReportError(f"{error}; give another --encoder, or none") from error
    if without := [run.name for run in runs if EFFECTIVE_PATHS not in run.history.values and options.encoder != "none"]:
        notes.append(
            f"'Different ways to answer' leaves out {', '.join(without)}: it needs dumps of validation with several "
            "sampled completions a prompt (trainer.validation_data_dir, actor_rollout_ref.rollout.val_kwargs.n, "
            ".do_sample and .temperature)."
        )
    if unjudged := [runs[part.run].name for part in shown if _several_unjudged(part)]:
        notes.append(
            f"'pass@k' leaves out {', '.join(unjudged)}: it needs two samples or more of each validation prompt, and "
            "an `acc` of the reward, or scores of 0 and 1 alone, that say which are right."
        )
    if lines := unreadable(shown):
        notes.append(f"{lines} lines of records could not be read and are left out.")
    shown = [part for part in shown if any(step.groups for step in part.steps.values())]
    if lines := sum(run.history.unreadable for run in runs):
        notes.append(f"{lines} lines of metrics could not be read and are left out.")
    if options.text:
        sys.stdout.write("\n".join([text.render(runs, shown), *notes]) + "\n")
        return
    made = page.render(runs, shown, int(options.max_mb * 1e6), notes)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(made.html, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{options.out} can't be written: {error}") from error
    size = options.out.stat().st_size / 1e6
    groups = sum(len(step.groups) for part in shown for step in part.steps.values())
    left_out = "".join(f", {what} for --max-mb={options.max_mb:g}" for what in made.left_out)
    sys.stdout.write(f"{options.out}: {len(runs)} runs, {groups} groups{left_out}, {size:.1f} MB\n")
    if size > options.max_mb:
        sys.stderr.write(
            f"verl-dra report: two steps of each run are more than --max-mb={options.max_mb:g}; give fewer --groups\n"
        )


def _several_unjudged(part: Shown) -> bool:
    """Whether it has validation groups of several samples, and no pass@k."""
    from verl_dra.report.contents import VALIDATION

    steps = part.steps.values()
    several = any(len(group.completions) > 1 for step in steps for group in step.groups)
    return part.kind == VALIDATION and several and not any(step.pass_at for step in steps)


def _encoder(model: str | None, runs: Sequence[Run]) -> tuple[Embed, str]:
    """What embeds, and its name."""
    import torch
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from verl_dra.embedding import EmbeddingConfig, build_encoder
    from verl_dra.report.groups import embedding
    from verl_dra.report.runs import ReportError

    config = EmbeddingConfig()
    if model == "ngram":
        config = EmbeddingConfig(encoder="ngram")
    elif model is not None:
        config = EmbeddingConfig(model=model)
    else:
        try:
            own = OmegaConf.select(runs[0].config, "dra.embedding")
            given = OmegaConf.to_container(own, resolve=True) if isinstance(own, DictConfig) else {}
            config = cast(
                EmbeddingConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(EmbeddingConfig), given))
            )
        except OmegaConfBaseException as error:
            raise ReportError(
                f"dra.embedding of {runs[0].name} can't be used here ({str(error).splitlines()[0]}); give --encoder"
            ) from error
    if config.encoder == "sentence_transformers":
        config = replace(config, device="cuda" if torch.cuda.is_available() else "cpu")
    by_model = config.encoder in ("sentence_transformers", "openai")
    called = config.model if by_model else config.encoder
    try:
        config.check()
        built = build_encoder(config)
    except Exception as error:  # of whatever class or model it is
        raise ReportError(f"the encoder {called} can't be loaded ({error}); give another --encoder, or none") from error
    return embedding(built), called
