"""The command `verl-dra evaluate`: its options, and what it says."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from verl_dra.embedding import EmbeddingConfig, Encoder, EncoderUnavailableError, build_encoder
from verl_dra.embedding.model_path import model_path
from verl_dra.evaluate.benchmarks import BENCHMARKS, Problem, load, of_columns
from verl_dra.evaluate.compare import compare, in_common, paired
from verl_dra.evaluate.estimators import EvaluationError
from verl_dra.evaluate.generate import Sampling, generate
from verl_dra.evaluate.generations import Generations, GenerationsFile, Sample, read
from verl_dra.evaluate.measure import Check, check_samples, fewest_samples, judge, measure
from verl_dra.missing import in_words
from verl_dra.terminal.tables import fitted, table

_PACKAGES = ("verl_dra", "torch", "vllm", "transformers", "sentence-transformers", "math-verify")
_SAMPLING = tuple(field.name for field in fields(Sampling))
_SHOWN_DIVERSITY = ("effective_paths", "effective_paths/right", "smi", "smi/right")

_K = (1, 8)
"""Of pass@k and maj@k, where --k is not given."""
_SHOWN_FLIPS = 20
_SHOWN_CHARACTERS = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options of `verl-dra evaluate`."""
    defaults = {field.name: field.default for field in fields(Sampling)}
    what = parser.add_argument_group("what is evaluated: a model, or samples that are there")
    what.add_argument("--model", help="folder or hub name")
    what.add_argument(
        "--benchmark",
        nargs="+",
        metavar="NAME",
        help=f"problems for --model: {', '.join(BENCHMARKS)}; or any name, for a file whose columns are named",
    )
    what.add_argument("--data", type=Path, metavar="FILE", help="the one --benchmark's file, in its published layout")
    what.add_argument("--problem-column", metavar="COLUMN", help="of --data, where it is a file of your own")
    what.add_argument("--answer-column", metavar="COLUMN", help="of --data: the right answers")
    what.add_argument(
        "--solution-column", metavar="COLUMN", help="of --data: solutions, whose last \\boxed is the answer"
    )
    what.add_argument(
        "--generations",
        type=Path,
        metavar="FILE",
        help="with --model: where samples are kept, and gone on with (default: generations.jsonl beside --out); "
        "without: samples to evaluate, of an earlier run or as veRL dumps them (trainer.validation_data_dir)",
    )
    what.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="two files of samples, of two models on the same problems: what B gains, paired by problem",
    )
    sampling = parser.add_argument_group("sampling (the defaults are the paper's)")
    sampling.add_argument("--samples", type=int, default=defaults["samples"], help="of each problem (%(default)s)")
    sampling.add_argument("--temperature", type=float, default=defaults["temperature"], help="(%(default)s)")
    sampling.add_argument("--top-p", type=float, default=defaults["top_p"], help="(%(default)s)")
    sampling.add_argument("--top-k", type=int, help="tokens to choose from (default: all)")
    sampling.add_argument("--max-tokens", type=int, default=defaults["max_tokens"], help="new tokens (%(default)s)")
    sampling.add_argument("--seed", type=int, default=0, help="of samples and intervals (%(default)s)")
    sampling.add_argument(
        "--prompt-template",
        dest="prompt",
        metavar="TEXT",
        help="what the user says, with {problem} in it (default: the paper's; of choices, one that asks for a letter)",
    )
    sampling.add_argument("--system-prompt", metavar="TEXT", help="what the system says before it (default: nothing)")
    sampling.add_argument(
        "--chat-template-args",
        dest="chat_template",
        type=json.loads,
        metavar="JSON",
        help="arguments of the model's chat template, such as '{\"enable_thinking\": false}' for Qwen3",
    )
    sampling.add_argument(
        "--engine",
        type=json.loads,
        default={},
        metavar="JSON",
        help='arguments of vLLM\'s engine, such as \'{"tensor_parallel_size": 2, "max_model_len": 36864}\'; unless '
        "data_parallel_size is one of them, there are as many copies of the model as the GPUs have room for",
    )
    scores = parser.add_argument_group("measures")
    scores.add_argument(
        "--k",
        type=int,
        nargs="+",
        help="of pass@k and maj@k (default: of 1 and 8 those for which every problem has samples)",
    )
    scores.add_argument("--bootstrap", type=int, default=10000, help="draws of the intervals (%(default)s)")
    scores.add_argument("--recheck", action="store_true", help="check samples that say whether they are right, too")
    scores.add_argument(
        "--judge",
        choices=("right", "lighteval"),
        default="right",
        help="how answers are checked: right, or as the evaluations of the paper did (%(default)s)",
    )
    scores.add_argument(
        "--encoder", default=EmbeddingConfig.encoder, help="as dra.embedding.encoder, or none (%(default)s)"
    )
    scores.add_argument("--embedding-model", default=EmbeddingConfig.model, help="as dra.embedding.model (%(default)s)")
    scores.add_argument("--embedding-base-url", metavar="URL", help="as dra.embedding.base_url, for --encoder openai")
    scores.add_argument("--out", type=Path, default=Path("evaluation.json"), help="the report (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Evaluate. 0: done; 1: something can't be read, loaded or evaluated; 2: impossible options."""
    from verl_dra.rewards import CheckerError, check

    try:
        _check(options)
    except EvaluationError as error:
        sys.stderr.write(f"verl-dra evaluate: error: {error}\n")
        return 2
    try:
        return (_compare if options.compare else _evaluate)(options, partial(check, judge=options.judge))
    except ImportError as error:
        sys.stderr.write(f"verl-dra evaluate: error: {in_words(error)}\n")
    except (EvaluationError, CheckerError, EncoderUnavailableError, ValueError, OSError) as error:
        sys.stderr.write(f"verl-dra evaluate: error: {error}\n")
    return 1


def _check(options: argparse.Namespace) -> None:
    if options.compare and (options.model or options.benchmark or options.generations):
        raise EvaluationError("--compare is of samples that are there, and goes without --model and --generations")
    if not options.model and not options.generations and not options.compare:
        raise EvaluationError("give --model and --benchmark, or --generations or --compare with samples that are there")
    if bool(options.model) != bool(options.benchmark):
        raise EvaluationError("--model and --benchmark go together")
    of_answers = [column for column in (options.answer_column, options.solution_column) if column]
    if options.problem_column or of_answers:
        if not (options.data and options.problem_column and len(of_answers) == 1):
            raise EvaluationError(
                "a file of your own is --data FILE with --problem-column and one of --answer-column, --solution-column"
            )
    elif unknown := [name for name in options.benchmark or () if name not in BENCHMARKS]:
        raise EvaluationError(
            f"--benchmark {unknown[0]} is none of {', '.join(BENCHMARKS)}; a file of your own needs --data and columns"
        )
    if options.data and len(options.benchmark or ()) != 1:
        raise EvaluationError("--data is the file of one --benchmark")
    if min(options.k or _K) < 1 or options.bootstrap < 1 or options.samples < 1 or options.max_tokens < 1:
        raise EvaluationError("--k, --bootstrap, --samples and --max-tokens must be at least 1")
    if options.seed < 0:
        raise EvaluationError(f"--seed must be 0 or more, not {options.seed}")
    if not 0 <= options.temperature < math.inf:
        raise EvaluationError(f"--temperature must be 0 or more and finite, not {options.temperature}")
    if not 0 < options.top_p <= 1:
        raise EvaluationError(f"--top-p must be above 0 and at most 1, not {options.top_p}")
    if options.model and options.k and max(options.k) > options.samples:
        raise EvaluationError(f"--k {max(options.k)} needs as many --samples, not {options.samples}")
    if options.top_k is not None and options.top_k < 1:
        raise EvaluationError(f"--top-k must be at least 1, not {options.top_k}")
    if options.chat_template is not None and not isinstance(options.chat_template, dict):
        raise EvaluationError("--chat-template-args must be a JSON object")
    if options.prompt is not None and "{problem}" not in options.prompt:
        raise EvaluationError("--prompt-template must have {problem} in it")
    if not isinstance(options.engine, dict) or {"model", "seed"} & set(options.engine):
        raise EvaluationError("--engine must be a JSON object, without model and seed, which have options of their own")
    if options.out.is_dir():
        raise EvaluationError(f"--out {options.out} is a folder; give a file")


def _evaluate(options: argparse.Namespace, check: Check) -> int:
    # All that can be wrong is found out before samples are made.
    if options.model:
        model_path(options.model, key="--model")
    own = None
    if options.problem_column:
        own = of_columns(options.problem_column, options.answer_column, options.solution_column)
    problems = {name: load(name, options.data, own) for name in options.benchmark or ()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    _warn_of_unreadable(problems, check)
    if options.model:
        encoder = _encoder(options)
        samples, sampling = _generated(options, problems)
        options.k = _ks(options, samples)
    else:
        there = _read(options.generations, options.recheck)
        samples, sampling = there.samples, there.settings
        options.k = _ks(options, samples)
        encoder = _encoder(options)
    by_benchmark: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_benchmark[sample.benchmark].append(sample)
    results = {
        name: measure(judge(of, check, options.recheck), options.k, encoder, options.bootstrap, options.seed)
        for name, of in by_benchmark.items()
    }
    _write(options, encoder, {"sampling": sampling, "benchmarks": results})
    sys.stdout.write(_table(results, encoder))
    sys.stdout.write(f"{options.out}\n")
    return 0


def _compare(options: argparse.Namespace, check: Check) -> int:
    options.out.parent.mkdir(parents=True, exist_ok=True)
    there = [_read(path, options.recheck) for path in options.compare]
    options.k = _ks(options, *(of.samples for of in there))
    pairs = paired(there[0].samples, there[1].samples)
    encoder = _encoder(options)
    found = {}
    for name, both in pairs.items():
        common = in_common(*both)
        first, second = (
            measure(judge(of, check, options.recheck), options.k, encoder, options.bootstrap, options.seed)
            for of in common
        )
        numbers = [[{s.problem for s in of} for of in pair] for pair in (both, common)]
        left_out = [len(all_ - kept) for all_, kept in zip(*numbers, strict=True)]
        found[name] = {
            "first": first,
            "second": second,
            **compare((first, second), common, options.bootstrap, options.seed),
            "left_out": left_out,
        }
    _write(options, encoder, {"sampling": [of.settings for of in there], "comparisons": found})
    for name, comparison in found.items():
        sys.stdout.write(_comparison(name, comparison, options.compare))
    if encoder is not None:
        sys.stdout.write(f"diversity as seen by {encoder}\n")
    sys.stdout.write(f"{options.out}\n")
    return 0


def _write(options: argparse.Namespace, encoder: Encoder | None, found: dict[str, Any]) -> None:
    # What is not of this run is not said to be: samples that were there have settings of their own.
    left_out = {"run", *_SAMPLING} - {"seed"}
    settings = {key: value for key, value in vars(options).items() if key not in left_out}
    report = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()},
        "encoder": None if encoder is None else str(encoder),
        "versions": {name: _version(name) for name in _PACKAGES},
        **found,
    }
    part = options.out.with_name(f".{options.out.name}.part")
    part.write_text(json.dumps(report, indent=1, default=str) + "\n")
    part.replace(options.out)


