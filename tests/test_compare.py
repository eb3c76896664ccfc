"""`verl-dra evaluate --compare`: a report worked out by hand, and pairs that hang on problems and not on places."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verl_dra.cli import main
from verl_dra.evaluate.compare import paired
from verl_dra.evaluate.generations import GenerationsFile, Sample

BOXED = r"so \boxed{%s}"


def written(path: Path, answers: dict[int, list[int]], benchmark: str = "aime24", shift: int = 0) -> Path:
    """A file in which problem i has the right answer 4 and these answers."""
    file = GenerationsFile(path)
    file.begin({"model": path.stem})
    file.add(
        Sample(benchmark, problem + shift, i, f"problem {problem}", "4", BOXED % answer)
        for problem, of in answers.items()
        for i, answer in enumerate(of)
    )
    return path


def compared(tmp_path: Path, first: Path, second: Path, *arguments: str) -> dict[str, Any]:
    out = tmp_path / "report.json"
    command = ["evaluate", "--compare", str(first), str(second), "--out", str(out), "--encoder", "none"]
    assert main([*command, "--bootstrap", "2000", *arguments]) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def test_a_comparison_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = written(tmp_path / "a.jsonl", {0: [4, 4], 1: [5, 5], 2: [4, 5], 3: [4, 4], 9: [4, 4]})
    # The same problems at other places, under another name.
    second = written(tmp_path / "b.jsonl", {3: [4, 4], 2: [4, 5], 1: [4, 4], 0: [5, 4]}, "step50", shift=10)
    report = compared(tmp_path, first, second, "--k", "1", "2")
    found = report["comparisons"]["aime24"]
    assert found["problems"] == 4
    assert found["left_out"] == [1, 0]
    assert (found["first"]["mean"]["pass@1"], found["second"]["mean"]["pass@1"]) == (2.5 / 4, 3 / 4)
    assert found["difference"]["pass@1"] == pytest.approx((0 + 0 + 1 - 0.5) / 4)
    assert found["difference"]["pass@2"] == pytest.approx(1 / 4)
    low, high = found["interval"]["pass@1"]
    assert low < 0.125 < high
    assert [(flip["question"], flip["numbers"], flip["pass@1"]) for flip in found["flipped"]] == [
        ("problem 0", [0, 10], [1.0, 0.5]),
        ("problem 1", [1, 11], [0.0, 1.0]),
    ]
    assert report["sampling"] == [{"model": "a"}, {"model": "b"}]
    shown = capsys.readouterr().out
    assert re.search(r"pass@1 +62\.5 +75\.0 +12\.5 \[-", shown)
    assert "left out: 1 problems of A and 0 of B" in shown
    assert "in B alone: 1 problems; in A alone: 1" in shown
    assert "1: 0% -> 100%  problem 1" in shown


def test_pairs_tell_what_two_intervals_can_not(tmp_path: Path) -> None:
    # Problems differ far more than models do: B is right in one more of 8 in each.
    generator = np.random.default_rng(0)
    right = {problem: int(generator.integers(0, 8)) for problem in range(80)}
    first, second = (
        written(tmp_path / name, {p: [4] * (n + more) + [5] * (8 - n - more) for p, n in right.items()})
        for name, more in (("a.jsonl", 0), ("b.jsonl", 1))
    )
    found = compared(tmp_path, first, second, "--k", "1")["comparisons"]["aime24"]
    assert found["first"]["interval"]["pass@1"][1] > found["second"]["mean"]["pass@1"] - 0.1
    low, high = found["interval"]["pass@1"]
    assert 0.08 < low < 1 / 8 < high < 0.17
    # Two that are the same differ by nothing, as far as 80 problems can tell.
    same = compared(tmp_path, first, first, "--k", "1")["comparisons"]["aime24"]
    assert same["difference"]["pass@1"] == 0
    low, high = same["interval"]["pass@1"]
    assert -0.05 < low < 0 < high < 0.05
    assert same["flipped"] == []


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--compare", "a", "b", "--generations", "g"], 2, "goes without --model and --generations"),
        (["--compare", "a.jsonl", "none.jsonl"], 1, "there is no file none.jsonl"),
        (["--compare", "a.jsonl", "c.jsonl", "--k", "1"], 1, "no problem in common"),
        (["--compare", "a.jsonl", "b.jsonl", "--k", "1", "4"], 1, "k=4: problem 0 of aime24 has 2 samples"),
        (["--compare", "a.jsonl", "b.jsonl", "--k", "8"], 1, "k=8: problem 0 of aime24 has 2 samples"),
    ],
)
def test_what_can_t_be_compared_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    status: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.jsonl", {0: [4, 4]})
    written(tmp_path / "b.jsonl", {0: [4, 4]})
    written(tmp_path / "c.jsonl", {1: [4, 4]})
    assert main(["evaluate", "--encoder", "none", *arguments]) == status
    assert says in capsys.readouterr().err


def test_of_several_benchmarks_those_of_both_are_compared() -> None:
    def of(*names: str) -> list[Sample]:
        return [Sample(name, 0, 0, "q", "4", "t") for name in names]

    assert list(paired(of("a", "b", "c"), of("c", "b"))) == ["b", "c"]
    with pytest.raises(ValueError, match="one has samples of a, b, and the other of c, d"):
        paired(of("a", "b"), of("c", "d"))
