"""What a person does on the page: drop cells, watch, look, label, save; and what happens when the service goes away."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from app.core.naming import CELL_PATTERN
from app.security.keys import new_key
from tests.service.harness import ServerProcess
from training.data.drawn import cell_bytes

expect = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright").expect

expect.set_options(timeout=30_000)  # a slow machine is no fault of the page

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

Open = Callable[..., "Page"]
SCREENS = {
    "desktop-light": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "light"},
    "desktop-dark": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"},
    "phone-light": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
    "phone-dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}


def add(page: "Page", files: list[Path]) -> None:
    page.set_input_files("#files", files)


def wait_for(page: "Page", ended: int) -> None:
    expect(page.locator("#progress")).to_have_js_property("value", ended, timeout=60_000)
    expect(page.locator("#grid > li")).to_have_count(ended)


def saved_rows(page: "Page") -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.click("#export-csv")
    with Path(download.value.path()).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def problem(route: "Route", status: int, detail: str, **headers: str) -> None:
    body = {"type": "/problems/x", "title": "x", "status": status, "detail": detail}
    route.fulfill(status=status, json=body, headers=headers)


def test_answers_are_those_of_predict(
    open_page: Open, server: ServerProcess, cell_files: list[Path], tmp_path: Path
) -> None:
    damaged = tmp_path / "=damaged.bmp"
    damaged.write_bytes(b"no picture")
    page = open_page()
    add(page, [*cell_files, damaged])
    wait_for(page, 21)
    expect(page.locator("#progress-text")).to_contain_text("20 of 21 answered · 1 failed")
    rows = saved_rows(page)
    with server.client() as client:
        for path, row in zip(cell_files, rows, strict=False):
            item = client.post("/predict", files={"file": (path.name, path.read_bytes())}).json()["predictions"][0]
            assert (row["file"], row["label"], row["person_label"]) == (path.name, item["label"], "")
            assert float(row["confidence"]) == item["confidence"]
            assert float(row["p_all"]) == item["probabilities"]["ALL"]
            assert row["review"] == str(item["review"]).lower()
            assert (row["model"], row["version"]) == ("tiny", "1.0.0")
    assert rows[-1]["file"] == "'=damaged.bmp"  # or a spreadsheet would run it
    assert "can't be read" in rows[-1]["error"] or "not a picture" in rows[-1]["error"]


@pytest.mark.parametrize("screen", SCREENS)
def test_no_accessibility_rule_is_broken_in_any_state(open_page: Open, cell_files: list[Path], screen: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check(state: str) -> None:
        page.wait_for_timeout(250)
        broken = axe.run(page).response["violations"]
        assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in broken] == [], state

    page = open_page(expect_faults=True, **SCREENS[screen])
    check("empty")
    page.route("**/predict", lambda route: problem(route, 429, "full", **{"Retry-After": "60"}))
    add(page, cell_files)
    expect(page.locator("#trouble")).to_be_visible()
    check("busy")
    page.unroute("**/predict")
    page.click("#try-now")
    wait_for(page, 20)
    check("done")
    page.locator("#grid button").first.click()
    check("large view")
    page.keyboard.press("Escape")
    page.click("#model-button")
    page.click("#model summary")
    check("model")
    page.keyboard.press("Escape")
    page.click("#clear")
    check("question")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"


def test_by_keyboard_alone(open_page: Open, cell_files: list[Path]) -> None:
    page = open_page(expect_faults=True)
    add(page, cell_files)
    wait_for(page, 20)
    page.locator("#grid button[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement === document.querySelectorAll('#grid button')[1]")
    assert page.locator("#grid button[tabindex='0']").count() == 1
    page.keyboard.press("Enter")
    name = page.locator("#detail-title").inner_text()
    page.locator("#detail input[value=none]").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#detail input[value=ALL]")).to_be_checked()
    page.keyboard.press("PageDown")
    expect(page.locator("#detail-title")).not_to_have_text(name)
    page.keyboard.press("PageUp")
    expect(page.locator("#detail input[value=ALL]")).to_be_checked()
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    assert name in page.evaluate("document.activeElement.textContent")
    row = next(row for row in saved_rows(page) if row["file"] == name)
    assert (row["person_label"], row["final_label"]) == ("ALL", "ALL")


def test_patients_by_name_pattern_and_folder(open_page: Open, cell_files: list[Path]) -> None:
    page = open_page()
    expect(page.locator("#pattern")).to_have_value(CELL_PATTERN)
    page.set_input_files("#folder", cell_files[0].parent)
    wait_for(page, 20)
    subjects = page.locator("#patients tbody th")
    expect(subjects).to_have_text(["2", "4", "H1", "H3"])
    page.click("#patients tbody button >> nth=2")
    expect(page.locator("#grid > li")).to_have_count(5)
    page.click("#patients tbody button >> nth=2")
    page.click("summary")
    page.fill("#pattern", "UID_(?P<subject>.)")
    expect(subjects).to_have_text(["2", "4", "H"])
    page.fill("#pattern", "UID_(")
    expect(page.locator("#pattern-error")).to_contain_text("Not usable")
    page.select_option("#subject-rule", "folder")
    expect(subjects).to_have_text([cell_files[0].parent.name])


def test_filters_order_and_search(open_page: Open, cell_files: list[Path]) -> None:
    page = open_page()
    add(page, cell_files)
    wait_for(page, 20)
    shares = [float(text.split()[0]) for text in page.locator("#grid .figures").all_text_contents()]
    flagged = page.locator("#grid .flag").count()
    assert shares[:flagged] == sorted(shares[:flagged])
    assert shares[flagged:] == sorted(shares[flagged:])
    page.select_option("#sort", "certain")
    shares = [float(text.split()[0]) for text in page.locator("#grid .figures").all_text_contents()]
    assert shares == sorted(shares, reverse=True)
    page.fill("#search", "uid_h1_")
    expect(page.locator("#grid > li")).to_have_count(5)
    page.fill("#search", "nothing such")
    expect(page.locator("#none-match")).to_be_visible()
    page.fill("#search", "")
    page.check("input[name=filter][value=failed]")
    expect(page.locator("#grid > li")).to_have_count(0)


def test_many_cells_are_shown_a_part_at_a_time(open_page: Open, tmp_path: Path) -> None:
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    files = [tmp_path / f"cell_{number:03}.png" for number in range(700)]
    for file in files:
        file.write_bytes(small.getvalue())
    page = open_page(expect_faults=True)
    page.route("**/predict", lambda route: problem(route, 429, "full", **{"Retry-After": "600"}))
    add(page, files)
    expect(page.locator("#more")).to_have_text("Show more (400 left)")
    expect(page.locator("#grid > li")).to_have_count(300)
    page.locator("#grid button").first.focus()
    page.keyboard.press("End")
    expect(page.locator("#grid > li")).to_have_count(700)
    assert "cell_699.png" in page.evaluate("document.activeElement.textContent")
    page.fill("#search", "cell_6")
    expect(page.locator("#grid > li")).to_have_count(100)


def test_what_is_answered_survives_the_service_and_a_reload(
    open_page: Open, models_dir: Path, cell_files: list[Path], tmp_path: Path
) -> None:
    with ServerProcess(tmp_path / "log", models_dir=models_dir) as first:
        page = open_page(first.url, expect_faults=True)
        add(page, cell_files[:8])
        wait_for(page, 8)
    add(page, cell_files[8:])
    expect(page.locator("#trouble-text")).to_contain_text("The service can't be reached.")
    expect(page.locator("#progress-text")).to_contain_text("8 of 20 answered")
    assert len(saved_rows(page)) == 8
    with ServerProcess(tmp_path / "log2", models_dir=models_dir, port=first.port) as second:
        wait_for(page, 20)  # the page asks again by itself
        answered = httpx.get(f"{second.url}/metrics").text
        counts = re.findall(r"^leukoscope_predictions_total\{.*\} (\S+)", answered, re.MULTILINE)
        assert sum(map(float, counts)) == 12  # none was asked twice
        before = saved_rows(page)
        page.wait_for_timeout(600)  # the browser's database is written a moment later
        page.reload()
        expect(page.locator("#grid > li")).to_have_count(20)
        assert saved_rows(page) == before


def test_stop_and_go_on(open_page: Open, cell_files: list[Path]) -> None:
    page = open_page(expect_faults=True)
    held: list[Any] = []
    page.route("**/predict", lambda route: held.append(route))  # noqa: PLW0108 - playwright takes no built-in
    add(page, cell_files)
    expect(page.locator("#stop")).to_be_visible()
    page.click("#stop")
    expect(page.locator("#progress-text")).to_contain_text("stopped with 20 left")
    page.unroute("**/predict")
    page.click("#resume")
    wait_for(page, 20)


def test_a_busy_service_is_asked_again_when_it_says(open_page: Open, cell_files: list[Path]) -> None:
    page = open_page(expect_faults=True)
    seen = []

    def busy_once(route: "Route") -> None:
        seen.append(route)
        if len(seen) <= 2:
            problem(route, 429, "full", **{"Retry-After": "2"})
        else:
            route.continue_()

    page.route("**/predict", busy_once)
    add(page, cell_files)
    expect(page.locator("#trouble-text")).to_contain_text("The service is busy")
    wait_for(page, 20)
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_key_is_asked_for_kept_and_sent(open_page: Open, cell_files: list[Path]) -> None:
    page = open_page(expect_faults=True)

    def guarded(route: "Route") -> None:
        if route.request.headers.get("x-api-key") == "right":
            route.continue_()
        else:
            problem(route, 401, "A key is needed.")

    page.route("**/predict", guarded)
    add(page, cell_files)
    expect(page.locator("#key")).to_be_visible()
    page.fill("#key-input", "right")
    page.keyboard.press("Enter")
    wait_for(page, 20)
    assert page.evaluate("sessionStorage.getItem('leukoscope-key')") == "right"


def test_with_keys_set_the_page_opens_and_the_model_waits_for_one(
    open_page: Open, models_dir: Path, tmp_path: Path
) -> None:
    secret, key = new_key("ward")
    with ServerProcess(tmp_path / "log", models_dir=models_dir, api_keys=key.setting) as guarded:
        page = open_page(guarded.url, expect_faults=True)
        expect(page.locator("#model-name")).to_have_text("Model: a key is needed")
        page.click("#model-button")
        page.fill("#key-input", secret)
        page.keyboard.press("Enter")
        expect(page.locator("#model-name")).to_have_text("Model tiny 1.0.0")


def test_what_a_browser_cannot_show_is_answered_all_the_same(open_page: Open, tmp_path: Path) -> None:
    path = tmp_path / "cell.tiff"
    path.write_bytes(cell_bytes("ALL", 1, "TIFF"))
    page = open_page(expect_faults=True)
    add(page, [path])
    wait_for(page, 1)
    expect(page.locator("#grid .nothing")).to_have_text("TIFF: no preview")
    expect(page.locator("#grid .label")).to_be_visible()


def test_the_report_names_model_hashes_and_time(open_page: Open, cell_files: list[Path]) -> None:
    page = open_page()
    page.evaluate("window.print = () => {}")
    add(page, cell_files)
    wait_for(page, 20)
    page.click("#print-report")
    page.emulate_media(media="print")
    report = page.locator("#report").inner_text()
    assert "tiny 1.0.0" in report
    assert re.search(r"SHA-256 of model\.onnx\s+[0-9a-f]{64}", report)
    assert re.search(r"Made\s+\d+ \w+ \d{4}, \d\d:\d\d", report)
    assert report.count("UID_") == 20


def test_it_speaks_of_research_and_never_of_a_finding(open_page: Open, cell_files: list[Path]) -> None:
    page = open_page()
    add(page, cell_files)
    wait_for(page, 20)
    text = page.locator("body").inner_text()
    assert "Research use" in text
    assert not re.search(r"leuk\w+ (was |is )?(detected|found)", text, re.IGNORECASE)


def test_clearing_removes_all_from_the_browser(open_page: Open, cell_files: list[Path]) -> None:
    page = open_page()
    add(page, cell_files[:2])
    wait_for(page, 2)
    page.wait_for_timeout(600)
    page.click("#clear")
    page.click("#sure button[value=clear]")
    expect(page.locator("#empty")).to_be_visible()
    page.reload()
    page.wait_for_timeout(500)
    expect(page.locator("#grid > li")).to_have_count(0)
