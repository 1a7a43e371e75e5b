"""`/livez`, `/readyz`, `/healthz`: is the process alive, and does it answer predictions now."""

from fastapi import APIRouter
from starlette.responses import Response

from app.inference.engine import State
from app.problems import NOT_READY_HEADERS
from app.schemas import Liveness, ModelName, Provider, Readiness
from app.services import ServicesDep

router = APIRouter(tags=["health"])


@router.get("/livez", summary="Does the process run?", responses={503: {"model": Liveness}})
async def livez(response: Response, services: ServicesDep) -> Liveness:
    """Answer 200 as long as a restart would be of no use; 503 when a batch hangs in the model."""
    if services.engine.alive:
        return Liveness(status="alive", reason=None)
    response.status_code = 503
    return Liveness(status="hung", reason=services.engine.reason)


@router.get("/readyz", summary="Are predictions answered now?", responses={503: {"model": Readiness}})
@router.get("/healthz", summary="The same as /readyz", responses={503: {"model": Readiness}})
async def readyz(response: Response, services: ServicesDep) -> Readiness:
    """Answer 200 when the model is warm and has reproduced its golden output on the right provider.

    While starting, draining, or after a failure: 503 with the reason.
    """
    engine = services.engine
    if engine.state is not State.READY:
        response.status_code = 503
        response.headers.update(NOT_READY_HEADERS)
    model = engine.model
    return Readiness(
        status=engine.state.value,
        reason=engine.reason,
        model=None if model is None else ModelName(name=model.manifest.name, version=model.manifest.version),
        provider=Provider(requested=services.settings.device, active=None if model is None else model.session.provider),
    )
