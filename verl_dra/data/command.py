"""The command `verl-dra prepare-data`: its options, and what it says."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_dra.data.problem import DataError
from verl_dra.data.prompts import PROMPTS
from verl_dra.data.sets import DATA_SETS, OTHER, DataSet, of_columns
from verl_dra.missing import in_words
from verl_dra.terminal.tables import table

if TYPE_CHECKING:
    from verl_dra.data.prepare import BadRow, Split
    from verl_dra.data.sources import Source

SHOWN_BAD_ROWS = 10
_OF_OTHER = ("problem_column", "answer_column", "solution_column", "data_source")


class OptionError(ValueError):
    """A combination of options that makes no sense."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `verl-dra prepare-data`."""
    parser.add_argument("dataset", choices=(*DATA_SETS, OTHER), help="which set; other: any, by its columns")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the parquet files")
    parser.add_argument(
        "--split", nargs="+", choices=("train", "test"), help="splits to prepare (default: all that there are)"
    )
    parser.add_argument(
        "--system-prompt",
        choices=PROMPTS,
        default="customary",
        help="customary: what the set is usually trained with (default; for open_rs the paper's); paper: the system "
        "message of DRA-GRPO and open-rs, then the problem alone; none: the problem alone",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out and list them in bad_rows.json")
    parser.add_argument("--overwrite", action="store_true", help="replace files in DIR that differ")

    source = parser.add_argument_group("where rows come from (default: the hub)")
    source.add_argument(
        "--input",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="local files of the set as published (.parquet, .jsonl, .json), or folders of them; of a folder, files of "
        "the first of these kinds that it has, less configurations that repeat it (gsm8k: socratic; dapo_math: en, cn)",
    )
    repos = "; ".join(f"{data.name}: {', '.join(data.repos)}" for data in DATA_SETS.values() if len(data.repos) > 1)
    source.add_argument(
        "--repo", help=f"hub id, where a set has several, the default first ({repos}); or the one of other"
    )
    source.add_argument("--revision", help="commit, branch or tag on the hub (default: the newest commit)")

    columns = parser.add_argument_group("the set other")
    columns.add_argument("--problem-column", metavar="COLUMN", help="with the problem's text")
    columns.add_argument("--answer-column", metavar="COLUMN", help="with the final answer, a text or a number")
    columns.add_argument(
        "--solution-column",
        metavar="COLUMN",
        help="with a worked solution, which is handed on; without --answer-column its last box is the answer",
    )
    columns.add_argument(
        "--data-source",
        metavar="NAME",
        help="by which veRL chooses a grader where no reward function is set (default: --repo)",
    )

    held_out = parser.add_argument_group("validation rows (the paper holds none out)")
    held_out.add_argument("--val", type=int, metavar="N", help="hold N rows of train out, as val.parquet")
    held_out.add_argument("--seed", type=int, metavar="S", help="which rows --val takes (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Prepare a set. 0: done; 1: bad rows, or something can't be read or written; 2: impossible options."""
    try:
        data = _data_set(options)
        _check(options, data)
        return _prepare(options, data)
    except OptionError as error:
        sys.stderr.write(f"verl-dra prepare-data: error: {error}\n")
        return 2
    except ImportError as error:
        sys.stderr.write(f"verl-dra prepare-data: error: {in_words(error)}\n")
    except (DataError, OSError) as error:
        sys.stderr.write(f"verl-dra prepare-data: error: {error}\n")
    return 1


def _data_set(options: argparse.Namespace) -> DataSet:
    columns = (options.problem_column, options.answer_column, options.solution_column)
    if options.dataset != OTHER:
        if any((*columns, options.data_source)):
            raise OptionError(f"the columns and --data-source are for the set {OTHER}; {options.dataset} has its own")
        return DATA_SETS[options.dataset]
    if not options.problem_column or not any(columns[1:]):
        raise OptionError(f"{OTHER} needs --problem-column, and --answer-column or --solution-column")
    if not (options.input or options.repo):
        raise OptionError(f"{OTHER} needs --input or --repo")
    if not (options.data_source or options.repo):
        raise OptionError("--input needs --data-source, the name by which veRL chooses a grader")
    return of_columns(*columns, options.data_source or options.repo, options.repo)


def _check(options: argparse.Namespace, data: DataSet) -> None:
    for split in options.split or ():
        if split not in data.splits:
            raise OptionError(f"--split {split}: {data.name} has {' and '.join(data.splits)} only")
    if options.input and options.repo:
        raise OptionError("--repo is of the hub and --input of local files; give one of them")
    if options.input and options.revision:
        raise OptionError("--revision is of the hub; files of --input are known by their SHA-256")
    if options.repo and options.repo not in data.repos:
        raise OptionError(f"--repo {options.repo}: {data.name} is {' or '.join(data.repos)}")
    if any(path.resolve() == options.out.resolve() for path in options.input or ()):
        raise OptionError(f"--out {options.out} is an --input; what is read would be replaced")
    if options.val is not None and options.val < 1:
        raise OptionError(f"--val must be at least 1, not {options.val}")
    if options.val and options.split and "train" not in options.split:
        raise OptionError("--val holds rows of train out; add train to --split")
    if options.seed is not None and options.val is None:
        raise OptionError("--seed chooses the rows of --val; give --val too")


def _prepare(options: argparse.Namespace, data: DataSet) -> int:
    from verl_dra.data.output import BAD_ROWS, write_folder
    from verl_dra.data.prepare import read_split

    source = _source(options, data)
    instruction = data.instruction(options.system_prompt)
    kept = None if options.skip_bad else SHOWN_BAD_ROWS
    splits = [read_split(data, name, source.rows(name), instruction, kept) for name in source.splits]
    if any(split.bad for split in splits):
        sys.stderr.write(_complaint(splits))
        if not options.skip_bad:
            sys.stderr.write("nothing was written; --skip-bad leaves these rows out\n")
            return 1
    tables = _tables(options, splits)
    written = {name: rows.num_rows for name, rows in tables.items()}
    overlap = _overlap(splits)
    manifest = {
        "dataset": data.name,
        "source": source.describe(),
        "arguments": {
            "split": list(source.splits),
            "system_prompt": options.system_prompt,
            "revision": options.revision,
            "val": options.val,
            "seed": (options.seed or 0) if options.val else None,
            "skip_bad": options.skip_bad,
            **({} if data.name != OTHER else {name: getattr(options, name) for name in _OF_OTHER}),
        },
        "prompt": asdict(instruction),
        "counts": {
            split.name: {"read": split.read, "duplicates": split.duplicates, "bad": dict(sorted(split.bad.items()))}
            for split in splits
        },
        "written": written,
        "problems_in_train_and_test": overlap,
    }
    bad_rows = [asdict(bad) for split in splits for bad in split.bad_rows]
    new = write_folder(options.out, tables, bad_rows, manifest, options.overwrite)
    sys.stdout.write(_report(splits, written))
    if overlap:
        sys.stdout.write(f"{overlap:,} problems are in train and in test; they were left there\n")
    if bad_rows:
        sys.stdout.write(f"bad rows: {options.out / BAD_ROWS}\n")
    sys.stdout.write(f"{options.out}{'' if new else ' (unchanged)'}\n")
    return 0


def _source(options: argparse.Namespace, data: DataSet) -> Source:
    from verl_dra.data.sources import HubSource, LocalSource

    if options.input:
        return LocalSource(data, options.input, options.split)
    # Of a set that nobody has described here most have this split alone.
    splits = options.split or (("train",) if data.name == OTHER else None)
    return HubSource(data, options.repo or next(iter(data.repos)), options.revision, splits)


def _tables(options: argparse.Namespace, splits: Sequence[Split]) -> dict[str, Any]:
    """The Arrow table of each file."""
    from verl_dra.data.prepare import hold_out

    for split in splits:
        if not split.problems:
            raise DataError(f"no row of {split.name} is left to write, of {split.read:,} read")
    tables = {split.name: split.table() for split in splits}
    if options.val:
        if "train" not in tables:
            raise DataError("--val holds rows of train out, and there is no train file")
        if options.val >= tables["train"].num_rows:
            raise DataError(
                f"--val {options.val} would leave nothing of the {tables['train'].num_rows:,} rows of train"
            )
        train = next(split for split in splits if split.name == "train")
        tables["train"], tables["val"] = hold_out(train, options.val, options.seed or 0)
    return tables


def _overlap(splits: Iterable[Split]) -> int:
    """Problems that are in every split, where there are several."""
    keys = [split.problems.keys() for split in splits]
    return len(keys[0] & keys[1]) if len(keys) > 1 else 0


def _report(splits: Sequence[Split], written: dict[str, int]) -> str:
    rows = [[s.name, f"{s.read:,}", f"{s.duplicates:,}", f"{s.bad.total():,}", f"{written[s.name]:,}"] for s in splits]
    if "val" in written:
        rows.append(["val (held out of train)", "", "", "", f"{written['val']:,}"])
    reasons = [[reason, s.name, f"{count:,}"] for s in splits for reason, count in sorted(s.bad.items())]
    text = table(["split", "rows read", "duplicates", "bad", "written"], rows)
    return text + ("\n" + table(["bad rows", "split", "rows"], reasons) if reasons else "")


def _complaint(splits: Sequence[Split]) -> str:
    """How many rows are bad and why, and the first of them."""
    reasons: Counter[str] = Counter()
    for split in splits:
        reasons.update(split.bad)
    shown: list[BadRow] = [row for split in splits for row in split.bad_rows][:SHOWN_BAD_ROWS]
    why = "; ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
    read = sum(split.read for split in splits)
    lines = [f"verl-dra prepare-data: {reasons.total():,} of {read:,} rows are bad ({why})"]
    lines += [f"  {row.file} row {row.row}: {row.reason}: {row.detail}" for row in shown]
    if reasons.total() > len(shown):
        lines.append(f"  and {reasons.total() - len(shown):,} more")
    return "\n".join(lines) + "\n"
