"""`verl-dra report` over made-up run folders: what it reads, shows, leaves out and refuses."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
import random
import re
import shutil
import tempfile
from codecs import BOM_UTF8
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from run_folders import PATHS, make_run, recorded_group

from verl_dra.cli import main
from verl_dra.embedding import EncoderUnavailableError
from verl_dra.embedding.ngram import NgramEncoder
from verl_dra.report import names as names_module
from verl_dra.report import page, text
from verl_dra.report.contents import contents
from verl_dra.report.findings import findings
from verl_dra.report.groups import embedding
from verl_dra.report.runs import read_runs
from verl_dra.terminal.colours import DRA, GRPO


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Path]:
    return [make_run(tmp_path / "runs" / "grpo", dra=False), make_run(tmp_path / "runs" / "dra")]


class Page(HTMLParser):
    """What a report carries, unpacked."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.packed: dict[str, str] = {}
        self.links: list[str] = []
        self.title = ""
        self.tags: set[str] = set()
        self._into: str | None = None
        self.feed(path.read_text())
        self.data = self.unpack("data")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href") and value]
        self._into = values.get("id") if tag == "script" else tag if tag == "title" else None

    def handle_endtag(self, tag: str) -> None:
        self._into = None

    def handle_data(self, data: str) -> None:
        if self._into == "title":
            self.title += data
            return
        if self._into:
            self.packed[self._into] = self.packed.get(self._into, "") + data

    def unpack(self, name: str) -> Any:
        return json.loads(gzip.decompress(base64.b64decode(self.packed[name])))

    def groups(self, run: str, kind: str, step: int) -> list[dict[str, Any]]:
        for number, part in enumerate(self.data["shown"]):
            if (self.data["runs"][part["run"]]["name"], part["kind"]) == (run, kind):
                return self.unpack(f"groups-{number}-{step}")
        raise KeyError((run, kind))

    def chart(self, title: str) -> dict[str, tuple[list[int], list[float]]]:
        (chart,) = [chart for chart in self.data["charts"] if chart["title"] == title]
        return {
            " ".join(filter(None, (self.data["runs"][s["run"]]["name"], s["name"]))): (s["x"], s["y"])
            for s in chart["series"]
        }


def report(tmp_path: Path, *arguments: str | Path) -> Page:
    assert main(["report", "--out", str(tmp_path / "report.html"), *map(str, arguments)]) == 0
    return Page(tmp_path / "report.html")


def test_curves_are_those_of_the_metrics(tmp_path: Path, two_runs: list[Path]) -> None:
    page = report(tmp_path, *two_runs)
    assert page.chart("Training reward")["dra"] == ([0, 1, 2, 3, 4, 5, 6], [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8])
    assert page.chart("Validation accuracy")["grpo"] == ([0, 3, 6], [0.6, 0.7, 0.8])
    assert set(page.chart("Weights")) == {"dra mean", "dra least"}
    assert page.links == ["data:,", "#browser"], "the file asks the network for something"


Curves = dict[str, dict[int, float]]
PATHS_OF, ACCURACY, REWARD = "report/effective_paths", "val-core/toy/acc/mean@8", "critic/score/mean"


def curve(*values: float) -> dict[int, float]:
    """Values of validations, which are 25 steps apart."""
    return {25 * at: value for at, value in enumerate(values)}


def said(tmp_path: Path, runs: dict[str, Curves]) -> tuple[str, str]:
    """The sentence of a report of runs with these metrics, and what its numbers are means of."""
    folders = []
    for at, (name, curves) in enumerate(runs.items()):
        folder = tmp_path / str(at)
        folder.mkdir()
        steps = sorted({step for values in curves.values() for step in values})
        lines = [{"step": s, "data": {m: values[s] for m, values in curves.items() if s in values}} for s in steps]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        folders.append(f"{name}={folder}")
    read = read_runs(folders)
    names_module.name(read)
    return findings(read)


def test_a_sentence_says_what_happened(tmp_path: Path) -> None:
    falls, stays = curve(2.9, 2.5, 2, 2, 2, 2, 1.3), curve(2.9, 2.5, 2, 2, 2, 2, 2.8)
    runs = {
        f"{name}/{seed}": {
            PATHS_OF: {step: value + 0.2 * (seed - 1) for step, value in paths.items()},
            ACCURACY: curve(0.6, 0.7, 0.7, 0.7, 0.7, 0.7, 0.89 + seed / 100),
        }
        for name, paths in (("grpo", falls), ("dra", stays))
        for seed in range(3)
    }
    assert said(tmp_path, runs) == (
        "Effective paths went from 2.9 to 1.3 with grpo and from 2.9 to 2.8 with dra; validation accuracy went from "
        "0.60 to 0.90 with grpo and from 0.60 to 0.90 with dra.",
        "Means of the first and the last validation of 3 runs each (steps 0 to 150).",
    )


