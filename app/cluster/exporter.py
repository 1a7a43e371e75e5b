"""The service's metrics in Ray's exporter too: the same definitions, each event told twice."""

from collections.abc import Sequence
from typing import Final, TypeVar

from prometheus_client import Counter, Gauge, Histogram
from ray.serve import metrics as ray_metrics

from app.metrics import Metrics

# Ray knows a metric by its name, and all its label values go with each event.
_MIRRORS: Final[dict[str, ray_metrics.Counter | ray_metrics.Gauge | ray_metrics.Histogram]] = {}


class RayMetrics(Metrics):
    """Every metric of the service, also exported by Ray as ``ray_<name>``, with deployment and replica as labels."""

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
        _MIRRORS[name] = ray_metrics.Histogram(name, meaning, boundaries=list(buckets), tag_keys=tuple(labels))
        return _Histogram(name, meaning, labels, registry=self._registry, buckets=buckets)

    def _counter(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Counter:
        stem = name.removesuffix("_total")  # which both libraries add
        _MIRRORS[stem] = ray_metrics.Counter(stem, meaning, tag_keys=tuple(labels))
        return _Counter(name, meaning, labels, registry=self._registry)

    def _gauge(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Gauge:
        _MIRRORS[name] = ray_metrics.Gauge(name, meaning, tag_keys=tuple(labels))
        return _Gauge(name, meaning, labels, registry=self._registry)


class _Counter(Counter):
    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        super().inc(amount, exemplar)
        if amount > 0:  # Ray refuses to add nothing
            _mirror(self._name, ray_metrics.Counter).inc(amount, tags=_tags(self._labelnames, self._labelvalues))


class _Gauge(Gauge):
    def set(self, value: float) -> None:
        super().set(value)
        _mirror(self._name, ray_metrics.Gauge).set(value, tags=_tags(self._labelnames, self._labelvalues))

    def clear(self) -> None:
        # Ray can't forget a series.
        for values in list(self._metrics):
            _mirror(self._name, ray_metrics.Gauge).set(0, tags=_tags(self._labelnames, values))
        super().clear()


class _Histogram(Histogram):
    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        super().observe(amount, exemplar)
        _mirror(self._name, ray_metrics.Histogram).observe(amount, tags=_tags(self._labelnames, self._labelvalues))


_M = TypeVar("_M")


def _mirror(name: str, kind: type[_M]) -> _M:
    found = _MIRRORS[name]
    assert isinstance(found, kind)  # noqa: S101 - narrows what `RayMetrics` has put there
    return found


def _tags(names: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    return dict(zip(names, values, strict=True))
