"""Actors that look at groups, on a real local Ray cluster: placed, lost, hung, and what they find."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from fake_partitions import END
from local_ray import local_ray, process_of
from processes import alive

from verl_dra.partition import PartitionConfig, PromptGroup
from verl_dra.partition.answers import FoundAnswers
from verl_dra.partition.looking import Looking
from verl_dra.partition.pool import PartitionPool
from verl_dra.partition.step import StepGroupings
from verl_dra.scorer.asking import NoScoresError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=8):
        yield


@pytest.fixture
def start(cluster: None) -> Iterator[Callable[..., PartitionPool]]:
    pools: list[PartitionPool] = []

    def start(by: str, on_failure: str = "raise", **config: Any) -> PartitionPool:
        pools.append(PartitionPool(PartitionConfig(by=by, **config), on_failure, timeout_s=120))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()


def group(uid: str, *texts: str) -> PromptGroup:
    return PromptGroup(uid, "What is it?", texts, [1.0] * len(texts), FoundAnswers(texts))


SOME = [group(f"u{i}", "add it", "add all", f"draw {i}") for i in range(6)]
MATRIX = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def ask(pool: PartitionPool, groups: list[PromptGroup]) -> Looking:
    of = {group.uid: group for group in groups}
    return Looking(pool, list(of), lambda uids: [of[uid] for uid in uids])


def found(came: StepGroupings) -> dict[str, list[list[float]]]:
    return {uid: matrix.tolist() for uid, matrix in came.similarity.items()}


def eventually(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def looks(gate: Path, least: int) -> list[tuple[int, str]]:
    """Process and group of the looks that have begun, when there are so many."""
    path = gate.with_suffix(".looks")
    eventually(lambda: path.exists() and len(path.read_text().splitlines()) >= least)
    return [(int(line.split()[0]), line.split()[1]) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("how", ["sigkill", "gone for good"])
def test_an_actor_that_is_killed_in_mid_step_comes_back_with_the_same_answer(
    how: str, start: Callable[..., PartitionPool], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    pool = start("fake_partitions:Gated", model=str(gate), num_actors=2, concurrency=2)
    looking = ask(pool, SOME)
    pid = looks(gate, 4)[0][0]  # two actors have two each
    if how == "sigkill":
        os.kill(pid, signal.SIGKILL)
    else:
        ray.kill(next(handle for handle in pool.handles if ray.get(handle.ready.remote()) == pid))
    while alive(pid):
        time.sleep(0.02)
    gate.touch()
    came = looking.result()
    assert found(came) == {group.uid: MATRIX for group in SOME}
    assert came.fallbacks >= 2  # more where it is asked while it starts
    assert found(ask(pool, SOME).result()) == {group.uid: MATRIX for group in SOME}


def test_a_group_that_ends_its_process_takes_no_other_with_it(
    start: Callable[..., PartitionPool], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    pool = start("fake_partitions:Gated", "unadjusted", model=str(gate), concurrency=8)
    looking = ask(pool, [*SOME, group("end", END, "draw")])
    eventually(lambda: len(looking._similarity) == len(SOME))
    pool.config.deadline_s = 1
    came = looking.result()
    assert found(came) == {group.uid: MATRIX for group in SOME}
    assert not came.knows("end")


def test_who_hangs_is_started_again_after_the_deadline(start: Callable[..., PartitionPool], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    pool = start("fake_partitions:Gated", model=str(gate), concurrency=2, deadline_s=1)
    looking = ask(pool, SOME)
    pid = looks(gate, 2)[0][0]
    with pytest.raises(NoScoresError, match=r"nothing of 6 groups: .*dra\.partition\.deadline_s=1 s have passed"):
        looking.result()
    gate.touch()
    while alive(pid):
        time.sleep(0.02)
    process_of(pool.handles[0])
    pool.config.deadline_s = 300
    assert found(ask(pool, SOME).result()) == {group.uid: MATRIX for group in SOME}
    assert {of for of, _ in looks(gate, 2)} != {pid}


def test_equal_answers_are_told_in_an_actor(start: Callable[..., PartitionPool]) -> None:
    pool = start("answers")
    assert pool.describe() == "1 x (CPU 1, GPU 0) on 1 node, 1 groups at a time each; equal final answers"
    texts = (r"so \boxed{1/2}", "The answer is 0.5.", r"\boxed{x+1}", "I do not know this", r"\boxed{1+x}", "")
    came = ask(pool, [group("u", *texts)]).result()
    labels = [0, 0, 1, 2, 1, 3]
    assert found(came)["u"] == [[float(a == b) for b in labels] for a in labels]
    assert (came.ways("u"), came.unplaced) == (labels, 1)


def test_what_cant_start_says_why(start: Callable[..., PartitionPool]) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)a partition actor could not start: .*the server of the test is away"):
        start("fake_partitions:Failing")
    with pytest.raises(ValueError, match=r"dra\.partition\.num_cpus=99, and the nodes .* at most 8 CPUs; lower it"):
        start("answers", num_cpus=99)