def _warn_of_unreadable(problems: dict[str, list[Problem]], check: Check) -> None:
    """Say which gold answers nothing can be equal to. A checker that doesn't work is found out here, too."""
    for name, of in problems.items():
        with ThreadPoolExecutor() as threads:
            verdicts = list(threads.map(lambda problem: check(problem.answer, ""), of))
        bad = [str(p.number + 1) for p, verdict in zip(of, verdicts, strict=True) if not verdict.gold_parsed]
        if bad:
            sys.stderr.write(
                f"verl-dra evaluate: {name}: the answers of {len(bad)} rows can't be read, and count as never reached: "
                f"{', '.join(bad[:10])}{' ...' if len(bad) > 10 else ''}\n"
            )


def _encoder(options: argparse.Namespace) -> Encoder | None:
    if options.encoder == "none":
        return None
    config = EmbeddingConfig(encoder=options.encoder, base_url=options.embedding_base_url)
    if options.encoder != "ngram":
        config.model = options.embedding_model
    return build_encoder(config)


def _generated(
    options: argparse.Namespace, problems: dict[str, list[Problem]]
) -> tuple[list[Sample], dict[str, Any] | None]:
    """Samples made now, and the settings that they were made with."""
    sampling = Sampling(**{name: getattr(options, name) for name in _SAMPLING})
    file = GenerationsFile(options.generations or options.out.with_name("generations.jsonl"))
    generate(problems, sampling, file, options.engine)
    samples = [s for s in file.samples if s.benchmark in problems and s.sample < sampling.samples]
    return samples, {**asdict(sampling), "engine": options.engine}


