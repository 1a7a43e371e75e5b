"""Heat-maps: geometry, colours, `POST /explain`, and `leukoscope predict --explain`."""

import dataclasses
import io
import json
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from PIL import Image

from app.core.imaging import crop_box
from app.core.parts import Preprocessing
from app.folder.heatmaps import place
from app.inference.explain import MAX_SIDE_PX, Style, colour, draw, spread
from tests.models import NAME, PREPROCESSING, VERSION, build_graph, make_manifest, write_models
from tests.service.harness import make_settings, run_cli, running
from training.data.drawn import cell_bytes, draw_cell

CROP = Preprocessing(crop_px=40, size_px=32, resample="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def corner_evidence() -> np.ndarray:
    """Strongest for ALL in the upper left of the crop, for HEM in the lower right."""
    evidence = np.zeros((4, 4), dtype=np.float32)
    evidence[0, 0], evidence[3, 3] = 2.0, -1.0
    return evidence


def test_evidence_lies_where_the_crop_lies() -> None:
    assert crop_box((100, 60), CROP) == (30, 10, 70, 50)
    values, seen = spread(corner_evidence(), (100, 60), (30, 10, 70, 50))
    assert values.shape == seen.shape == (60, 100)
    assert seen.sum() == 40 * 40
    y, x = np.unravel_index(values.argmax(), values.shape)
    assert 30 <= x < 40
    assert 10 <= y < 20
    y, x = np.unravel_index(values.argmin(), values.shape)
    assert 60 <= x < 70
    assert 40 <= y < 50
    assert np.abs(values).max() <= 1
    assert not values[~seen].any()


def test_a_crop_larger_than_the_picture_is_cut_to_it() -> None:
    values, seen = spread(corner_evidence(), (20, 20), (-10, -10, 30, 30))
    assert values.shape == (20, 20)
    assert seen.all()


def test_no_evidence_has_no_colour() -> None:
    values, _ = spread(np.zeros((3, 3), dtype=np.float32), (10, 10), (0, 0, 10, 10))
    assert not values.any()


def test_colours_tell_the_two_labels_apart_without_red_and_green() -> None:
    strong_all, none, strong_hem = colour(np.array([1.0, 0.0, -1.0], dtype=np.float32))
    assert strong_all[0] > 200 > strong_all[2]
    assert strong_hem[2] > 150 > strong_hem[0]
    assert none.min() > 240
    # On a grey screen strength still shows, and so does which way: orange is lighter than blue.
    brightness = colour(np.linspace(-1, 1, 21, dtype=np.float32)) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(brightness[:11]) > 0).all()
    assert (np.diff(brightness[10:]) < 0).all()


@pytest.mark.parametrize(("style", "width"), [(Style.OVERLAY, 100), (Style.SIDE_BY_SIDE, 200), (Style.MAP, 100)])
def test_styles_keep_the_pictures_size(style: Style, width: int) -> None:
    picture = Image.new("RGB", (100, 60), (90, 60, 120))
    drawn = draw(picture, corner_evidence(), CROP, style)
    assert drawn.size == (width, 60)
    if style is Style.SIDE_BY_SIDE:
        assert drawn.crop((0, 0, 100, 60)).tobytes() == picture.tobytes()


def test_a_large_picture_is_drawn_smaller() -> None:
    drawn = draw(Image.new("RGB", (3000, 1000)), corner_evidence(), CROP, Style.OVERLAY)
    assert drawn.size == (MAX_SIDE_PX, round(MAX_SIDE_PX / 3))


def write_models_without_evidence(root: Path) -> Path:
    """A model of an earlier export, which gives logits alone."""
    write_models(root)
    folder = root / NAME / VERSION
    graph = build_graph()
    del graph.graph.output[1:]
    onnx.save(graph, folder / "model.onnx")
    manifest = dataclasses.replace(make_manifest(folder), preprocessing=PREPROCESSING)
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return root


