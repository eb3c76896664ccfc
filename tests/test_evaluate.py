"""`verl-dra evaluate`: estimators against brute force, files that are cut off, and a report worked out by hand."""

from __future__ import annotations

import itertools
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import isolated
import numpy as np
import pandas as pd
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_dra.cli import main
from verl_dra.evaluate.benchmarks import BENCHMARKS, PROMPT, load
from verl_dra.evaluate.estimators import EvaluationError, distinct_n, interval, maj_at_k, pass_at_k
from verl_dra.evaluate.generations import GenerationsFile, Sample, read

BOXED = r"so \boxed{%s}"


@given(samples=st.lists(st.booleans(), min_size=1, max_size=9), data=st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples: list[bool], data: Any) -> None:
    k = data.draw(st.integers(1, len(samples)))
    subsets = list(itertools.combinations(samples, k))
    exact = Fraction(sum(any(subset) for subset in subsets), len(subsets))
    assert pass_at_k(len(samples), sum(samples), k) == pytest.approx(float(exact), abs=1e-12)


def vote(answers: tuple[str | None, ...]) -> Fraction:
    """The chance that the winner is "right", ties drawn."""
    votes = [answer for answer in answers if answer is not None]
    if not votes:
        return Fraction(0)
    most = max(votes.count(answer) for answer in votes)
    winners = {answer for answer in votes if votes.count(answer) == most}
    return Fraction("right" in winners, len(winners))


answer_lists = st.lists(st.sampled_from(["right", "a", "b", None]), min_size=1, max_size=7)


@given(answers=answer_lists)
def test_a_vote_of_all_samples_is_exact(answers: list[str | None]) -> None:
    right = [answer == "right" for answer in answers]
    assert maj_at_k(answers, right, len(answers)) == pytest.approx(float(vote(tuple(answers))))


@settings(max_examples=20, deadline=None)
@given(answers=answer_lists, data=st.data())
def test_a_vote_of_fewer_is_near_the_mean_over_all_subsets(answers: list[str | None], data: Any) -> None:
    k = data.draw(st.integers(1, len(answers)))
    subsets = list(itertools.combinations(answers, k))
    exact = float(sum(map(vote, subsets), Fraction(0)) / len(subsets))
    right = [answer == "right" for answer in answers]
    # 1,000 subsets: five standard errors of a share are at most 0.08.
    assert maj_at_k(answers, right, k) == pytest.approx(exact, abs=0.08)
    assert maj_at_k(answers, right, k, seed=3) == maj_at_k(answers, right, k, seed=3)


@pytest.mark.parametrize("estimate", [lambda k: pass_at_k(4, 1, k), lambda k: maj_at_k(["a"] * 4, [True] * 4, k)])
def test_more_tries_than_samples_are_refused(estimate: Any) -> None:
    with pytest.raises(EvaluationError, match="@5 needs 5 samples of each problem, and one has 4"):
        estimate(5)


def test_distinct_n_by_hand() -> None:
    # Words: a b a, b c. Of 5 words 3 are different; of the pairs a-b, b-a, b-c all 3; there is one triple, no four.
    assert [distinct_n(["a b a", "b c"], n) for n in (1, 2, 3, 4)] == [3 / 5, 1, 1, 0]
    assert distinct_n(["same words"] * 4, 2) == 1 / 4


def test_intervals_hold_the_mean_and_shrink_with_problems() -> None:
    generator = np.random.default_rng(0)
    missed = 0
    for seed in range(200):
        low, high = interval(generator.binomial(1, 0.3, size=60), draws=500, seed=seed)
        missed += not low <= 0.3 <= high
    assert 2 <= missed <= 26  # 5 % of 200 are 10
    few, many = (interval([0, 1] * n, draws=2000) for n in (10, 1000))
    assert few[1] - few[0] > 5 * (many[1] - many[0])
    assert interval([1.0, 1.0], draws=10) == (1, 1)


