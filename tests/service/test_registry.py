"""The folder models/: good and bad folders, hashes, and the golden output."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import GoldenMismatchError, ManifestError, ModelError, ModelIntegrityError
from app.core.spec import MANIFEST_FILE, MODEL_FILE, Manifest
from app.inference.providers import Placement
from app.inference.registry import ModelRef, Registry
from tests.models import NAME, VERSION, write_models
from tests.service.harness import load, loader_of, run_here

TINY = ModelRef(NAME, VERSION)


def change_golden(models_dir: Path, **changes: Any) -> None:
    folder = models_dir / NAME / VERSION
    manifest = Manifest.load(folder)
    golden = dataclasses.replace(manifest.golden, **changes)
    (folder / MANIFEST_FILE).write_text(dataclasses.replace(manifest, golden=golden).to_json(), encoding="utf-8")


def test_a_good_model_loads(models_dir: Path) -> None:
    assert Registry(models_dir).active() == TINY
    model = load(models_dir, Placement(device="cpu", max_batch=2))
    assert model.session.max_batch == 2
    assert model.installed.report["balanced_accuracy"] == 0.5


def test_a_bad_folder_is_reported_and_does_no_harm(tmp_path: Path) -> None:
    write_models(tmp_path)
    write_models(tmp_path, version="1.1.0", active=False)
    (tmp_path / NAME / "1.1.0" / MANIFEST_FILE).write_text("{", encoding="utf-8")
    (tmp_path / "stray").mkdir()
    good, bad = Registry(tmp_path).scan()
    assert (good.ref, good.problem) == (TINY, None)
    assert bad.ref.version == "1.1.0"
    assert bad.problem is not None
    assert "not JSON" in bad.problem


def test_no_folder_at_all(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "nowhere")
    assert registry.scan() == []
    with pytest.raises(ManifestError, match=r"active\.json"):
        registry.active()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "tiny"}', '{"name": "../x", "version": "1.0.0"}'])
def test_active_must_name_a_folder(tmp_path: Path, text: str) -> None:
    (tmp_path / "active.json").write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError):
        Registry(tmp_path).active()


def test_a_changed_file_is_refused_also_after_a_first_look(tmp_path: Path) -> None:
    loader = loader_of(write_models(tmp_path))
    loader.load(TINY, run_here)
    model = tmp_path / NAME / VERSION / MODEL_FILE
    model.write_bytes(model.read_bytes() + b"x")
    with pytest.raises(ModelIntegrityError, match="hash"):
        loader.load(TINY, run_here)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    write_models(tmp_path)
    (tmp_path / NAME / VERSION / "MODEL_CARD.md").unlink()
    with pytest.raises(ModelIntegrityError, match=r"MODEL_CARD\.md"):
        load(tmp_path)


def test_folder_and_manifest_must_agree(tmp_path: Path) -> None:
    write_models(tmp_path)
    (tmp_path / NAME / VERSION).rename(tmp_path / NAME / "2.0.0")
    with pytest.raises(ModelError, match=r"the manifest is of tiny 1\.0\.0"):
        load(tmp_path, ref=ModelRef(NAME, "2.0.0"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": (9.0, 9.0)}, "golden output"),
        ({"input_sha256": "0" * 64}, "preprocessed"),
        ({"image_png": "AAAA"}, "can't be read"),
        ({"image_png": "no base64!"}, "can't be read"),
        ({"image_png": 5}, "can't be read"),
    ],
)
def test_the_golden_output_must_be_reproduced(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_models(tmp_path)
    change_golden(tmp_path, **changes)
    with pytest.raises(GoldenMismatchError, match=message):
        load(tmp_path)


def test_other_weights_do_not_reproduce_the_golden_output(tmp_path: Path) -> None:
    write_models(tmp_path)
    write_models(tmp_path, version="2.0.0", seed=5)
    golden = json.loads((tmp_path / NAME / VERSION / MANIFEST_FILE).read_text(encoding="utf-8"))["golden"]
    path = tmp_path / NAME / "2.0.0" / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"golden": golden}), encoding="utf-8")
    with pytest.raises(GoldenMismatchError, match="golden output"):
        load(tmp_path, ref=ModelRef(NAME, "2.0.0"))
