"""A short soak: mixed traffic with changes of the model, reconciled with the metrics; and that it can fail."""

from collections import Counter
from pathlib import Path

import pytest

from tests.soak.__main__ import soak, two_models
from tests.soak.reconcile import complaints, memory_grows
from tests.soak.traffic import Seen


@pytest.mark.anyio
async def test_counters_agree_with_what_clients_saw(tmp_path: Path) -> None:
    with two_models(tiny=True) as models_dir:
        report = await soak(models_dir, tmp_path / "log", seconds=6, connections=8, pause_s=1, seed=1)
    assert report["complaints"] == []
    assert report["switches"] >= 2
    assert {200, 413, 422} <= set(report["by_status"])


def consistent() -> tuple[Seen, dict[str, float], dict[str, float]]:
    route = 'leukoscope_http_request_duration_seconds_count{method="POST",route="/predict",status='
    after = {
        "leukoscope_admitted_total": 12.0,
        'leukoscope_predictions_total{label="ALL"}': 9.0,
        'leukoscope_rejected_total{reason="undecodable-image"}': 1.0,
        'leukoscope_failed_total{reason="inference"}': 1.0,
        "leukoscope_cancelled_total": 1.0,
        "leukoscope_queue_depth": 0.0,
        "leukoscope_queue_bytes": 0.0,
        f'{route}"200"}}': 8.0,
        f'{route}"499"}}': 1.0,
    }
    seen = Seen(statuses=Counter({200: 8}), abandoned=1, answered=8, refused=1, at_risk=2)
    return seen, dict.fromkeys(after, 0.0), after


def test_what_adds_up_has_no_complaint() -> None:
    assert complaints(*consistent()) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("leukoscope_admitted_total", 1),
        ("leukoscope_cancelled_total", -1),
        ('leukoscope_predictions_total{label="ALL"}', -2),
        ("leukoscope_queue_depth", 1),
        ('leukoscope_http_request_duration_seconds_count{method="POST",route="/predict",status="200"}', -1),
        ('leukoscope_http_request_duration_seconds_count{method="POST",route="/predict",status="200"}', 3),
    ],
)
def test_what_does_not_add_up_is_told(name: str, change: float) -> None:
    seen, before, after = consistent()
    after[name] += change
    assert complaints(seen, before, after)


def test_growing_memory_is_told() -> None:
    assert memory_grows([100.0 + 2 * index for index in range(100)])
    assert memory_grows([100.0] * 100) is None