@pytest.mark.parametrize(
    ("curves", "sentence", "basis"),
    [
        (
            {PATHS_OF: curve(3, 2, 9, 1, 2), ACCURACY: curve(0.5, 0.7, 0.1, 0.8, 0.9)},
            "Effective paths went from 2.5 to 1.5; validation accuracy went from 0.60 to 0.85.",
            "Means of the first and the last 2 validations (steps 0 to 100).",
        ),
        (
            {PATHS_OF: curve(2.94, 9, 2.24)},
            "Effective paths: too few steps to say (2.9 at step 0 and 2.2 at step 50).",
            "",
        ),
        ({ACCURACY: curve(0.5)}, "Validation accuracy: too few steps to say (0.50 at step 0).", ""),
        (
            {
                ACCURACY: curve(0.5, 0.6),
                "dra/effective_paths": {step: 3 - step / 10 for step in range(1, 11)},
                REWARD: {step: step / 10 for step in range(1, 11)},
            },
            "Effective paths in training went from 2.7 to 2.2; training reward went from 0.3 to 0.8.",
            "Means of the first and the last 5 steps (steps 1 to 10).",
        ),
        (
            {PATHS_OF: curve(3, 2, 2, 1), REWARD: dict.fromkeys(range(40), 1.0)},
            "Effective paths went from 2.5 to 1.5; training reward went from 1 to 1.",
            "Effective paths: means of the first and the last 2 validations (steps 0 to 75). Training reward: means of "
            "the first and the last 5 steps (steps 0 to 39).",
        ),
        (
            {"val-core/a/acc/mean@8": curve(0, 0, 0, 0), "val-core/b/reward/mean@8": curve(0.5, 0.5, 1, 1)},
            "Validation accuracy went from 0.25 to 0.50.",
            "Means of the first and the last 2 validations (steps 0 to 75).",
        ),
        ({"timing_s/step": curve(1)}, "Nothing was measured that tells how diversity and accuracy went.", ""),
    ],
)
def test_a_sentence_is_of_means_and_says_where_there_are_too_few(
    curves: Curves, sentence: str, basis: str, tmp_path: Path
) -> None:
    assert said(tmp_path, {"run": curves}) == (sentence, basis)


def test_a_sentence_tells_settings_apart_that_were_not_measured_alike(tmp_path: Path) -> None:
    runs = {
        "long": {PATHS_OF: curve(3, 3, 3, 2, 2, 2, 1, 1), ACCURACY: curve(0.5, 0.5, 0.5, 0.5)},
        "short": {PATHS_OF: curve(3, 2)},
    }
    assert said(tmp_path, runs) == (
        "Effective paths went from 3.0 to 1.0 with long, too few steps to say (3.0 at step 0 and 2.0 at step 25 with "
        "short); validation accuracy went from 0.50 to 0.50 with long, not measured with short.",
        "Effective paths with long: means of the first and the last 2 validations (steps 0 to 175). Validation "
        "accuracy with long: means of the first and the last 2 validations (steps 0 to 75).",
    )


def test_of_many_settings_a_sentence_names_the_ends(tmp_path: Path) -> None:
    runs = {
        f"setting {name}": {ACCURACY: curve(0, 0, end, end)} for name, end in zip("abcde", (3, 5, 4, 1, 2), strict=True)
    }
    sentence, _ = said(tmp_path, runs)
    assert sentence == (
        "Validation accuracy went from 0.00 to 5.00 with setting b and from 0.00 to 1.00 with setting d (of 5 "
        "settings, the least and the most at the end)."
    )


def clustered(step: int, *sizes: int) -> dict[str, Any]:
    """A recorded group with clusters of these sizes."""
    of = [at for at, size in enumerate(sizes) for _ in range(size)]
    group = recorded_group(random.Random(0), step, 0, len(of))
    return {**group, "similarity": [[1.0 if a == b else 0.0 for b in of] for a in of]}


def test_shares_of_clusters_by_hand(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=3, groups=1)
    of_step = {1: [(1, 2, 1), (4,)], 2: [(1,) * 8], 3: [(1, 3), (1,)]}
    for step, groups in of_step.items():
        lines = [json.dumps(clustered(step, *sizes)) for sizes in groups]
        (run / "groups" / f"{step}.jsonl").write_text("\n".join(lines))
    page = report(tmp_path, "--encoder", "none", run)
    (shares,) = page.data["shares"]
    assert page.data["shown"][shares["part"]]["kind"] == "training"
    assert shares["x"] == [1, 2, 3]
    assert list(zip(*shares["shares"], strict=True)) == [
        (0.75, 0.125, 0.125, 0, 0, 0, 0),
        (*[0.125] * 6, 0.25),
        (0.75, 0.25, 0, 0, 0, 0, 0),
    ]


def test_runs_have_shares_of_validation_whether_they_have_dra_or_not(tmp_path: Path, two_runs: list[Path]) -> None:
    data = report(tmp_path, *two_runs).data
    largest = {
        (data["runs"][data["shown"][found["part"]]["run"]]["name"], data["shown"][found["part"]]["kind"]): found[
            "shares"
        ][0]
        for found in data["shares"]
    }
    assert set(largest) == {("grpo", "validation"), ("dra", "validation"), ("dra", "training")}
    assert largest["grpo", "validation"][-1] == 1 > largest["dra", "validation"][-1]


