"""The scorers' metrics for Prometheus, as Ray shows them, and the dashboard over them."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray
from local_ray import local_ray

from verl_dra.embedding import EmbeddingConfig
from verl_dra.scorer.asking import Asking
from verl_dra.scorer.messages import Events, Session
from verl_dra.scorer.placement import ScorerConfig
from verl_dra.scorer.pool import ScorerPool
from verl_dra.scorer.telemetry import COUNTERS, GAUGES, HISTOGRAMS, Telemetry

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "launch" / "grafana" / "scorers.json"
NAMES = (
    {f"ray_dra_scorer_{name}_total" for name in COUNTERS}
    | {f"ray_dra_scorer_{name}" for name in GAUGES}
    | {f"ray_dra_scorer_{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "count")}
)


def test_every_event_has_a_counter() -> None:
    assert COUNTERS.keys() == {field.name for field in fields(Events)} | {"restarts"}


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    shown = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_\w+", target["expr"])
    }
    assert shown <= NAMES
    metrics = COUNTERS.keys() | GAUGES.keys() | HISTOGRAMS.keys()
    assert {name for name in metrics if not any(f"_scorer_{name}" in one for one in shown)} == set()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


class Metric:
    """In place of one of Ray's: what it was made as, and each value that it was given."""

    made: ClassVar[dict[str, Metric]] = {}

    def __init__(self, name: str, text: str, *of: Any) -> None:
        self.boundaries, self.tag_keys = (of[0] if len(of) > 1 else None), of[-1]
        self.text = text
        self.values: list[float] = []
        self.tags: dict[str, str] = {}
        self.inc = self.set = self.observe = lambda value=1: self.values.append(value)
        self.made[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.tags = tags


@pytest.mark.parametrize("restarted", [False, True])
def test_what_a_scorer_does_goes_into_its_metrics_once(restarted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(f"verl_dra.scorer.telemetry.{kind}", Metric)
    monkeypatch.setattr(Metric, "made", {})
    telemetry = Telemetry("mine_3", restarted)
    telemetry.queued(Events(submitted=3, tokens=9), 2, 70)
    telemetry.queued(Events(submitted=5, tokens=9, late=1), 0, 0)
    telemetry.embedded(4, 0.25)
    texts = COUNTERS | GAUGES | {name: text for name, (text, _) in HISTOGRAMS.items()}
    assert {name: metric.text for name, metric in Metric.made.items()} == {
        f"dra_scorer_{name}": text for name, text in texts.items()
    }
    assert all((m.tag_keys, m.tags) == (("scorer",), {"scorer": "mine_3"}) for m in Metric.made.values())
    assert {name.removeprefix("dra_scorer_"): m.values for name, m in Metric.made.items() if m.values} == {
        "submitted": [3, 2],
        "tokens": [9],
        "late": [1],
        "queue_rows": [2, 0],
        "queue_bytes": [70, 0],
        "batch_texts": [4],
        "embed_seconds": [0.25],
        **({"restarts": [1]} if restarted else {}),
    }
    for name, (_, boundaries) in HISTOGRAMS.items():
        assert Metric.made[f"dra_scorer_{name}"].boundaries == sorted(set(boundaries)) == boundaries


@pytest.fixture
def port() -> Iterator[int]:
    """Where a Ray of the test's own shows its metrics."""
    with local_ray(num_cpus=4, _system_config={"metrics_report_interval_ms": 200}):
        yield ray.nodes()[0]["MetricsExportPort"]


@pytest.mark.slow
def test_prometheus_can_read_what_the_scorers_do(port: int) -> None:
    config = ScorerConfig(placement="cpu", name="metered", num_replicas=1)
    pool = ScorerPool(config, EmbeddingConfig(encoder="ngram"))
    texts = {Session("a", i): f"way {i % 2}" for i in range(4)}
    ray.get(pool.handles[0].submit.remote(list(texts.items()), 2, 1))
    Asking(pool, list(texts), lambda _: {}).result()
    expected = {
        "submitted_total": 4,
        "cache_hits_total": 2,
        "embedded_total": 2,
        "tokens_total": 2 * len("way 0"),
        "refused_total": 2,
        "unsent_total": 1,
        "queue_rows": 0,
        "queue_bytes": 0,
        "embed_seconds_count": 1,
        "batch_texts_count": 1,
    }
    eventually_shows(port, expected, "metered_0")
    ray.kill(pool.handles[0])
    Asking(pool, list(texts), lambda _: texts).result()  # by a new one
    eventually_shows(port, {"restarts_total": 1}, "metered_0")
    pool.close()


def eventually_shows(port: int, expected: dict[str, float], scorer: str) -> None:
    shown: dict[str, float] = {}
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
            text = page.read().decode()
        for name, labels, value in re.findall(r"^ray_dra_scorer_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            if f'scorer="{scorer}"' in labels:
                shown[name] = float(value)
        if all(shown.get(name) == value for name, value in expected.items()):
            return
        time.sleep(0.2)
    assert {name: shown.get(name) for name in expected} == expected
