"""What tells which completions go the same way without vectors: how it is configured and made, and equal answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_dra.partition import Grouping, PartitionConfig, PromptGroup, build_partition
from verl_dra.partition.answers import FoundAnswers

GUIDE = Path(__file__).parents[1] / "verl_dra" / "partition" / "README.md"
SERVER = {"base_url": "http://judge.example:8000/v1", "model": "judge"}


def group(*texts: str) -> PromptGroup:
    return PromptGroup("u", "How much?", texts, [0.0] * len(texts), FoundAnswers(texts))


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"max_calls": 3}, "dra.partition.max_calls=3 has no effect without dra.partition.by; remove it"),
        ({"num_cpus": 2}, "dra.partition.num_cpus=2 has no effect without dra.partition.by"),
        (
            {"by": "answers", "base_url": "http://x"},
            "dra.partition.base_url=http://x has no effect with dra.partition.by=answers, which asks no server",
        ),
        ({"by": "answers", "max_calls": 3}, "dra.partition.max_calls=3 has no effect with dra.partition.by=answers"),
        ({"by": "answer"}, "dra.partition.by: 'answer' is none of answers, pairs and judge, nor a class as package"),
        ({"by": "no.such:Thing"}, "dra.partition.by: 'no.such:Thing' is none of.*No module named 'no'"),
        ({"by": "judge", "model": "m"}, "dra.partition.by=judge needs dra.partition.base_url, such as http://"),
        ({"by": "pairs", **SERVER, "base_url": "judge:8000"}, "dra.partition.base_url must be an http or https URL"),
        (
            {"by": "pairs", **SERVER, "base_url": "http://me:secret@x/v1"},
            "dra.partition.base_url holds a user or password.*that dra.partition.api_key_env names",
        ),
        ({"by": "judge", "base_url": "http://x/v1"}, "dra.partition.by=judge needs dra.partition.model"),
        ({"by": "judge", **SERVER, "api_key_env": "sk-1"}, "dra.partition.api_key_env must be the name of an env"),
        ({"by": "judge", **SERVER, "timeout_s": 0}, "dra.partition.timeout_s must be above 0, not 0"),
        ({"by": "judge", **SERVER, "max_retries": -1}, "dra.partition.max_retries must be at least 0, not -1"),
        ({"by": "judge", **SERVER, "max_characters": 1}, "dra.partition.max_characters must be at least 2, not 1"),
        ({"by": "judge", **SERVER, "max_calls": 0}, "dra.partition.max_calls must be at least 1, not 0"),
        ({"by": "answers", "num_actors": 0}, "dra.partition.num_actors must be at least 1, not 0"),
        ({"by": "answers", "num_cpus": -1}, "dra.partition.num_cpus must be at least 0, not -1"),
        ({"by": "answers", "concurrency": 0}, "dra.partition.concurrency must be at least 1, not 0"),
        ({"by": "answers", "deadline_s": 0}, "dra.partition.deadline_s must be above 0"),
        ({"by": "answers", "deadline_s": float("nan")}, "dra.partition.deadline_s must be above 0"),
    ],
)
def test_settings_that_cant_be_or_have_no_effect_are_refused(given_: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        PartitionConfig(**given_).check()
    assert "sk-1" not in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "given_",
    [
        {},
        {"by": "answers", "num_actors": 2, "num_cpus": 0, "concurrency": 4, "deadline_s": 5},
        {"by": "pairs", **SERVER, "max_calls": 1, "max_retries": 0, "max_characters": 2},
        {"by": "judge", **SERVER, "base_url": "https://x", "api_key_env": "KEY", "timeout_s": 0.5},
        {"by": "fake_partitions:ByFirstWord", "model": "of its own", "max_calls": 7},
    ],
)
def test_settings_at_their_limits_are_taken(given_: dict[str, Any]) -> None:
    PartitionConfig(**given_).check()


def test_servers_are_asked_about_many_groups_at_once() -> None:
    assert [PartitionConfig(by=by).at_once for by in ("answers", "pairs", "judge", "m:C")] == [1, 16, 16, 1]
    assert PartitionConfig(by="judge", concurrency=3).at_once == 3


def test_a_class_of_ones_own_is_made_with_the_configuration() -> None:
    config = PartitionConfig(by="fake_partitions:ByFirstWord", model="mine")
    made: Any = build_partition(config)
    assert made.config is config
    assert made(group("add it", "add them", "draw it")).similarity.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_nothing_is_made_where_nothing_is_named() -> None:
    with pytest.raises(ValueError, match=r"dra\.partition\.by is not set"):
        build_partition(PartitionConfig())


def test_equal_answers_go_the_same_way_and_those_without_are_alone() -> None:
    texts = (r"half, so \boxed{1/2}", "The answer is 0.5.", r"\boxed{x+1}", "no idea", r"\boxed{1+x}", "none either")
    found = build_partition(PartitionConfig(by="answers"))(group(*texts))
    labels = [0, 0, 1, 2, 1, 3]
    assert found.similarity.tolist() == [[float(a == b) for b in labels] for a in labels]
    assert found.similarity.dtype == np.float32
    assert (found.unplaced, found.calls, found.tokens) == (2, 0, 0)


def test_an_answer_that_takes_too_long_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl_dra.rewards import checker

    monkeypatch.setattr(checker._Pool, "ask", lambda self, request: {"failed": True})
    found = build_partition(PartitionConfig(by="answers"))(group(r"\boxed{1}", r"\boxed{1} again"))
    assert found.similarity.tolist() == [[1, 0], [0, 1]]
    assert found.unplaced == 2


def test_answers_are_found_when_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("verl_dra.rewards.check", lambda gold, text: asked.append(text) or VERDICT)
    answers = FoundAnswers(["one", "two"])
    assert (len(answers), asked) == (2, [])
    assert (answers[1], list(answers), answers[0]) == ("7", ["7", "7"], "7")
    assert asked == ["one", "two"]


class VERDICT:
    answer = "7"


@settings(max_examples=50)
@given(labels=st.lists(st.integers(-2, 4), min_size=1, max_size=9))
def test_labels_are_a_matrix_whose_smi_is_that_of_clusters(labels: list[int]) -> None:
    similarity = Grouping.of_labels(labels).similarity
    # A vector of its own for each label: the cosines are the matrix.
    vectors = np.eye(7)[np.array(labels) + 2]
    alone = np.zeros(len(labels), dtype=int)
    np.testing.assert_allclose(similarity.sum(1) - 1, oracles.cluster_smi(vectors, alone))
    np.testing.assert_allclose(similarity.sum(1) - 1, oracles.graph_cut_smi(vectors, alone), atol=1e-6)


def test_the_class_of_the_guide_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n# ways\.py\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (tmp_path / "ways.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = build_partition(PartitionConfig(by="ways:ByKeyword"))
    found = made(group("I substitute x", "a graph", "no way", "then substitute", "none"))
    labels = [0, 1, 2, 0, 3]
    assert found.similarity.tolist() == [[float(a == b) for b in labels] for a in labels]
    assert found.unplaced == 2