def test_pass_at_k_is_of_the_first_validation_and_the_last(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dra=False, steps=6, size=1)
    for step, rights in ((0, (0, 1)), (3, (3, 3)), (6, (1, 3))):
        rows = [
            {"input": f"{at}?", "output": "x", "gts": "", "score": 0.5, "acc": int(sample < right)}
            for at, right in enumerate(rights)
            for sample in range(3)
        ]
        (run / "validation" / f"{step}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    page = report(tmp_path, "--encoder", "none", "--groups", "1", run)
    assert page.chart("pass@k") == {
        "run first validation": ([1, 2, 3], [0.16667, 0.33333, 0.5]),
        "run last validation": ([1, 2, 3], [0.66667, 0.83333, 1.0]),
    }
    assert next(chart["x"] for chart in page.data["charts"] if chart["title"] == "pass@k") == "k"


@pytest.mark.parametrize(("scores", "has"), [((0, 1), True), ((-1, 1), True), ((0.5, 1), False), ((-1, 0), False)])
def test_pass_at_k_needs_to_know_what_is_right(scores: tuple[float, float], has: bool, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dra=False, steps=1)
    rows = [{"input": "Why?", "output": "x", "gts": "", "score": score} for score in scores]
    (run / "validation" / "0.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = report(tmp_path, "--encoder", "none", run).data
    assert ("pass@k" in [chart["title"] for chart in data["charts"]]) is has
    assert any(note.startswith("'pass@k' leaves out run: it needs two samples") for note in data["notes"]) is not has


def test_curves_that_coincide_are_known(tmp_path: Path) -> None:
    curves = {"a/0": (0.0, 1.0), "b/0": (0.004, 1.0), "c": (0.1, 1.0), "b/1": (0.0, 0.998), "d": (0.0, 1.0, 2.0)}
    folders = []
    for at, (name, values) in enumerate(curves.items()):
        folder = tmp_path / str(at)
        folder.mkdir()
        lines = [json.dumps({"step": step, "data": {REWARD: value}}) for step, value in enumerate(values)]
        (folder / "metrics.jsonl").write_text("\n".join(lines))
        folders.append(f"{name}={folder}")
    (chart,) = report(tmp_path, *folders).data["charts"]
    assert chart["same"] == [[0, 1, 3]]
    (chart,) = report(tmp_path, *folders[1:4:2]).data["charts"]
    assert chart["same"] == [], "seeds of a setting look the same anyhow"


def test_colours_are_by_method_and_not_by_order(tmp_path: Path, two_runs: list[Path]) -> None:
    for runs in (two_runs, two_runs[::-1]):
        data = report(tmp_path, "--encoder", "none", *runs).data
        assert {family["name"]: tuple(family["colours"]) for family in data["families"]} == {"grpo": GRPO, "dra": DRA}


@pytest.mark.parametrize(
    ("settings", "metric", "orange"),
    [
        ("dra: {enabled: true}", "x", True),
        ("dra: {enabled: true, strength: 0.0}", "dra/weight/mean", False),
        ("dra: {enabled: false}", "dra/weight/mean", False),
        ("a: 1", "dra/weight/mean", True),
        ("a: 1", "critic/score/mean", False),
        ("dra: {enabled: '${oc.env:NO_SUCH_VARIABLE}'}", "dra/weight/mean", True),
    ],
)
def test_whether_a_run_had_dra_is_in_its_settings_or_its_metrics(
    settings: str, metric: str, orange: bool, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text(settings)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "data": {metric: 1.0}}))
    ((_, colours),) = [family.values() for family in report(tmp_path, run).data["families"]]
    assert tuple(colours) == (DRA if orange else GRPO)


def test_a_run_without_dra_shows_its_collapse_too(tmp_path: Path, two_runs: list[Path]) -> None:
    paths = report(tmp_path, *two_runs).chart("Different ways to answer")
    assert paths["grpo"][0] == paths["dra"][0] == [0, 3, 6]
    assert paths["grpo"][1][-1] == pytest.approx(1)
    assert min(paths["dra"][1]) > 1.5


def test_recorded_groups_are_shown_as_they_were_written(tmp_path: Path, two_runs: list[Path]) -> None:
    groups = report(tmp_path, *two_runs).groups("dra", "training", 4)
    written = [json.loads(line) for line in (two_runs[1] / "groups" / "4.jsonl").read_text().splitlines()]
    assert [group["prompt"] for group in groups] == [group["prompt"] for group in written]
    for shown, group in zip(groups, written, strict=True):
        by_numbers = sorted(
            [
                c["text"],
                *(
                    float(f"{c[k]:.4g}")
                    for k in ("reward", "adjusted", "smi", "weight", "advantage", "advantage_without")
                ),
            ]
            for c in group["completions"]
        )
        assert sorted(completion[:7] for completion in shown["completions"]) == by_numbers


def test_completions_of_a_cluster_stand_side_by_side(tmp_path: Path, two_runs: list[Path]) -> None:
    for group in report(tmp_path, *two_runs).groups("dra", "training", 2):
        similarity, clusters = np.array(group["similarity"]), [c[7] for c in group["completions"]]
        assert clusters == sorted(clusters)
        sizes = [clusters.count(cluster) for cluster in dict.fromkeys(clusters)]
        assert sizes == sorted(sizes, reverse=True), "the largest comes first"
        assert len(set(clusters)) == len({c[0].split("</b>")[0] for c in group["completions"]})
        same = np.equal.outer(clusters, clusters)
        assert ((similarity > 0.9) == same).all()


