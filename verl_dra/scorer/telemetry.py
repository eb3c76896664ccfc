"""What a scorer does, as Ray's metrics, which Prometheus reads from every node."""

from __future__ import annotations

from dataclasses import asdict

from ray.util.metrics import Counter, Gauge, Histogram

from verl_dra.scorer.messages import Events

PREFIX = "dra_scorer_"
COUNTERS = {
    "submitted": "Completions that arrived",
    "refused": "Completions that reward workers kept back because the queue was full",
    "unsent": "Completions that reward workers could not send because the scorer was not there",
    "skipped": "Completions that are not sent: of validation, where dra.strength is 0, all with dra.text=assistant",
    "late": "Completions that came after their vector was taken, or given up",
    "evicted": "Completions dropped uncollected to bound memory",
    "cache_hits": "Completions whose text was known already",
    "embedded": "Texts that went through the encoder",
    "tokens": "Tokens that went through the encoder",
    "halved": "Batches halved because they were too large for memory or for a server",
    "failed": "Texts that the encoder could not embed",
    "unavailable": "Times that the encoder was away and was tried again",
    "restarts": "Starts of the scorer after its first",
}
"""By name; Prometheus shows each as `ray_dra_scorer_<name>_total`, from its first event on."""
GAUGES = {
    "queue_rows": "Texts that wait for the encoder",
    "queue_bytes": "Bytes of the texts that wait for the encoder",
}
HISTOGRAMS: dict[str, tuple[str, list[float]]] = {
    "batch_texts": ("Texts of one call of the encoder", [1, 4, 16, 64, 256, 1024]),
    "embed_seconds": ("Seconds of one call of the encoder", [0.001, 0.01, 0.1, 0.3, 1, 3, 10, 60]),
}


class Telemetry:
    """A scorer's observer; the metrics' tag `scorer` is the actor's name.

    Args:
        scorer: the actor's name.
        restarted: whether Ray has started it again.
    """

    def __init__(self, scorer: str, restarted: bool) -> None:
        keys = ("scorer",)
        self._told = Events()
        self._counters = {name: Counter(PREFIX + name, text, keys) for name, text in COUNTERS.items()}
        self._gauges = {name: Gauge(PREFIX + name, text, keys) for name, text in GAUGES.items()}
        self._histograms = {name: Histogram(PREFIX + name, *of, keys) for name, of in HISTOGRAMS.items()}
        for metric in (*self._counters.values(), *self._gauges.values(), *self._histograms.values()):
            metric.set_default_tags({"scorer": scorer})
        if restarted:
            self._counters["restarts"].inc()

    def queued(self, events: Events, rows: int, size: int) -> None:
        """All events since the start; the queue's rows and bytes now."""
        for name, count in asdict(events - self._told).items():
            if count:
                self._counters[name].inc(count)
        self._told = events
        self._gauges["queue_rows"].set(rows)
        self._gauges["queue_bytes"].set(size)

    def embedded(self, texts: int, seconds: float) -> None:
        """One call of the encoder."""
        self._histograms["batch_texts"].observe(texts)
        self._histograms["embed_seconds"].observe(seconds)
