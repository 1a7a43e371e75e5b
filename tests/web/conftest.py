"""A headless Chromium, the service as a process of its own, and cells to drop."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.harness import ServerProcess
from tests.web.chromium import CHROMIUM_NAMES, chromium_options, find_chromium
from training.data.drawn import cell_bytes

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OpenPage = Callable[..., "Page"]


# Of a module, not of the session: while it lives, no asynchronous test could run in this thread.
@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    if find_chromium() is None:
        pytest.skip(f"no browser: none of {', '.join(CHROMIUM_NAMES)} is on the PATH; CHROMIUM may name one")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(**chromium_options())
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server") / "log", models_dir=models_dir) as process:
        yield process


@pytest.fixture(scope="module")
def cell_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """20 drawn cells of 4 subjects."""
    folder = tmp_path_factory.mktemp("cells")
    files = []
    for number in range(20):
        label, prefix = ("ALL", "") if number % 2 else ("HEM", "H")
        path = folder / f"UID_{prefix}{number % 4 + 1}_{number}_1_{label.lower()}.bmp"
        path.write_bytes(cell_bytes(label, seed=number))
        files.append(path)
    return files


@pytest.fixture
def open_page(browser: "Browser", server: ServerProcess) -> Iterator[OpenPage]:
    """Open the page; at the end, nothing may have gone wrong in it or been asked of elsewhere."""
    with ExitStack() as stack:
        faults: list[str] = []
        allowed: list[str] = []

        def open_one(url: str = server.url, *, expect_faults: bool = False, **options: Any) -> "Page":
            context = browser.new_context(**options)
            stack.callback(context.close)
            context.set_default_timeout(60_000)
            page = context.new_page()
            page.on(
                "request",
                lambda request: allowed.append(request.url) if _own(request.url, url) else faults.append(request.url),
            )
            if not expect_faults:
                page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.goto(url)
            return page

        yield open_one
        assert faults == []
        assert allowed


def _own(url: str, service: str) -> bool:
    return url.startswith((service, f"blob:{service}"))
