"""The command `verl-dra calibrate`: its options, and what it says."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_dra.terminal.pictures import check_picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from verl_dra.calibrate.encoders import Seen

_NEEDED = ("omegaconf", "scipy", "sentence_transformers")
_GROUP_SIZE = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `verl-dra calibrate`."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="FILE|RUN_DIR",
        help='labelled pairs {"a": text, "b": text, "same": true} or groups {"texts": [...], "ways": [...]}, one a '
        "line; or a run with recorded groups (dra.record), which nobody has labelled",
    )
    parser.add_argument(
        "--encoder",
        action="append",
        metavar="MODEL",
        help="a folder, a hub name, pkg://package/folder, ngram, random (the control), package.module:Class, or "
        "settings of dra.embedding, such as 'encoder=openai base_url=URL model=NAME'; may be given several times "
        "(default: that of dra.embedding, ngram and random; of a run, its own cosines alone)",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        help=f"of the law (default: what the groups of the file have, else {_GROUP_SIZE})",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave rows out that can't be used, and count them")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw histograms (.png, .svg or .pdf)")


def run(options: argparse.Namespace) -> int:
    """Calibrate. 0: shown; 1: something can't be read, loaded or written; 2: impossible options."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        sys.stderr.write(f"verl-dra calibrate needs {' and '.join(missing)}: pip install 'verl_dra[train,report]'\n")
        return 1
    from verl_dra.calibrate.pairs import CalibrationError

    try:
        _check(options)
    except ValueError as error:
        sys.stderr.write(f"verl-dra calibrate: error: {error}\n")
        return 2
    try:
        content, text = (_recorded if options.source.is_dir() else _labelled)(options)
    except (CalibrationError, OSError) as error:
        sys.stderr.write(f"verl-dra calibrate: error: {error}\n")
        return 1
    if options.json:
        sys.stdout.write(json.dumps({"source": str(options.source), **content}, indent=1) + "\n")
        return 0
    sys.stdout.write(text)
    if options.plot is not None:
        sys.stdout.write(f"\nPicture: {options.plot}\n")
    return 0


def _check(options: argparse.Namespace) -> None:
    from verl_dra.calibrate import encoders

    if options.plot is not None:
        check_picture(options.plot)
    if options.group_size is not None and options.group_size < 2:
        raise ValueError(f"--group-size must be at least 2, not {options.group_size}")
    if options.source.is_dir():
        for option, given in (("--group-size", options.group_size), ("--skip-bad", options.skip_bad)):
            if given:
                raise ValueError(f"{option} is for labelled pairs; {options.source} is a folder")
    if doubled := [spec for spec in options.encoder or () if options.encoder.count(spec) > 1]:
        raise ValueError(f"--encoder {doubled[0]} is given twice")
    encoders.check(options.encoder or ())


def _labelled(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from verl_dra.calibrate import encoders, report
    from verl_dra.calibrate.pairs import read_labelled

    labelled = read_labelled(options.source, options.skip_bad)
    seen = [encoders.see(spec, labelled.pairs) for spec in options.encoder or encoders.DEFAULT]
    group_size = options.group_size or labelled.group_size or _GROUP_SIZE
    content = report.labelled_content(labelled, seen, group_size)
    if options.plot is not None:
        of_encoders = content["encoders"]
        cuts = [of["cluster_cosine"] for of in of_encoders]
        titles = [f"{of['encoder']}: AUC {of['auc']:.2f}" for of in of_encoders]
        _draw(options.plot, seen, {report.SAME: labelled.same, report.DIFFERENT: ~labelled.same}, cuts, titles)
    return content, report.labelled_text(content)


def _recorded(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from verl_dra.calibrate import encoders, report
    from verl_dra.calibrate.records import read_recorded

    recorded = read_recorded(options.source)
    as_recorded = encoders.Seen("as recorded", "the run's own", recorded.cosine, 0, 0.0, 0.0)
    seen = [as_recorded, *(encoders.see(spec, recorded.pairs) for spec in options.encoder or ())]
    content = report.recorded_content(recorded, seen)
    if options.plot is not None:
        parts = {"equal reward": recorded.equal_reward, "different reward": ~recorded.equal_reward}
        _draw(options.plot, seen, parts, [None] * len(seen), [one.name for one in seen])
    return content, report.recorded_text(content)


def _draw(
    path: Path,
    seen: Sequence[Seen],
    parts: dict[str, NDArray[np.bool_]],
    cuts: Sequence[float | None],
    titles: Sequence[str],
) -> None:
    from verl_dra.calibrate.plots import histograms

    histograms(seen, parts, cuts, titles).savefig(path, dpi=160)