@pytest.mark.anyio
async def test_explain_gives_the_answer_of_predict_and_a_png(models_dir: Path) -> None:
    cell = cell_bytes("ALL", 3)
    async with running(make_settings(models_dir)) as (_, client):
        item = (await client.post("/predict", files={"file": ("c.bmp", cell)})).json()["predictions"][0]
        as_form = await client.post("/explain?style=overlay", files={"file": ("c.bmp", cell)})
        as_body = await client.post("/explain?style=overlay", content=cell, headers={"content-type": "image/bmp"})
        both = await client.post("/explain", files={"file": ("c.bmp", cell)})
    assert as_form.status_code == 200
    assert as_form.headers["content-type"] == "image/png"
    assert as_form.headers["x-leukoscope-label"] == item["label"]
    assert float(as_form.headers["x-leukoscope-confidence"]) == item["confidence"]
    assert as_form.headers["x-leukoscope-review"] == str(item["review"]).lower()
    assert as_form.headers["x-leukoscope-model"] == f"{NAME}@{VERSION}"
    assert as_form.content == as_body.content
    assert Image.open(io.BytesIO(as_form.content)).size == (450, 450)
    assert Image.open(io.BytesIO(both.content)).size == (900, 450)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("request_of", "status"),
    [
        ({"files": [("files", ("a.bmp", cell_bytes("ALL", 1)))] * 2}, 413),
        ({"files": {"file": ("a.bmp", b"no picture")}}, 422),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415),
        ({"files": {"picture": ("a.bmp", cell_bytes("ALL", 1))}}, 400),
        ({"files": {"file": ("a.bmp", cell_bytes("ALL", 1))}, "params": {"style": "rainbow"}}, 400),
        ({"files": {"file": ("a.bmp", cell_bytes("ALL", 1))}, "params": {"model": "other"}}, 404),
    ],
)
async def test_wrong_requests_are_problems(models_dir: Path, request_of: dict[str, object], status: int) -> None:
    async with running(make_settings(models_dir)) as (_, client):
        response: httpx.Response = await client.post("/explain", **request_of)  # type: ignore[arg-type]
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")


@pytest.mark.anyio
async def test_a_model_without_evidence_says_so(tmp_path: Path) -> None:
    async with running(make_settings(write_models_without_evidence(tmp_path))) as (_, client):
        response = await client.post("/explain", files={"file": ("c.bmp", cell_bytes("ALL", 3))})
    assert response.status_code == 501
    assert response.json()["type"] == "/problems/no-explanation"
    assert f"{NAME}@{VERSION} has no evidence output" in response.json()["detail"]


def test_the_folder_command_writes_a_heat_map_for_each_picture(models_dir: Path, tmp_path: Path) -> None:
    cells = tmp_path / "cells"
    (cells / "a").mkdir(parents=True)
    (cells / "a" / "one.bmp").write_bytes(cell_bytes("ALL", 1))
    (cells / "two.bmp").write_bytes(b"no picture")
    maps = tmp_path / "maps"
    out = tmp_path / "r.jsonl"
    result = run_cli("predict", str(cells), "--out", str(out), "--explain", str(maps), models_dir=models_dir)
    assert result.returncode == 1, result.stderr
    (png,) = maps.rglob("*.*")
    assert png == maps / cells.relative_to("/") / "a" / "one.bmp.png"
    with Image.open(png) as image:
        assert image.size == (900, 450)
        assert image.crop((0, 0, 450, 450)).tobytes() == draw_cell("ALL", 1).tobytes()
    assert len([json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]) == 2


def test_a_model_without_evidence_ends_the_folder_command(tmp_path: Path) -> None:
    models = write_models_without_evidence(tmp_path / "models")
    (tmp_path / "cell.bmp").write_bytes(cell_bytes("ALL", 1))
    result = run_cli("predict", str(tmp_path / "cell.bmp"), "--explain", str(tmp_path / "maps"), models_dir=models)
    assert result.returncode == 2
    assert "--explain: tiny@1.0.0 has no evidence output" in result.stderr


@pytest.mark.parametrize("key", ["/etc/x.bmp", "../../x.bmp", "a.zip/../../../x.bmp", "a\\b:c.bmp", "...", "x" * 300])
def test_heat_maps_stay_below_their_folder(key: str) -> None:
    path = place(key)
    assert not path.is_absolute()
    assert ".." not in path.parts
    assert all(len(part) < 200 for part in path.parts)


def test_names_that_had_to_be_changed_stay_apart() -> None:
    assert place("a/b:c.bmp") != place("a/b?c.bmp")
