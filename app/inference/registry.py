"""The folder models/: find, verify and load what is installed there."""

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.core import imaging
from app.core.errors import GoldenMismatchError, ImageError, ManifestError, ModelError, ModelIntegrityError
from app.core.spec import ACTIVE_FILE, MANIFEST_FILE, MODEL_FILE, REPORT_FILE, Manifest
from app.inference.session import OnnxSession, Session
from app.settings import Device


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Name and version of a model."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Installed:
    """One folder ``models/<name>/<version>/``.

    Attributes:
        ref: The names of its folders.
        manifest: None if it can't be read.
        report: Measured figures; empty if there are none.
        problem: What is wrong with the folder; None if every file has the hash of the manifest.
    """

    ref: ModelRef
    manifest: Manifest | None
    report: dict[str, Any]
    problem: str | None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A verified, warm model that has reproduced its golden output."""

    installed: Installed
    manifest: Manifest
    session: Session


class Registry:
    """The folder models/."""

    def __init__(self, models_dir: Path) -> None:
        self._dir = models_dir
        # Hashes by path, size and time of change, so that GET /models does not read all weights each time.
        self._hashes: dict[tuple[Path, int, int], str] = {}

    def scan(self) -> list[Installed]:
        """Inspect every folder, in the order of names. A bad folder is reported and does no harm."""
        folders = sorted(path.parent for path in self._dir.glob(f"*/*/{MANIFEST_FILE}"))
        return [self.inspect(ModelRef(folder.parent.name, folder.name)) for folder in folders]

    def active(self) -> ModelRef:
        """Read which model is to be served.

        Raises:
            ManifestError: ``active.json`` is missing or says something else than a name and a version.
        """
        path = self._dir / ACTIVE_FILE
        raw = _read_json(path)
        if raw.keys() != {"name", "version"}:
            raise ManifestError(f"{path}: expected the keys name and version, not {sorted(raw)}")
        name, version = raw["name"], raw["version"]
        if not all(isinstance(part, str) and Path(part).name == part for part in (name, version)):
            raise ManifestError(f"{path}: name and version must be names of folders, not {name!r} and {version!r}")
        return ModelRef(name, version)

    def inspect(self, ref: ModelRef) -> Installed:
        """Read and verify one folder; what is wrong with it stands in the result."""
        folder = self._dir / ref.name / ref.version
        manifest: Manifest | None = None
        report: dict[str, Any] = {}
        try:
            manifest = Manifest.load(folder)
            if (manifest.name, manifest.version) != (ref.name, ref.version):
                raise ManifestError(f"{folder}: the manifest is of {manifest.name} {manifest.version}")
            for file, digest in manifest.files.items():
                self._verify(folder / file, digest)
            report = _read_json(folder / REPORT_FILE)
        except ModelError as error:
            return Installed(ref, manifest, report, str(error))
        return Installed(ref, manifest, report, None)

    def load(self, ref: ModelRef, *, device: Device, gpu_index: int, threads: int, max_batch: int) -> LoadedModel:
        """Load a model until it is ready to answer. Takes seconds; call it in a thread.

        Args:
            ref: Which one.
            device: See `OnnxSession.open`, as for the other arguments.
            gpu_index: Which GPU.
            threads: CPU threads.
            max_batch: Largest batch; 0 chooses by device.

        Raises:
            ModelError: A file is missing or changed, the graph does not fit the manifest, the wrong
                provider runs, or the golden output is not reproduced.
        """
        installed = self.inspect(ref)
        if installed.manifest is None or installed.problem is not None:
            raise ModelIntegrityError(installed.problem or f"{ref}: no manifest")
        session = OnnxSession.open(
            self._dir / ref.name / ref.version / MODEL_FILE,
            installed.manifest,
            device=device,
            gpu_index=gpu_index,
            threads=threads,
            max_batch=max_batch,
        )
        check_golden(installed.manifest, session)
        return LoadedModel(installed, installed.manifest, session)

    def _verify(self, path: Path, digest: str) -> None:
        try:
            stat = path.stat()
            key = (path, stat.st_size, stat.st_mtime_ns)
            if key not in self._hashes:
                with path.open("rb") as file:
                    self._hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ModelIntegrityError(f"{path}: can't be read: {error}") from error
        if self._hashes[key] != digest:
            raise ModelIntegrityError(f"{path}: is not the file that the manifest names by its hash")


def check_golden(manifest: Manifest, session: Session) -> None:
    """Reproduce the stored output from the stored picture, through the same code as any request.

    Raises:
        GoldenMismatchError: Decoding, preprocessing or the model gives something else.
    """
    golden = manifest.golden
    try:
        image = imaging.decode(base64.b64decode(golden.image_png, validate=True))
    except (TypeError, ValueError, ImageError) as error:
        raise GoldenMismatchError(f"{manifest.name}: the golden picture can't be read: {error}") from error
    array = imaging.preprocess(image, manifest.preprocessing)
    if hashlib.sha256(array.tobytes()).hexdigest() != golden.input_sha256:
        raise GoldenMismatchError(
            f"{manifest.name}: the golden picture is preprocessed to other bytes than at export; "
            "is this another version of Pillow?"
        )
    logits = session.run(array[None]).logits[0]
    expected = np.asarray(golden.logits)
    if not np.allclose(logits, expected, rtol=0, atol=golden.atol):
        raise GoldenMismatchError(
            f"{manifest.name}: the golden output is {expected.tolist()}, but the model gives {logits.tolist()} "
            f"on {session.provider} (at most {golden.atol} apart is right)"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: can't be read: {error}") from error
    if not isinstance(raw, dict):
        raise ManifestError(f"{path}: expected an object, not {type(raw).__name__}")
    return raw