def test_validation_groups_get_what_training_would_give_them(tmp_path: Path, two_runs: list[Path]) -> None:
    group = report(tmp_path, *two_runs).groups("grpo", "validation", 0)[0]
    similarity = torch.tensor(group["similarity"], dtype=torch.float64)
    columns = torch.tensor([completion[1:7] for completion in group["completions"]], dtype=torch.float64)
    reward, adjusted, smi, weight, advantage, without = columns.unbind(dim=1)
    assert torch.allclose(smi, similarity.sum(1) - 1, atol=2e-2)
    assert torch.allclose(weight, 1 / (1 + smi), rtol=2e-3)
    assert torch.allclose(adjusted, reward * weight, rtol=2e-3)
    for rewards, shown in ((reward, without), (adjusted, advantage)):
        assert torch.allclose(shown, (rewards - rewards.mean()) / (rewards.std() + 1e-6), atol=2e-2)


def test_two_samples_of_a_prompt_have_advantages_and_one_has_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dra=False, steps=1)
    rows = [("two", "use coins", 1.0), ("two", "count up", 0.0), ("one", "use coins", 1.0)]
    dump = [{"input": prompt, "output": output, "gts": None, "score": score} for prompt, output, score in rows]
    (run / "validation" / "0.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in dump))
    page = report(tmp_path, run)
    found = {
        group["prompt"]: {completion[0]: completion[6] for completion in group["completions"]}
        for group in page.groups("run", "validation", 0)
    }
    assert found == {"two": {"use coins": 0.7071, "count up": -0.7071}, "one": {"use coins": 0}}
    assert not [note for note in page.data["notes"] if "file small" in note]


def test_the_same_prompts_are_shown_at_each_step(tmp_path: Path, two_runs: list[Path]) -> None:
    page = report(tmp_path, "--groups", "2", *two_runs)
    prompts = [{g["prompt"] for g in page.groups(run, "validation", s)} for run in ("grpo", "dra") for s in (0, 3, 6)]
    assert len(prompts[0]) == 2
    assert all(found == prompts[0] for found in prompts)
    assert len(page.groups("dra", "training", 1)) == 2


def test_what_was_torn_is_left_out_and_said(tmp_path: Path, two_runs: list[Path]) -> None:
    for path in (two_runs[1] / "groups" / "6.jsonl", two_runs[1] / "metrics.jsonl"):
        path.write_bytes(path.read_bytes()[:-20])
    page = report(tmp_path, *two_runs)
    assert len(page.groups("dra", "training", 6)) == 2
    assert page.chart("Training reward")["dra"][0][-1] == 5
    assert [re.sub(r" could.*", "", note) for note in page.data["notes"][1:]] == [
        "1 lines of records",
        "1 lines of metrics",
    ]


def test_samples_without_a_score_are_left_out_and_said(tmp_path: Path, two_runs: list[Path]) -> None:
    dump = two_runs[1] / "validation" / "6.jsonl"
    lines = [json.loads(line) for line in dump.read_text().splitlines()]
    lines[0]["score"], lines[1]["score"] = None, float("nan")
    dump.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = report(tmp_path, *two_runs)
    assert sum(len(group["completions"]) for group in page.groups("dra", "validation", 6)) == len(lines) - 2
    assert any(note.startswith("2 lines of records could not be read") for note in page.data["notes"])


@pytest.mark.parametrize(
    "torn",
    [
        {"completions": [{"text": "no reward"}]},
        {"completions": [{"text": "a text", "reward": None}]},
        {"completions": [{"text": 7, "reward": 1.0}]},
        {"similarity": [[1.0]]},
        {"prompt": None},
    ],
    ids=str,
)
def test_records_that_can_t_be_shown_are_counted(torn: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, groups=2)
    path = run / "groups" / "1.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{json.dumps({**json.loads(first), **torn})}\n{second}\n")
    page = report(tmp_path, run)
    assert len(page.groups("run", "training", 1)) == 1
    assert "1 lines of records could not be read and are left out." in page.data["notes"]


def test_a_record_without_similarity_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, groups=1)
    path = run / "groups" / "1.jsonl"
    group = json.loads(path.read_text())
    del group["similarity"], group["effective_paths"]
    path.write_text(json.dumps(group))
    (shown,) = report(tmp_path, run).groups("run", "training", 1)
    assert shown["similarity"] is None
    assert len(shown["completions"]) == 8
    assert shown["method"] == "SMI graph_cut, weight inverse, over grpo"


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"strength": 1.0, "cosine": "raw", "among": "all"}, "SMI graph_cut, weight inverse, over grpo"),
        (
            {"strength": 0.25, "cosine": "power 4", "among": "correct", "smi": "shuffled"},
            "SMI shuffled, cosines power 4, among correct, weight inverse, strength 0.25, over grpo",
        ),
        ({"text": "response"}, "SMI graph_cut, weight inverse, over grpo"),
        ({"text": "assistant"}, "SMI graph_cut, text assistant, weight inverse, over grpo"),
        ({"strength": 0.0, "scored": False, "similarity": None}, "DRA off, over grpo"),
    ],
)
def test_a_group_says_what_its_rewards_were_adjusted_by(settings: dict[str, Any], method: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, groups=1)
    path = run / "groups" / "1.jsonl"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    (shown,) = report(tmp_path, run).groups("run", "training", 1)
    assert (shown["method"], shown["scored"]) == (method, True)  # not scored is what failed, not what is off


