"""Renew the README's picture of the page, with drawn cells and the model in models/.

python -m tests.web.screenshots
"""

import io
import tempfile
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.service.harness import ROOT, ServerProcess
from tests.web.chromium import chromium_options
from training.data.drawn import write_dataset

IMAGES: Final = ROOT / "docs" / "images"
SUBJECTS, CELLS = 3, 10


def main() -> None:
    """Write ``docs/images/page.png``."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = sorted(write_dataset(folder, folds=1, subjects=SUBJECTS, cells=CELLS).rglob("*.bmp"))
        with ServerProcess(folder / "log", device="cpu") as server, sync_playwright() as playwright:
            browser = playwright.chromium.launch(**chromium_options())
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
            page.goto(server.url)
            page.set_input_files("#files", files)
            expect(page.locator("#progress")).to_have_js_property("value", len(files), timeout=120_000)
            expect(page.locator("#grid img")).to_have_count(len(files))
            page.locator("#grid button").nth(1).click()
            page.check("#detail input[value=ALL]")
            page.keyboard.press("Escape")
            page.mouse.move(0, 0)
            _save(page, "page.png")
            browser.close()


def _save(page: Page, name: str) -> None:
    page.wait_for_timeout(500)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        # A palette is enough for a quiet page, and a third of the bytes.
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)


if __name__ == "__main__":
    main()
