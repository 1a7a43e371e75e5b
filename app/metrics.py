"""The Prometheus metrics, in a registry of their own."""

from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_REQUEST_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STEP_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_WAIT_BUCKETS_S: Final = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_CONFIDENCE_BUCKETS: Final = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99, 1.0)
_BATCH_BUCKETS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class Metrics:
    """Every metric of the service. Base units; no label holds an identifier or free text of a caller."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._define_requests()
        self._define_answers()
        self._define_work()

    def _define_requests(self) -> None:
        self.request_seconds = self._histogram(
            "leukoscope_http_request_duration_seconds",
            "Time from the request's first byte to the answer's last.",
            _REQUEST_BUCKETS_S,
            ("method", "route", "status"),
        )
        self.rejected = self._counter(
            "leukoscope_rejected_total",
            "Requests that were refused whole, and single pictures that can't be read.",
            ("reason",),
        )
        # Each admitted picture ends in one of these, or in `predictions`, or is refused as unreadable.
        self.admitted = self._counter("leukoscope_admitted_total", "Pictures that got a place in the queue.")
        self.failed = self._counter(
            "leukoscope_failed_total", "Admitted pictures that the model or a stop left without an answer.", ("reason",)
        )
        self.cancelled = self._counter(
            "leukoscope_cancelled_total",
            "Admitted pictures that were given up before an answer: time over, or client gone.",
        )
        self.audit_records = self._counter("leukoscope_audit_records_total", "Answers written to the audit log.")
        self.audit_failures = self._counter(
            "leukoscope_audit_failures_total", "Answers that could not be written to the audit log."
        )

    def _define_answers(self) -> None:
        self.predictions = self._counter(
            "leukoscope_predictions_total", "Answered pictures.", ("model", "version", "label")
        )
        self.confidence = self._histogram(
            "leukoscope_prediction_confidence", "Confidence of the answers.", _CONFIDENCE_BUCKETS
        )
        self.review = self._counter("leukoscope_review_total", "Answers that a person should look at.", ("reason",))
        self.reviewed = self._counter(
            "leukoscope_reviewed_total",
            "Answers that a person should look at, each once whatever its reasons.",
            ("model", "version"),
        )
        self.baseline_review_share = self._gauge(
            "leukoscope_baseline_review_share", "Share of answers to review that is expected.", ("model", "version")
        )
        self.baseline_all_share = self._gauge(
            "leukoscope_baseline_all_share",
            "Share of the label ALL that is expected.",
            ("model", "version"),
        )
        self.ready = self._gauge("leukoscope_ready", "1 while predictions are answered, as in /readyz.")
        self.gpu_expected = self._gauge(
            "leukoscope_gpu_expected", "1 if a GPU is asked for, or taken where there is one and one is there."
        )
        self.model_info = self._gauge(
            "leukoscope_model_info",
            "The model that is served; always 1.",
            ("name", "version", "provider", "precision"),
        )

    def _define_work(self) -> None:
        self.decode_seconds = self._histogram(
            "leukoscope_decode_seconds", "Time to decode and preprocess one picture.", _STEP_BUCKETS_S
        )
        self.queue_wait_seconds = self._histogram(
            "leukoscope_queue_wait_seconds", "Time that a decoded picture waited for its batch.", _WAIT_BUCKETS_S
        )
        self.inference_seconds = self._histogram(
            "leukoscope_inference_seconds", "Time of one batch in the model.", _STEP_BUCKETS_S
        )
        self.batch_size = self._histogram("leukoscope_batch_size", "Pictures in one batch.", _BATCH_BUCKETS)
        self.queue_depth = self._gauge("leukoscope_queue_depth", "Pictures admitted and not yet answered.")
        self.queue_limit = self._gauge("leukoscope_queue_limit", "Pictures admitted at most.")
        self.queue_bytes = self._gauge("leukoscope_queue_bytes", "Bytes of uploads held in memory.")
        self.queue_limit_bytes = self._gauge("leukoscope_queue_limit_bytes", "Bytes of uploads held at most.")
        self.model_switches = self._counter(
            "leukoscope_model_switches_total", "Changes of the served model that were asked for.", ("result",)
        )

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
        return Histogram(name, meaning, labels, registry=self._registry, buckets=buckets)

    def _counter(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, meaning, labels, registry=self._registry)

    def _gauge(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, meaning, labels, registry=self._registry)

    def count_rejected(self, reason: str) -> None:
        """Count one refusal; `reason` is a problem's slug."""
        self.rejected.labels(reason).inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(_WithoutCreated(self._registry))


class _WithoutCreated(Collector):
    """Leaves out the `_created` samples, which double the page and have no use in this format."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