def test_a_group_without_scores_shows_no_diversity(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, groups=1)
    path = run / "groups" / "1.jsonl"
    group = {**json.loads(path.read_text()), "scored": False, "similarity": None, "effective_paths": None}
    for completion in group["completions"]:
        completion |= {"smi": 0.0, "weight": 1.0, "adjusted": completion["reward"]}
    path.write_text(json.dumps(group))
    (shown,) = report(tmp_path, run).groups("run", "training", 1)
    assert shown["scored"] is False
    assert all(c[3] is None and c[4] is None and c[2] == c[1] for c in shown["completions"])


def test_single_completions_of_validation_are_not_called_collapse(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "greedy", size=1), make_run(tmp_path / "sampled")]
    page = report(tmp_path, *runs)
    assert set(page.chart("Different ways to answer")) == {"sampled"}
    (note,) = [note for note in page.data["notes"] if note.startswith("'Different ways to answer' leaves out greedy:")]
    assert "trainer.validation_data_dir, actor_rollout_ref.rollout.val_kwargs.n, .do_sample and .temperature" in note
    assert page.groups("greedy", "validation", 0)[0]["paths"] is None


def test_long_validation_texts_are_embedded_whole_and_shown_short(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dra=False, steps=1)
    half = "one and the same beginning " * 100
    samples = [
        {"input": "Why?", "output": f"{half}{middle * 1000}{half}", "gts": None, "score": 1.0}
        for middle in ("left ", "right")
    ]
    samples += [{**samples[0], "input": "How?", "output": "x" * length} for length in (4000, 4001)]
    (run / "validation" / "0.jsonl").write_text("".join(f"{json.dumps(sample)}\n" for sample in samples))
    groups = {group["prompt"]: group for group in report(tmp_path, run).groups("run", "validation", 0)}
    shown, just = ({completion[0] for completion in groups[prompt]["completions"]} for prompt in ("Why?", "How?"))
    (text,) = shown  # their ends alone are equal
    kept = text.split("\n[... 6400 characters left out ...]\n")
    assert (len(kept), sum(map(len, kept))) == (2, 4000)
    assert just == {"x" * 4000, f"{'x' * 2000}\n[... 1 characters left out ...]\n{'x' * 2000}"}
    assert groups["Why?"]["similarity"][0][1] < 0.9


def test_a_resumed_run_is_one_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dra=False)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.1.jsonl").write_text("".join(lines[:5]))
    (run / "metrics.jsonl").write_text("".join(lines[3:]))
    (run / "metrics.copy.jsonl").write_text("")
    assert report(tmp_path, run).chart("Training reward")["run"][0] == [0, 1, 2, 3, 4, 5, 6]


def test_seeds_of_a_family_have_one_colour(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / arm / seed, dra=arm == "dra", steps=1) for arm in ("grpo", "dra") for seed in ("0", "1")
    ]
    data = report(tmp_path, *runs).data
    assert [family["name"] for family in data["families"]] == ["grpo", "dra"]
    assert [run["family"] for run in data["runs"]] == [0, 0, 1, 1]


def test_long_texts_are_cut_before_steps_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", steps=10, groups=4, words=2000)
    page = report(tmp_path, "--max-mb", "3", run)
    (steps,) = [part["steps"] for part in page.data["shown"] if part["kind"] == "training"]
    assert steps == list(range(1, 11))
    texts = [c[0] for group in page.groups("run", "training", 5) for c in group["completions"]]
    assert all(len(text) < 1030 and "[... left out ...]" in text for text in texts)
    assert "To keep this file small: texts cut to 1000 characters." in page.data["notes"]
    assert ", texts cut to 1000 characters for --max-mb=3" in capsys.readouterr().out


def test_a_text_is_cut_in_its_middle_and_shorter_ones_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / name, steps=steps, groups=1, size=2) for name, steps in (("a", 5), ("b", 3), ("c", 1))]
    group = json.loads((runs[0] / "groups" / "1.jsonl").read_text())
    odd = "".join(chr(ord("a") + i % 26) for i in range(1001))
    for completion, shown in zip(group["completions"], (odd, odd[1:]), strict=True):
        completion["text"] = shown
    (runs[0] / "groups" / "1.jsonl").write_text(json.dumps(group))
    page = report(tmp_path, "--max-mb", "0.5", "--encoder", "none", *runs)
    texts = {c[0] for c in page.groups("a", "training", 1)[0]["completions"]}
    assert texts == {f"{odd[:500]}\n[... left out ...]\n{odd[-500:]}", odd[1:]}
    # Of what is too much all the same, the first and the last step of each run.
    assert [part["steps"] for part in page.data["shown"] if part["kind"] == "training"] == [[1, 5], [1, 3], [1]]
    said = capsys.readouterr()
    assert "the groups of 4 steps left out" in said.out
    assert "two steps of each run are more than --max-mb=0.5; give fewer --groups" in said.err