def _ks(options: argparse.Namespace, *files: Sequence[Sample]) -> list[int]:
    """The k that were asked for, or those of the default for which every problem has samples; says which are not."""
    if options.k:
        for samples in files:
            check_samples(samples, options.k)
        return list(options.k)
    fewest = min(map(fewest_samples, files))
    kept = [k for k in _K if k <= fewest]
    if left_out := [k for k in _K if k > fewest]:
        names = " and ".join(f"pass@{k} and maj@{k}" for k in left_out)
        sys.stderr.write(
            f"verl-dra evaluate: {names} are left out: a problem has {fewest} samples; --k chooses others\n"
        )
    return kept


def _table(results: dict[str, dict[str, Any]], encoder: Encoder | None) -> str:
    names = [
        name
        for name in next(iter(results.values()))["mean"]
        if name.startswith(("pass@", "maj@")) or name in _SHOWN_DIVERSITY
    ]
    rows = []
    for benchmark, result in results.items():
        cells = []
        for name in names:
            mean, bounds = result["mean"][name], result["interval"][name]
            cells.append(_cell(name, mean, bounds))
        counts = result["counts"]
        of = counts["samples"]
        rows.append(
            [
                benchmark,
                str(counts["problems"]),
                str(of),
                *cells,
                *(f"{counts[name] / of:.1%}" for name in ("truncated", "answer_unparsed", "check_failed")),
            ]
        )
    header = ["benchmark", "problems", "samples", *names, "truncated", "unparsed", "check failed"]
    notes = ["pass@k and maj@k in %, means over problems with 95 % intervals (Bayesian bootstrap)"]
    if encoder is not None:
        notes.append(f"diversity as seen by {encoder}")
    for benchmark, result in results.items():
        counts = result["counts"]
        if counts["fewest_samples"] < counts["most_samples"]:
            notes.append(
                f"{benchmark}: problems have {counts['fewest_samples']} to {counts['most_samples']} samples, all of "
                "them count, and each problem weighs the same"
            )
        if counts["gold_unparsed"]:
            notes.append(f"{benchmark}: {counts['gold_unparsed']} samples count as wrong: their gold can't be read")
    return fitted(header, rows) + "".join(f"{note}\n" for note in notes)


