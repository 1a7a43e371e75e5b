"""`/metrics`: the metrics as Prometheus text."""

from fastapi import APIRouter
from starlette.responses import Response

from app.metrics import CONTENT_TYPE
from app.services import ServicesDep

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
async def metrics(services: ServicesDep) -> Response:
    """Answer with all metrics in Prometheus's text format."""
    return Response(services.metrics.text(), headers={"Content-Type": CONTENT_TYPE})