COLUMNS = {
    "aime24": {"id": 60, "problem": "p", "solution": "s", "answer": "042", "url": "u", "year": "2024"},
    "math_500": {"problem": "p", "solution": r"so $\boxed{042}$", "answer": "042", "subject": "a", "level": 1},
    "amc23": {"id": 0, "problem": "p", "answer": "042", "url": "u"},
    "minerva": {"problem": "p", "solution": r"so $\boxed{042}$", "type": "t"},
    "olympiadbench": {"question": "p", "solution": ["s"], "answer": "042"},
}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json"])
@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_published_layouts_are_read(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"file.{kind}"
    frame = pd.DataFrame([COLUMNS[name]] * 3)
    if kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=kind == "jsonl")
    problems = load(name, path)
    assert [p.number for p in problems] == [0, 1, 2]
    assert problems[1].text == "p"
    assert "042" in problems[1].answer


def test_several_answers_of_a_problem_are_one(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text(json.dumps({"question": "p", "answer": ["1", "2"]}) + "\n")
    assert load("olympiadbench", path)[0].answer == "1, 2"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"question": "p", "answer": "1"}\n', r"aime24 has the column problem; there are question, answer"),
        ('{"problem": "", "answer": "1"}\n{"problem": "p", "answer": "1"}\n', "1 rows have no problem.*such as 1$"),
        ("{torn", "can't be read"),
        ("", "has no rows"),
    ],
)
def test_a_file_that_is_no_benchmark_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=says):
        load("aime24", path)


def sample(problem: int, number: int, text: str, **other: Any) -> Sample:
    return Sample("aime24", problem, number, f"problem {problem}", "4", text, **other)


