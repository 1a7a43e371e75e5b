"""`POST /explain`: one picture in, a PNG out that shows which regions spoke for which label."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from app.core.errors import TooManyImagesError
from app.inference.explain import Style, explain
from app.problems import openapi_problems
from app.recording import record
from app.routes.access import caller_of
from app.routes.bodies import unless_gone
from app.routes.deadline import DeadlineDep, within
from app.routes.uploads import FORM_TYPE, RAW_TYPES, read_uploads
from app.services import ServicesDep

router = APIRouter(tags=["predict"])

LABEL_HEADER: Final = "X-Leukoscope-Label"
CONFIDENCE_HEADER: Final = "X-Leukoscope-Confidence"
REVIEW_HEADER: Final = "X-Leukoscope-Review"
MODEL_HEADER: Final = "X-Leukoscope-Model"

_PNG: Final = "image/png"
_BINARY: Final = {"type": "string", "format": "binary"}
_REQUEST_BODY: Final[dict[str, Any]] = {
    "required": True,
    "description": "One BMP, PNG, JPEG, TIFF or WebP picture of one segmented cell.",
    "content": {FORM_TYPE: {"schema": {"type": "object", "properties": {"file": _BINARY}}}}
    | {media_type: {"schema": _BINARY} for media_type in RAW_TYPES},
}
_HEADERS: Final = {
    LABEL_HEADER: {"description": "ALL or HEM, as /predict answers.", "schema": {"type": "string"}},
    CONFIDENCE_HEADER: {"description": "Calibrated probability of the label.", "schema": {"type": "number"}},
    REVIEW_HEADER: {"description": "Whether a person should look.", "schema": {"type": "boolean"}},
    MODEL_HEADER: {"description": "Which model answered, as name@version.", "schema": {"type": "string"}},
}
_HEAT_MAP: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {_PNG: {"schema": _BINARY}}, "headers": _HEADERS, "description": "The heat-map."}
}


@router.post(
    "/explain",
    summary="Show which regions of a picture spoke for its label",
    response_class=Response,
    responses=_HEAT_MAP | openapi_problems(400, 404, 413, 415, 422, 429, 500, 501, 503, 504),
    openapi_extra={"requestBody": _REQUEST_BODY},
)
async def explain_picture(
    request: Request,
    services: ServicesDep,
    deadline_s: DeadlineDep,
    style: Annotated[Style, Query(description="How the map is drawn.")] = Style.SIDE_BY_SIDE,
    model: Annotated[
        str | None, Query(description="A resident model, as name or name@version; by default the active one.")
    ] = None,
) -> Response:
    """Answer with a PNG: orange regions spoke for ALL, blue ones for HEM, in the picture's own coordinates.

    The label and its confidence stand in the headers. A heat-map shows where the model found its
    reasons, coarsely; it does not show that they are good ones.
    """
    engine, settings = services.engine, services.settings
    serving = engine.serving(model)
    with engine.budget.hold() as held:
        async with within(deadline_s):
            uploads = await read_uploads(request, settings, held)
            if len(uploads) > 1:
                raise TooManyImagesError(f"The request has {len(uploads)} pictures; one is explained at a time.")
            work = explain(
                serving,
                uploads[0],
                timeout_s=settings.request_timeout_s,
                style=style,
                max_pixels=settings.max_image_pixels,
            )
            result = await unless_gone(request, work)
        await record(services, caller_of(request), serving.model.manifest, uploads, [result.prediction])
    headers = {
        LABEL_HEADER: result.prediction.label,
        CONFIDENCE_HEADER: str(result.prediction.confidence),
        REVIEW_HEADER: str(result.prediction.review).lower(),
        MODEL_HEADER: str(serving.model.installed.ref),
    }
    return Response(result.png, media_type=_PNG, headers=headers)
