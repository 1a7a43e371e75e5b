"""`/`: the page for people, its files, and the active model's card that it shows."""

import asyncio
import os
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.core.spec import CARD_FILE
from app.problems import openapi_problems
from app.services import ServicesDep

router = APIRouter()

FOLDER: Final = Path(__file__).resolve().parent.parent / "web"
# Nothing from elsewhere, nothing inline; blob: is for the pictures that a person has chosen.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_FRESH: Final = {"Cache-Control": "no-cache"}  # asked each time, answered 304: never two versions side by side


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Send the page."""
    return FileResponse(FOLDER / "index.html", headers=_FRESH | {"Content-Security-Policy": CONTENT_SECURITY_POLICY})


@router.get(
    "/models/active/card",
    tags=["models"],
    summary="The card of the model that is served",
    response_class=PlainTextResponse,
    responses=openapi_problems(404, 503),
)
async def card(services: ServicesDep) -> PlainTextResponse:
    """Answer with MODEL_CARD.md, Markdown as plain text: how it was measured, and its limits."""
    ref = services.engine.serving().model.installed.ref
    path = services.settings.models_dir / ref.name / ref.version / CARD_FILE
    try:
        return PlainTextResponse(await asyncio.to_thread(path.read_text, encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise HTTPException(404, f"The card of {ref} can't be read.") from error


class PageFiles(StaticFiles):
    """The page's scripts and styles."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Answer with a file that a browser asks about again each time."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        MutableHeaders(raw=response.raw_headers).update(_FRESH)
        return response
