"""`verl-dra evaluate`: estimators against brute force, files that are cut off, and a report worked out by hand."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import isolated
import numpy as np
import pandas as pd
import pytest
import toy
from embedding_server import small_server
from full_disk import full_after
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, hypergeom

from verl_dra import rewards
from verl_dra.algorithm.coverage import pass_at_k
from verl_dra.cli import main
from verl_dra.embedding import EncoderUnavailableError
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.evaluate import command
from verl_dra.evaluate.benchmarks import BENCHMARKS, PROMPT, Problem, load
from verl_dra.evaluate.estimators import EvaluationError, distinct_n, interval, maj_at_k
from verl_dra.evaluate.generate import Sampling, generate
from verl_dra.evaluate.generations import GenerationsFile, Sample, read
from verl_dra.evaluate.measure import check_samples, judge, measure
from verl_dra.rewards import CheckerError
from verl_dra.rewards import check as real_check

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


answer_lists = st.lists(st.sampled_from(["right", "a", "b", "c", None]), min_size=1, max_size=8)


@given(answers=answer_lists, data=st.data())
def test_a_vote_is_the_mean_over_all_subsets(answers: list[str | None], data: Any) -> None:
    k = data.draw(st.integers(1, len(answers)))
    subsets = list(itertools.combinations(answers, k))
    exact = sum(map(vote, subsets), Fraction(0)) / len(subsets)
    assert maj_at_k(answers, [answer == "right" for answer in answers], k) == pytest.approx(float(exact), abs=1e-12)


def test_equal_answers_judged_unlike_are_as_right_as_their_mean() -> None:
    # Two of three samples vote, both for a: of the samples of a one in three is right.
    assert maj_at_k(["a", "a", "a"], [True, False, False], 2) == pytest.approx(1 / 3)
    # Of the three pairs of a, a, b: a wins one, and is half right; two are ties of a and the right b.
    assert maj_at_k(["a", "a", "b"], [True, False, True], 2) == pytest.approx((1 / 2 + 2 * 3 / 4) / 3)


def test_a_vote_of_many_samples_is_quick_and_neither_under_nor_overflows() -> None:
    answers: list[str | None] = [str(i % 10) for i in range(200)]
    assert maj_at_k(answers, [answer == "3" for answer in answers], 100) == pytest.approx(0.1)


def test_a_vote_of_256_in_1024_samples_takes_seconds_at_most() -> None:
    # Many answers of many sizes. Of 1,024 samples for two answers, 516 to 508, the one with more wins a vote of 256 as
    # often as the hypergeometric distribution says.
    mixed: list[str | None] = [str(i) for i in range(1, 140) for _ in range(max(1, 186 // i))]
    two: list[str | None] = ["a"] * 516 + ["b"] * 508
    start = time.process_time()
    votes = [maj_at_k(of, [answer in ("a", "1") for answer in of], 256) for of in (mixed, two)]
    assert time.process_time() - start < 10
    wins = hypergeom(1024, 516, 256)
    assert votes[1] == pytest.approx(wins.sf(128) + wins.pmf(128) / 2, abs=1e-11)
    assert 0.999 < votes[0] < 1


@pytest.mark.parametrize("estimate", [lambda k: pass_at_k(4, 1, k), lambda k: maj_at_k(["a"] * 4, [True] * 4, k)])
def test_more_tries_than_samples_are_refused(estimate: Any) -> None:
    with pytest.raises(ValueError, match="@5 needs 5 samples of each problem, and one has 4"):
        estimate(5)


def test_distinct_n_by_hand() -> None:
    # Words: a b a, b c. Of 5 words 3 are different; of the pairs a-b, b-a, b-c all 3; there is one triple, no four.
    assert [distinct_n(["a b a", "b c"], n) for n in (1, 2, 3, 4)] == [3 / 5, 1, 1, 0]
    assert distinct_n(["same words"] * 4, 2) == 1 / 4


def test_intervals_hold_the_mean_and_shrink_with_problems() -> None:
    generator = np.random.default_rng(0)
    missed = 0
    for seed in range(200):
        low, high = bounds(generator.binomial(1, 0.3, size=60), draws=500, seed=seed, ends=(0, 1))
        missed += not low <= 0.3 <= high
    assert 2 <= missed <= 26  # 5 % of 200 are 10
    few, many = (bounds([0, 1] * n, draws=2000) for n in (10, 1000))
    assert few[1] - few[0] > 5 * (many[1] - many[0])


def bounds(values: Sequence[float], **options: Any) -> tuple[float, float]:
    found = interval(values, **options)
    assert found is not None
    return found


def test_an_interval_of_rights_and_wrongs_is_jeffreys_and_has_a_width_where_all_are_right() -> None:
    for right in (0, 7, 30):
        exact = beta.ppf([0.025, 0.975], right + 0.5, 30 - right + 0.5)
        assert bounds([1.0] * right + [0.0] * (30 - right), draws=20000, ends=(0, 1)) == pytest.approx(exact, abs=0.01)
    low, high = bounds([0.5] * 30, draws=2000, ends=(0, 1))
    assert 0.4 < low < 0.5 < high < 0.6
    assert interval([1.0, 1.0], draws=10) is None  # of how far others may be off nothing is known


COLUMNS = {
    "aime24": {"id": 60, "problem": "p", "solution": "s", "answer": "042", "url": "u", "year": "2024"},
    "math_500": {"problem": "p", "solution": r"so $\boxed{042}$", "answer": "042", "subject": "a", "level": 1},
    "amc23": {"id": 0, "problem": "p", "answer": "042", "url": "u"},
    "minerva": {"problem": "p", "solution": r"so $\boxed{042}$", "type": "t"},
    "olympiadbench": {"question": "p", "solution": ["s"], "answer": "042"},
    **{
        name: {"problem_idx": 1, "problem": "p", "answer": "042", "problem_type": ["Algebra"]}
        for name in ("aime25", "hmmt_feb_2025", "brumo_2025")
    },
    "gpqa_diamond": {
        **{"Question": "p", "Correct Answer": "042", "Incorrect Answer 1": "1", "Incorrect Answer 2": "2"},
        **{"Incorrect Answer 3": "3", "Explanation": "e", "Subdomain": "Genetics", "Record ID": "r"},
    },
}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json", "csv"])
@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_published_layouts_are_read(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"file.{kind}"
    frame = pd.DataFrame([COLUMNS[name]] * 3)
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=kind == "jsonl")
    problems = load(name, path)
    assert [p.number for p in problems] == [0, 1, 2]
    if name == "gpqa_diamond":
        question, _, *choices = problems[1].text.splitlines()
        assert question == "p"
        assert f"{problems[1].answer}) 042" in choices
        assert sorted(choice[3:] for choice in choices) == ["042", "1", "2", "3"]
    else:
        assert (problems[1].text, problems[1].answer) == ("p", "042")


def test_choices_are_in_an_order_of_their_own_and_ask_for_a_letter(tmp_path: Path) -> None:
    path = tmp_path / "gpqa_diamond.csv"
    rows = [{**COLUMNS["gpqa_diamond"], "Question": f"p{i}, or\nnot?"} for i in range(40)]
    pd.DataFrame(rows).to_csv(path, index=False)
    problems = load("gpqa_diamond", path)
    assert {p.answer for p in problems} == set("ABCD")
    assert [p.answer for p in load("gpqa_diamond", path)] == [p.answer for p in problems]
    assert "where LETTER is one of A, B, C and D" in problems[0].prompt
    assert rewards.check("B", "so $\\boxed{B}$").right
    assert not rewards.check("B", "so $\\boxed{C}$").right
    pd.DataFrame([{**rows[0], "Incorrect Answer 2": ""}]).to_csv(path, index=False)
    with pytest.raises(EvaluationError, match="1 rows have no problem or no answer, such as 1"):
        load("gpqa_diamond", path)


def test_a_file_of_ones_own_is_sampled_by_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = tmp_path / "mine.csv", []
    path.write_text('q,a,s\np,7,"so $\\boxed{8}$"\n')

    class StopHereError(ValueError):
        pass

    def stop(problems: Any, *_: Any) -> None:
        asked.append(problems)
        raise StopHereError

    monkeypatch.setattr(command, "generate", stop)
    words = [
        "evaluate",
        "--model",
        str(tmp_path),
        "--data",
        str(path),
        "--encoder",
        "none",
        "--out",
        f"{tmp_path}/o.json",
    ]
    for column in (("--answer-column", "a"), ("--solution-column", "s")):
        assert main([*words, "--benchmark", "mine", "--problem-column", "q", *column]) == 1
    assert asked == [{"mine": [Problem(0, "p", "7")]}, {"mine": [Problem(0, "p", "8")]}]


def test_a_worked_solution_without_one_answer_is_refused_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    solutions = (r"$\boxed{1}$, no: $\boxed{\frac{1}{2}}$", r"The answer is \boxed here.", "It is 5.")
    path.write_text("".join(json.dumps({"problem": "p", "solution": s}) + "\n" for s in solutions))
    with pytest.raises(EvaluationError, match="2 rows have no problem or no answer, such as 2, 3"):
        load("minerva", path)
    path.write_text(path.read_text().splitlines()[0])
    assert load("minerva", path)[0].answer == r"\frac{1}{2}"


def test_several_answers_of_a_problem_are_one(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text(json.dumps({"question": "p", "answer": ["1", "2"]}) + "\n")
    assert load("olympiadbench", path)[0].answer == "1, 2"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"question": "p", "answer": "1"}\n', r"aime24 has the column problem; there are question, answer"),
        ('{"problem": "p", "answer": "1"}\n{"problem": "p"}\n', "1 rows have no problem or no answer, such as 2$"),
        ('{"problem": "p", "answer": "1"}\n{"problem": "p", "an', "row 2 can't be read: not JSON"),
        ('{"problem": "p", "answer": NaN}\n', "1 rows have no problem or no answer, such as 1$"),
        ("[1]", "row 1 can't be read: wrong type"),
        ('{"problem": "", "answer": "1"}\n{"problem": "p", "answer": "1"}\n', "1 rows have no problem.*such as 1$"),
        (
            '{"problem": "p", "answer": ""}\n' * 12,
            "12 rows have no problem or no answer, such as 1, 2, 3, 4, 5, 6, 7, 8, 9, 10$",
        ),
        ("{torn", "can't be read"),
        ("", "has no rows"),
    ],
)
def test_a_file_that_is_no_benchmark_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=says):
        load("aime24", path)


def test_numbers_are_answers_and_missing_ones_are_none(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    pd.DataFrame({"problem": ["p", "q"], "answer": [1.0, float("nan")]}).to_parquet(path)
    with pytest.raises(EvaluationError, match=r"no answer, such as 2$"):
        load("aime24", path)
    pd.DataFrame({"problem": ["p", "q"], "answer": [33, 7]}).to_parquet(path)
    assert [p.answer for p in load("aime24", path)] == ["33", "7"]


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


def line(**other: Any) -> str:
    return json.dumps(asdict(sample(0, 0, "x")) | other) + "\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "x"}\n', "line 2 is no sample: it lacks benchmark, "),
        (line(more=1), "line 2 is no sample: it has more beside"),
        (line(text=5), "line 2 is no sample: text is 5, not str"),
        (line(problem=True), "line 2 is no sample: problem is True, not int"),
        ("no json\n{}\n", "line 2 can't be read: not JSON"),
        ("[1]\n", "line 2 can't be read: wrong type"),
        (line() + line(), "line 3 is the same sample as line 2"),
        (line() + line(sample=1, gold="5"), "line 3: problem 0 of aime24 has another question or gold answer"),
        (line() + '{"settings": {}}\n', "line 3: settings are one JSON object, in the first line"),
        (line(gold=""), "1 of 1 samples have no right answer to check against; it belongs into gold"),
        ("", "holds no samples"),
    ],
)
def test_a_file_with_a_bad_line_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "g.jsonl"
    path.write_text('{"settings": {}}\n' + content)
    with pytest.raises(EvaluationError, match=says):
        read(path)


def test_reading_leaves_a_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    for ending, torn in ((line(sample=1).rstrip("\n"), False), (line(sample=1)[:-9], True)):
        path.write_text(line() + ending)
        before = path.read_bytes()
        there = read(path)
        assert (len(there.samples), there.torn) == (1 if torn else 2, torn)
        assert path.read_bytes() == before


def test_a_last_line_that_lacks_its_newline_alone_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    path.write_text('{"settings": {}}\n' + line().rstrip("\n"))
    file = GenerationsFile(path)
    file.begin({})
    file.add([sample(0, 1, "y")])
    assert [s.text for s in GenerationsFile(path).samples] == ["x", "y"]


def test_samples_are_gone_on_with_for_the_same_problems_alone(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    sampling = Sampling(model="no model is loaded", samples=1, prompt=PROMPT)
    file = GenerationsFile(path)
    file.begin({**asdict(sampling), "engine": {}})
    file.add([sample(0, 0, "x")])
    generate({"aime24": [Problem(0, "problem 0", "4")]}, sampling, GenerationsFile(path), {})
    with pytest.raises(EvaluationError, match="was made with another engine"):
        generate({"aime24": [Problem(0, "problem 0", "4")]}, sampling, GenerationsFile(path), {"max_model_len": 9})
    for other in (Problem(0, "problem 0", "5"), Problem(0, "another", "4")):
        with pytest.raises(EvaluationError, match="problem 0 of aime24 is another one now"):
            generate({"aime24": [other]}, sampling, GenerationsFile(path), {})
    path.write_text(line())
    with pytest.raises(EvaluationError, match="does not say with which settings"):
        generate({"aime24": [Problem(0, "problem 0", "4")]}, sampling, GenerationsFile(path), {})


@dataclass
class Said:
    """A verdict: the answer is the text; x is none, and right is what equals the gold answer."""

    right: bool
    answer: str | None
    gold_parsed: bool = True
    failed: bool = False


def check(gold: str | None, text: str) -> Said:
    return Said(text == gold, None if text == "x" else text)


def test_what_the_source_says_is_kept_unless_rechecked() -> None:
    samples = [sample(0, 0, "4", right=False), sample(0, 1, "4"), sample(0, 2, "x", right=True)]
    kept, rechecked = judge(samples, check), judge(samples, check, recheck=True)
    assert [one.right for one in kept] == [False, True, True]
    assert [one.right for one in rechecked] == [True, True, False]
    assert [one.answer for one in kept] == ["4", "4", None]
    assert [measure(of, [1], None, 10)["counts"]["judged_by_source"] for of in (kept, rechecked)] == [2, 0]


def test_problems_of_different_numbers_of_samples_weigh_the_same() -> None:
    samples = [sample(0, i, text) for i, text in enumerate("4444")] + [
        sample(1, i, text) for i, text in enumerate("45")
    ]
    check_samples(samples, [1, 2])
    result = measure(judge(samples, check), [1, 2], None, 10)
    assert result["problems"]["samples"] == [4, 2]
    assert result["problems"]["right"] == [4, 1]
    assert result["mean"]["pass@1"] == 0.75
    assert result["mean"]["pass@2"] == 1
    assert result["mean"]["maj@2"] == 0.75
    assert (result["counts"]["fewest_samples"], result["counts"]["most_samples"]) == (2, 4)
    with pytest.raises(EvaluationError, match=r"k=3: problem 1 of aime24 has 2 samples; give --k of at most 2"):
        check_samples(samples, [1, 3])


@pytest.mark.parametrize("by_source", [False, True])
def test_a_vote_is_for_a_value_however_it_is_written(by_source: bool) -> None:
    # Of 8 samples 5 say a million, in two ways, and 3 say 7, in three.
    million, seven = ["10^6"] * 3 + ["1000000"] * 2, ["7", "x=7", r"\frac{14}{2}"]
    for gold, maj in (("10^6", 1), ("1{,}000{,}000", 1), ("7", 0), ("8", 0)):
        samples = [
            replace(
                sample(0, i, BOXED % answer),
                gold=gold,
                right=(gold == "7" if i >= 5 else maj == 1) if by_source else None,
            )
            for i, answer in enumerate(million + seven)
        ]
        judged = judge(samples, real_check)
        assert [one.right for one in judged] == [maj == 1] * 5 + [gold == "7"] * 3
        assert len({one.answer for one in judged}) == 2
        assert measure(judged, [8], None, 10)["mean"]["maj@8"] == maj


def test_diversity_of_right_samples_leaves_the_wrong_ones_out() -> None:
    one = measure(judge([sample(0, 0, "4"), sample(0, 1, "4"), sample(0, 2, "5")], check), [1], NgramEncoder(), 10)
    # Of the words 4 4 5 two are different, of 4 4 one. The encoder sees 4 4 as one path, 5 as another of no likeness.
    assert (one["mean"]["distinct-1"], one["mean"]["distinct-1/right"]) == (2 / 3, 1 / 2)
    assert one["mean"]["effective_paths/right"] == pytest.approx(1, abs=1e-5)
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert one["mean"]["effective_paths"] == pytest.approx(math.exp(entropy), abs=1e-5)
    assert one["mean"]["smi"] == pytest.approx((1 + 1 + 0) / 3, abs=1e-5)
    assert one["mean"]["smi/right"] == pytest.approx(1, abs=1e-5)
    none = measure(judge([sample(0, 0, "5")], check), [1], NgramEncoder(), 10)
    assert none["mean"]["smi/right"] is none["interval"]["distinct-1/right"] is None
    assert none["problems"]["effective_paths/right"] == [None]


def evaluate(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "report.json"
    assert main(["evaluate", "--out", str(out), "--encoder", "ngram", "--bootstrap", "200", *arguments]) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def test_the_encoder_can_be_a_server(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    file = GenerationsFile(path)
    file.begin({})
    file.add(sample(0, i, BOXED % answer) for i, answer in enumerate(("4", "4", "5")))
    diversity = []
    with small_server(lambda texts: NgramEncoder().encode(texts).vectors, len, 1000, "grams") as url:
        served = ("--encoder", "openai", "--embedding-base-url", url, "--embedding-model", "grams")
        for encoder in ((), served):
            report = evaluate(tmp_path, "--generations", str(path), "--k", "1", *encoder)
            diversity.append(report["benchmarks"]["aime24"]["mean"]["effective_paths"])
    assert report["encoder"] == f"openai: grams at {url}"
    assert 1 < diversity[0] == pytest.approx(diversity[1], abs=1e-5)


def test_a_report_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "g.jsonl"
    file = GenerationsFile(path)
    file.begin({"model": "m", "temperature": 1.5})
    # Problem 0: 4 4 5 none: 2 of 4 right, the vote is for 4. Problem 1: 5 5 4 4: a tie. Problem 2: nothing right.
    texts = {0: ["4", "4", "5", None], 1: ["5", "5", "4", "4"], 2: [None, "5", "5", None]}
    file.add(
        sample(problem, i, "I give up" if answer is None else BOXED % answer, truncated=answer is None)
        for problem, answers in texts.items()
        for i, answer in enumerate(answers)
    )
    report = evaluate(tmp_path, "--generations", str(path), "--k", "1", "2", "4")
    assert report["sampling"] == {"model": "m", "temperature": 1.5}
    assert "temperature" not in report["settings"]
    assert report["settings"]["seed"] == 0
    assert report["versions"]["torch"]
    assert report["encoder"] == "hashed character 3-grams"
    result = report["benchmarks"]["aime24"]
    assert result["problems"]["pass@1"] == [0.5, 0.5, 0]
    assert result["problems"]["pass@2"] == pytest.approx([1 - 1 / 6, 1 - 1 / 6, 0])
    assert result["problems"]["pass@4"] == [1, 1, 0]
    assert result["problems"]["maj@4"] == [1, 0.5, 0]
    assert result["mean"]["maj@4"] == pytest.approx(0.5)
    assert result["problems"]["number"] == [0, 1, 2]
    assert result["problems"]["right"] == [2, 2, 0]
    assert result["problems"]["maj@2"] == pytest.approx([(1 + 2 + 2 * 0.5) / 6, (1 + 4 * 0.5) / 6, 0])
    assert result["counts"] == {
        "problems": 3,
        "samples": 12,
        "fewest_samples": 4,
        "most_samples": 4,
        "judged_by_source": 0,
        "truncated": 3,
        "answer_unparsed": 3,
        "gold_unparsed": 0,
        "check_failed": 0,
    }
    # The right ones of a problem are the same text: one path, an SMI of 1 with the other; problem 2 has none.
    assert result["problems"]["effective_paths/right"] == [pytest.approx(1, abs=1e-5)] * 2 + [None]
    assert result["problems"]["smi/right"] == [pytest.approx(1, abs=1e-5)] * 2 + [None]
    shown = capsys.readouterr().out
    assert re.search(r"33\.3 \[1\d\.\d, 6\d\.\d\]", shown)
    assert "diversity as seen by" in shown
    assert "25.0%" in shown


def test_a_disk_that_is_full_in_mid_write_leaves_the_report_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = verl(tmp_path / "1.jsonl", {"score": 1.0}, {"score": 0.0})
    arguments = ("--generations", str(dump), "--k", "1")
    report = evaluate(tmp_path, *arguments)
    with full_after(100):
        assert main(["evaluate", *arguments, "--encoder", "none", "--out", str(tmp_path / "report.json")]) == 1
    assert "File too large" in capsys.readouterr().err
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_of_a_file_with_more_samples_those_asked_for_count(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    data, path = tmp_path / "aime.jsonl", tmp_path / "g.jsonl"
    data.write_text('{"problem": "problem 0", "answer": "4"}\n')
    sampling = Sampling(model=str(tmp_path / "model"), samples=4)
    file = GenerationsFile(path)
    settings = {k: v for k, v in asdict(sampling).items() if k != "samples"}
    file.begin({**settings, "prompt": PROMPT, "engine": {}})
    # Another benchmark's beside them, as two runs can share a file.
    file.add(
        [*(sample(0, i, BOXED % text) for i, text in enumerate("4555")), replace(sample(0, 0, "4"), benchmark="x")]
    )
    arguments = ["--model", str(tmp_path / "model"), "--benchmark", "aime24", "--data", str(data), "--k", "1"]
    for samples, right in ((1, 1.0), (2, 0.5), (4, 0.25)):
        report = evaluate(tmp_path, *arguments, "--generations", str(path), "--samples", str(samples))
        assert report["benchmarks"].keys() == {"aime24"}
        assert report["benchmarks"]["aime24"]["counts"]["samples"] == samples
        assert report["benchmarks"]["aime24"]["mean"]["pass@1"] == right


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


def test_what_the_numbers_leave_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"input": q, "output": BOXED % 4, "gts": gold} for q, gold in (("one", "4"), ("one", "4"), ("two", "$$"))]
    evaluate(tmp_path, "--generations", str(verl(tmp_path / "5.jsonl", *rows)), "--k", "1")
    shown = capsys.readouterr().out
    assert "5: problems have 1 to 2 samples, all of them count, and each problem weighs the same" in shown
    assert "5: 1 samples count as wrong: their gold can't be read" in shown


def verl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps({"input": "q", "output": "o", "gts": "4"} | row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "right"),
    [
        ([{"score": 1.0}, {"score": 0.0}], [True, False]),
        ([{"score": 1}, {"score": -1}], [True, False]),
        ([{"score": 1.0}, {"score": 1.0}], [True, True]),
        ([{"score": 0}, {"score": -1}], [None, None]),
        ([{"score": 2.0}, {"score": 0.0}], [None, None]),  # shaped: it says nothing of right and wrong
        ([{"score": 0.0, "acc": 1.0}, {"score": 1.0, "acc": False}], [True, False]),
        ([{"score": 1.0, "acc": None}, {"score": 1.0, "acc": True}], [None, True]),
        ([{}, {}], [None, None]),
    ],
)
def test_what_verl_dumps_says_of_right_and_wrong(
    tmp_path: Path, rows: list[dict[str, Any]], right: list[bool | None]
) -> None:
    path = verl(tmp_path / "1.jsonl", *rows)
    assert [s.right for s in read(path).samples] == right
    assert [s.right for s in read(path, recheck=True).samples] == [None, None]


def test_samples_that_verl_dumps_are_grouped_by_input_and_right_answer(tmp_path: Path) -> None:
    rows = [{"gts": "4"}, {"gts": ["4"]}, {"gts": 4}, {"gts": "5"}, {"input": "r"}, {}]
    there = read(verl(tmp_path / "1.jsonl", *rows)).samples
    assert [(s.problem, s.sample) for s in there] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (0, 3)]
    assert [s.gold for s in there] == ["4", "4", "4", "5", "4", "4"]


def test_a_dump_of_verls_without_right_answers_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    rows = [{"input": "q", "output": "o", "score": 0.5, "step": 1}] * 2
    path.write_text("\ufeff" + "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        EvaluationError, match="2 of 2 samples have no right answer to check against; it belongs into g"
    ):
        read(path)
    path.write_text("".join(json.dumps({**row, "acc": 1}) + "\n" for row in rows))
    assert [s.right for s in read(path).samples] == [True, True]
    path.write_text('{"prompt": "q", "completion": "o"}\n')
    with pytest.raises(
        EvaluationError, match=r"line 1 is no sample: it lacks benchmark, .* has prompt, completion beside"
    ):
        read(path)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"acc": 0.5}, "line 2: acc is 0.5, neither 0 nor 1; --recheck"),
        ({"output": None}, "line 2: output must be a text, not NoneType"),
        ({"gts": None}, "1 of 2 samples have no right answer to check against; it belongs into gts"),
    ],
)
def test_bad_rows_of_what_verl_dumps_are_named(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    path = verl(tmp_path / "1.jsonl", {}, row)
    with pytest.raises(EvaluationError, match=says):
        read(path)
    path.write_text(path.read_text().splitlines()[0] + '\n{"input": "q"}\n')
    with pytest.raises(EvaluationError, match="line 2 has no output"):
        read(path)


JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 1)
    | st.sampled_from([10**400, 1e308, math.nan, math.inf, "", "x", "4", "\ud800"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["settings", "text", "input"]), inner),
    max_leaves=4,
)
KEYS = st.sampled_from([*asdict(sample(0, 0, "x")), "input", "output", "gts", "score", "acc", "settings", "answer"])
ROWS = st.sampled_from([asdict(sample(0, 0, "x")), {"input": "q", "output": "o", "gts": "4", "score": 1.0}])
FILES = st.lists(
    st.one_of(
        st.builds(lambda row, key, junk: json.dumps({**row, key: junk}).encode(), ROWS, KEYS, JUNK),
        st.builds(lambda row, key: json.dumps({k: v for k, v in row.items() if k != key}).encode(), ROWS, KEYS),
        JUNK.map(lambda junk: json.dumps(junk).encode()),
        st.binary(max_size=20),
        st.sampled_from([b'{"settings": {}}', b'{"input": "q", "out', b"", b"\xff", b"\0"]),
        st.just(100_000).map(lambda deep: b"[" * deep),
    ),
    max_size=4,
).map(b"\n".join)


@settings(max_examples=80)
@given(content=FILES, recheck=st.booleans(), suffix=st.sampled_from([".jsonl", ".json", ".parquet"]))
def test_whatever_stands_in_a_file_of_samples_or_problems_it_is_read_or_refused(
    content: bytes, recheck: bool, suffix: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, f"file{suffix}")
        path.write_bytes(content)
        lines = [line for line in content.split(b"\n") if line.strip()]
        refusals = []
        try:
            there = read(path, recheck)
            assert len(there.samples) == len(lines) - (there.settings is not None) - there.torn
            judged = judge(there.samples, check, recheck)
            for benchmark in {one.benchmark for one in there.samples}:
                assert measure([one for one in judged if one.sample.benchmark == benchmark], [1], None, 2)
        except EvaluationError as error:
            refusals.append(str(error))
        try:
            file = GenerationsFile(path)
            file.begin({"model": "m"})
            file.add([sample(99, 0, "another")])
            assert GenerationsFile(path).samples == file.samples
        except EvaluationError as error:
            refusals.append(str(error))
        path.write_bytes(content)
        for benchmark in ("aime24", "olympiadbench"):
            try:
                problems = load(benchmark, path)
                assert problems
                assert all(problem.text and problem.answer for problem in problems)
            except EvaluationError as error:
                refusals.append(str(error))
        assert all(str(path) in refusal for refusal in refusals)


def test_a_model_that_is_not_there_is_found_out_before_problems_are_fetched(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("problems were fetched")

    monkeypatch.setattr(command, "load", never)
    assert main(["evaluate", "--model", "/no/model", "--benchmark", "aime24"]) == 1
    assert "--model: there is no folder '/no/model'" in capsys.readouterr().err


def test_a_checker_that_does_not_work_is_found_out_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(gold: str | None, text: str, judge: str) -> Any:
        raise CheckerError("no math-verify here")

    def never(*_: Any) -> None:
        raise AssertionError("samples were made")

    data = tmp_path / "a.jsonl"
    data.write_text('{"problem": "p", "answer": "1"}\n{"problem": "p", "answer": "$$"}\n')
    monkeypatch.setattr(command, "generate", never)
    arguments = ["evaluate", "--model", str(tmp_path), "--benchmark", "aime24", "--data", str(data)]
    arguments += ["--encoder", "ngram", "--out", str(tmp_path / "new" / "o.json")]
    with monkeypatch.context() as patch:
        patch.setattr("verl_dra.rewards.check", broken)
        assert main(arguments) == 1
    assert "no math-verify here" in capsys.readouterr().err
    monkeypatch.setattr(command, "build_encoder", broken_encoder)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "the answers of 1 rows can't be read, and count as never reached: 2\n" in said
    assert "no server" in said


def broken_encoder(config: Any) -> Any:
    raise EncoderUnavailableError("no server")


def test_a_missing_model_is_found_out_before_it_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"problem": "p", "answer": "1"}\n')
    out = str(tmp_path / "o.json")
    arguments = ["--model", str(tmp_path / "none"), "--benchmark", "aime24", "--data", str(data), "--out", out]
    assert main(["evaluate", *arguments, "--encoder", "none"]) == 1
    assert "--model: there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "generations.jsonl").exists()


OWN = ("--problem-column", "p", "--answer-column", "a")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --model and --benchmark, or --generations"),
        (["--model", "m"], "--model and --benchmark go together"),
        (["--model", "m", "--benchmark", "aime24", "amc23", "--data", "f"], "--data is the file of one --benchmark"),
        (
            ["--model", "m", "--benchmark", "aime24", "--samples", "4", "--k", "8"],
            "--k 8 needs as many --samples, not 4",
        ),
        (["--generations", "g", "--prompt-template", "solve"], "--prompt-template must have {problem} in it"),
        (["--model", "m", "--benchmark", "aime2"], "--benchmark aime2 is none of aime24, math_500"),
        (["--model", "m", "--benchmark", "b", *OWN], "is --data FILE with --problem-column"),
        (
            ["--model", "m", "--benchmark", "b", "--data", "f", *OWN, "--solution-column", "s"],
            "and one of --answer-column",
        ),
        (["--generations", "g", "--top-k", "0"], "--top-k must be at least 1, not 0"),
        (["--generations", "g", "--chat-template-args", "[]"], "--chat-template-args must be a JSON object"),
        (["--generations", "g", "--seed", "-1"], "--seed must be 0 or more, not -1"),
        *(
            (
                ["--generations", "g", f"--temperature={value}"],
                f"--temperature must be 0 or more and finite, not {value}",
            )
            for value in ("nan", "inf", "-0.1")
        ),
        *(
            (["--generations", "g", f"--top-p={value}"], f"--top-p must be above 0 and at most 1, not {value}")
            for value in ("0.0", "1.1", "nan")
        ),
        (["--generations", "g", "--engine", '{"seed": 1}'], "without model and seed"),
        (["--generations", "g", "--out", "."], "--out . is a folder"),
        *(
            (["--generations", "g", option, *values], "--k, --bootstrap, --samples and --max-tokens must be at least 1")
            for option, *values in (("--k", "4", "0"), ("--bootstrap", "0"), ("--samples", "0"), ("--max-tokens", "0"))
        ),
        (["--generations", "g", "--engine", "[]"], "--engine must be a JSON object"),
        (["--compare", "a", "b", "--generations", "g"], "--compare is of samples that are there"),
    ],
)
def test_impossible_options_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert main(["evaluate", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--temperature=0", "--top-p=1", "--top-k=1", "--seed=0"],
        ["--k", "1", "--bootstrap=1", "--samples=1", "--max-tokens=1", "--engine={}", "--chat-template-args={}"],
    ],
)
def test_the_least_that_options_can_be_is_taken(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--generations", "/no/file", "--encoder", "none", *options]) == 1
    assert "there is no file" in capsys.readouterr().err


def test_several_benchmarks_are_taken_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--model", "/no/model", "--benchmark", "aime24", "amc23"]) == 1
    assert "--model: there is no folder" in capsys.readouterr().err


def test_more_tries_than_a_file_has_samples_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "g.jsonl"
    file = GenerationsFile(path)
    file.begin({})
    file.add([sample(0, 0, BOXED % 4)])
    command = ["evaluate", "--generations", str(path), "--encoder", "none", "--out", str(tmp_path / "o.json")]
    assert main([*command, "--k", "1", "8"]) == 1
    assert "k=8: problem 0 of aime24 has 1 samples" in capsys.readouterr().err


def test_of_the_usual_tries_those_are_left_out_that_a_file_has_no_samples_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = verl(tmp_path / "1.jsonl", *({"score": float(i < 2)} for i in range(4)))
    report = evaluate(tmp_path, "--generations", str(dump))
    assert report["settings"]["k"] == [1]
    assert report["benchmarks"]["1"]["mean"]["pass@1"] == 0.5
    assert "pass@8" not in report["benchmarks"]["1"]["mean"]
    told = "pass@8 and maj@8 are left out: a problem has 4 samples; --k chooses others\n"
    assert capsys.readouterr().err == f"verl-dra evaluate: {told}"
    dump = verl(tmp_path / "2.jsonl", *({"score": float(i < 2)} for i in range(8)))
    assert evaluate(tmp_path, "--generations", str(dump))["settings"]["k"] == [1, 8]
    assert capsys.readouterr().err == ""


def test_a_file_that_is_not_there_is_refused_before_an_encoder_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("verl_dra.evaluate.command.build_encoder", lambda _: pytest.fail("it was loaded"))
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--generations", "nope.jsonl"]) == 1
    assert capsys.readouterr().err == "verl-dra evaluate: error: there is no file nope.jsonl\n"
    few = verl(tmp_path / "1.jsonl", {"score": 1.0})
    assert main(["evaluate", "--generations", str(few), "--k", "2"]) == 1


def test_a_table_is_no_wider_than_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = verl(tmp_path / "1.jsonl", *({"score": float(i < 2), "output": str(i)} for i in range(8)))
    evaluate(tmp_path, "--generations", str(dump))
    wide = capsys.readouterr().out.splitlines()
    monkeypatch.setenv("COLUMNS", "60")
    evaluate(tmp_path, "--generations", str(dump))
    narrow = capsys.readouterr().out.splitlines()
    assert len(wide[0]) > 60
    assert max(len(line) for line in narrow if not line.startswith(("pass@k", "diversity", str(tmp_path)))) <= 60
    assert [line.split()[0] for line in narrow[2:6]] == ["problems", "samples", "pass@1", "pass@8"]
    assert wide[0].split()[3] == "pass@1"


def test_the_prompt_is_the_papers() -> None:
    assert PROMPT.startswith("Solve the following math problem efficiently and clearly.  The last line")
    assert r"$\boxed{ANSWER}$" in PROMPT
    assert PROMPT.endswith("\n\n{problem}")


def test_equal_answers_vote_together_however_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    file = GenerationsFile(path)
    file.begin({})
    written = [BOXED % "4"] * 2 + [BOXED % "x=4"] * 2 + [BOXED % "7"] * 3
    file.add(sample(0, i, text) for i, text in enumerate(written))
    result = evaluate(tmp_path, "--generations", str(path), "--k", "7")["benchmarks"]["aime24"]
    assert result["problems"]["maj@7"] == [1]


def test_scores_that_are_no_numbers_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    rows = [{"input": "q", "output": BOXED % a, "gts": "4", "score": [float(a == 4)], "step": 1} for a in (4, 5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate(tmp_path, "--generations", str(path), "--k", "1")["benchmarks"]["1"]
    assert result["problems"]["pass@1"] == [0.5]


@pytest.mark.slow
def test_the_command_line_starts_without_what_only_a_command_needs() -> None:
    code = """
