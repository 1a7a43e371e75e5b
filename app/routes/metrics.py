"""`/metrics`: the metrics as Prometheus text."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from app.inference.engine import State
from app.metrics import CONTENT_TYPE
from app.services import Services, ServicesDep

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
async def metrics(services: ServicesDep) -> Response:
    """Answer with all metrics in Prometheus's text format."""
    observe_state(services)
    return Response(services.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def observe_state(services: Services) -> None:
    """Set what is a state, not an event; and each model's expectations, which drift is measured from."""
    engine, metrics, settings = services.engine, services.metrics, services.settings
    metrics.ready.set(engine.state is State.READY)
    for model in engine.resident:
        labels = (model.manifest.name, model.manifest.version)
        metrics.reviewed.labels(*labels)  # there from the start: a counter that appears with its first count hides it
        for label in model.manifest.labels:
            metrics.predictions.labels(*labels, label)
        review_share, all_share = expected_shares(model.installed.report)
        for gauge, own, reported in (
            (metrics.baseline_review_share, settings.baseline_review_share, review_share),
            (metrics.baseline_all_share, settings.baseline_all_share, all_share),
        ):
            share = reported if own is None else own
            if share is not None:
                gauge.labels(*labels).set(share)


def expected_shares(report: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the shares of answers to review and of the label ALL among the test cells of a model's report.

    Args:
        report: A ``report.json``; what it does not tell is None.
    """
    test = report.get("test")
    if not isinstance(test, dict):
        return None, None
    review_share, all_share = None, None
    try:
        review_share = float(test["review"]["share_sent_to_review"])
        (all_as_all, _), (hem_as_all, _) = test["confusion"]["counts"]
        all_share = (all_as_all + hem_as_all) / test["cells"]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        pass  # a report of another form
    return review_share, all_share
