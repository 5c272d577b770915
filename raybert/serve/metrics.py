"""Prometheus metrics of a whole service: each process counts, one ledger adds up.

A scrape reaches any one of several ingress replicas, and sees what all of them did: every process sends what it has
counted to the ledger, which keeps the last word of each, also of those that are gone. So sums never fall.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from raybert.serve.afterwards import Afterwards

PUSH_EVERY_S = 1.0
GONE_AFTER_S = 10.0
"""A process that was silent for so long has nothing waiting any more."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKENS = (16, 64, 256, 1024, 2048, 4096, 16384, 65536)
_FEW = (1, 2, 4, 8, 16, 32, 64, 128)

Sample = tuple[str, tuple[tuple[str, str], ...], float]
Snapshot = dict[str, tuple[str, str, list[Sample]]]
"""Metric -> its type, its help, its samples."""


class Meters:
    """What one process counts.

    Attributes:
        registry: of Prometheus.
        afterwards: what is still to be counted; a snapshot has it.
    """

    def __init__(self) -> None:
        self.registry, self.afterwards = CollectorRegistry(), Afterwards()

        def seconds(name: str, about: str, *labels: str) -> Histogram:
            return Histogram(f"raybert_{name}_seconds", about, labels, buckets=_SECONDS, registry=self.registry)

        self.requests = Counter(
            "raybert_requests", "Requests answered, whatever the answer.", ("route", "status"), registry=self.registry
        )
        self.errors = Counter("raybert_errors", "Requests refused, by kind.", ("kind",), registry=self.registry)
        self.request_s = seconds("request", "From a request's first byte to its answer.", "route")
        self.tokenization_s = seconds("tokenization", "Texts to token ids.")
        self.queue_s = seconds("queue", "Until a request's first window was computed.")
        self.inference_s = seconds("inference", "From then until its last one came back.")
        self.tokens = Counter("raybert_tokens", "Tokens that requests had computed.", registry=self.registry)
        self.texts = Counter("raybert_texts", "Texts, or pairs, that were answered.", registry=self.registry)
        self.truncated = Counter("raybert_truncated", "Texts that were cut.", registry=self.registry)
        self.batch_tokens = Histogram(
            "raybert_batch_tokens", "Tokens of a forward pass.", buckets=_TOKENS, registry=self.registry
        )
        self.batch_requests = Histogram(
            "raybert_batch_requests", "Requests that shared a forward pass.", buckets=_FEW, registry=self.registry
        )
        self.batch_s = seconds("batch", "A forward pass with its heads.")
        self.waiting = Gauge("raybert_waiting_tokens", "Tokens that no batch has taken yet.", registry=self.registry)
        self.held = Gauge("raybert_held_tokens", "Tokens of requests that were let in.", registry=self.registry)
        self.replicas = Gauge("raybert_replicas", "Processes at work.", ("kind",), registry=self.registry)

    def batch(self, requests: int, tokens: int, seconds: float) -> None:
        """A forward pass came back."""
        self.afterwards.do(partial(self._batch, requests, tokens, seconds))

    def _batch(self, requests: int, tokens: int, seconds: float) -> None:
        self.batch_requests.observe(requests)
        self.batch_tokens.observe(tokens)
        self.batch_s.observe(seconds)

    def answered(self, texts: int, tokens: int, truncated: int, seconds: Mapping[str, float]) -> None:
        """A request got its answers."""
        self.afterwards.do(partial(self._answered, texts, tokens, truncated, seconds))

    def _answered(self, texts: int, tokens: int, truncated: int, seconds: Mapping[str, float]) -> None:
        self.texts.inc(texts)
        self.tokens.inc(tokens)
        self.truncated.inc(truncated)
        self.tokenization_s.observe(seconds["tokenization"])
        self.queue_s.observe(seconds["queue"])
        self.inference_s.observe(seconds["inference"])

    def snapshot(self) -> Snapshot:
        """All that was counted so far, in plain values."""
        self.afterwards.now()
        found: Snapshot = {}
        for metric in self.registry.collect():
            samples = [
                (sample.name, tuple(sorted(sample.labels.items())), sample.value)
                for sample in metric.samples
                if not sample.name.endswith("_created")
            ]
            found[metric.name] = (metric.type, metric.documentation, samples)
        return found


@dataclass
class _Source:
    snapshot: Snapshot
    at: float

    def told(self, *, gone: bool) -> Snapshot:
        """What counts: of one that is gone all but what it had under way."""
        if not gone:
            return self.snapshot
        return {metric: facts for metric, facts in self.snapshot.items() if facts[0] != "gauge"}


class Ledger:
    """Adds up what processes counted; on Ray Serve a deployment of one small replica, hence its coroutines.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sources: dict[str, _Source] = {}

    async def push(self, source: str, snapshot: Snapshot) -> None:
        """A process says what it has counted since it began."""
        self._sources[source] = _Source(snapshot, self._clock())

    async def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        now = self._clock()
        return rendered(_added(source.told(gone=now - source.at > GONE_AFTER_S) for source in self._sources.values()))


def _added(snapshots: Iterable[Snapshot]) -> Snapshot:
    sums: dict[str, tuple[str, str, dict[tuple[str, Any], float]]] = {}
    for snapshot in snapshots:
        for metric, (kind, about, samples) in snapshot.items():
            _, _, own = sums.setdefault(metric, (kind, about, {}))
            for name, labels, value in samples:
                own[name, labels] = own.get((name, labels), 0.0) + value
    return {
        metric: (kind, about, [(name, labels, value) for (name, labels), value in own.items()])
        for metric, (kind, about, own) in sums.items()
    }


class _Fixed(Collector):
    """A collector of what is given."""

    def __init__(self, total: Snapshot) -> None:
        self._total = total

    def collect(self) -> Iterable[Metric]:
        for name, (kind, about, samples) in self._total.items():
            metric = Metric(name, about, kind)
            for sample, labels, value in samples:
                metric.add_sample(sample, dict(labels), value)
            yield metric


def rendered(total: Snapshot) -> bytes:
    """Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Fixed(total))
    text: bytes = generate_latest(registry)
    return text


ROUTES: Mapping[str, str] = {"/models/": "/models/{name}"}
KNOWN = frozenset(
    {
        *("/", "/invocations", "/embed", "/embed_all", "/embed_sparse", "/predict", "/rerank", "/similarity"),
        *("/tokenize", "/decode", "/info", "/health", "/ping", "/livez", "/readyz", "/metrics", "/docs"),
        *("/openapi.json", "/embeddings", "/v1/embeddings", "/v1/models", "/v1/label", "/v1/rerank", "/v2/rerank"),
    }
)


def route_of(path: str) -> str:
    """A path as a label: few in number, whatever clients ask for."""
    if path in KNOWN:
        return path
    return next((route for begin, route in ROUTES.items() if path.startswith(begin)), "other")