def test_a_long_run_stays_below_the_size_it_may_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", steps=40, groups=6, words=200)
    page = report(tmp_path, "--max-mb", "2.2", run)
    assert (tmp_path / "report.html").stat().st_size < 2.2e6
    (steps,) = [part["steps"] for part in page.data["shown"] if part["kind"] == "training"]
    assert steps[0] == 1
    assert steps[-1] == 40
    assert 2 < len(steps) < 40
    (note,) = [note for note in page.data["notes"] if "left out" in note]
    left_out = re.search(r"the groups of (\d+) steps left out", note)
    assert left_out
    assert f"{left_out[0]} for --max-mb=2.2" in capsys.readouterr().out


def names(tmp_path: Path, *arguments: str | Path) -> list[tuple[str, str]]:
    """Name and family of each run of a report."""
    data = report(tmp_path, "--encoder", "none", *arguments).data
    return [(run["name"], data["families"][run["family"]]["name"]) for run in data["runs"]]


def test_dated_folders_are_called_by_the_overrides_in_which_they_differ(tmp_path: Path) -> None:
    day = tmp_path / "outputs" / "2026-01-31"
    shared = "actor_rollout_ref.rollout.n=8"
    runs = [
        make_run(day / "10-00-00", steps=1, overrides=[shared, "dra.enabled=False", "data.seed=1"]),
        make_run(day / "11-30-00", steps=1, overrides=[shared]),
    ]
    assert names(tmp_path, *runs) == [("dra.enabled=False",) * 2, ("dra.enabled=True",) * 2]


def test_seeds_of_one_arm_are_one_family_called_by_their_folder(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "study" / "grpo" / seed, steps=1, overrides=[f"data.seed={seed}"]) for seed in ("0", "1")
    ]
    assert names(tmp_path, *runs) == [("grpo/0", "grpo"), ("grpo/1", "grpo")]


def test_points_of_grids_are_no_seeds(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / grid / str(at), steps=1, overrides=[f"dra.smi={smi}", f"data.seed={seed}"])
        for grid in ("first", "second")
        for at, (smi, seed) in enumerate((smi, seed) for smi in ("graph_cut", "log_det") for seed in (1, 2))
    ]
    assert names(tmp_path, *runs) == [
        (f"{grid} dra.smi={smi}/{at}", f"{grid} dra.smi={smi}")
        for grid in ("first", "second")
        for at, smi in enumerate(("graph_cut", "graph_cut", "log_det", "log_det"))
    ]


def test_settings_that_no_override_tells_apart_are_called_by_their_first_folder(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "grpo" / str(at), steps=1, overrides=["a=1"]) for at in range(4)]
    for at, run in enumerate(runs):
        config = OmegaConf.load(run / ".hydra" / "config.yaml")
        OmegaConf.update(config, "changed.by_hand", at < 2, force_add=True)
        OmegaConf.save(config, run / ".hydra" / "config.yaml")
    assert names(tmp_path, *runs) == [("0/0", "0"), ("0/1", "0"), ("2/2", "2"), ("2/3", "2")]


def test_runs_can_be_named(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "10-00-00", steps=1)
    odd = make_run(tmp_path / "dra.smi=log_det", steps=1)
    assert names(tmp_path, f"baseline/0={plain}", f"ours={odd}") == [("baseline/0", "baseline"), ("ours", "ours")]
    assert names(tmp_path, odd) == [("dra.smi=log_det",) * 2]


def test_validation_sets_have_a_dash_each_the_same_in_every_run(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, dra=False, steps=1) for name in ("both", "one")]
    for run, sets in zip(runs, (("math", "gsm8k"), ("math",)), strict=True):
        data = {f"val-core/{name}/acc/mean@8": 0.5 for name in sets}
        (run / "metrics.jsonl").write_text(json.dumps({"step": 0, "data": data}) + "\n")
    charts = report(tmp_path, *runs).data["charts"]
    (chart,) = (chart for chart in charts if chart["title"] == "Validation accuracy")
    assert {(s["run"], s["name"], s["dash"]) for s in chart["series"]} == {
        (0, "gsm8k", 0),
        (0, "math", 1),
        (1, "math", 1),
    }


def test_texts_can_hold_anything(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, groups=1)
    path = run / "groups" / "1.jsonl"
    group = json.loads(path.read_text())
    odd = "</script><script>alert(1)</script>\u2028\x00\ud800 @@DATA@@ \\u2028"
    group["completions"][0]["text"] = group["prompt"] = odd
    path.write_text(json.dumps(group) + "\n")
    (shown,) = report(tmp_path, run).groups("run", "training", 1)
    assert shown["prompt"] == odd.replace("\ud800", "?")


def test_a_run_can_be_called_anything(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, dra=False)
    name = "</title><b>&amp;\u2028"
    page = report(tmp_path, "--encoder", "none", f"{name}={run}", f"b={make_run(tmp_path / 'b', steps=1, dra=False)}")
    assert page.data["runs"][0]["name"] == name
    assert page.title == f"verl_dra report: {name}, b"
    assert (
        f"too few steps to say (0.60 at step 0 with {html.escape(name)} and " in (tmp_path / "report.html").read_text()
    )
    assert "b" not in page.tags


def test_text_for_a_terminal(two_runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--text", *map(str, two_runs)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^grpo +█[▁-█]▁ +\S+ +1 +0 to 6$", shown, re.MULTILINE)
    assert "grpo, validation, step 6: the group of fewest effective paths (1.00)" in shown
    assert re.search(rf"^A +{PATHS[0]} +1 +7.00 ", shown, re.MULTILINE)


