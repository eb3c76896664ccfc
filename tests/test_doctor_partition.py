"""`verl-dra doctor` and the start of a training look whether the partition is there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from verl_dra.config import ConfigError
from verl_dra.doctor import cluster, fast
from verl_dra.doctor.partition import partition_looks, server_looks
from verl_dra.partition import Grouping, PartitionConfig, PartitionUnavailableError, PromptGroup, UnreadableError

SERVER = ["dra.partition.base_url=http://judge.example:8000/v1", "dra.partition.model=tiny"]


def judge(error: Exception | None = None) -> Callable[[PartitionConfig], Callable[[PromptGroup], Grouping]]:
    def look(group: PromptGroup) -> Grouping:
        if error is not None:
            raise error
        return Grouping.of_labels(range(len(group.texts)), calls=3, tokens=70)

    return lambda config: look


def test_nothing_is_said_where_cosines_tell(configured: Callable[..., DictConfig]) -> None:
    assert list(partition_looks(configured())) == []
    assert list(partition_looks(configured("dra.partition.by=answers", "dra.enabled=False"))) == []
    assert list(server_looks(configured())) == []


def test_answers_and_a_class_of_ones_own_are_tried(configured: Callable[..., DictConfig]) -> None:
    (check,) = partition_looks(configured("dra.partition.by=answers"))
    assert (check.state, check.found[:16]) == ("ok", "answers: ready i")
    (check,) = partition_looks(configured("dra.partition.by=fake_partitions:ByFirstWord"))
    assert check.state == "ok"
    assert "2 calls" in check.found
    (check,) = server_looks(configured("dra.partition.by=fake_partitions:ByFirstWord"))
    assert (check.state, check.found) == ("skip", "fake_partitions:ByFirstWord shows when its actors start")


@pytest.mark.parametrize(
    ("error", "state", "found", "fix"),
    [
        (None, "ok", "two groups in .* s, 6 calls, 140 tokens", ""),
        (
            PartitionUnavailableError("no answer"),
            "fail",
            "no answer",
            "start the server, or correct dra.partition.base",
        ),
        (UnreadableError("half a JSON"), "warn", "can't be read: half a JSON", "use another dra.partition.model"),
        (ValueError("404; check dra.partition.model"), "fail", "404; check dra.partition.model", ""),
        (KeyError("x"), "fail", r"KeyError\('x'\)", "look at dra.partition.by=judge"),
    ],
)
def test_what_a_server_says_has_its_mend(
    error: Exception | None,
    state: str,
    found: str,
    fix: str,
    configured: Callable[..., DictConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("verl_dra.doctor.partition.build_partition", judge(error))
    for looks in (partition_looks, server_looks):
        (check,) = looks(configured("dra.partition.by=judge", *SERVER))
        assert check.state == state
        assert re.search(found, check.found)
        assert fix in check.fix


def test_a_wrong_shape_is_told(configured: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "verl_dra.doctor.partition.build_partition", lambda config: lambda group: Grouping.of_labels([1, 1, 1, 1])
    )
    (check,) = partition_looks(configured("dra.partition.by=judge", *SERVER))
    assert (check.state, check.fix) == ("fail", "it must be [n, n]")


def test_a_training_whose_server_is_away_does_not_start(
    configured: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fast, "fast_checks", lambda *_: [])
    monkeypatch.setattr(cluster, "room", lambda config: iter([]))
    config = configured("dra.partition.by=judge", *SERVER)
    monkeypatch.setattr("verl_dra.doctor.partition.build_partition", judge(PartitionUnavailableError("refused")))
    with pytest.raises(ConfigError, match="partition: refused; start the server"):
        fast.examine(config, tmp_path)
    monkeypatch.setattr("verl_dra.doctor.partition.build_partition", judge())
    assert fast.examine(config, tmp_path) == []
