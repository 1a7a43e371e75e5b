"""The manifest: what it keeps, and what it refuses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import ManifestError
from app.core.parts import Novelty
from app.core.spec import Manifest
from tests.models import NAME, VERSION


@pytest.fixture
def manifest(models_dir: Path) -> Manifest:
    return Manifest.load(models_dir / NAME / VERSION)


def test_round_trip(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_threshold_of_novelty_is_kept_and_may_be_missing(manifest: Manifest) -> None:
    scored = dataclasses.replace(manifest, novelty=Novelty(method="for tests", threshold=2.5))
    assert Manifest.from_json(scored.to_json()) == scored
    raw = json.loads(manifest.to_json())
    del raw["novelty"]
    assert Manifest.from_json(json.dumps(raw)) == manifest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2),
        ("name", "Big Name"),
        ("name", 5),
        ("name", "../x"),
        ("version", "1.0"),
        ("labels", ["ALL", "CLL"]),
        ("labels", None),
        ("labels", ["ALL"]),
        ("temperature", 0),
        ("temperature", "1"),
        ("review.low", 0.9),
        ("review.high", 1.5),
        ("review", []),
        ("files", {}),
        ("files", "model.onnx"),
        ("files", {"model.onnx": "abc"}),
        ("files", {"model.onnx": "0" * 64, "../secret": "0" * 64}),
        ("preprocessing.size_px", 8),
        ("preprocessing.crop_px", 4),
        ("preprocessing.resample", "area"),
        ("preprocessing.mean", [1, 2]),
        ("preprocessing.std", [1, 0, 1]),
        ("preprocessing.std", None),
        ("preprocessing.sizes", 1),
        ("golden.logits", [1.0]),
        ("golden.logits", [1.0, None]),
        ("golden.atol", 0),
        ("golden.input_sha256", "0"),
        ("threshold", 0.5),
        ("novelty", 2.5),
        ("novelty", {"threshold": 2.5}),
        ("novelty", {"method": "", "threshold": 2.5}),
        ("novelty", {"method": "for tests", "threshold": 0}),
        ("novelty", {"method": "for tests", "threshold": "2.5"}),
        ("novelty", {"method": "for tests", "threshold": 2.5, "unit": "px"}),
    ],
)
def test_refuses(manifest: Manifest, path: str, value: object) -> None:
    raw: dict[str, Any] = json.loads(manifest.to_json())
    target = raw
    *parents, key = path.split(".")
    for parent in parents:
        target = target[parent]
    target[key] = value
    with pytest.raises(ManifestError):
        Manifest.from_json(json.dumps(raw))


@pytest.mark.parametrize("key", ["name", "labels", "preprocessing", "golden", "files", "licence", "split"])
def test_refuses_a_missing_key_by_its_name(manifest: Manifest, key: str) -> None:
    raw = json.loads(manifest.to_json())
    del raw[key]
    with pytest.raises(ManifestError, match=key):
        Manifest.from_json(json.dumps(raw))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"'])
def test_refuses_what_is_no_object(text: str) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_json(text)


def test_load_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        Manifest.load(tmp_path)
