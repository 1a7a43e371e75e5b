"""`/v2`: the Open Inference Protocol V2 over HTTP, with the binary tensor data extension."""

import asyncio
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.core.errors import NotReadyError, UnsupportedMediaTypeError
from app.inference.engine import Serving, State
from app.recording import Caller
from app.routes.access import caller_of
from app.routes.bodies import read_body, unless_gone
from app.routes.deadline import DeadlineDep, within
from app.schemas import V2Error, V2Live, V2Model, V2ModelReady, V2Ready, V2Server, V2Tensor
from app.services import Services, ServicesDep
from app.v2.http_body import LENGTH_HEADER, parse, render
from app.v2.model import EXTENSIONS, PLATFORM, SERVER_NAME, infer, inputs_of, model_reference, outputs_of, versions_of
from app.v2.tensors import TensorSpec

_PREFIX: Final = "/v2"
_MODEL: Final = "/models/{model}"
_VERSION: Final = "/models/{model}/versions/{version}"
_NO_ENCODING: Final = ("", "identity")
_INFER_BODY: Final[dict[str, Any]] = {
    "required": True,
    "description": f"JSON, and behind it the binary data of the inputs, if the header {LENGTH_HEADER} says where "
    "the JSON ends.",
    "content": {
        "application/json": {"schema": {"type": "object", "required": ["inputs"]}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document errors in the protocol's own form, for the `responses` of a route."""
    return {status: {"model": V2Error} for status in statuses}


# Two routers: health and metadata of the server are for everybody, the models for clients.
public_router = APIRouter(prefix=_PREFIX, tags=["v2"])
router = APIRouter(prefix=_PREFIX, tags=["v2"])


@public_router.get("", summary="Server metadata")
async def server_metadata(request: Request) -> V2Server:
    """Name the server, its version, and the extensions of the protocol that it has."""
    return V2Server(name=SERVER_NAME, version=request.app.version, extensions=list(EXTENSIONS))


@public_router.get("/health/live", summary="Is the process alive?", responses=errors(503))
async def live(services: ServicesDep) -> V2Live:
    """Answer 200 as long as the process can go on."""
    if not services.engine.alive:
        raise NotReadyError(services.engine.reason or "The service must be restarted.")
    return V2Live()


@public_router.get("/health/ready", summary="Are inference requests answered now?", responses=errors(503))
async def ready(services: ServicesDep) -> V2Ready:
    """Answer 200 when `/readyz` does; otherwise say why not."""
    _require_ready(services)
    return V2Ready()


@router.get(_MODEL, summary="Model metadata", responses=errors(404, 503))
@router.get(_VERSION, summary="Model metadata", responses=errors(404, 503))
async def model_metadata(services: ServicesDep, model: str, version: str | None = None) -> V2Model:
    """Describe the model's inputs and outputs."""
    manifest = _serving(services, model, version).model.manifest
    return V2Model(
        name=manifest.name,
        versions=versions_of(services.engine, manifest.name),
        platform=PLATFORM,
        inputs=_tensors(inputs_of(manifest)),
        outputs=_tensors(outputs_of(manifest)),
    )


@router.get(f"{_MODEL}/ready", summary="Does the model answer now?", responses=errors(404, 503))
@router.get(f"{_VERSION}/ready", summary="Does the model answer now?", responses=errors(404, 503))
async def model_ready(services: ServicesDep, model: str, version: str | None = None) -> V2ModelReady:
    """Answer 200 when this model answers inference requests."""
    _require_ready(services)
    return V2ModelReady(name=_serving(services, model, version).model.manifest.name)


@router.post(
    f"{_MODEL}/infer",
    summary="Classify pictures of single cells",
    responses=errors(400, 404, 413, 415, 429, 500, 503, 504),
    openapi_extra={"requestBody": _INFER_BODY},
)
@router.post(
    f"{_VERSION}/infer",
    summary="Classify pictures of single cells",
    responses=errors(400, 404, 413, 415, 429, 500, 503, 504),
    openapi_extra={"requestBody": _INFER_BODY},
)
async def model_infer(
    request: Request, services: ServicesDep, deadline_s: DeadlineDep, model: str, version: str | None = None
) -> Response:
    """Answer one inference request.

    The input is either `image`, preprocessed pixels, or `encoded`, picture files. A picture that
    can't be read fails the request, since the protocol has no errors of single pictures.
    """
    serving = _serving(services, model, version)  # before the body is read, so that a wrong name is refused early
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in _NO_ENCODING:
        raise UnsupportedMediaTypeError("The body is compressed; expected no Content-Encoding.")
    with services.engine.budget.hold() as held:
        async with within(deadline_s):
            body = await read_body(request, services.settings, held)
            work = _answer(serving, services, caller_of(request), body, request.headers.get(LENGTH_HEADER))
            content, json_length = await unless_gone(request, work)
    if json_length is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={LENGTH_HEADER: str(json_length)})


async def _answer(
    serving: Serving, services: Services, caller: Caller, body: bytearray, json_length: str | None
) -> tuple[bytes, int | None]:
    settings = services.settings
    # In a thread, for much JSON takes long.
    request = await asyncio.to_thread(parse, body, json_length, max_json_bytes=settings.max_json_bytes)
    response = await infer(services, serving, caller, request, timeout_s=settings.request_timeout_s)
    return render(response)


def _require_ready(services: Services) -> None:
    # Sooner than inference ends: a service that will stop is not ready, but still answers for a while.
    if services.engine.state is not State.READY:
        raise NotReadyError(services.engine.reason or "The service is not ready.")


def _serving(services: Services, model: str, version: str | None) -> Serving:
    return services.engine.serving(model_reference(model, version))


def _tensors(specs: dict[str, TensorSpec]) -> list[V2Tensor]:
    return [V2Tensor(name=spec.name, datatype=spec.datatype, shape=list(spec.shape)) for spec in specs.values()]
