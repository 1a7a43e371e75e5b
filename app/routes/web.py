"""`/`: the page for people, and its scripts and styles."""

import os
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.datastructures import MutableHeaders
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

router = APIRouter()

FOLDER: Final = Path(__file__).resolve().parent.parent / "web"
_FRESH: Final = {"Cache-Control": "no-cache"}  # asked each time, answered 304: never two versions side by side


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Send the page. It needs no key; what it asks of the service may."""
    return FileResponse(FOLDER / "index.html", headers=_FRESH)


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
