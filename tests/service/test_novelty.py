"""What is no cell: flagged by a model that scores novelty, wherever answers are given."""

import csv
import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from app.core import imaging
from app.core.errors import ModelIntegrityError
from app.core.parts import Novelty
from app.core.spec import MODEL_FILE, Manifest
from app.inference.openvino import OpenVinoSession
from app.inference.outputs import Outputs
from app.inference.providers import Placement
from app.inference.session import OnnxSession, Session
from tests.models import NAME, PREPROCESSING, VERSION, write_models
from tests.service.harness import make_settings, run_cli, running, samples
from training.data.drawn import cell_bytes

pytestmark = pytest.mark.anyio

CELL = cell_bytes("ALL", seed=0)
# The tiny graph's novelty is the mean of all bytes.
THRESHOLD = Novelty(method="for tests: the mean of all bytes", threshold=60.0)


def photograph() -> bytes:
    """Stands for one: it fills the picture, where a cut-out cell leaves it mostly black."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(450, 450, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder models/ whose model scores novelty."""
    return write_models(tmp_path_factory.mktemp("scoring"), scores_novelty=True, novelty=THRESHOLD)


@pytest.fixture
async def client(scoring: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running(make_settings(scoring)) as (_, client):
        yield client


def files() -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", ("cell.bmp", CELL)), ("files", ("photograph.png", photograph()))]


async def test_a_photograph_is_for_a_person_and_a_cell_is_not(client: httpx.AsyncClient) -> None:
    body = (await client.post("/predict", files=files())).json()
    cell, other = body["predictions"]
    assert "out-of-distribution" not in cell["reasons"]
    assert "out-of-distribution" in other["reasons"]
    assert other["review"] is True
    assert other["label"] in {"ALL", "HEM"}
    counted = samples((await client.get("/metrics")).text)
    assert counted['leukoscope_review_total{reason="out-of-distribution"}'] == 1
    assert counted[f'leukoscope_reviewed_total{{model="{NAME}",version="{VERSION}"}}'] == body["summary"]["review"]


async def test_without_the_output_nothing_is_said_of_novelty(models_dir: Path) -> None:
    async with running(make_settings(models_dir)) as (_, client):
        body = (await client.post("/predict", files=files())).json()
        outputs = (await client.get(f"/v2/models/{NAME}")).json()["outputs"]
    assert all("out-of-distribution" not in item["reasons"] for item in body["predictions"])
    assert "novelty" not in [output["name"] for output in outputs]


async def test_v2_gives_the_score_itself(client: httpx.AsyncClient) -> None:
    described = (await client.get(f"/v2/models/{NAME}")).json()["outputs"]
    assert {"name": "novelty", "datatype": "FP32", "shape": [-1]}.items() <= described[-1].items()
    pixels = np.stack([imaging.preprocess(imaging.decode(data), PREPROCESSING) for data in (CELL, photograph())])
    image = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    wanted = [{"name": "novelty"}, {"name": "review"}]
    answer = (await client.post(f"/v2/models/{NAME}/infer", json={"inputs": [image], "outputs": wanted})).json()
    novelty, review = (output["data"] for output in answer["outputs"])
    assert novelty == pytest.approx(pixels.mean(axis=(1, 2, 3)), rel=1e-4)
    assert review[1] is True


def test_the_folder_command_writes_the_reason(scoring: Path, tmp_path: Path) -> None:
    (tmp_path / "cell.bmp").write_bytes(CELL)
    (tmp_path / "photograph.png").write_bytes(photograph())
    out = tmp_path / "results.csv"
    result = run_cli("predict", str(tmp_path), "--out", str(out), models_dir=scoring, inference_threads=1)
    assert result.returncode == 0, result.stderr
    with out.open(newline="") as opened:
        reasons = {Path(row["file"]).name: row["reasons"].split(";") for row in csv.DictReader(opened)}
    assert "out-of-distribution" not in reasons["cell.bmp"]
    assert "out-of-distribution" in reasons["photograph.png"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_engine_gives_the_score(scoring: Path, engine: str) -> None:
    folder = scoring / NAME / VERSION
    placement = Placement(device="cpu", threads=2, max_batch=4)
    session: Session = (
        OnnxSession.create(folder / MODEL_FILE, Manifest.load(folder), placement)
        if engine == "onnxruntime"
        else OpenVinoSession.create(folder / MODEL_FILE, Manifest.load(folder), placement, streams=1)
    )
    images = np.stack([np.full((48, 48, 3), level, dtype=np.uint8) for level in (0, 100, 255)])
    outputs = session.run(images)
    assert outputs.novelty is not None
    np.testing.assert_allclose(outputs.novelty, [0, 100, 255], rtol=1e-3)
    row = outputs.row(1).novelty
    assert row is not None
    assert row.shape == ()


def test_outputs_of_several_calls_keep_their_scores() -> None:
    parts = [Outputs(np.zeros((n, 2), np.float32), novelty=np.full(n, n, np.float32)) for n in (1, 2)]
    joined = Outputs.joined(parts).novelty
    assert joined is not None
    assert joined.tolist() == [1, 2, 2]


def test_a_threshold_without_the_output_is_refused(tmp_path: Path) -> None:
    folder = write_models(tmp_path, novelty=THRESHOLD) / NAME / VERSION
    with pytest.raises(ModelIntegrityError, match="novelty"):
        OnnxSession.create(folder / MODEL_FILE, Manifest.load(folder), Placement(device="cpu"))


def test_scores_survive_being_taken_apart_and_put_together_again() -> None:
    scores = np.array([1, 2, 3], np.float32)
    outputs = Outputs(np.zeros((3, 2), np.float32), novelty=scores)
    again = Outputs.stacked([outputs.row(index) for index in range(3)]).novelty
    assert again is not None
    assert again.tolist() == scores.tolist()