def test_a_group_and_a_long_curve_in_a_terminal_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", steps=1, groups=1, size=2)
    shutil.rmtree(run / "validation")
    lines = [json.dumps({"step": at, "data": {"critic/score/mean": at}}) for at in range(47)]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    path = run / "groups" / "1.jsonl"
    group = json.loads(path.read_text())
    group |= {"prompt": "p" * 129, "effective_paths": 1.955, "similarity": [[1, 0], [0, 1]]}
    long = {"text": "x" * 65, "reward": 1, "smi": None, "advantage": 1.5, "advantage_without": -0.001}
    short = {"text": "y" * 64, "reward": 0.1234, "smi": 0.5, "advantage": -9, "advantage_without": 0.25}
    group["completions"] = [{**group["completions"][0], **given} for given in (long, short)]
    path.write_text(json.dumps(group))
    assert main(["report", "--text", "--encoder", "none", str(run)]) == 0
    assert capsys.readouterr().out == (
        "Training reward went from 2 to 44.\n"
        "Means of the first and the last 5 steps (steps 0 to 46).\n"
        "\n"
        "Training reward (raw, with DRA and without)\n"
        "run                            first  last    steps\n"
        "---  ------------------------  -----  ----  -------\n"
        "run  ▁▁▂▂▂▃▃▃▃▄▄▄▅▅▅▆▆▆▆▇▇▇██      0    46  0 to 46\n"
        "\n"
        "run, training, step 1: the group of fewest effective paths (1.96)\n"
        f"{'p' * 124} ...\n"
        f"   completion{' ' * 54}  reward   SMI  without DRA  with DRA\n"
        f"-  {'-' * 64}  ------  ----  -----------  --------  -----------------\n"
        f"A  {'x' * 60} ...       1               0.00     +1.50          |######\n"
        f"B  {'y' * 64}   0.123  0.50        +0.25     -9.00  ########|\n"
        "\n"
    )


def test_texts_can_t_command_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", steps=1, groups=1)
    path = run / "groups" / "1.jsonl"
    group = json.loads(path.read_text())
    group["prompt"] = "\x1b[2J\ud800 \u202ewhy\n\n" + "long" * 100
    group["completions"][0]["text"] = "x" * 1000
    path.write_text(json.dumps(group))
    assert main(["report", "--text", "--encoder", "none", str(run)]) == 0
    shown = capfd.readouterr().out
    assert "\n\ufffd[2J\ufffd \ufffdwhy longlong" in shown
    assert f"{'x' * 60} ..." in shown


def test_a_config_that_is_torn_is_passed_over_and_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dra=False, steps=1)
    (run / ".hydra" / "config.yaml").write_text("dra: {embedding: {enco")
    page = report(tmp_path, "--encoder", "ngram", run)
    assert page.data["notes"][0] == f"{run}/.hydra/config.yaml can't be read and is left out."
    assert page.groups("run", "validation", 0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dra.embedding.no_such_key=1", "no_such_key"),
        ("dra.embedding.base_url=${oc.env:NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
    ],
)
def test_an_encoder_that_can_t_be_had_here_is_refused(
    override: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", dra=False, steps=1, overrides=[override])
    assert main(["report", str(run)]) == 1
    error = capsys.readouterr().err
    assert "dra.embedding of run can't be used here" in error
    assert said in error
    assert "give --encoder" in error


def test_an_encoder_that_goes_away_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def encode(*_: Any) -> None:
        raise EncoderUnavailableError("the server does not answer")

    monkeypatch.setattr(NgramEncoder, "encode", encode)
    assert main(["report", str(make_run(tmp_path / "run", dra=False, steps=1))]) == 1
    assert "the server does not answer; give another --encoder, or none" in capsys.readouterr().err


def test_an_encoder_of_ones_own_is_named(tmp_path: Path) -> None:
    own = "dra.embedding.encoder=fake_encoders:ConfiguredEncoder"
    run = make_run(tmp_path / "run", dra=False, steps=1, overrides=[own])
    notes = report(tmp_path, run).data["notes"]
    assert notes[0].startswith("Validation groups are measured by the report with fake_encoders:ConfiguredEncoder, ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere"], "/nowhere has no metrics.jsonl"),
        (["{run}", "{run}"], "given twice"),
        (["{run}", "--groups", "0"], "--groups must be at least 1, not 0"),
        (["{run}", "--encoder", "/no/such/model"], "the encoder /no/such/model can't be loaded"),
        (["{run}", "--out", "/proc/report.html"], "/proc/report.html can't be written"),
    ],
)
def test_what_can_t_be_is_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", steps=1)
    assert main(["report", *(argument.format(run=run) for argument in arguments)]) == 1
    assert said in capsys.readouterr().err


def test_the_encoder_can_be_left_out(tmp_path: Path, two_runs: list[Path]) -> None:
    page = report(tmp_path, "--encoder", "none", *two_runs)
    assert "Different ways to answer" not in [chart["title"] for chart in page.data["charts"]]
    (group, *_) = page.groups("grpo", "validation", 0)
    assert group["similarity"] is None
    assert [completion[2:7] for completion in group["completions"]] == [[None] * 5] * 8


# What other programs, disks and kills make of the files.

JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([10**400, 1e308, math.nan, math.inf, -math.inf, "", "x", "\ud800", "\u2028"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["text", "reward", "x"]), inner),
    max_leaves=4,
)
PLACES = st.sampled_from(
    [
        *[(key,) for key in ("prompt", "ground_truth", "completions", "similarity", "effective_paths", "scored")],
        *[(key,) for key in ("smi", "weight", "base_estimator", "uid", "input", "output", "gts", "score")],
        *[("completions", 0, key) for key in ("text", "reward", "adjusted", "smi", "weight", "advantage")],
        *[("completions", 1), ("completions", 1, "advantage_without"), ("similarity", 0), ("similarity", 1, 0)],
    ]
)
GROUP = recorded_group(random.Random(1), step=1, at=0, size=3)
SAMPLES = [{"input": "Why?", "output": path, "gts": "4", "score": 1.0, "step": 1} for path in PATHS[:2]]


def spoiled(row: dict[str, Any], place: tuple[Any, ...], value: Any) -> bytes:
    """A line with another value somewhere."""
    row = json.loads(json.dumps(row))
    inner: Any = row
    for key in place[:-1]:
        inner = inner.get(key, {}) if isinstance(inner, dict) else inner[key]
    inner[place[-1]] = value
    return json.dumps(row).encode()


TORN = st.binary(max_size=20).map(lambda torn: torn.replace(b"\n", b"?").replace(b"\r", b"?")) | st.sampled_from(
    [b"[" * 9000, b'{"a', b"\0"]
)
TORN = TORN.filter(lambda line: not line.startswith((b"\xff\xfe", b"\xfe\xff")))  # a file of UTF-16 is none of lines
LINES = {
    kind: st.lists(
        st.builds(spoiled, row, PLACES, JUNK) | JUNK.map(lambda v: json.dumps(v).encode()) | TORN, max_size=4
    )
    for kind, row in (("groups", st.just(GROUP)), ("validation", st.sampled_from(SAMPLES)))
}


def not_blank(lines: Sequence[bytes]) -> int:
    """Of a file that begins with these, and may do so with a byte-order mark."""
    return sum(bool(line.removeprefix(BOM_UTF8 if at == 0 else b"").strip()) for at, line in enumerate(lines))


@pytest.mark.usefixtures("quickly_packed", "one_thread")
@settings(max_examples=50)
@given(LINES["groups"], LINES["validation"])
def test_whatever_stands_in_records_and_dumps_is_shown_or_counted(groups: list[bytes], samples: list[bytes]) -> None:
    whole = [json.dumps(row).encode() for row in (GROUP, *SAMPLES)]
    with tempfile.TemporaryDirectory() as name:
        run = Path(name, "run")
        for folder, lines in (("groups", [*groups, whole[0]]), ("validation", [*samples, *whole[1:]])):
            (run / folder).mkdir(parents=True)
            (run / folder / "1.jsonl").write_bytes(b"\n".join(lines))
        (run / "metrics.jsonl").write_text('{"step": 1, "data": {"critic/score/mean": 0.5}}\n')
        runs = read_runs([str(run)])
        shown = contents(runs, 99, embedding(NgramEncoder()))
    training, validation = (
        next(part.steps[1] for part in shown if part.kind == kind) for kind in ("training", "validation")
    )
    assert len(training.groups) + training.unreadable == not_blank(groups) + 1
    assert GROUP["prompt"] in [group.prompt for group in training.groups]
    completions = sum(len(group.completions) for group in validation.groups)
    assert completions + validation.unreadable == not_blank(samples) + 2
    page.render(runs, shown, 10**9)
    text.render(runs, shown)


def test_a_dump_in_utf_16_is_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dra=False, steps=0)
    dump = run / "validation" / "0.jsonl"
    dump.write_text(dump.read_text(), encoding="utf-16")
    shown = contents(read_runs([str(run)]), 99, embedding(NgramEncoder()))
    assert {step: of_step.unreadable for part in shown for step, of_step in part.steps.items()} == {0: 1}
    text.render(read_runs([str(run)]), shown)


def test_rewards_that_no_float_can_add_up_have_no_advantages(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", dra=False, steps=1)
    rows = [{"input": "Why?", "output": str(score), "gts": "4", "score": score} for score in (1e308, 1e308, -1e308)]
    (run / "validation" / "0.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (group,) = report(tmp_path, run).groups("run", "validation", 0)
    assert sorted(completion[1] for completion in group["completions"]) == [-1e308, 1e308, 1e308]
    assert [completion[6] for completion in group["completions"]] == [None] * 3


@pytest.fixture
def quickly_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """plotly's megabytes are compressed once, in the tests of whole pages."""
    monkeypatch.setattr("verl_dra.report.page._packed", lambda data: "")


def test_what_only_looks_like_a_step_is_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1, groups=1)
    (run / "groups" / "\u00b2.jsonl").write_text("not a step")
    (run / "groups" / "7.jsonl").mkdir()
    assert report(tmp_path, "--encoder", "none", run).data["shown"][1]["steps"] == [1]


def test_a_folder_that_can_t_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", steps=1)
    (run / "metrics.1.jsonl").mkdir()
    assert main(["report", str(run)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{run}/metrics.1.jsonl" in said
