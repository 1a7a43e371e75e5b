"""Each model that ships under models/: its hashes, its golden output, and an answer from it."""

from pathlib import Path

import numpy as np
import pytest

from app.core import imaging
from app.core.postprocess import postprocess
from app.core.spec import MODEL_FILE
from app.cpus import saturates_8_bits
from app.inference.loader import LoadedModel
from app.inference.providers import CPU_PROVIDER, OPENVINO_PROVIDER, Placement
from app.inference.registry import ModelRef
from tests.explanations import inside, look, occlusion, randomised, read
from tests.service.harness import ROOT, load, make_settings, running

MODELS = ROOT / "models"
SHIPPED = sorted(folder for folder in MODELS.glob("*/*") if folder.is_dir())

pytestmark = pytest.mark.skipif(not SHIPPED, reason="models/ holds no model yet")


@pytest.fixture(scope="module", params=SHIPPED, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def model(request: pytest.FixtureRequest) -> LoadedModel:
    """Loading verifies the hashes and reproduces the golden output."""
    folder: Path = request.param
    return load(MODELS, Placement(device="cpu", threads=2, max_batch=4), ref=ModelRef(folder.parent.name, folder.name))


def test_is_verified_and_answers(model: LoadedModel, drawn_cells: list[bytes]) -> None:
    assert model.installed.problem is None
    assert model.installed.report
    image = imaging.preprocess(imaging.decode(drawn_cells[0]), model.manifest.preprocessing)
    prediction = postprocess(model.session.run(image[None]).logits[0], model.manifest)
    assert 0.5 <= prediction.confidence <= 1
    assert sum(prediction.probabilities.values()) == pytest.approx(1)


def test_answers_do_not_depend_on_the_batch(model: LoadedModel, drawn_cells: list[bytes]) -> None:
    spec = model.manifest.preprocessing
    images = np.stack([imaging.preprocess(imaging.decode(cell), spec) for cell in drawn_cells[:4]])
    together = [postprocess(row, model.manifest) for row in model.session.run(images).logits]
    singly = [postprocess(model.session.run(image[None]).logits[0], model.manifest) for image in images]
    assert together == singly


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_eight_bits_answer_much_the_same(folder: Path, drawn_cells: list[bytes]) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if saturates_8_bits():
        pytest.skip("this processor has no VNNI or AMX")
    ref = ModelRef(folder.parent.name, folder.name)
    eight = load(MODELS, Placement(device="cpu", max_batch=1, cpu_engine="openvino", precision="int8"), ref=ref)
    plain = load(MODELS, Placement(device="cpu", max_batch=1), ref=ref)
    assert (eight.precision, eight.session.provider) == ("int8", OPENVINO_PROVIDER)
    assert eight.manifest.temperature != plain.manifest.temperature
    images = [imaging.preprocess(imaging.decode(cell), plain.manifest.preprocessing) for cell in drawn_cells]
    said = [
        np.array(
            [
                postprocess(model.session.run(image[None]).logits[0], model.manifest).probabilities["ALL"]
                for image in images
            ]
        )
        for model in (eight, plain)
    ]
    # Drawn cells are no data: how well real ones are told is in the reports.
    assert np.abs(said[0] - said[1]).mean() < 0.3


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_eight_bits_reproduce_their_golden_answer_in_onnx_runtime(folder: Path) -> None:
    ref = ModelRef(folder.parent.name, folder.name)
    # Loading compares the answer.
    model = load(MODELS, Placement(device="cpu", max_batch=1, cpu_engine="onnxruntime", precision="int8"), ref=ref)
    assert (model.precision, model.session.provider) == ("int8", CPU_PROVIDER)


@pytest.mark.anyio
async def test_the_active_model_is_served(drawn_cells: list[bytes]) -> None:
    async with running(make_settings(MODELS, device="cpu")) as (_, client):
        assert (await client.get("/readyz")).json()["status"] == "ready"
        response = await client.post("/predict", files={"file": ("cell.bmp", drawn_cells[0])})
    assert response.status_code == 200
    assert response.json()["predictions"][0]["label"] in {"ALL", "HEM"}


def gives_evidence(model: LoadedModel, pixels: np.ndarray) -> bool:
    return model.session.run(pixels[None]).evidence is not None


def test_evidence_lies_on_the_cell_and_comes_from_the_weights(model: LoadedModel, drawn_cells: list[bytes]) -> None:
    spec = model.manifest.preprocessing
    pictures = [imaging.preprocess(imaging.decode(cell), spec) for cell in drawn_cells]
    if not gives_evidence(model, pictures[0]):
        pytest.skip("this model gives no evidence")
    shares = np.array([inside(look(model, pixels)) for pixels in pictures])
    assert shares[:, 0].mean() > shares[:, 1].mean()
    ref = model.installed.ref
    same = randomised(MODELS / ref.name / ref.version / MODEL_FILE, pictures[:4], seed=0)
    assert np.abs(same).max() < 0.95


def test_covering_strong_evidence_costs_more_than_covering_at_random(
    model: LoadedModel, real_cells: list[Path]
) -> None:
    pictures = read(real_cells, model.manifest.preprocessing)
    if not gives_evidence(model, pictures[0]):
        pytest.skip("this model gives no evidence")
    rng = np.random.default_rng(0)
    falls = np.array([occlusion(model, look(model, pixels), rng) for pixels in pictures])
    assert falls[:, 0].mean() > falls[:, 1].mean()
