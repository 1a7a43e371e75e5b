"""The figures in README.md are those of the reports."""

from pathlib import Path

import pytest

from tests.models import write_models
from training.errors import RunError
from training.folder import card_of_folder
from training.readme import BEGIN, END, figures_table, renewed

ROOT = Path(__file__).resolve().parent.parent.parent
SHIPPED = sorted(folder for folder in (ROOT / "models").glob("*/*") if folder.is_dir())


def test_the_readme_shows_the_figures_of_the_shipped_reports() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert renewed(readme, figures_table(ROOT / "models")) == readme, "run leukoscope-train figures"


def test_a_readme_without_a_place_for_them() -> None:
    with pytest.raises(RunError, match="no place for figures"):
        renewed("# Readme", "| a |")


def test_the_rest_of_the_readme_stays() -> None:
    assert renewed(f"before\n{BEGIN}\nold\n{END}\nafter", "new") == f"before\n{BEGIN}\nnew\n{END}\nafter"


def test_no_models(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no model"):
        figures_table(tmp_path)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_a_shipped_card_is_the_one_of_its_report(folder: Path) -> None:
    made, shipped = card_of_folder(folder), (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    # The wording may have moved on since the export; the figures may not.
    rows = [line for line in shipped.splitlines() if line.startswith("|")]
    assert rows == [line for line in made.splitlines() if line.startswith("|")]


def test_a_card_without_a_report(tmp_path: Path) -> None:
    folder = write_models(tmp_path) / "tiny" / "1.0.0"
    (folder / "report.json").unlink()
    with pytest.raises(RunError, match="can't be read"):
        card_of_folder(folder)
