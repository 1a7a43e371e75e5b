"""Fixtures for all tests: a clean environment, a tiny model, and cells to post."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models import write_models
from training.data.drawn import cell_bytes

ROOT = Path(__file__).resolve().parent.parent
_PER_CLASS = 8


@pytest.fixture(autouse=True, scope="session")
def clean_environment() -> Iterator[None]:
    """No setting of the person who runs the tests reaches them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.upper().startswith("LEUKOSCOPE_"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder models/ with the tiny model; not to be changed."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def drawn_cells() -> list[bytes]:
    """Drawn cells as BMP files: stand-ins that are always there."""
    return [cell_bytes(label, seed) for seed in range(4) for label in ("ALL", "HEM")]


@pytest.fixture(scope="session")
def real_cells(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real C-NMC cells as published: 8 BMP files of each class, in a fixed order."""
    folder = _cnmc_folder(tmp_path_factory)
    by_class = [sorted(folder.glob(f"C-NMC_Leukemia/training_data/*/{label}/*.bmp")) for label in ("all", "hem")]
    if not all(by_class):
        pytest.skip(f"no real cells: {folder} holds no C-NMC_Leukemia/training_data/fold_*/{{all,hem}}/*.bmp")
    # Spread over the whole list, so that they come from many subjects.
    return [path for paths in by_class for path in paths[:: max(1, len(paths) // _PER_CLASS)][:_PER_CLASS]]


def _cnmc_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "CNMC_DATA" in os.environ:
        return Path(os.environ["CNMC_DATA"])
    if (ROOT / "data" / "C-NMC_Leukemia").is_dir():
        return ROOT / "data"
    unpack = ROOT.parent / "shared" / "tools" / "cnmc-unpack"
    if not unpack.is_file():
        pytest.skip("no real cells: set CNMC_DATA to the folder that holds C-NMC_Leukemia, or put that under data/")
    folder = tmp_path_factory.mktemp("cnmc")
    command = [sys.executable, str(unpack), str(folder), "--folds", "0", "1", "--per-class", str(_PER_CLASS)]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own interpreter and script
    return folder
