"""Errors as RFC 9457 `application/problem+json`: one table from exception to type, title and status.

Routes of the Open Inference Protocol answer that protocol's `{"error": "..."}` from the same table.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from app.core import errors
from app.schemas import FailedImage, ImageProblem, Problem, V2Error

INTERNAL_DETAIL: Final = "Something broke; the log has it under the request's id."
NOT_READY_HEADERS: Final = {"Retry-After": "5"}  # a model is loaded in a few seconds
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="leukoscope"'}  # RFC 9110, 11.6.1: a 401 has one


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of problem.

    Attributes:
        slug: Last part of the type's address; also the label in `leukoscope_rejected_total`.
        title: The same for every occurrence.
        status: HTTP status.
    """

    slug: str
    title: str
    status: int

    @property
    def type(self) -> str:
        """The problem's type, a relative address."""
        return f"/problems/{self.slug}"


KINDS: Final[Mapping[type[errors.LeukoscopeError], Kind]] = {
    errors.UndecodableImageError: Kind(errors.UndecodableImageError.reason, "The picture can't be read", 422),
    errors.ImageTooLargeError: Kind(errors.ImageTooLargeError.reason, "The picture has too many pixels", 413),
    errors.MalformedFormError: Kind("malformed-form", "The form can't be used", 400),
    errors.UnsupportedMediaTypeError: Kind("unsupported-media-type", "Neither a form nor a picture", 415),
    errors.BodyTooLargeError: Kind("body-too-large", "The request has too many bytes", 413),
    errors.TooManyImagesError: Kind("too-many-images", "The request has too many pictures", 413),
    errors.TensorError: Kind("bad-tensor", "The inference request can't be used", 400),
    errors.QueueFullError: Kind("queue-full", "The service is busy", 429),
    errors.DeadlineExceededError: Kind("deadline-exceeded", "No answer within the time limit", 504),
    errors.NotReadyError: Kind("not-ready", "The service is not ready", 503),
    errors.SwitchInProgressError: Kind("switch-in-progress", "Another model is being loaded", 409),
    errors.InferenceError: Kind("inference-failed", "The model failed", 500),
    errors.ListenError: Kind("not-listening", "A port can't be served", 503),
    errors.DeviceMemoryError: Kind("device-memory", "The device is out of memory", 500),
    errors.AuditError: Kind("audit-failed", "The answer can't be recorded", 503),
    errors.UnauthenticatedError: Kind("unauthenticated", "An API key is needed", 401),
    errors.ForbiddenError: Kind("forbidden", "Not allowed", 403),
    # What is wrong with a model is met by those who ask for it by name; what is served goes on.
    errors.ModelNotFoundError: Kind("model-not-found", "No such model", 404),
    errors.NoExplanationError: Kind("no-explanation", "The model gives no explanation", 501),
    errors.ManifestError: Kind("bad-manifest", "The model's manifest can't be used", 422),
    errors.ModelIntegrityError: Kind("model-integrity", "The model's files are not as published", 422),
    errors.GoldenMismatchError: Kind("golden-mismatch", "The model does not reproduce its golden output", 422),
    errors.ProviderError: Kind("wrong-provider", "The model does not run where it should", 422),
}
NO_READABLE_IMAGE: Final = Kind("no-readable-image", "None of the pictures can be read", 422)
_INTERNAL: Final = Kind("internal-error", "Internal error", 500)
_INVALID_PARAMETER: Final = Kind("invalid-parameter", "A parameter can't be used", 400)
_HTTP: Final = {
    404: Kind("not-found", "No such resource", 404),
    405: Kind("method-not-allowed", "Method not allowed", 405),
    413: KINDS[errors.BodyTooLargeError],
}


class ProblemResponse(JSONResponse):
    """A JSON response with the media type of RFC 9457."""

    media_type = "application/problem+json"


def image_problem(error: errors.LeukoscopeError) -> ImageProblem:
    """Describe why one picture has no answer."""
    kind = KINDS[type(error)]
    return ImageProblem(type=kind.type, title=kind.title, status=kind.status, detail=str(error))


def problem_response(
    request: Request,
    kind: Kind,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    failed: list[FailedImage] | None = None,
) -> JSONResponse:
    """Make the response for one problem.

    Args:
        request: The request; its path and id go into the body.
        kind: The sort of problem.
        detail: What happened this time, fit to show to the caller.
        headers: More headers.
        failed: Each picture's own problem, where there were several.
    """
    if _is_v2(request):
        return JSONResponse(V2Error(error=detail).model_dump(), kind.status, headers)
    body = Problem(
        type=kind.type,
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=request.url.path,
        request_id=request.state.request_id,
        errors=failed,
    )
    return ProblemResponse(body.model_dump(exclude_none=True), kind.status, headers)


def internal_error(request: Request) -> JSONResponse:
    """Make the 500 response; what broke is in the log, under the request's id."""
    return problem_response(request, _INTERNAL, INTERNAL_DETAIL)


def install_handlers(app: FastAPI, on_rejected: Callable[[str], None]) -> None:
    """Answer every expected exception with a problem.

    Args:
        app: The application.
        on_rejected: Called with the problem's slug for each refused request.
    """

    async def leukoscope_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, errors.LeukoscopeError)  # noqa: S101 - narrows the type that Starlette passes on
        kind = KINDS[type(error)]
        on_rejected(kind.slug)
        return problem_response(request, kind, str(error), headers=error_headers(error, kind))

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101 - as above
        status = error.status_code
        kind = _HTTP.get(status) or Kind(f"http-{status}", HTTPStatus(status).phrase, status)
        on_rejected(kind.slug)
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return problem_response(request, kind, detail, headers=error.headers)

    async def invalid_parameter(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
        on_rejected(_INVALID_PARAMETER.slug)
        faults = [f"{' '.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        return problem_response(request, _INVALID_PARAMETER, "; ".join(faults))

    app.add_exception_handler(errors.LeukoscopeError, leukoscope_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid_parameter)


def openapi_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document problem responses, for the `responses` of a route that answers with `PredictResponse`."""
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)  # those models are among the document's components already
    titles = {kind.status: kind.title for kind in reversed([*KINDS.values(), _INTERNAL])}
    return {
        status: {"description": titles[status], "content": {ProblemResponse.media_type: {"schema": schema}}}
        for status in statuses
    }


def error_headers(error: errors.LeukoscopeError, kind: Kind) -> dict[str, str]:
    """Return the headers that go with an error: when to come again, how to say who one is."""
    if isinstance(error, errors.UnauthenticatedError):
        return _CHALLENGE
    if isinstance(error, errors.QueueFullError):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    return NOT_READY_HEADERS if kind.status == 503 else {}


def _is_v2(request: Request) -> bool:
    path = request.url.path
    return path == "/v2" or path.startswith("/v2/")
