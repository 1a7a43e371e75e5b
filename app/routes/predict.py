"""`POST /predict`: one or many pictures in, a label with its confidence for each out."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from app.core.errors import ImageError, ServiceError
from app.core.postprocess import Prediction
from app.core.spec import Manifest
from app.inference.classifier import PictureError, Upload
from app.problems import KINDS, NO_READABLE_IMAGE, image_problem, openapi_problems, problem_response
from app.recording import record
from app.routes.access import admit, caller_of
from app.routes.bodies import unless_gone
from app.routes.deadline import TIMEOUT_HEADER, DeadlineDep, within
from app.routes.uploads import FORM_TYPE, RAW_TYPES, read_uploads
from app.schemas import FailedImage, ModelName, PredictedImage, PredictResponse, Summary
from app.services import ServicesDep

router = APIRouter(tags=["predict"])

Result = Prediction | PictureError

_BINARY: Final = {"type": "string", "format": "binary"}
_FORM_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "files": {"type": "array", "items": _BINARY, "description": "One or more pictures."},
        "file": _BINARY | {"description": "The same, for a single picture."},
    },
}
_REQUEST_BODY: Final[dict[str, Any]] = {
    "required": True,
    "description": "One or many BMP, PNG, JPEG, TIFF or WebP pictures, each of one segmented cell.",
    "content": {FORM_TYPE: {"schema": _FORM_SCHEMA}} | {media_type: {"schema": _BINARY} for media_type in RAW_TYPES},
}


@router.post(
    "/predict",
    summary="Classify pictures of single cells",
    response_model=PredictResponse,
    responses=openapi_problems(400, 404, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def predict(
    request: Request,
    services: ServicesDep,
    deadline_s: DeadlineDep,
    model: Annotated[
        str | None, Query(description="A resident model, as name or name@version; by default the active one.")
    ] = None,
) -> Response:
    """Answer each picture with ALL (leukemic blast) or HEM (normal), in the order of upload.

    One bad picture gets its own `error` and does its neighbours no harm. If none can be read, the
    answer is the problem itself. Research use; not a medical device.
    """
    engine, settings = services.engine, services.settings
    serving = engine.serving(model)  # before the body is read, so that a starting service refuses early
    with engine.budget.hold() as held:
        async with within(deadline_s):
            uploads = await read_uploads(request, settings, held)
            work = serving.classifier.classify(uploads, settings.request_timeout_s)
            results = await unless_gone(request, work)
        await record(services, caller_of(request), serving.model.manifest, uploads, results)
    if all(isinstance(result, ImageError) for result in results):
        return _none_readable(request, uploads, results)
    if not any(isinstance(result, Prediction) for result in results):
        raise next(result for result in results if isinstance(result, ServiceError))
    answer = _answer(request, serving.model.manifest, uploads, results)
    # As bytes: handed on as a model, FastAPI would check and convert what has just been checked.
    return Response(answer.model_dump_json(), media_type="application/json")


class _Direct:
    """The endpoint of `DirectRoute`, which Starlette calls without layers around it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await predict(request, await admit(request), None)
        await response(scope, receive, send)


class DirectRoute(Route):
    """The same as `POST /predict` for requests that bring no parameters, to stand before FastAPI's routes.

    To find the route, and no parameters in query and headers, costs FastAPI a third of what all costs besides the
    picture. What brings parameters goes FastAPI's way, which also describes the route; either way asks for the key.
    """

    def __init__(self) -> None:
        super().__init__("/predict", _Direct(), methods=["POST"], include_in_schema=False)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match if there are no parameters."""
        match, found = super().matches(scope)
        if match is not Match.FULL or scope["query_string"] or TIMEOUT_HEADER in Headers(scope=scope):
            return Match.NONE, {}
        return match, {**found, "route": self}


def _answer(
    request: Request, manifest: Manifest, uploads: Sequence[Upload], results: Sequence[Result]
) -> PredictResponse:
    items = [_item(upload, result) for upload, result in zip(uploads, results, strict=True)]
    labels = [item.label for item in items if isinstance(item, PredictedImage)]
    return PredictResponse(
        request_id=request.state.request_id,
        model=ModelName(name=manifest.name, version=manifest.version),
        predictions=items,
        summary=Summary(
            images=len(items),
            ALL=labels.count("ALL"),
            HEM=labels.count("HEM"),
            review=sum(isinstance(item, PredictedImage) and item.review for item in items),
            errors=len(items) - len(labels),
        ),
    )


def _item(upload: Upload, result: Result) -> PredictedImage | FailedImage:
    if not isinstance(result, Prediction):
        return FailedImage(filename=upload.filename, error=image_problem(result))
    return PredictedImage.model_validate(
        {
            "filename": upload.filename,
            "label": result.label,
            "confidence": result.confidence,
            "probabilities": result.probabilities,
            "review": result.review,
            "reasons": list(result.reasons),
        }
    )


def _none_readable(request: Request, uploads: Sequence[Upload], results: Sequence[Result]) -> Response:
    """Answer with the one picture's own problem, or with a problem that lists those of all."""
    faults = [result for result in results if isinstance(result, ImageError)]
    if len(faults) == 1:
        return problem_response(request, KINDS[type(faults[0])], str(faults[0]))
    failed = [
        FailedImage(filename=upload.filename, error=image_problem(fault))
        for upload, fault in zip(uploads, faults, strict=True)
    ]
    detail = f"None of the {len(faults)} pictures can be read; see errors for each."
    return problem_response(request, NO_READABLE_IMAGE, detail, failed=failed)