def _comparison(name: str, found: dict[str, Any], files: Sequence[Path]) -> str:
    """A row a measure, and the problems that flipped."""
    rows = [
        [
            measure,
            *(_cell(measure, found[of]["mean"][measure], None) for of in ("first", "second")),
            _cell(measure, found["difference"][measure], found["interval"][measure]),
        ]
        for measure in found["difference"]
        if measure.startswith(("pass@", "maj@")) or measure in _SHOWN_DIVERSITY
    ]
    text = table([name, "A", "B", "B - A"], rows)
    text += f"A is {files[0]}, B is {files[1]}\n"
    text += f"means over {found['problems']:,} problems of both, and 95 % intervals of B - A, paired by problem\n"
    if any(found["left_out"]):
        first, second = found["left_out"]
        text += f"left out: {first:,} problems of A and {second:,} of B, which the other does not have\n"
    gained = sum(flip["pass@1"][1] > flip["pass@1"][0] for flip in found["flipped"])
    lost = len(found["flipped"]) - gained
    text += f"right more often than not in B alone: {gained:,} problems; in A alone: {lost:,}\n"
    for flip in found["flipped"][:_SHOWN_FLIPS]:
        before, after = flip["pass@1"]
        question = " ".join(flip["question"].split())
        shown = question if len(question) <= _SHOWN_CHARACTERS else f"{question[: _SHOWN_CHARACTERS - 3]}..."
        text += f"  {flip['numbers'][0]}: {before:.0%} -> {after:.0%}  {shown}\n"
    if len(found["flipped"]) > _SHOWN_FLIPS:
        text += f"  and {len(found['flipped']) - _SHOWN_FLIPS:,} more, in the report\n"
    return text


def _read(path: Path, recheck: bool) -> Generations:
    there = read(path, recheck)
    if there.torn:
        sys.stderr.write(f"verl-dra evaluate: {path}: the last line is torn, and left out\n")
    return there


def _cell(name: str, mean: float | None, bounds: Sequence[float] | None) -> str:
    if mean is None:
        return "-"
    scale, digits = (100, 1) if name.startswith(("pass@", "maj@")) else (1, 2)
    shown = [f"{round(scale * value, digits) + 0.0:.{digits}f}" for value in (mean, *(bounds or ()))]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if bounds else shown[0]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