import sys
sys.modules |= {"pyarrow": None, "datasets": None, "vllm": None}
from verl_dra import rewards
from verl_dra.cli import main
main(["simulate", "--help"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_model_is_sampled_through_vllm_and_a_cut_off_run_goes_on(tmp_path: Path) -> None:
    toy.make(tmp_path)
    # It ends after some 17 tokens, or at the limit, so that lengths differ.
    endings = tmp_path / "model" / "generation_config.json"
    endings.write_text(json.dumps(json.loads(endings.read_text()) | {"eos_token_id": [2, *range(100, 120)]}))
    data = tmp_path / "aime.jsonl"
    data.write_text("".join(json.dumps({"problem": f"say {i}", "answer": str(i)}) + "\n" for i in range(4)))
    command = [
        *("verl-dra", "evaluate", "--model", str(tmp_path / "model"), "--benchmark", "aime24", "--data", str(data)),
        *("--samples", "8", "--k", "1", "8", "--max-tokens", "24", "--prompt-template", "{problem}"),
        *("--temperature", "1", "--encoder", "ngram"),
        *("--engine", '{"dtype": "float32", "enforce_eager": true, "max_model_len": 128, "max_num_seqs": 4}'),
        *("--out", str(tmp_path / "report.json")),
    ]

    def run() -> list[str]:
        log = tmp_path / "log.txt"
        done = isolated.run(command, log=log, cwd=tmp_path, environment={"VERL_PLATFORM": "cpu"}, timeout_s=400)
        assert done.returncode == 0, log.read_text(errors="replace")[-3000:]
        return [s.text for s in sorted(read(generations).samples, key=lambda s: (s.problem, s.sample))]

    generations = tmp_path / "generations.jsonl"
    whole = run()
    assert len(whole) == 32
    assert len(set(whole)) > 16
    said = re.search(r"32 samples, ([\d,]+) tokens in (\d+) steps", (tmp_path / "log.txt").read_text(errors="replace"))
    assert said
    tokens, steps = (int(number.replace(",", "")) for number in said.groups())
    # Four places, none of them free but at the end. Eight slices of four would each take as long as its longest.
    assert tokens / 4 <= steps < tokens / 4 + 30
    result = json.loads((tmp_path / "report.json").read_text())["benchmarks"]["aime24"]
    assert result["counts"]["samples"] == 32
    assert result["counts"]["truncated"] > 0
    lines = generations.read_bytes().splitlines(keepends=True)
    generations.write_bytes(b"".join(lines[:6]) + lines[6][:10])
    assert run() == whole
    os.remove(generations)