def test_a_torn_last_line_counts_as_not_written(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    file = GenerationsFile(path)
    file.begin({"model": "m", "samples": 2})
    file.add([sample(0, 0, "one"), sample(0, 1, "two")])
    path.write_bytes(path.read_bytes()[:-9])
    again = GenerationsFile(path)
    assert [s.text for s in again.samples] == ["one"]
    again.begin({"model": "m", "samples": 2})
    again.add([sample(0, 1, "two \ud800")])
    assert [s.text for s in GenerationsFile(path).samples] == ["one", "two \ud800"]
    with pytest.raises(EvaluationError, match="was made with another model; give another --generations"):
        GenerationsFile(path).begin({"model": "other", "samples": 2})


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    path.write_text('{"settings": {}}\n{"text": "x"}\n')
    with pytest.raises(EvaluationError, match="line 2 is no sample"):
        read(path)
    path.write_text('{"settings": {}}\nno json\n{}\n')
    with pytest.raises(EvaluationError, match="line 2 is not JSON"):
        read(path)


def evaluate(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "report.json"
    assert main(["evaluate", "--out", str(out), "--encoder", "ngram", "--bootstrap", "200", *arguments]) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def test_a_report_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "g.jsonl"
    file = GenerationsFile(path)
    file.begin({})
    # Problem 0: 4 4 5 none: 2 of 4 right, the vote is for 4. Problem 1: 5 5 4 4: a tie. Problem 2: nothing right.
    texts = {0: ["4", "4", "5", None], 1: ["5", "5", "4", "4"], 2: [None, "5", "5", None]}
    file.add(
        sample(problem, i, "I give up" if answer is None else BOXED % answer, truncated=answer is None)
        for problem, answers in texts.items()
        for i, answer in enumerate(answers)
    )
    result = evaluate(tmp_path, "--generations", str(path), "--k", "1", "2", "4")["benchmarks"]["aime24"]
    assert result["problems"]["pass@1"] == [0.5, 0.5, 0]
    assert result["problems"]["pass@2"] == pytest.approx([1 - 1 / 6, 1 - 1 / 6, 0])
    assert result["problems"]["pass@4"] == [1, 1, 0]
    assert result["problems"]["maj@4"] == [1, 0.5, 0]
    assert result["mean"]["maj@4"] == pytest.approx(0.5)
    assert result["counts"] == {
        "problems": 3,
        "samples": 12,
        "truncated": 3,
        "answer_unparsed": 3,
        "gold_unparsed": 0,
        "check_failed": 0,
    }
    # The right ones of a problem are the same text: one path, an SMI of 1 with the other; problem 2 has none.
    assert result["problems"]["effective_paths/right"] == [pytest.approx(1, abs=1e-5)] * 2 + [None]
    assert result["problems"]["smi/right"] == [pytest.approx(1, abs=1e-5)] * 2 + [None]
    shown = capsys.readouterr().out
    assert "33.3 [0.0, 50.0]" in shown
    assert "diversity as seen by" in shown
    assert "25.0%" in shown


def test_what_verl_dumps_is_read(tmp_path: Path) -> None:
    path = tmp_path / "25.jsonl"
    rows = [
        {"input": q, "output": BOXED % answer, "gts": "4", "score": 2.0, "step": 25, "acc": acc}
        for q in ("one", "two")
        for answer, acc in (("4", 1.0), ("5", 0.0), ("4", 0.0))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = evaluate(tmp_path, "--generations", str(path), "--k", "1")["benchmarks"]["25"]
    assert said["problems"]["pass@1"] == pytest.approx([1 / 3] * 2)
    checked = evaluate(tmp_path, "--generations", str(path), "--k", "1", "--recheck")["benchmarks"]["25"]
    assert checked["problems"]["pass@1"] == pytest.approx([2 / 3] * 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --model and --benchmark, or --generations"),
        (["--model", "m"], "--model and --benchmark go together"),
        (["--model", "m", "--benchmark", "aime24", "amc23", "--data", "f"], "--data is the file of one --benchmark"),
        (["--model", "m", "--benchmark", "aime24", "--samples", "4"], "--k 8 needs as many --samples, not 4"),
        (["--generations", "g", "--prompt", "solve"], "--prompt must have {problem} in it"),
        (["--generations", "g", "--k", "0"], "must be at least 1"),
    ],
)
def test_impossible_options_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert main(["evaluate", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_more_tries_than_a_file_has_samples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "g.jsonl"
    file = GenerationsFile(path)
    file.begin({})
    file.add([sample(0, 0, BOXED % 4)])
    assert main(["evaluate", "--generations", str(path), "--encoder", "none", "--out", str(tmp_path / "o.json")]) == 1
    assert "k=8: problem 0 of aime24 has 1 samples" in capsys.readouterr().err
    assert main(["evaluate", "--generations", str(tmp_path / "none")]) == 1
    assert "there is no file" in capsys.readouterr().err


def test_the_prompt_is_the_papers() -> None:
    assert PROMPT.startswith("Solve the following math problem efficiently and clearly.  The last line")
    assert r"$\boxed{ANSWER}$" in PROMPT
    assert PROMPT.endswith("\n\n{problem}")


@pytest.mark.slow
def test_a_model_is_sampled_through_vllm_and_a_cut_off_run_goes_on(tmp_path: Path) -> None:
    toy.make(tmp_path)
    data = tmp_path / "aime.jsonl"
    data.write_text("".join(json.dumps({"problem": f"say {i}", "answer": str(i)}) + "\n" for i in range(4)))
    command = [
        *("verl-dra", "evaluate", "--model", str(tmp_path / "model"), "--benchmark", "aime24", "--data", str(data)),
        *("--samples", "3", "--k", "1", "3", "--max-tokens", "12", "--prompt", "{problem}", "--encoder", "ngram"),
        *("--engine", '{"dtype": "float32", "enforce_eager": true, "max_model_len": 128}'),
        *("--out", str(tmp_path / "report.json")),
    ]

    def run() -> list[str]:
        log = tmp_path / "log.txt"
        done = isolated.run(command, log=log, cwd=tmp_path, environment={"VERL_PLATFORM": "cpu"}, timeout_s=400)
        assert done.returncode == 0, log.read_text(errors="replace")[-3000:]
        return [s.text for s in sorted(read(generations), key=lambda s: (s.problem, s.sample))]

    generations = tmp_path / "generations.jsonl"
    whole = run()
    assert len(whole) == 12
    assert len(set(whole)) > 6
    result = json.loads((tmp_path / "report.json").read_text())["benchmarks"]["aime24"]
    assert result["counts"]["samples"] == 12
    assert result["counts"]["truncated"] > 0
    lines = generations.read_bytes().splitlines(keepends=True)
    generations.write_bytes(b"".join(lines[:6]) + lines[6][:10])
    assert run() == whole
    os.remove(generations)
